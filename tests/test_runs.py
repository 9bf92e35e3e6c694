"""Runs over many inputs with a tagger made of a hash: whole outputs, kills at any byte, full disks, memory."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audiotag.errors import AudioError, InvalidInputError, OutputError
from audiotag.labels.label_set import LabelSet
from audiotag.outputs.formats import FORMATS, About
from audiotag.outputs.records import tag_record
from audiotag.outputs.writers import open_writer
from audiotag.results.prediction import Prediction
from audiotag.runs import journal as journal_module
from audiotag.runs.inputs import common_folder, expand
from audiotag.runs.journal import Journal
from audiotag.runs.progress import Reporter
from audiotag.runs.run import Task, to_file, to_folder, to_stream

LABELS = LabelSet.from_names(["a", "b, with comma", "c"])
ABOUT = About("tags", fmax_hz=15_000.0)


def predicted(path: str) -> Prediction:
    """A prediction that depends on nothing but the path."""
    seed = int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big")
    scores = np.random.default_rng(seed).random((2, 3)).astype(np.float32)
    return Prediction(
        scores=scores.max(0),
        window_scores=scores,
        window_start_s=np.array([0.0, 5.0]),
        window_end_s=np.array([10.0, 15.0]),
        labels=LABELS,
        source=path,
        duration_s=15.0,
        checkpoint="hash",
        hop_s=5.0,
        window_s=10.0,
        aggregate="max",
        warnings=("cut short",) if os.path.basename(path) == "warn.wav" else (),
    )


class Run:
    """A folder of inputs, and runs over it that note what they analysed and can be stopped."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.inputs = folder / "in"
        for name in names:
            path = self.inputs / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x" * 10)
        self.folder = folder
        self.analysed: list[str] = []

    def task(self, form_name: str = "jsonl", *, stop_at: int | None = None, stop: Any = None, **changes: Any) -> Task:
        form = FORMATS[form_name]
        self.analysed = []

        def analyse(sources: Any, progress: Any) -> Iterator[tuple[str, Any]]:
            for source in sources:
                if len(self.analysed) == stop_at:
                    raise stop
                self.analysed.append(source)
                progress(source, 5.0, 15.0)
                bad = "bad" in source or not os.path.exists(source)
                yield source, AudioError(f"{source}: broken") if bad else predicted(source)

        values: dict[str, Any] = {
            "analyse": analyse,
            "describe": lambda path, prediction: tag_record(prediction),
            "opened": lambda place: open_writer(form, ABOUT, place),
            "suffix": form.suffix,
            "one_input": None,
            "batch_size": 1,
            "fingerprint": {"checkpoint": {"sha256": "0"}, "options": {"threshold": None, "format": form_name}},
        }
        return Task(**(values | changes))

    def file(self, output: Path, *args: Any, resume: bool = False, asked: Any = None, **options: Any) -> int:
        asked = asked or {"paths": [str(self.inputs)]}
        task = self.task(*args, **options)
        return to_file(task, expand([str(self.inputs)]), asked, output, Reporter(quiet=False), resume=resume)

    def tree(self, output: Path, *args: Any, resume: bool = False, **options: Any) -> int:
        task, root = self.task(*args, **options), common_folder([str(self.inputs)])
        return to_folder(task, expand([str(self.inputs)]), root, output, Reporter(quiet=False), resume=resume)


NAMES = [f"{i}.wav" for i in range(12)] + ["bad 1.wav", "sub/bad.wav", "sub/x.flac", "sub/ü\n.wav", "warn.wav"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path, NAMES)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".audiotag" not in path.parts
    }


@pytest.mark.parametrize("form", ["text", "json", "jsonl", "csv", "parquet"])
def test_a_file_is_what_the_writer_writes_of_all_inputs_in_order(run: Run, form: str) -> None:
    assert run.file(run.folder / "out", form) == 1
    order = [item.path for item in expand([str(run.inputs)])]
    assert run.analysed == order
    with open_writer(FORMATS[form], ABOUT, run.folder / "expected") as writer:
        for path in order:
            failed = {"source": path, "error": f"{path}: broken", "error_type": "AudioError"}
            writer.write(failed if "bad" in path else tag_record(predicted(path)))
    assert (run.folder / "out").read_bytes() == (run.folder / "expected").read_bytes()
    assert not (run.folder / "out.partial").exists()


def test_a_stream_gets_each_record_at_once(run: Run) -> None:
    out = io.StringIO()
    task = run.task()
    seen = []

    def analyse(sources: Any, progress: Any) -> Iterator[Any]:
        for found in run.task().analyse(sources, progress):
            seen.append(out.getvalue().count("\n"))
            yield found

    changed = Task(**{**task.__dict__, "analyse": analyse})
    assert to_stream(changed, expand([str(run.inputs)]), out, None, Reporter(quiet=True)) == 1
    assert seen == list(range(len(NAMES)))


def test_errors_warnings_and_a_summary_are_told(run: Run, capsys: pytest.CaptureFixture) -> None:
    run.file(run.folder / "out")
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 4
    assert told[0].startswith("audiotag: error: ") and told[0].endswith("bad 1.wav: broken")
    assert told[2] == "audiotag: warning: cut short"
    assert told[3].startswith("audiotag: 17 files, 2 failed, 3:45 of audio in ")


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(errno.EIO, "gone"), RuntimeError("bug")])
def test_a_stopped_run_goes_on_without_repeating_or_losing(run: Run, form: str, stop: Any) -> None:
    whole, output = run.folder / "whole", run.folder / "out"
    run.file(whole, form)
    output.write_text("old")
    if isinstance(stop, KeyboardInterrupt):
        assert run.file(output, form, stop_at=7, stop=stop) == 130
    else:
        with pytest.raises(OutputError if isinstance(stop, OSError) else RuntimeError):
            run.file(output, form, stop_at=7, stop=stop)
    assert output.read_text() == "old"
    first = run.analysed
    assert run.file(output, form, resume=True) == 1
    assert output.read_bytes() == whole.read_bytes()
    assert first + run.analysed == [item.path for item in expand([str(run.inputs)])]


def test_a_run_cut_at_any_byte_goes_on(run: Run) -> None:
    run.file(run.folder / "whole")
    expected = (run.folder / "whole").read_bytes()
    run.file(run.folder / "out", stop_at=9, stop=KeyboardInterrupt())
    partial, saved = run.folder / "out.partial", run.folder / "saved"
    shutil.copytree(partial, saved)
    records = (saved / "records.jsonl").read_bytes()
    random.seed(0)
    ends = [i + 1 for i, byte in enumerate(records) if byte == 10]
    cuts = {0, *ends, *(end - 1 for end in ends), *random.sample(range(len(records)), 40)}
    for cut in sorted(cuts):
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(saved, partial)
        # what a power cut may leave behind the last record that was synced
        tail = random.choice([b"", b"\0" * 50, b'{"source": "x"}\n', b"\xff\n\n"])
        (partial / "records.jsonl").write_bytes(records[:cut] + tail)
        run.file(run.folder / "out", resume=True)
        assert (run.folder / "out").read_bytes() == expected
        assert len(run.analysed) == len(NAMES) - sum(end <= cut for end in ends)
        (run.folder / "out").unlink()
        (run.folder / "out.run.json").unlink()


def test_batches_that_were_begun_are_repeated_whole(run: Run) -> None:
    run.file(run.folder / "out", stop_at=9, stop=KeyboardInterrupt(), batch_size=4)
    run.file(run.folder / "out", resume=True, batch_size=4)
    assert len(run.analysed) == len(NAMES) - 8


@pytest.mark.parametrize("at", ["output", "complete.json", "delete"])
def test_kills_while_finishing(run: Run, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    """A kill at each step between the last record and the end leaves what --resume completes."""
    run.file(run.folder / "whole")
    real = os.replace

    def replace(source: Any, target: Any) -> None:
        if os.path.basename(source) == at:
            raise KeyboardInterrupt
        real(source, target)

    def delete(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if at == "delete":
            patch.setattr(journal_module, "delete_locked", delete)
        else:
            patch.setattr(os, "replace", replace)
        assert run.file(run.folder / "out", resume=True) == 130
        assert (run.folder / "out.partial").exists()
    assert run.file(run.folder / "out", resume=True) == 1
    assert run.analysed == []
    assert (run.folder / "out").read_bytes() == (run.folder / "whole").read_bytes()
    assert sorted(p.name for p in run.folder.iterdir()) == ["in", "out", "out.run.json", "whole"]


def test_what_is_complete_is_not_done_again(run: Run, capsys: pytest.CaptureFixture) -> None:
    output = run.folder / "out"
    run.file(output, resume=True)
    before = output.read_bytes()
    capsys.readouterr()
    assert run.file(output, resume=True) == 1, "some failed, then as now"
    assert run.analysed == []
    assert "17 files, 2 failed; nothing to do" in capsys.readouterr().err
    with pytest.raises(InvalidInputError, match=r"options threshold was null, now 0\.5"):
        run.file(output, resume=True, fingerprint={"checkpoint": {"sha256": "0"}, "options": {"threshold": 0.5}})
    assert output.read_bytes() == before


def test_resume_leaves_alone_what_it_did_not_write(run: Run) -> None:
    output = run.folder / "out"
    run.file(output)  # no --resume: nothing beside it tells what it was made with
    before = output.read_bytes()
    with pytest.raises(InvalidInputError, match="nothing to go on with"):
        run.file(output, resume=True)
    output.write_bytes(b"")  # made beforehand: nothing to lose
    run.file(output, resume=True)
    assert output.read_bytes() == before
    output.write_bytes(before + b"edited")
    with pytest.raises(InvalidInputError, match="nothing to go on with"):
        run.file(output, resume=True)
    assert output.read_bytes() == before + b"edited" and not output.with_name("out.partial").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"checkpoint": {"sha256": "1"}, "options": {"threshold": None, "format": "jsonl"}}, "checkpoint sha256 was"),
        ({"checkpoint": {"sha256": "0"}, "options": {"threshold": 0.5, "format": "jsonl"}}, "options threshold was"),
        (
            {"checkpoint": {"sha256": "0"}, "options": {"format": "jsonl", "new": [1]}},
            r"options new was null, now \[1\]",
        ),
    ],
)
def test_resume_refuses_other_settings(run: Run, changed: dict, message: str) -> None:
    run.file(run.folder / "out", stop_at=5, stop=KeyboardInterrupt())
    kept = (run.folder / "out.partial" / "records.jsonl").read_bytes()
    with pytest.raises(InvalidInputError, match=message):
        run.file(run.folder / "out", resume=True, fingerprint=changed)
    with pytest.raises(InvalidInputError, match="inputs paths was"):
        run.file(run.folder / "out", resume=True, asked={"paths": ["elsewhere"]})
    assert (run.folder / "out.partial" / "records.jsonl").read_bytes() == kept
    assert run.file(run.folder / "out", resume=True) == 1


def test_without_resume_a_run_starts_anew_and_says_so(run: Run, capsys: pytest.CaptureFixture) -> None:
    run.file(run.folder / "out", stop_at=5, stop=KeyboardInterrupt())
    assert "5 of 17 files are done and kept" in capsys.readouterr().err
    run.file(run.folder / "out")
    assert "--resume would have gone on" in capsys.readouterr().err
    assert len(run.analysed) == len(NAMES)


def test_the_inputs_are_those_of_the_start(run: Run) -> None:
    """A file that appears later is not in it; one that goes before its turn is a failure; one done stays."""
    run.file(run.folder / "out", stop_at=5, stop=KeyboardInterrupt())
    (run.inputs / "0.wav").unlink()
    (run.inputs / "11.wav").unlink()
    (run.inputs / "00 new.wav").write_bytes(b"x")
    run.file(run.folder / "out", resume=True)
    found = [json.loads(line) for line in (run.folder / "out").read_text().splitlines()]
    assert len(found) == len(NAMES)
    by_name = {os.path.basename(record["source"]): record for record in found}
    assert "tags" in by_name["0.wav"] and "error" in by_name["11.wav"]


def test_one_run_at_a_time(run: Run) -> None:
    held = Journal(run.folder / "out", {}, resume=False)
    with pytest.raises(InvalidInputError, match="another run is writing it"):
        run.file(run.folder / "out")
    held.close()
    run.file(run.folder / "out")


def test_a_format_of_one_recording(run: Run) -> None:
    with pytest.raises(InvalidInputError, match="holds one recording, got 17"):
        run.file(run.folder / "out", one_input="webvtt")
    assert not (run.folder / "out.partial").exists()
    task = run.task(one_input="webvtt")
    bad = [str(run.inputs / "bad 1.wav")]
    assert to_file(task, expand(bad), {}, run.folder / "out", Reporter(quiet=True), resume=False) == 1
    assert not (run.folder / "out").exists() and not (run.folder / "out.partial").exists()


@pytest.mark.parametrize("limit", [300, 5000])
def test_a_full_disk(run: Run, limit: int) -> None:
    """RLIMIT_FSIZE stands for it: the write that goes beyond fails, in the plan or the records."""
    run.file(run.folder / "whole", "text")
    (run.folder / "out").write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"cannot be written: File too large; .* --resume goes on"):
            run.file(run.folder / "out", "text")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (run.folder / "out").read_text() == "old"
    run.file(run.folder / "out", "text", resume=True)
    assert (run.folder / "out").read_bytes() == (run.folder / "whole").read_bytes()


def test_a_disk_that_is_full_when_the_output_is_put_together(run: Run) -> None:
    run.file(run.folder / "whole")

    class Full:
        def write(self, record: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match="No space left on device; 17 of 17 files are done and kept"):
        run.file(run.folder / "out", opened=lambda path: contextlib.nullcontext(Full()))
    run.file(run.folder / "out", resume=True)
    assert run.analysed == []
    assert (run.folder / "out").read_bytes() == (run.folder / "whole").read_bytes()


def test_a_folder_that_cannot_be_written(run: Run) -> None:
    (run.folder / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        run.file(run.folder / "file" / "out")
    with pytest.raises(OutputError, match="cannot be written"):
        run.tree(run.folder / "file" / "tree")


# -- folders -------------------------------------------------------------------------------------------------


def test_a_tree_mirrors_the_inputs(run: Run) -> None:
    out = run.folder / "tree"
    assert run.tree(out) == 1
    found = contents(out)
    errors = found.pop("audiotag-errors.jsonl").decode().splitlines()
    assert [os.path.basename(json.loads(line)["source"]) for line in errors] == ["bad 1.wav", "bad.wav"]
    assert sorted(found) == sorted(os.path.normpath(f"{name}.jsonl") for name in NAMES if "bad" not in name)
    assert json.loads(found[os.path.normpath("sub/x.flac.jsonl")]) == tag_record(
        predicted(str(run.inputs / "sub" / "x.flac"))
    )


def test_a_stopped_tree_goes_on(run: Run) -> None:
    run.tree(run.folder / "whole")
    out = run.folder / "tree"
    assert run.tree(out, stop_at=8, stop=KeyboardInterrupt()) == 130
    first = set(run.analysed)
    assert run.tree(out, resume=True) == 1
    again = {os.path.basename(path) for path in first & set(run.analysed)}
    assert again <= {"bad 1.wav", "bad.wav"}, "what failed is tried again, what is done is not"
    assert contents(out) == contents(run.folder / "whole")
    with pytest.raises(InvalidInputError, match="options"):
        run.tree(out, resume=True, fingerprint={"options": {"threshold": 1}})
    (run.inputs / "new.wav").write_bytes(b"x")
    run.tree(out, resume=True)
    assert {os.path.basename(path) for path in run.analysed} == {"new.wav", "bad 1.wav", "bad.wav"}


def test_an_older_tree_is_replaced_and_its_files_never_count_as_done(run: Run) -> None:
    out = run.folder / "tree"
    run.tree(out)
    for name in ("0.wav.jsonl", "11.wav.jsonl", "bad 1.wav.jsonl"):
        (out / name).write_text("old")
    run.tree(out, stop_at=2, stop=KeyboardInterrupt(), fingerprint={"options": 2})
    assert (out / "0.wav.jsonl").read_text() != "old"
    assert (out / "11.wav.jsonl").read_text() == "old"
    run.tree(out, resume=True, fingerprint={"options": 2})
    assert (out / "11.wav.jsonl").read_text() != "old"
    assert not (out / "bad 1.wav.jsonl").exists()


def test_output_inside_the_input(run: Run) -> None:
    assert run.tree(run.inputs) == 1
    run.file(run.inputs / "out.jsonl")
    assert len(run.analysed) == len(NAMES)


def test_a_full_disk_under_a_tree(run: Run) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        with pytest.raises(OutputError, match="File too large"):
            run.tree(run.folder / "tree", describe=lambda path, p: {**tag_record(p), "more": "x" * 1000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [name for name in contents(run.folder / "tree") if "wav" in name]


# -- memory --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
def test_memory_does_not_grow_with_the_number_of_files(tmp_path: Path) -> None:
    """Resident memory of whole runs; keeping one record or one input of each file would take three times the limit."""
    program = textwrap.dedent(
        """
        import os, resource, sys
        from pathlib import Path
        from tests.test_runs import Run
        folder, count = Path(sys.argv[1]), int(sys.argv[2])
        run = Run(folder, ["first.wav"])
        for i in range(1, count):
            (run.inputs / str(i // 500)).mkdir(exist_ok=True)
            os.link(run.inputs / "first.wav", run.inputs / str(i // 500) / f"{i}.wav")
        class Forget(list):
            def append(self, item): pass
        task = run.task
        def forgetting(*args, **options):
            made = task(*args, **options)
            run.analysed = Forget()
            return made
        run.task = forgetting
        assert run.file(folder / "out") == 0
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        """
    )

    def peak_kb(count: int) -> int:
        folder = tmp_path / str(count)
        folder.mkdir()
        command = [sys.executable, "-c", program, str(folder), str(count)]
        done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
        assert (folder / "out").read_bytes().count(b"\n") == count
        return int(done.stdout)

    few, many = peak_kb(1_000), peak_kb(8_000)
    assert many - few < 2_500, f"{few} kB for 1,000 files, {many} kB for 8,000"

"""Runs to streams and folders: whole outputs, each input's failure its own, memory."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from audiotag.errors import InvalidInputError, OutputError
from audiotag.outputs.formats import FORMATS
from audiotag.outputs.records import tag_record
from audiotag.outputs.writers import open_writer
from audiotag.runs.inputs import expand
from audiotag.runs.progress import Reporter
from audiotag.runs.run import Task, to_stream

from .hash_runs import ABOUT, NAMES, Run, contents, predicted


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path, NAMES)


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


@pytest.mark.parametrize("resume", [False, True])
def test_names_that_no_output_can_have_fail_alone(run: Run, resume: bool) -> None:
    """A name of 255 bytes has no room for an ending; another's place is taken by a folder."""
    out, long = run.folder / "tree", "x" * 251 + ".wav"
    (run.inputs / long).write_bytes(b"x")
    (out / "0.wav.jsonl" / "taken").mkdir(parents=True)
    assert run.tree(out, resume=resume) == 1 and run.tree(out, resume=True) == 1
    failed = {
        os.path.basename(record["source"]): record["error"]
        for record in map(json.loads, (out / "audiotag-errors.jsonl").read_text().splitlines())
    }
    assert set(failed) == {"0.wav", "bad 1.wav", "bad.wav", long}
    assert "File name too long" in failed[long] and "Is a directory" in failed["0.wav"]
    assert (out / "warn.wav.jsonl").is_file() and (out / "0.wav.jsonl" / "taken").is_dir()


# -- memory --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
def test_memory_does_not_grow_with_the_number_of_files(tmp_path: Path) -> None:
    """Resident memory of whole runs; keeping one record or one input of each file would take three times the limit."""
    program = textwrap.dedent(
        """
        import os, resource, sys
        from pathlib import Path
        from tests.hash_runs import Run
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

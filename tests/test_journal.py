"""Runs to one file that are killed at any byte, meet full disks and each other, and go on."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import pytest

from audiotag.errors import InvalidInputError, OutputError
from audiotag.outputs.records import tag_record
from audiotag.runs import journal as journal_module
from audiotag.runs.inputs import expand
from audiotag.runs.journal import Journal, locked
from audiotag.runs.progress import Reporter
from audiotag.runs.run import to_file

from .hash_runs import NAMES, Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path, NAMES)


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


def test_a_lock_that_its_holder_deletes_is_taken_anew(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run ends, and another begins, between opening the lock and taking it: the third must see the second."""
    folder, real = run.folder / "out.partial", filelock.FileLock
    first, others = locked(folder, "busy"), []

    class Slow(real):  # type: ignore[misc, valid-type]
        def acquire(self, *args: Any, **options: Any) -> Any:
            if not others:
                others.append(None)
                journal_module.delete_locked(folder, first)
                others[0] = locked(folder, "busy")
            return super().acquire(*args, **options)

    monkeypatch.setattr(filelock, "FileLock", Slow)
    with pytest.raises(InvalidInputError, match="busy"):
        locked(folder, "busy")
    assert others[0].is_locked
    journal_module.delete_locked(folder, others[0])
    assert not folder.exists()


def test_a_run_that_ends_does_not_delete_what_the_next_one_keeps(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one comes at any moment of the deletion: its files stay, or it waits for its turn."""
    folder, unlink, tried = run.folder / "out.partial", Path.unlink, []
    lock = locked(folder, "busy")
    (folder / "records.jsonl").touch()

    def come(path: Path, **options: Any) -> None:
        unlink(path, **options)
        try:
            tried.append(locked(folder, "busy"))
            (folder / "records.jsonl").write_text("next")
        except InvalidInputError:
            tried.append(None)

    monkeypatch.setattr(Path, "unlink", come)
    journal_module.delete_locked(folder, lock)
    assert tried[0] is None and tried[-1].is_locked and (folder / "records.jsonl").read_text() == "next"


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_somebody_elses_is_left_alone(run: Run, resume: bool) -> None:
    mine = run.folder / "out.partial" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(InvalidInputError, match=r"holds thesis\.txt, which no run put there"):
        run.file(run.folder / "out", resume=resume)
    assert mine.read_text() == "mine" and os.listdir(mine.parent) == ["thesis.txt"]


def test_an_empty_folder_is_no_run_to_go_on_with(run: Run) -> None:
    output = run.folder / "out"
    (run.folder / "out.partial").mkdir()
    output.write_text("not of a run")
    with pytest.raises(InvalidInputError, match="nothing to go on with"):
        run.file(output, resume=True)
    assert output.read_text() == "not of a run"
    output.unlink()
    (run.folder / "out.partial" / ".DS_Store").touch()  # a file manager looked into it
    assert run.file(output, resume=True) == 1 and os.listdir(run.folder / "out.partial") == [".DS_Store"]


@pytest.mark.parametrize("kind", ["file", "tree"])
def test_a_folder_deleted_meanwhile_is_not_said_to_be_kept(run: Run, kind: str) -> None:
    target = run.folder / "out"

    def describe(path: str, prediction: Any) -> dict[str, Any]:
        shutil.rmtree(target if kind == "tree" else run.folder / "out.partial", ignore_errors=True)
        return tag_record(prediction)

    with pytest.raises(OutputError, match="kept") as caught:
        getattr(run, kind)(target, describe=describe)
    assert "nothing" in str(caught.value) and "--resume goes on" not in str(caught.value)


def test_a_format_of_one_recording(run: Run) -> None:
    with pytest.raises(InvalidInputError, match="holds one recording, got 17"):
        run.file(run.folder / "out", one_input="webvtt")
    assert not (run.folder / "out.partial").exists()
    task = run.task(one_input="webvtt")
    bad = [str(run.inputs / "bad 1.wav")]
    assert to_file(task, expand(bad), {}, run.folder / "out", Reporter(quiet=True), resume=False) == 1
    assert not (run.folder / "out").exists() and not (run.folder / "out.partial").exists()


@contextlib.contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """RLIMIT_FSIZE stands for it: the write that goes beyond fails."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk(run: Run) -> None:
    run.file(run.folder / "whole", "text")
    (run.folder / "out").write_text("old")
    with full_disk(5000), pytest.raises(OutputError, match=r"cannot be written: File too large; .* --resume goes on"):
        run.file(run.folder / "out", "text")
    assert (run.folder / "out").read_text() == "old"
    run.file(run.folder / "out", "text", resume=True)
    assert (run.folder / "out").read_bytes() == (run.folder / "whole").read_bytes()


def test_a_disk_too_full_to_begin(run: Run) -> None:
    """Nothing is there to go on with, so nothing is said to be kept and no folder is left."""
    with full_disk(300), pytest.raises(OutputError, match="File too large; nothing of it is kept"):
        run.file(run.folder / "out", "text")
    assert not (run.folder / "out.partial").exists()


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


@pytest.mark.parametrize("plan", [None, "[1, 2", "null\n", '{"size": 1}\n', "\xff"])
def test_a_run_without_its_list_of_inputs_is_not_gone_on_with(run: Run, plan: str | None) -> None:
    run.file(run.folder / "out", stop_at=5, stop=KeyboardInterrupt())
    inputs = run.folder / "out.partial" / "inputs.jsonl"
    inputs.unlink()
    if plan is not None:
        inputs.write_text(plan, encoding="latin-1")
    with pytest.raises(InvalidInputError, match="list of inputs is missing or damaged"):
        run.file(run.folder / "out", resume=True)
    assert run.file(run.folder / "out") == 1, "without --resume it starts anew"


@pytest.mark.parametrize("change", [lambda lines: lines[:-1], lambda lines: [], lambda lines: [*lines, lines[-1]]])
def test_a_list_of_inputs_cut_at_a_line_is_seen(run: Run, change: Any) -> None:
    run.file(run.folder / "whole")
    run.file(run.folder / "out", stop_at=5, stop=KeyboardInterrupt())
    inputs = run.folder / "out.partial" / "inputs.jsonl"
    lines = inputs.read_bytes().splitlines(keepends=True)
    inputs.write_bytes(b"".join(change(lines)))
    told = f"holds {len(change(lines))} inputs, the run began with {len(lines)}"
    with pytest.raises(InvalidInputError, match=told):
        run.file(run.folder / "out", resume=True)
    assert not (run.folder / "out").exists()
    inputs.write_bytes(b"".join(lines))
    run.file(run.folder / "out", resume=True)
    assert (run.folder / "out").read_bytes() == (run.folder / "whole").read_bytes()


def test_a_folder_that_cannot_be_made_is_not_somebody_elses_run(tmp_path: Path, monkeypatch: Any) -> None:
    def refuse(*_: Any, **__: Any) -> None:  # as /proc does
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OutputError, match="out: cannot be written: No such file"):
        locked(tmp_path / "out", "another run")

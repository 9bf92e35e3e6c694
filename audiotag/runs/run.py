"""A command over any number of inputs: in order, each one's failure its own, to stdout, a file or a folder."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..errors import AudioError, AudiotagError, InvalidInputError, OutputError
from ..files import read_json, write_json
from ..outputs.records import dumps, error_record
from .inputs import STDIN, Input
from .journal import Journal, begun, check_fingerprint, complete, locked
from .plan import Entry, Plan
from .progress import Reporter, Tally, tell

ERRORS_FILE = "audiotag-errors.jsonl"
STATE_FOLDER = ".audiotag"
# What says that an output's name cannot be, because it is too long or taken by something else: no fault of the disk.
OF_A_NAME = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EILSEQ, errno.EINVAL)
Record = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """What a command does with its inputs, as functions that the three ways of writing call.

    Attributes
    ----------
    analyse : callable
        Sources and a callback for progress to (source, result or error), lazily and in order: `Tagger.predict_each`
        with its options set.
    describe : callable
        A path and its result to the record that is written.
    opened : callable
        A path, or an open text stream, to a context manager whose ``write(record)`` fills it:
        `audiotag.outputs.writers.open_writer` with its format.
    suffix : str
        Ending of files of one input.
    one_input : str or None
        Name of the output's format, if a file of it can hold one input only.
    batch_size : int
        Only a run that starts at a multiple of it, counted in sources, repeats another's scores bit for bit.
    fingerprint : callable
        Gathers everything that decides what is written about an input, JSON-ready; called only for an output that can
        be resumed.
    """

    analyse: Callable[[Iterable[Any], Callable[..., None]], Iterator[tuple[Any, Any]]]
    describe: Callable[[str, Any], Record]
    opened: Callable[[Path | IO[str]], AbstractContextManager[Any]]
    suffix: str
    one_input: str | None
    batch_size: int
    fingerprint: Callable[[], dict[str, Any]]


def worked(inputs: Iterable[Input], task: Task, reporter: Reporter) -> Generator[tuple[Input, Entry], None, None]:
    """Yield each input with what there is to say of it, in order. Closing the iterator stops the decoding threads."""
    pending: deque[Input] = deque()  # handed to the tagger, or skipped, and not yet answered

    def progress(source: Any, done_s: float, expected_s: float | None) -> None:
        if pending and source == pending[0].path and expected_s:
            reporter.part(pending[0], done_s, expected_s)

    def feed() -> Iterator[Any]:
        for item in inputs:
            pending.append(item)
            if item.error is None:
                yield sys.stdin.buffer if item.path == STDIN else item.path

    def skipped() -> Generator[tuple[Input, Entry], None, None]:
        while pending and pending[0].error is not None:
            item = pending.popleft()
            yield item, _failure(item, AudioError(f"{item.path}: {item.error}"))

    results = task.analyse(feed(), progress)
    with ExitStack() as stack:
        if isinstance(results, Generator):
            stack.enter_context(closing(results))
        for _, result in results:
            yield from skipped()
            item = pending.popleft()
            if isinstance(result, AudiotagError):
                yield item, _failure(item, result)
            else:
                record = task.describe(item.path, result)
                yield item, Entry(item.path, record, record["duration_s"])
    yield from skipped()


def _failure(item: Input, error: AudiotagError) -> Entry:
    return Entry(item.path, error_record(item.path, error), failed=True)


def to_stream(task: Task, inputs: Iterable[Input], stream: IO[str], where: str | None, reporter: Reporter) -> int:
    """Write to an open stream as results come; `where` names it if it is not standard output."""
    with tempfile.TemporaryDirectory(prefix="audiotag-") as folder:
        plan = Plan(Path(folder) / "inputs.jsonl")
        plan.write(reporter.finding(inputs))
        _check_one(task, plan, where or "standard output")
        reporter.start(plan)
        try:
            with task.opened(stream) as writer, closing(worked(plan, task, reporter)) as results:
                for item, entry in results:
                    writer.write(entry.record)
                    stream.flush()
                    reporter.done(item, entry)
        finally:
            reporter.close()
    reporter.summary(where)
    return reporter.tally.exit_code


def to_file(
    task: Task, inputs: Iterable[Input], asked: dict[str, Any], output: Path, reporter: Reporter, *, resume: bool
) -> int:
    """Write one file that appears whole when the run ends; a run that is killed can go on where it was.

    Parameters
    ----------
    asked : dict
        What the inputs were asked for by: part of the fingerprint, for the inputs are fixed when the run starts.
    """
    fingerprint = {**task.fingerprint(), "inputs": asked}
    if resume and (told := complete(output, fingerprint)) is not None:
        Journal(output, fingerprint, resume=False).discard()  # a run killed at its very end leaves its folder
        tell(f"{output} is complete: {told['inputs']:,} files, {told['failed']:,} failed; nothing to do")
        return 1 if told["failed"] else 0
    written = output.is_file() and output.stat().st_size
    if resume and written and not begun(output):
        raise InvalidInputError(
            f"{output}: no run with --resume wrote this file as it is, so there is nothing to go on with; "
            "name another output, or leave out --resume to replace it"
        )
    journal = Journal(output, fingerprint, resume=resume)
    tally = reporter.tally
    try:
        if journal.resumable and not resume:
            tell(f"{journal.folder} held an unfinished run that --resume would have gone on with; starting anew")
        journal.begin(reporter.finding(inputs), task.batch_size)
        try:
            _check_one(task, journal.plan, str(output))
        except InvalidInputError:
            journal.discard()
            raise
        reporter.start(journal.plan)
        remaining = iter(journal.plan)
        for entry in journal.entries():
            reporter.before(next(remaining), entry)
        with closing(worked(remaining, task, reporter)) as results:
            for item, entry in results:
                journal.append(entry)
                reporter.done(item, entry)
        if task.one_input is None or not tally.failed:
            with task.opened(journal.assembling) as writer:
                for entry in journal.entries():
                    writer.write(entry.record)
            journal.finish({"inputs": tally.inputs, "failed": tally.failed})
        else:
            journal.discard()
    except KeyboardInterrupt:
        reporter.close()
        tell(f"interrupted; {_left(journal, tally)}")
        return 130
    except (OSError, OutputError) as error:
        reason = refusal(error)
        raise OutputError(
            f"{output}: cannot be written: {reason.strerror or reason}; {_left(journal, tally)}"
        ) from error
    finally:
        reporter.close()
        journal.close()
    reporter.summary(str(output))
    return tally.exit_code


def refusal(error: OSError | OutputError) -> OSError:
    """Return the operating system's own error behind one of ours."""
    found = error if isinstance(error, OSError) else error.__cause__
    return found if isinstance(found, OSError) else OSError(str(error))


def _left(journal: Journal, tally: Tally) -> str:
    """Say what a run that ended early leaves; a folder that nothing could go on with is deleted."""
    if not journal.kept:
        with contextlib.suppress(OSError):
            journal.discard()
        return "nothing of it is kept"
    return (
        f"{tally.inputs:,} of {journal.plan.inputs:,} files are done and kept in {journal.folder}; "
        "the same command with --resume goes on"
    )


def _check_one(task: Task, plan: Plan, where: str) -> None:
    if task.one_input is not None and plan.inputs > 1:
        raise InvalidInputError(
            f"{where}: the format {task.one_input} holds one recording, got {plan.inputs:,}; name a folder with -o, or "
            "choose another format"
        )


def to_folder(task: Task, inputs: Iterable[Input], root: str, folder: Path, reporter: Reporter, *, resume: bool) -> int:
    """Write one file for each input into a tree that mirrors theirs, each appearing whole.

    What failed is in `ERRORS_FILE`. Each file stands for itself, so `resume` does the inputs that have no output yet,
    whatever was asked for before, as long as the options are the same; failed ones are tried again.

    Parameters
    ----------
    root : str
        The folder that is mirrored: `inputs.common_folder`.
    """
    state = folder / STATE_FOLDER
    lock = locked(state, f"{folder}: another run is writing into it; wait for that or name another folder")
    try:
        since = _begin_folder(state, {**task.fingerprint(), "mirrors": root}, resume=resume)
        plan = Plan(state / "inputs.jsonl")
        plan.write(reporter.finding(inputs))
        reporter.start(plan)

        def target(item: Input) -> Path:
            inside = "stdin" if item.path == STDIN else os.path.relpath(os.path.abspath(item.path), root)
            return folder / (inside + task.suffix)

        def missing() -> Iterator[Input]:
            for item in plan:
                if resume and _newer(target(item), since):
                    reporter.before(item, None)
                else:
                    yield item

        with (
            closing(worked(missing(), task, reporter)) as results,
            open(state / "errors", "w", encoding="utf-8") as errors,
        ):
            for item, entry in results:
                try:
                    if entry.failed:
                        target(item).unlink(missing_ok=True)
                    else:
                        with task.opened(state / "output") as writer:
                            writer.write(entry.record)
                        target(item).parent.mkdir(parents=True, exist_ok=True)
                        os.replace(state / "output", target(item))
                except OSError as error:
                    if error.errno not in OF_A_NAME:
                        raise
                    why = f"its output {target(item)} cannot be written: {error.strerror}"
                    entry = entry if entry.failed else _failure(item, OutputError(f"{item.path}: {why}"))
                if entry.failed:
                    errors.write(dumps(entry.record) + "\n")
                    errors.flush()
                reporter.done(item, entry)
        if reporter.tally.failed:
            os.replace(state / "errors", folder / ERRORS_FILE)
        else:
            (folder / ERRORS_FILE).unlink(missing_ok=True)
            (state / "errors").unlink()
        plan.path.unlink()
    except KeyboardInterrupt:
        reporter.close()
        tell(f"interrupted; {_stays(state)}")
        return 130
    except (OSError, OutputError) as error:
        reason = refusal(error)
        raise OutputError(
            f"{reason.filename or folder}: cannot be written: {reason.strerror or reason}; {_stays(state)}"
        ) from error
    finally:
        reporter.close()
        lock.release()
    reporter.summary(f"{folder}{os.sep}")
    return reporter.tally.exit_code


def _stays(state: Path) -> str:
    if not state.exists():
        return f"{state.parent} was deleted meanwhile, so nothing is kept"
    return f"what is done stays in {state.parent}; the same command with --resume goes on"


def _begin_folder(state: Path, fingerprint: dict[str, Any], *, resume: bool) -> int:
    """Note the fingerprint; return the time, in ns of the file system's clock, since when outputs are of this run."""
    path = state / "run.json"
    earlier = read_json(path)
    if resume and earlier is not None:
        check_fingerprint(earlier, fingerprint, str(state.parent))
    else:
        write_json(path, fingerprint)
    return path.stat().st_mtime_ns


def _newer(path: Path, since_ns: int) -> bool:
    try:
        return path.stat().st_mtime_ns >= since_ns
    except OSError:
        return False

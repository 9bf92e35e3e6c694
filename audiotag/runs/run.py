"""A command over any number of inputs: in order, each one's failure its own, to stdout, a file or a folder."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from ..errors import AudioError, AudiotagError, InvalidInputError, OutputError
from ..files import read_json, write_json
from ..outputs.records import error_record
from ..outputs.writers import dumps
from ..text import clock, printable
from .inputs import STDIN, Input
from .journal import SUFFIX, Entry, Journal, Plan, check_fingerprint, complete, locked, weight

ERRORS_FILE = "audiotag-errors.jsonl"
STATE_FOLDER = ".audiotag"
Record = dict[str, Any]


@dataclass
class Tally:
    """What a run has done so far."""

    inputs: int = 0
    failed: int = 0
    audio_s: float = 0.0
    before: int = 0  # of the inputs, how many an earlier run had done
    before_s: float = 0.0  # of the audio
    started: float = field(default_factory=time.monotonic)

    def add(self, entry: Entry) -> None:
        self.inputs += 1
        self.failed += entry.failed
        self.audio_s += entry.duration_s

    @property
    def exit_code(self) -> int:
        return 1 if self.failed else 0


@dataclass(frozen=True)
class Task:
    """What a command does with inputs.

    Attributes
    ----------
    analyse : callable
        Sources and a callback for progress to (source, result or error), lazily and in order: `Tagger.predict_each`
        with its options set.
    describe : callable
        A path and its result to the record that is written.
    opened : callable
        A path, or an open text stream, to a context manager whose ``write(record)`` fills it: `writers.open_writer`
        with its options.
    suffix : str
        Ending of files of one input.
    one_input : str or None
        Name of the output's format, if a file of it can hold one input only.
    batch_size : int
        Only a run that starts at a multiple of it, counted in sources, repeats another's scores bit for bit.
    fingerprint : dict
        Everything that decides what is written about an input. JSON-ready.
    """

    analyse: Callable[[Iterable[Any], Callable[..., None]], Iterator[tuple[Any, Any]]]
    describe: Callable[[str, Any], Record]
    opened: Callable[[Path | IO[str]], AbstractContextManager[Any]]
    suffix: str
    one_input: str | None
    batch_size: int
    fingerprint: dict[str, Any]


def worked(inputs: Iterable[Input], task: Task, reporter: Reporter) -> Generator[tuple[Input, Entry], None, None]:
    """Each input with what there is to say of it, in order. Closing the iterator stops the threads that decode."""
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
    record = error_record(item.path, error)
    return Entry(item.path, {**record, "error": printable(record["error"])}, failed=True)


class Reporter:
    """Tells the person at the terminal: errors, warnings, progress and a closing line, all on stderr."""

    def __init__(self, *, quiet: bool) -> None:
        self.tally = Tally()
        self._quiet = quiet
        self._terminal = sys.stderr.isatty() and not quiet
        self._bar: Any = None
        self._total = 0
        self._part = 0  # how much of the input being worked on the bar shows

    def finding(self, inputs: Iterable[Input]) -> Iterable[Input]:
        """The same inputs, counted on the terminal if finding them takes long."""
        return tqdm(inputs, desc="finding files", unit=" files", leave=False, delay=1.0, disable=not self._terminal)

    def start(self, plan: Plan) -> None:
        """Show progress through these inputs, if there are several or it is a long one."""
        self._total = plan.inputs
        if self._terminal:
            form = "{desc} |{bar}| {percentage:3.0f}%{postfix} [{elapsed}<{remaining}]"
            self._bar = tqdm(total=plan.size_bytes, bar_format=form, leave=False, delay=0.5, dynamic_ncols=True)

    def before(self, item: Input, entry: Entry | None) -> None:
        """An input that an earlier run had done."""
        self.tally.before += 1
        if entry is None:
            self.tally.inputs += 1
        else:
            self.tally.add(entry)
            self.tally.before_s += entry.duration_s
        if self._bar is not None:
            self._bar.initial += weight(item)
            self._bar.n += weight(item)

    def done(self, item: Input, entry: Entry) -> None:
        """An input that is done now."""
        self.tally.add(entry)
        if entry.failed:
            self.tell(f"error: {entry.record['error']}")
        elif not self._quiet:
            for warning in entry.record["warnings"]:
                self.tell(f"warning: {warning}")
        self._show(weight(item), 0.0)
        self._part = 0

    def part(self, item: Input, done_s: float, expected_s: float) -> None:
        """Seconds of an input that are done, of those that it seems to have."""
        self._show(int(weight(item) * min(done_s / expected_s, 1.0)), done_s)

    def _show(self, part: int, part_s: float) -> None:
        if self._bar is None:
            return
        tally = self.tally
        speed = (tally.audio_s + part_s - tally.before_s) / max(time.monotonic() - tally.started, 1e-9)
        self._bar.set_description_str(f"{tally.inputs:,}/{self._total:,} files", refresh=False)
        hours = (tally.audio_s + part_s) / 3600
        self._bar.set_postfix_str(f"{hours:.2f} h of audio, {speed:.0f}x real time", refresh=False)
        self._bar.update(part - self._part)
        self._part = part

    def tell(self, message: str) -> None:
        """A line on stderr, above the progress bar."""
        with tqdm.external_write_mode(file=sys.stderr):
            print(f"audiotag: {message}", file=sys.stderr)

    def summary(self, output: str | None) -> None:
        """The closing line."""
        self.close()
        tally = self.tally
        if self._quiet or (self._total == 1 and output is None):
            return
        elapsed = time.monotonic() - tally.started
        parts = [f"{tally.inputs:,} file{'s' if tally.inputs != 1 else ''}"]
        if tally.before:
            parts.append(f"{tally.before:,} done before")
        if tally.failed:
            parts.append(f"{tally.failed:,} failed")
        parts.append(f"{clock(tally.audio_s, decimals=0)} of audio in {clock(elapsed)}")
        self.tell(", ".join(parts) + (f" -> {output}" if output else ""))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


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
    fingerprint = {**task.fingerprint, "inputs": asked}
    if resume and (told := complete(output, fingerprint)) is not None:
        Journal(output, fingerprint, resume=False).discard()  # a run killed at its very end leaves its folder
        reporter.tell(f"{output} is complete: {told['inputs']:,} files, {told['failed']:,} failed; nothing to do")
        return 1 if told["failed"] else 0
    written = output.is_file() and output.stat().st_size
    if resume and written and not output.with_name(output.name + SUFFIX).exists():
        raise InvalidInputError(
            f"{output}: no run with --resume wrote this file as it is, so there is nothing to go on with; "
            "name another output, or leave out --resume to replace it"
        )
    journal = Journal(output, fingerprint, resume=resume)
    tally = reporter.tally
    try:
        if journal.resumable and not resume:
            reporter.tell(
                f"{journal.folder} held an unfinished run that --resume would have gone on with; starting anew"
            )
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
        reporter.tell(f"interrupted; {_kept(journal, tally)}")
        return 130
    except (OSError, OutputError) as error:
        reason = refusal(error)
        raise OutputError(
            f"{output}: cannot be written: {reason.strerror or reason}; {_kept(journal, tally)}"
        ) from error
    finally:
        reporter.close()
        journal.close()
    reporter.summary(str(output))
    return tally.exit_code


def refusal(error: OSError | OutputError) -> OSError:
    """The operating system's own error behind one of ours."""
    found = error if isinstance(error, OSError) else error.__cause__
    return found if isinstance(found, OSError) else OSError(str(error))


def _kept(journal: Journal, tally: Tally) -> str:
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
        since = _begin_folder(state, {**task.fingerprint, "mirrors": root}, resume=resume)
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
                if entry.failed:
                    target(item).unlink(missing_ok=True)
                    errors.write(dumps(entry.record) + "\n")
                    errors.flush()
                else:
                    with task.opened(state / "output") as writer:
                        writer.write(entry.record)
                    target(item).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(state / "output", target(item))
                reporter.done(item, entry)
        if reporter.tally.failed:
            os.replace(state / "errors", folder / ERRORS_FILE)
        else:
            (folder / ERRORS_FILE).unlink(missing_ok=True)
            (state / "errors").unlink()
        plan.path.unlink()
    except KeyboardInterrupt:
        reporter.close()
        reporter.tell(f"interrupted; what is done stays in {folder}; the same command with --resume goes on")
        return 130
    except (OSError, OutputError) as error:
        reason = refusal(error)
        raise OutputError(
            f"{reason.filename or folder}: cannot be written: {reason.strerror or reason}; what is done stays, "
            "and the same command with --resume goes on"
        ) from error
    finally:
        reporter.close()
        lock.release()
    reporter.summary(f"{folder}{os.sep}")
    return reporter.tally.exit_code


def _begin_folder(state: Path, fingerprint: dict[str, Any], *, resume: bool) -> int:
    """Note the fingerprint; from what time on, in ns of the file system's clock, outputs are of this run."""
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

"""A run that can be killed: what it works on and what it has found so far, on disk, in a folder beside its output.

The folder is called like the output with ``.partial`` behind it and holds ``run.json`` (the fingerprint: everything
that decides what the output will be; and the number of inputs), ``inputs.jsonl`` (the inputs, fixed when the run
starts), ``records.jsonl`` (one line for each input done, in order) and ``lock``. The output is put together from the
records when all are there, and appears in one step. filelock keeps two runs from one output; huggingface_hub depends on
it already.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..errors import AudiotagError, InvalidInputError, OutputError
from ..files import json_bytes, read_json, write_json
from .inputs import Input
from .plan import Entry, Plan

if TYPE_CHECKING:
    from filelock import FileLock

FORMAT_VERSION = 1  # of the journal and of what is written; a run is resumed by the version it began with only
SYNC_EVERY_S = 5.0  # a kill loses nothing that was written; a power cut at most this
SUFFIX, COMPLETE_SUFFIX = ".partial", ".run.json"
RUN, INPUTS, RECORDS, LOCK = "run.json", "inputs.jsonl", "records.jsonl", "lock"
OUTPUT, COMPLETE = "output", "complete.json"
PLANNED = "planned"  # in `RUN`, beside the fingerprint: how many inputs the run began with


class Journal:
    """The folder beside one output file, which keeps what a run has done until all is.

    Parameters
    ----------
    output : Path
        The file that will be there in the end.
    fingerprint : dict
        JSON-ready; equal fingerprints give equal outputs.
    resume : bool
        Go on with what an earlier run left, if it left something.

    Raises
    ------
    InvalidInputError
        `resume` with a run of another fingerprint, or another run is writing this output right now, or the folder holds
        files that no run put there.
    OutputError
        The folder cannot be made.
    """

    def __init__(self, output: Path, fingerprint: dict[str, Any], *, resume: bool) -> None:
        self.output, self.fingerprint, self.resume = output, fingerprint, resume
        self.folder = partial(output)
        self.plan = Plan(self.folder / INPUTS)
        self.assembling = self.folder / OUTPUT  # in the file system where the output goes
        self._entries = self.folder / RECORDS
        self._run = self.folder / RUN
        self._file: IO[bytes] | None = None
        self._synced = time.monotonic()
        _refuse_foreign(self.folder)
        self._lock = locked(self.folder, f"{output}: another run is writing it; wait for that or name another output")
        try:
            earlier = read_json(self._run)
            self.resumable = earlier is not None
            self._planned = None if earlier is None else earlier.pop(PLANNED, None)
            if resume and earlier is not None:
                check_fingerprint(earlier, fingerprint, str(self.folder))
        except AudiotagError:
            self.close()
            raise

    def begin(self, inputs: Iterable[Input], batch_size: int) -> None:
        """Make ready to append. `inputs` become the plan, unless an earlier run's plan is gone on with.

        Records of a batch that was begun and not finished are dropped, for its scores would differ in the last bits.
        """
        if self.resume and self.resumable:
            self.plan.load(self._planned)
            end = self._sound(batch_size) if self._entries.exists() else 0
            self._file = open(self._entries, "ab", buffering=0)  # noqa: SIM115
            self._file.truncate(end)
        else:
            self._run.unlink(missing_ok=True)  # from here on the old records count for nothing
            self._file = open(self._entries, "wb", buffering=0)  # noqa: SIM115
            self.plan.write(inputs)
            write_json(self._run, {**self.fingerprint, PLANNED: self.plan.inputs})

    def _sound(self, batch_size: int) -> int:
        """Count the bytes of the records of whole batches before the first that is torn or not of its input."""
        end = kept = sources = 0
        with open(self._entries, "rb") as file:
            for item, line in zip(self.plan, file, strict=False):
                try:
                    entry = Entry(**json.loads(line))
                except (ValueError, TypeError):
                    break
                if not line.endswith(b"\n") or entry.source != item.path:
                    break
                end += len(line)
                sources += item.error is None
                if sources % batch_size == 0:
                    kept = end
        return kept

    def append(self, entry: Entry) -> None:
        """Add the next input's record; it survives a kill from here on."""
        assert self._file is not None
        data = json_bytes(asdict(entry))
        while data:
            data = data[self._file.write(data) or 0 :]
        if time.monotonic() - self._synced > SYNC_EVERY_S:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def entries(self) -> Iterator[Entry]:
        """Read all there are, from the first."""
        with open(self._entries, "rb") as file:
            for line in file:
                yield Entry(**json.loads(line))

    @property
    def kept(self) -> bool:
        """Whether what was appended is there for a later run to go on with."""
        return begun(self.output) and self._entries.exists()

    def finish(self, told: dict[str, Any]) -> None:
        """Make the output of what was put together at `assembling`, and delete the folder.

        With `resume`, a small file beside the output keeps the fingerprint and what is `told`, so that the same
        command sees that nothing is left to do.
        """
        note = self.output.with_name(self.output.name + COMPLETE_SUFFIX)
        note.unlink(missing_ok=True)
        size = self.assembling.stat().st_size
        os.replace(self.assembling, self.output)
        if self.resume:
            written = self.folder / COMPLETE
            write_json(written, {**self.fingerprint, "complete": {"size_bytes": size, **told}})
            os.replace(written, note)
        self.discard()

    def discard(self) -> None:
        """Delete the folder."""
        self._close_records()
        delete_locked(self.folder, self._lock)

    def close(self) -> None:
        """Let go of the files; what is in them stays for `resume`."""
        self._close_records()
        self._lock.release()

    def _close_records(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def partial(output: Path) -> Path:
    """Name the folder beside an output that is not yet there."""
    return output.with_name(output.name + SUFFIX)


def begun(output: Path) -> bool:
    """Whether there is an unfinished run to go on with."""
    return (partial(output) / RUN).exists()


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder that somebody else keeps files in."""
    try:
        names = os.listdir(folder)
    except OSError:  # there is none, or making it will say what is wrong
        return
    # Hidden ones are a file manager's, which comes by and leaves its own.
    foreign = [name for name in names if not _ours(name) and not name.startswith(".")]
    if foreign:
        raise InvalidInputError(
            f"{folder}: holds {foreign[0]}, which no run put there, and an unfinished output is kept in a folder of "
            "this name; move it away, or name another output"
        )


def _ours(name: str) -> bool:
    return name in (RUN, INPUTS, RECORDS, OUTPUT, COMPLETE, LOCK) or name.endswith(".part")


def locked(folder: Path, message: str) -> FileLock:
    """Make a folder and take its lock.

    Raises
    ------
    InvalidInputError
        With `message`: another process has it, or has just deleted it.
    OutputError
        The folder cannot be made.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        with contextlib.suppress(FileNotFoundError):  # a run that ended has just deleted the folder
            lock.acquire(timeout=0)
        if not lock.is_locked:
            raise InvalidInputError(message)
    except Timeout:
        raise InvalidInputError(message) from None
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror or error}") from error
    return lock


def delete_locked(folder: Path, lock: FileLock) -> None:
    """Delete a run's files and its lock, which is held until all else is gone; a file of somebody else's stays."""
    try:
        for name in os.listdir(folder):
            if name != LOCK and _ours(name):
                (folder / name).unlink()
        if os.name == "nt":  # a file that is open cannot be deleted there
            lock.release()
        with contextlib.suppress(OSError):  # another run has come
            (folder / LOCK).unlink()
            folder.rmdir()
    finally:
        lock.release()


def complete(output: Path, fingerprint: dict[str, Any]) -> dict[str, Any] | None:
    """Read what a finished run with `resume` noted beside its output; None if there is no such run.

    Raises
    ------
    InvalidInputError
        The output is of a run with another fingerprint.
    """
    found = read_json(output.with_name(output.name + COMPLETE_SUFFIX))
    if found is None or not output.is_file():
        return None
    told = found.pop("complete", {})
    if told.get("size_bytes") != output.stat().st_size:
        return None
    check_fingerprint(found, fingerprint, str(output))
    return told


def check_fingerprint(then: dict[str, Any], now: dict[str, Any], where: str) -> None:
    """Refuse to go on with a run of another fingerprint.

    Raises
    ------
    InvalidInputError
        Names what differs.
    """
    flat_then, flat_now = dict(_flat(then)), dict(_flat(now))
    names = [name for name in {**flat_then, **flat_now} if flat_then.get(name) != flat_now.get(name)]
    if names:
        differing = "; ".join(f"{n} was {_short(flat_then.get(n))}, now {_short(flat_now.get(n))}" for n in names)
        raise InvalidInputError(
            f"--resume: {where} is of a run with other settings ({differing}); give the same, or leave out --resume to "
            "start anew"
        )


def _flat(plain: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in plain.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}".strip(), value


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."

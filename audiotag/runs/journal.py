"""A run that can be killed: what it works on and what it has found so far, on disk, in a folder beside its output.

The folder is called like the output with ``.partial`` behind it and holds ``run.json`` (the fingerprint: everything
that decides what the output will be), ``inputs.jsonl`` (the inputs, fixed when the run starts), ``records.jsonl`` (one
line for each input done, in order) and ``lock``. The output is put together from the records when all are there, and
appears in one step. filelock keeps two runs from one output; huggingface_hub depends on it already.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from ..errors import AudiotagError, InvalidInputError, OutputError
from ..files import json_bytes, read_json, sync, write_json
from .inputs import Input

FORMAT_VERSION = 1  # of the journal and of what is written; a run is resumed by the version it began with only
SYNC_EVERY_S = 5.0  # a kill loses nothing that was written; a power cut at most this
SUFFIX = ".partial"
COMPLETE_SUFFIX = ".run.json"


@dataclass(frozen=True)
class Entry:
    """One input done: the record that goes into the output, and what the summary needs."""

    source: str
    record: dict[str, Any]
    duration_s: float = 0.0
    failed: bool = False


class Plan:
    """The inputs of a run in a file, so that their number costs no memory. Made once, read any number of times."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.inputs = self.size_bytes = 0

    def write(self, inputs: Iterable[Input]) -> None:
        """Store the inputs; what was stored before is gone."""
        self.inputs = self.size_bytes = 0
        with open(self.path, "w", encoding="ascii") as file:
            for item in inputs:
                file.write(json.dumps(asdict(item)) + "\n")
                self._count(item)
            sync(file)

    def load(self) -> None:
        """Count the inputs that `write` of an earlier run stored."""
        self.inputs = self.size_bytes = 0
        for item in self:
            self._count(item)

    def _count(self, item: Input) -> None:
        self.inputs += 1
        self.size_bytes += weight(item)

    def __iter__(self) -> Iterator[Input]:
        with open(self.path, encoding="ascii") as file:
            for line in file:
                yield Input(**json.loads(line))


def weight(item: Input) -> int:
    """How much of the work an input is, as far as can be told before opening it."""
    return max(item.size_bytes, 1)


class Journal:
    """The folder beside one output file.

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
        `resume` with a run of another fingerprint, or another run is writing this output right now.
    OutputError
        The folder cannot be made.
    """

    def __init__(self, output: Path, fingerprint: dict[str, Any], *, resume: bool) -> None:
        self.output, self.fingerprint, self.resume = output, fingerprint, resume
        self.folder = output.with_name(output.name + SUFFIX)
        self.plan = Plan(self.folder / "inputs.jsonl")
        self.assembling = self.folder / "output"  # in the file system where the output goes
        self._entries = self.folder / "records.jsonl"
        self._run = self.folder / "run.json"
        self._file: IO[bytes] | None = None
        self._synced = time.monotonic()
        self._lock = locked(self.folder, f"{output}: another run is writing it; wait for that or name another output")
        try:
            earlier = read_json(self._run)
            self.resumable = earlier is not None
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
            self.plan.load()
            end = self._sound(batch_size) if self._entries.exists() else 0
            self._file = open(self._entries, "ab", buffering=0)  # noqa: SIM115
            self._file.truncate(end)
        else:
            self._run.unlink(missing_ok=True)  # from here on the old records count for nothing
            self._file = open(self._entries, "wb", buffering=0)  # noqa: SIM115
            self.plan.write(inputs)
            write_json(self._run, self.fingerprint)

    def _sound(self, batch_size: int) -> int:
        """Bytes of the records of whole batches before the first that is torn or not of the input at its place."""
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
        """All there are, from the first."""
        with open(self._entries, "rb") as file:
            for line in file:
                yield Entry(**json.loads(line))

    def finish(self, told: dict[str, Any]) -> None:
        """What was put together at `assembling` becomes the output, and the folder goes.

        With `resume`, a small file beside the output keeps the fingerprint and what is `told`, so that the same
        command sees that nothing is left to do.
        """
        note = self.output.with_name(self.output.name + COMPLETE_SUFFIX)
        note.unlink(missing_ok=True)
        size = self.assembling.stat().st_size
        os.replace(self.assembling, self.output)
        if self.resume:
            written = self.folder / "complete.json"
            write_json(written, {**self.fingerprint, "complete": {"size_bytes": size, **told}})
            os.replace(written, note)
        self.close()
        shutil.rmtree(self.folder)

    def discard(self) -> None:
        """The run has no output to keep."""
        self.close()
        shutil.rmtree(self.folder)

    def close(self) -> None:
        """Let go of the files; what is in them stays for `resume`."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._lock.release()


def locked(folder: Path, message: str) -> FileLock:
    """Make a folder and take its lock.

    Raises
    ------
    InvalidInputError
        With `message`: another process has it.
    OutputError
        The folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise InvalidInputError(message) from None
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror or error}") from error
    return lock


def complete(output: Path, fingerprint: dict[str, Any]) -> dict[str, Any] | None:
    """What a finished run with `resume` noted beside its output; None if there is no such run.

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

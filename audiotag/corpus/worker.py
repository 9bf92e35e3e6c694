"""A worker: does parts of the plan by a child process, and commits each as one Parquet file.

A part's file has the part's name and appears whole, so doing a part again replaces its rows by the same rows:
whatever is killed, and whenever, no row is lost and none is there twice.
"""

from __future__ import annotations

import hashlib
import io
import os
import socket
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import AudiotagError
from .items import Entry
from .messages import Begun, Done, Finished, Job, Ready, Setup
from .options import CHANGED, CRASHED, OK, table
from .pipe import Child, Ended
from .plan import Plan
from .storage import pyarrow

CHILD = "audiotag.corpus.child"
POLL_S = 0.5
LOAD_S = 600.0  # in which a model must be loaded
DEATHS = 3  # of a child that was not reading anything, in a row, before the worker gives up
TOLD = 20  # messages about failures that a summary carries


class WorkerError(AudiotagError, RuntimeError):
    """Raised where the process that does the work cannot be kept alive."""


@dataclass(frozen=True)
class Model:
    """A checkpoint's files, so that one process fetches it and all have the same.

    files: contents by name, as `Tagger.save_pretrained` writes them. digest: SHA-256 of what decides scores.
    """

    name: str
    files: dict[str, bytes]
    features: int

    @property
    def digest(self) -> str:
        """SHA-256 of names and contents, in hexadecimal."""
        digest = hashlib.sha256()
        for name in sorted(self.files):
            digest.update(name.encode() + hashlib.sha256(self.files[name]).digest())
        return digest.hexdigest()

    def unpack(self, folder: str) -> None:
        """Write the files into a folder."""
        for name, contents in self.files.items():
            (Path(folder) / name).write_bytes(contents)


@dataclass(frozen=True)
class Work:
    """What a worker needs to know.

    setup: its `model` is filled in by the worker. stamp: the columns that are the same in every row. hang_s: a child
    that shows no progress for so long is ended. memory_bytes: one that holds more is ended; 0: any amount. child: the
    module it runs, in place of `CHILD`.
    """

    plan: Plan
    setup: Setup
    stamp: dict[str, str]
    retry_errors: bool = False
    hang_s: float = 600.0
    memory_bytes: int = 0
    child: str = ""


class Worker:
    """Does parts, one after the other; each call commits one."""

    def __init__(self, work: Work, model: Model) -> None:
        self.work, self.model = work, model
        self._child: Child | None = None
        self._stopped = False
        self._deaths = 0
        self._schema = work.setup.options.schema(model.features)

    def __call__(self, part: int) -> dict[str, Any]:
        """Do a part; returns what there is to say of it.

        Raises
        ------
        OutputError
            It cannot be committed.
        WorkerError
            The child dies whatever it is given.
        """
        began = time.monotonic()
        entries = self.work.plan.entries(part)
        committed = self._committed(part) if self.work.retry_errors else None
        if committed is None:
            rows = self._rows(Job(entries))
            self._commit(part, rows)
        else:
            rows = self._again(part, entries, committed)
        failed = [row for row in rows if row["status"] != OK]
        first = [row for row in rows if not row["start_s"]]
        return {
            "part": part,
            "worker": f"{socket.gethostname()}:{os.getpid()}",
            "files": len(first),
            "rows": len(rows),
            "failed": len(failed),
            "crashed": sum(row["status"] == CRASHED for row in failed),
            "audio_s": sum(row["end_s"] - row["start_s"] for row in rows if row["status"] == OK),
            "weight": sum(entry.weight for entry in entries),
            "work_s": time.monotonic() - began,
            "errors": [row["error"] for row in failed[:TOLD]],
            "warnings": [warning for row in rows for warning in row.get("warnings") or ()][:TOLD],
        }

    def _committed(self, part: int) -> list[dict[str, Any]] | None:
        """Read the rows of a part that was committed before; None where there is none."""
        data = self.work.plan.read_part(part)
        return None if data is None else pyarrow().parquet.read_table(io.BytesIO(data)).to_pylist()

    def _again(self, part: int, entries: list[Entry], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Do anew what failed in a part, commit it with what did not, and return the new rows.

        What has changed is left out: it is planned anew, as it is now.
        """
        kept = [row for row in rows if row["status"] == OK]
        if len(kept) == len(rows):
            return []
        places = {row["id"]: place for place, row in enumerate(rows)}
        found = self._rows(Job(entries, skip=frozenset(row["id"] for row in kept), again=True))
        found = [row for row in found if row["status"] != CHANGED]
        self._commit(part, sorted([*kept, *found], key=lambda row: places.get(row["id"], len(places))))
        return found

    def _rows(self, job: Job) -> list[dict[str, Any]]:
        """Make the rows that a job asks for, in order, whatever happens to the child."""
        found: dict[str, tuple[int, dict[str, Any]]] = {}
        while True:
            how, suspects = self._do(replace(job, skip=job.skip | frozenset(found)), found)
            if how is None:
                return [row for _, row in sorted(found.values(), key=lambda placed: placed[0])]
            # Something that was being read may have done it. Each alone shows which; the others are done by that.
            for begun in suspects:
                id_ = begun.failure["id"]
                how, _ = self._do(replace(job, only=frozenset([id_])), found)
                if how is not None:
                    told = f"{begun.failure['uri']}: the process that reads it dies of it, twice: {how}"
                    found[id_] = begun.place, {**begun.failure, "status": CRASHED, "error": told}

    def _do(self, job: Job, found: dict[str, tuple[int, dict[str, Any]]]) -> tuple[str | None, list[Begun]]:
        """Do a job into `found`, by id; returns how the child died and what it was reading, or None and nothing."""
        reading: dict[str, Begun] = {}
        try:
            child = self._started()
            child.send(job)
            heard = checked = time.monotonic()
            while True:
                message = child.receive(POLL_S)
                now = time.monotonic()
                heard = heard if message is None else now
                if now - checked >= POLL_S:
                    checked = now
                    self._check(child, now - heard)
                if isinstance(message, Begun):
                    reading[message.failure["id"]] = message
                elif isinstance(message, Done):
                    reading.pop(message.row["id"], None)
                    found[message.row["id"]] = message.place, message.row
                elif isinstance(message, Finished):
                    self._deaths = 0
                    return None, []
        except Ended as ended:
            self.close()
            if not reading:
                self._deaths += 1
                if self._deaths >= DEATHS:
                    raise WorkerError(
                        f"the process that runs the network died {DEATHS} times while it was reading nothing: {ended}; "
                        "what it said is on stderr, which Ray keeps in the logs of this worker"
                    ) from None
            return str(ended), list(reading.values())

    def _check(self, child: Child, silent_s: float) -> None:
        if silent_s > self.work.hang_s:
            raise Ended(f"it showed no progress for {self.work.hang_s:g} s and was ended")
        if self.work.memory_bytes and child.rss_bytes() > self.work.memory_bytes:
            raise Ended(f"it held more than {self.work.memory_bytes / 1e9:.1f} GB of memory and was ended")

    def _started(self) -> Child:
        """Return the child, with its model loaded; it is started if need be."""
        if self._stopped:
            raise WorkerError("stopped")
        if self._child is None:
            self._child = child = Child(self.work.child or CHILD)
            with tempfile.TemporaryDirectory(prefix="audiotag-model-") as folder:
                self.model.unpack(folder)
                child.send(replace(self.work.setup, model=folder))
                message = child.receive(LOAD_S)
                if message is None:
                    raise Ended(f"its model was not loaded within {LOAD_S:g} s")
                assert isinstance(message, Ready)
        return self._child

    def _commit(self, part: int, rows: list[dict[str, Any]]) -> None:
        arrow = pyarrow()
        rows = [{**row, **self.work.stamp} for row in rows]
        sink = io.BytesIO()
        arrow.parquet.write_table(table(rows, self._schema), sink, compression="zstd")
        self.work.plan.write_part(part, sink.getvalue())

    def stop(self) -> None:
        """End the child, and the work that another thread may be doing by it."""
        self._stopped = True
        self.close()

    def close(self) -> None:
        """End the child; the next part starts another."""
        if self._child is not None:
            self._child.close()
            self._child = None

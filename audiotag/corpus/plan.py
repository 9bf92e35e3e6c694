"""The plan: which entries make which part, fixed in the output folder before work begins; and which parts are done.

The output folder holds ``part-000000.parquet`` and so on, one file for each part, and a folder ``_audiotag``, which
readers of Parquet folders leave out, with ``run.json`` (the run's settings and the number of parts), the plan itself
and the table of labels.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

from ..errors import InvalidInputError
from ..runs.journal import check_fingerprint
from .items import Entry
from .storage import is_address, locate, pyarrow

FORMAT_VERSION = 1  # of the plan and of ids
STATE = "_audiotag"
PARTS_PER_FILE = 256
ENTRIES_AT_ONCE = 10_000
# A part is as long as a worker may take again after a kill. Of a small corpus it is short, so that workers end
# together; of a large one longer, so that there are not too many files.
PARTS = 2000
SHORTEST_PART_S, LONGEST_PART_S = 600.0, 36_000.0


class Plan:
    """A run's plan and output, in one folder.

    Parameters
    ----------
    output : str
        The folder: a local path or an address.
    shard : (int, int), optional
        This run does the first number's share, counted from 1, of as many as the second says.
    """

    def __init__(self, output: str, shard: tuple[int, int] | None = None) -> None:
        self.output, self.shard = output, shard
        self._place, self.folder = locate(output)
        self._prefix = "part-" if shard is None else f"part-{shard[0]}of{shard[1]}-"
        self._share = "whole" if shard is None else f"{shard[0]}-of-{shard[1]}"
        self._state = f"{self.folder}/{STATE}/{self._share}"
        self._read: tuple[int, dict[int, list[Entry]]] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Plan, (self.output if is_address(self.output) else self.folder, self.shard)

    @property
    def root(self) -> str:
        """The root of the place that `folder` is in."""
        return self._place.root

    def shares(self, entry: Entry) -> bool:
        """Whether an entry is this shard's to do: by its address, so that listings may come in any order."""
        if self.shard is None:
            return True
        number, count = self.shard
        place_in_it = hashlib.blake2b(f"{entry.first} {entry.uri}".encode(), digest_size=8).digest()
        return int.from_bytes(place_in_it, "big") % count == number - 1

    # -- the run -------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any] | None:
        """Read ``run.json``; None if no run has planned its work here.

        Raises
        ------
        InvalidInputError
            A run with other shards is here.
        """
        folders, _ = self._place.entries(f"{self.folder}/{STATE}")
        for share in sorted(folder.rsplit("/", 1)[-1] for folder in folders):
            fits = share == self._share if self.shard is None else share.endswith(f"-of-{self.shard[1]}")
            if not fits:
                raise InvalidInputError(
                    f"{self.output}: holds a run with shard {share}, this one's is {self._share}; "
                    "give the same --shard, or another output"
                )
        found = self._place.read(f"{self._state}/run.json")
        return None if found is None else json.loads(found)

    def check(self, settings: dict[str, Any], fingerprint: dict[str, Any]) -> None:
        """Refuse to go on with a run of another fingerprint.

        Raises
        ------
        InvalidInputError
            Names what differs.
        """
        check_fingerprint(settings["fingerprint"], fingerprint, self.output)

    def save(self, settings: dict[str, Any]) -> None:
        """Write ``run.json``: from here on the plan counts."""
        self._place.write(f"{self._state}/run.json", json.dumps(settings, indent=1).encode())

    def save_labels(self, rows: list[dict[str, Any]]) -> None:
        """Write the table of labels: what the numbers in rows mean."""
        arrow, sink = pyarrow(), io.BytesIO()
        arrow.parquet.write_table(arrow.Table.from_pylist(rows), sink)
        self._place.write(f"{self.folder}/{STATE}/labels.parquet", sink.getvalue())

    # -- the plan ------------------------------------------------------------------------------------------

    def extend(self, entries: Iterable[Entry], parts: int) -> tuple[int, float]:
        """Plan more entries, in parts behind the `parts` there are; returns how many there are then, and their weight.

        New parts begin a new file of the plan, so that no file of it ever changes; numbers in between stay free.
        """
        with Spool() as spool:
            for entry in entries:
                spool.add(entry)
            if not spool.count:
                return parts, 0.0
            longest = min(max(spool.weight / PARTS, SHORTEST_PART_S), LONGEST_PART_S)
            part = -(-parts // PARTS_PER_FILE) * PARTS_PER_FILE - 1
            file: list[tuple[int, Entry]] = []
            filled = longest
            for entry in spool:
                if filled >= longest or (filled and filled + entry.weight > 1.5 * longest):
                    part, filled = part + 1, 0.0
                    if part % PARTS_PER_FILE == 0 and file:
                        self._write_entries(file)
                        file = []
                file.append((part, entry))
                filled += entry.weight
            self._write_entries(file)
            return part + 1, spool.weight

    def _entries_path(self, part: int) -> str:
        return f"{self._state}/plan-{part // PARTS_PER_FILE:06d}.parquet"

    def _write_entries(self, file: list[tuple[int, Entry]]) -> None:
        arrow, sink = pyarrow(), io.BytesIO()
        columns: dict[str, Any] = {"part": arrow.array([part for part, _ in file], arrow.int32())}
        for name in Entry._fields:
            values = [getattr(entry, name) for _, entry in file]
            columns[name] = [os.fsencode(path) for path in values] if name == "path" else values
        arrow.parquet.write_table(arrow.table(columns), sink, compression="zstd")
        self._place.write(self._entries_path(file[0][0]), sink.getvalue())

    def entries(self, part: int) -> list[Entry]:
        """Read the entries of a part."""
        number = part // PARTS_PER_FILE
        if self._read is None or self._read[0] != number:
            self._read = number, self._read_entries(number)
        return self._read[1][part]

    def planned(self, parts: int) -> Iterator[tuple[int, list[Entry]]]:
        """Yield all parts with their entries, in order; one file of the plan is in memory at a time."""
        for number in range(-(-parts // PARTS_PER_FILE)):
            yield from sorted(self._read_entries(number).items())

    def _read_entries(self, number: int) -> dict[int, list[Entry]]:
        path = self._entries_path(number * PARTS_PER_FILE)
        data = self._place.read(path)
        if data is None:
            raise InvalidInputError(f"{self._place.uri(path)}: is missing; without it, start anew in another folder")
        columns = pyarrow().parquet.read_table(io.BytesIO(data)).to_pydict()
        columns["path"] = [os.fsdecode(path) for path in columns["path"]]
        found: dict[int, list[Entry]] = {}
        for part, *values in zip(columns.pop("part"), *(columns[name] for name in Entry._fields), strict=True):
            found.setdefault(part, []).append(Entry(*values))
        return found

    # -- parts ---------------------------------------------------------------------------------------------

    def _part_path(self, part: int) -> str:
        return f"{self.folder}/{self._prefix}{part:06d}.parquet"

    def write_part(self, part: int, contents: Any) -> None:
        """Commit a part."""
        self._place.write(self._part_path(part), contents)

    def read_part(self, part: int) -> bytes | None:
        """Read a committed part's file; None where there is none."""
        return self._place.read(self._part_path(part))

    def committed(self) -> set[int]:
        """List the numbers of the committed parts."""
        name = re.compile(re.escape(self._prefix) + r"(\d{6,})\.parquet")
        _, files = self._place.entries(self.folder)
        matches = (name.fullmatch(found.path.rsplit("/", 1)[-1]) for found in files)
        return {int(match[1]) for match in matches if match}


class Spool:
    """Entries on disk, between being counted and being planned."""

    def __init__(self) -> None:
        self.count, self.weight = 0, 0.0
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._held: list[Entry] = []

    def add(self, entry: Entry) -> None:
        """Take an entry."""
        self.count += 1
        self.weight += entry.weight
        self._held.append(entry)
        if len(self._held) >= ENTRIES_AT_ONCE:
            pickle.dump(self._held, self._file)
            self._held = []

    def __iter__(self) -> Iterator[Entry]:
        self._file.seek(0)
        for _ in range((self.count - len(self._held)) // ENTRIES_AT_ONCE):
            yield from pickle.load(self._file)
        yield from self._held

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

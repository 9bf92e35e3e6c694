"""From what a user names to the entries of a plan: listing, looking into headers, cutting long recordings."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any

from ..errors import AudiotagError
from ..runs.inputs import expand, fits, is_audio_name, natural_key
from .items import FILE, NOTHING, PARQUET_SUFFIX, ROWS, TAR, TAR_SUFFIXES, Entry, open_local_or_ranged
from .probe import Prober
from .segments import Grid, cut
from .storage import Found, is_address, locate, pyarrow, walk

# About how many bytes a second of audio has, to weigh what nobody has opened: and the fewest it may have, to tell
# which files cannot be long enough to be cut.
USUAL_BYTES_PER_S = {".wav": 96_000, ".wave": 96_000, ".aif": 96_000, ".aiff": 96_000, ".flac": 48_000, ".opus": 4_000}
FEWEST_BYTES_PER_S = {".wav": 8_000, ".wave": 8_000, ".aif": 8_000, ".aiff": 8_000}
OTHER_USUAL, OTHER_FEWEST = 16_000, 1_000
OPENING_S = 0.5  # of audio; what opening a file costs in terms of the seconds one could work through instead
AUDIO_COLUMNS = ("audio", "bytes", "wav", "flac", "mp3", "opus", "ogg", "content")
LOOKED_INTO_AT_ONCE = 512


def takes(name: str) -> bool:
    """Whether a file found in a folder is taken: audio, Parquet, or a tar archive."""
    return is_audio_name(name) or (
        not name.startswith((".", "_")) and name.lower().endswith((PARQUET_SUFFIX, *TAR_SUFFIXES))
    )


def listing(
    inputs: Iterable[str], listed: Iterable[str], output: tuple[str, str]
) -> Iterator[tuple[str, Found, bool, str]]:
    """Yield what the inputs name: root, file, whether it was found rather than named, and why it is no input.

    Parameters
    ----------
    inputs : iterable of str
        Files, folders and patterns; local, or addresses.
    listed : iterable of str
        The same from a list, never patterns.
    output : (str, str)
        Root and folder that are not looked into.
    """
    for texts, patterns in ((inputs, True), (listed, False)):
        for text in texts:
            where = _remote(text, patterns) if is_address(text) else _local(text, patterns)
            for root, found, walked, note in where:
                if not (walked and root == output[0] and f"{found.path}/".startswith(output[1].rstrip("/") + "/")):
                    yield root, found, walked, note


def _local(text: str, patterns: bool) -> Iterator[tuple[str, Found, bool, str]]:
    given = os.path.abspath(text)
    for item in expand([text] if patterns else [], [] if patterns else [text], takes=takes):
        path = os.path.abspath(item.path)
        try:
            stat = os.stat(path)
            found = Found(path, stat.st_size, stat.st_mtime_ns)
        except OSError:
            found = Found(path, 0, 0)
        yield "", found, path != given, item.error or ""


def _remote(text: str, patterns: bool) -> Iterator[tuple[str, Found, bool, str]]:
    where, path = locate(text)
    magic = ""
    if patterns and glob.has_magic(path):
        parts = path.split("/")
        first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
        path, magic = "/".join(parts[:first]), "/".join(parts[first:])
    empty = True
    kind = where.kind(path)
    if kind == "file":
        yield where.root, where.find(path), False, ""
        return
    if kind == "folder" or magic:
        for found in walk(where, path, natural_key):
            inside = found.path[len(path) :].strip("/")
            if takes(inside.rsplit("/", 1)[-1]) and (not magic or fits(inside.split("/"), magic.split("/"))):
                empty = False
                yield where.root, found, True, ""
    if empty:
        note = "nothing it matches is an audio file" if magic else "no audio file in this folder or below"
        yield where.root, Found(path, 0, 0), False, note if kind or magic else "no such file or folder"


class Indexer:
    """Maker of the plan's entries: it looks into headers and cuts long recordings.

    Parameters
    ----------
    grid, segment_s
        How recordings are cut; `segment_s` None: not at all.
    known : set of bytes
        Keys of files that are planned already; new ones are added.
    share : callable
        Whether an entry is this run's to do.
    audio_column : str, optional
        The column of Parquet files that holds audio; None: found by its name and type.
    """

    def __init__(
        self,
        grid: Grid,
        segment_s: float | None,
        known: set[bytes],
        share: Callable[[Entry], bool],
        audio_column: str | None = None,
    ) -> None:
        self._grid, self._segment_s, self._known, self._share = grid, segment_s, known, share
        self._column = audio_column

    def entries(self, found: Iterable[tuple[str, Found, bool, str]]) -> Generator[Entry, None, None]:
        """Yield the entries, in the order of what was found."""
        with Prober() as prober, ThreadPoolExecutor(16) as pool:
            new = self._new(found)
            while some := list(islice(new, LOOKED_INTO_AT_ONCE)):
                lengths = prober.seconds([entry for entry, _ in some if self._may_be_long(entry)])
                for entries in pool.map(partial(self._of, lengths=lengths), some):
                    yield from filter(self._share, entries)

    def _new(self, found: Iterable[tuple[str, Found, bool, str]]) -> Iterator[tuple[Entry, bool]]:
        for root, (path, size, version), walked, note in found:
            name = path.lower()
            kind = ROWS if name.endswith(PARQUET_SUFFIX) else TAR if name.endswith(TAR_SUFFIXES) else FILE
            entry = Entry(NOTHING if note else kind, root, path, size, version, note=note)
            key = entry.key()
            if key not in self._known:
                self._known.add(key)
                yield entry, walked

    def _may_be_long(self, entry: Entry) -> bool:
        if entry.kind != FILE or self._segment_s is None:
            return False
        return entry.size > self._segment_s * FEWEST_BYTES_PER_S.get(_suffix(entry), OTHER_FEWEST)

    def _of(self, new: tuple[Entry, bool], lengths: dict[Entry, float]) -> list[Entry]:
        entry, walked = new
        if entry.kind == ROWS:
            return self._row_groups(entry, walked)
        if entry.kind == TAR:
            return [entry._replace(weight=OPENING_S + entry.size / OTHER_USUAL)]
        seconds = lengths.get(entry, 0.0)
        n_samples = int(seconds * self._grid.rate_hz)
        if not n_samples:
            usual = USUAL_BYTES_PER_S.get(_suffix(entry), OTHER_USUAL)
            return [entry._replace(weight=OPENING_S + entry.size / usual)]
        assert self._segment_s is not None
        cuts = []
        for segment in cut(n_samples, self._grid, self._segment_s):
            stop = segment.stop(self._grid) or n_samples
            weight = OPENING_S + (stop - segment.start(self._grid)) / self._grid.rate_hz
            cuts.append(
                entry._replace(first=segment.first, span=segment.windows or 0, duration_s=seconds, weight=weight)
            )
        return cuts

    def _row_groups(self, entry: Entry, walked: bool) -> list[Entry]:
        try:
            with open_local_or_ranged(entry.root, entry.path) as file:
                table = pyarrow().parquet.ParquetFile(file)
                column = _audio_column(table.schema_arrow, self._column)
                groups = [table.metadata.row_group(i) for i in range(table.metadata.num_row_groups)]
        except (AudiotagError, OSError, ValueError) as error:
            return [entry._replace(kind=NOTHING, note=f"cannot be read as Parquet: {error}")]
        if column is None:
            # in a folder it may be anything: a table of metadata, say
            note = f"has no column of audio bytes; its columns are {', '.join(table.schema_arrow.names)}"
            return [] if walked else [entry._replace(kind=NOTHING, note=note)]
        return [
            entry._replace(
                first=number,
                span=group.num_rows,
                weight=OPENING_S * group.num_rows + group.total_byte_size / OTHER_USUAL,
                note=column,
            )
            for number, group in enumerate(groups)
        ]


def _suffix(entry: Entry) -> str:
    return os.path.splitext(entry.path)[1].lower()


def _audio_column(schema: Any, asked: str | None) -> str | None:
    """Find the column with audio: bytes, or a struct with a field ``bytes``, as Hugging Face datasets have."""
    types = pyarrow().types

    def is_bytes(type_: Any) -> bool:
        return types.is_binary(type_) or types.is_large_binary(type_)

    def holds(type_: Any) -> bool:
        if types.is_struct(type_):
            index = type_.get_field_index("bytes")
            return index >= 0 and is_bytes(type_.field(index).type)
        return is_bytes(type_)

    columns = [field.name for field in schema if holds(field.type)]
    if asked is not None:
        return asked if asked in columns else None
    named = [name for name in AUDIO_COLUMNS if name in columns]
    return named[0] if named else columns[0] if len(columns) == 1 else None

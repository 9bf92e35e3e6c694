"""Entries of a corpus, as they are planned, and their items, each a source and a row of the output."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..audio.recording import AudioStream, open_audio
from ..errors import AudioError
from ..runs.inputs import is_audio_name
from ..text import printable, printable_name
from .segments import WHOLE, Grid, Segment, SegmentStream
from .storage import RangedFile, place, pyarrow

FILE, ROWS, TAR, NOTHING = "file", "rows", "tar", "nothing"
PARQUET_SUFFIX = ".parquet"
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
SPOOLED_BYTES = 1 << 26  # a larger member of a tar archive waits on disk rather than in memory
READ_BYTES = 1 << 20


class ChangedError(AudioError):
    """Raised where a file is no longer what was listed."""


class Entry(NamedTuple):
    """A line of the plan.

    Attributes
    ----------
    kind : str
        `FILE`, a recording or a segment of one; `ROWS`, rows of a Parquet file; `TAR`, a whole tar archive;
        `NOTHING`, an input that is none, with the reason as `path`'s companion `note`.
    root : str
        Of the `Place` it is in; empty for local files.
    path : str
        In that place; as `os.fsdecode` gives it.
    size, version : int
        Bytes, and what changes with the contents: see `storage.Found`.
    first, span : int
        The segment's first window and its number of windows, 0 for None; or the row group and its number of rows.
    duration_s : float
        Of the recording, as far as its header tells; 0 where unknown.
    weight : float
        About how many seconds of audio there are to work through.
    note : str
        The column with audio, or why the input is none.
    """

    kind: str
    root: str
    path: str
    size: int = 0
    version: int = 0
    first: int = 0
    span: int = 0
    duration_s: float = 0.0
    weight: float = 1.0
    note: str = ""

    @property
    def uri(self) -> str:
        """The address or absolute path, in characters that any encoding of Unicode holds."""
        return printable_name(place(self.root).uri(self.path))

    def key(self) -> bytes:
        """Digest the file as it is, address, size and version, to 16 bytes."""
        return _digest(self.uri, self.size, self.version)

    @property
    def segment(self) -> Segment:
        """The run of windows that a recording's entry stands for."""
        return Segment(self.first, self.span or None)

    def open(self, rate_hz: int) -> Any:
        """Open the whole recording that this is, or is a segment of.

        Raises
        ------
        AudioError
            It cannot be opened; `ChangedError`: it is no longer what was listed.
        """
        if self.kind == NOTHING:
            raise AudioError(f"{self.uri}: {self.note}")
        where = place(self.root)
        if where.local:
            with suppress(OSError):
                stat = os.stat(self.path)
                self._check(stat.st_size, stat.st_mtime_ns)
            return open_audio(self.path, target_rate_hz=rate_hz)
        file = where.open_ranged(self.path)
        try:
            # asking for the version too would be a request more
            self._check(file.size, self.version)
            return _Closing(open_audio(file, target_rate_hz=rate_hz), file)
        except BaseException:
            file.close()
            raise

    def check_version(self) -> None:
        """Refuse a file that is not what was listed any more; one that cannot be found is left to `open`.

        Raises
        ------
        ChangedError
            It is not.
        """
        found = place(self.root).find(self.path)
        if found.size:
            self._check(found.size, found.version)

    def _check(self, size: int, version: int) -> None:
        if self.kind != NOTHING and (size, version) != (self.size, self.version):
            raise ChangedError(
                f"{self.uri}: has changed since it was listed ({self.size} bytes then, {size} now); "
                "--resume takes it as it is now"
            )


def _digest(*parts: Any) -> bytes:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).digest()


@dataclass
class Item:
    """A source, as `Tagger.predict_each` takes it.

    Attributes
    ----------
    id : str
        32 hexadecimal digits: of address, size, version, segment and `analysis`, the digest of model and options.
    uri : str
    grid : Grid
    entry : Entry
        What it is of.
    opener : callable
        Opens the recording, given a rate.
    opened : callable
        Called with the item when somebody begins to read it.
    stream : SegmentStream or AudioStream, optional
        What it was opened as.
    """

    id: str
    uri: str
    grid: Grid
    opener: Callable[[int], Any]
    opened: Callable[[Item], None]
    entry: Entry
    segment: Segment = WHOLE
    stream: Any = field(default=None, repr=False)

    def open_stream(self, target_rate_hz: int) -> Any:
        """Open the item's part of its recording, as `open_audio` asks it to."""
        self.opened(self)
        if self.segment == WHOLE:
            self.stream = self.opener(target_rate_hz)
        else:
            self.stream = SegmentStream(lambda: self.opener(target_rate_hz), self.segment, self.grid)
        return self.stream


def items(
    entries: list[Entry], analysis: str, grid: Grid, opened: Callable[[Item], None], wanted: Callable[[str], bool]
) -> Iterator[Item]:
    """Yield the items of entries, in a fixed order, read lazily; those not `wanted`, by id, are left out."""

    def item(entry: Entry, uri: str, opener: Callable[[int], Any], number: int = -1) -> Item | None:
        part = entry.segment if entry.kind == FILE else WHOLE
        id_ = _digest(uri, entry.size, entry.version, part, number, analysis).hex()
        return Item(id_, uri, grid, opener, opened, entry, part) if wanted(id_) else None

    for entry in entries:
        if entry.kind in (FILE, NOTHING):
            found = item(entry, entry.uri, entry.open)
            if found is not None:
                yield found
            continue
        inside = _rows(entry) if entry.kind == ROWS else _members(entry)
        try:
            with closing(inside):
                for number, name, get in inside:
                    uri = f"{entry.uri}#{printable_name(name)}"
                    # an id before the contents: what is not wanted is not read
                    found = item(entry, uri, _never, number)
                    if found is not None:
                        found.opener = _bytes_opener(get(), uri)
                        yield found
        except Exception as error:  # the rest of the file is lost, and says so in a row of its own
            failure = error if isinstance(error, AudioError) else AudioError(f"{entry.uri}: cannot be read on: {error}")
            found = item(entry, entry.uri, _raising(failure))
            if found is not None:
                yield found


def _never(rate_hz: int) -> AudioStream:
    raise AssertionError("an opener is set before an item is handed on")


def _raising(error: AudioError) -> Callable[[int], AudioStream]:
    def opener(rate_hz: int) -> AudioStream:
        raise error

    return opener


class _Closing:
    """A stream that, when closed, closes the file under it too."""

    def __init__(self, stream: AudioStream, file: RangedFile) -> None:
        self._stream, self._file = stream, file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def close(self) -> None:
        self._stream.close()
        self._file.close()

    def __enter__(self) -> _Closing:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _bytes_opener(contents: Any, uri: str) -> Callable[[int], AudioStream]:
    def opener(rate_hz: int) -> AudioStream:
        if contents is None:
            raise AudioError(f"{uri}: holds no bytes of audio")
        if isinstance(contents, bytes):
            return open_audio({"bytes": contents, "path": uri}, target_rate_hz=rate_hz)
        return open_audio(contents, target_rate_hz=rate_hz)

    return opener


def open_local_or_ranged(root: str, path: str) -> Any:
    """Open a seekable binary file.

    Raises
    ------
    AudioError
        It cannot be opened.
    """
    where = place(root)
    if not where.local:
        return where.open_ranged(path)
    try:
        return open(path, "rb")
    except OSError as error:
        raise AudioError(f"{printable(path)}: cannot be opened: {error.strerror or error}") from error


def _rows(entry: Entry) -> Generator[tuple[int, str, Callable[[], Any]], None, None]:
    """Yield each row of one row group: its number, its name, and how to get its bytes."""
    parquet = pyarrow().parquet
    with open_local_or_ranged(entry.root, entry.path) as file:
        table = parquet.ParquetFile(file, buffer_size=READ_BYTES, pre_buffer=False)
        metadata = table.metadata
        number = sum(metadata.row_group(i).num_rows for i in range(entry.first))
        for batch in table.iter_batches(
            batch_size=1, row_groups=[entry.first], columns=[entry.note], use_threads=False
        ):
            cell = batch.column(0)
            if hasattr(cell, "field"):
                cell = cell.field("bytes")
            for value in cell:
                yield number, str(number), value.as_py
                number += 1


def _members(entry: Entry) -> Generator[tuple[int, str, Callable[[], Any]], None, None]:
    """Yield each recording in a tar archive: its number, its name, and how to get its contents."""
    with open_local_or_ranged(entry.root, entry.path) as file, tarfile.open(fileobj=file, mode="r:*") as archive:
        for number, member in enumerate(archive):
            archive.members = []  # type: ignore[attr-defined]  # it would keep every header
            name = member.name
            if not member.isfile() or not is_audio_name(name.rsplit("/", 1)[-1]):
                continue

            def get(member: tarfile.TarInfo = member) -> Any:
                source = archive.extractfile(member)
                assert source is not None
                if member.size <= SPOOLED_BYTES:
                    contents = source.read()
                    if len(contents) < member.size:
                        raise AudioError(f"{entry.uri}: ends within {printable(member.name)}")
                    return contents
                spooled: Any = tempfile.TemporaryFile()  # noqa: SIM115  # closed, and gone, when nobody holds it
                shutil.copyfileobj(source, spooled, READ_BYTES)
                spooled.seek(0)
                file = spooled.detach()
                file.name = f"{entry.uri}#{printable(member.name)}"
                return file

            yield number, name, get

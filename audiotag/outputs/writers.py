"""Writers: records to text, JSON, JSON Lines, CSV and Parquet; and how a file or a stream of any format is opened."""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
from collections.abc import Iterator
from typing import IO, Any

from ..checks import imported
from ..errors import InvalidInputError
from ..files import whole_file
from ..text import clock, text_table
from .formats import TABLES, About, Format
from .records import COLUMNS, Record, dumps, kind_of, plain, rows

PARQUET_ROWS = 50_000  # held in memory until they are written as one row group
PARQUET_VECTORS = 1000


class Writer:
    """Writes records to an open file, one at a time; the base of all formats.

    Parameters
    ----------
    file : text or binary file
        As `Format.binary` says.
    about : About
        What holds for every record.
    """

    def __init__(self, file: IO[Any], about: About) -> None:
        self._file, self._about = file, about

    def write(self, record: Record) -> None:
        """Write what one recording gave."""
        raise NotImplementedError

    def close(self) -> None:
        """Write what comes after the last record; the file stays open."""

    def abandon(self) -> None:
        """Write nothing more: the file will be deleted."""


class TextWriter(Writer):
    """Aligned tables for people. Tags: the clip's; windows are not shown."""

    def __init__(self, file: IO[str], about: About) -> None:
        super().__init__(file, about)
        terminal = file.isatty()
        self._width = shutil.get_terminal_size().columns if terminal else None
        self._blocks = _can_write(file, "█▏…")
        self._first = True

    def write(self, record: Record) -> None:
        kind = kind_of(record)
        if not self._first:
            self._file.write("\n")
        self._first = False
        if kind == "error":
            text = f"{record['source']}\n  error: {record['error']}"
        else:
            if kind == "tags":
                named = [(tag["label"], tag["score"]) for tag in record["tags"]]
            else:
                named = [(f"{_span(event)}  {event['label']}", event["peak"]) for event in record["events"]]
            heading = f"{record['source']}  {clock(record['duration_s'])}"
            text = text_table(heading, named, record["warnings"], width=self._width, blocks=self._blocks)
            if not named:
                text += f"\n  no {kind} at or above the threshold"
        if not self._blocks:
            encoding = _encoding(self._file)
            text = text.encode(encoding, "backslashreplace").decode(encoding)
        self._file.write(text + "\n")


class JsonLinesWriter(Writer):
    """One JSON object a line, in strict JSON: no NaN, UTF-8."""

    def write(self, record: Record) -> None:
        self._file.write(dumps(plain(record, per=self._about.per)) + "\n")


class JsonWriter(Writer):
    """One JSON array of all records, each on a line."""

    _before = "["

    def write(self, record: Record) -> None:
        self._file.write(f"{self._before}\n{dumps(record)}")
        self._before = ","

    def close(self) -> None:
        self._file.write("[]\n" if self._before == "[" else "\n]\n")


class CsvWriter(Writer):
    """RFC 4180: a header, then a row per tag or event, see `audiotag.outputs.records.rows`.

    Cells are written as they are. A spreadsheet takes one that begins with ``=``, ``+``, ``-`` or ``@`` for a formula,
    and a file may be called so: import columns as text where strangers choose the names.
    """

    def __init__(self, file: IO[str], about: About) -> None:
        super().__init__(file, about)
        self._writer = csv.DictWriter(file, list(COLUMNS[about.kind]), lineterminator="\r\n")
        self._writer.writeheader()

    def write(self, record: Record) -> None:
        self._writer.writerows(rows(record, self._about.kind))


class ParquetWriter(Writer):
    """The rows of the CSV, typed: seconds as float64, scores as float32, what is missing as null.

    Embeddings: a row per vector, in a column of float32 lists that are all of one length.
    """

    def __init__(self, file: IO[bytes], about: About) -> None:
        super().__init__(file, about)
        message = 'the format parquet needs pyarrow: pip install "audiotag-dymn[parquet]"'
        pyarrow = imported(message, "pyarrow", "pyarrow.parquet")
        types = {
            str: pyarrow.string(),
            int: pyarrow.int32(),
            float: pyarrow.float32(),
            list: pyarrow.list_(pyarrow.float32(), about.features),
        }
        self._schema = pyarrow.schema(
            [
                (name, pyarrow.float64() if name.endswith("_s") else types[type_])
                for name, type_ in COLUMNS[about.kind].items()
            ]
        )
        self._table = pyarrow.Table
        self._writer = pyarrow.parquet.ParquetWriter(file, self._schema)
        self._rows: list[dict[str, Any]] = []
        self._most = PARQUET_ROWS if about.kind in TABLES else PARQUET_VECTORS

    def write(self, record: Record) -> None:
        self._rows.extend(rows(record, self._about.kind))
        if len(self._rows) >= self._most:
            self._write_rows()

    def _write_rows(self) -> None:
        self._writer.write_table(self._table.from_pylist(self._rows, schema=self._schema))
        self._rows.clear()

    def close(self) -> None:
        try:
            if self._rows:
                self._write_rows()
            self._writer.close()
        finally:
            self.abandon()

    def abandon(self) -> None:
        self._writer.is_open = False  # or it would close itself when it is collected, with the file closed


@contextlib.contextmanager
def open_writer(form: Format, about: About, destination: str | os.PathLike[str] | IO[str]) -> Iterator[Writer]:
    """Open a writer to a path or an open text stream.

    At the path the file appears, replacing one that was there, when the block ends without an exception, and nothing
    otherwise. A stream is left open.

    Raises
    ------
    InvalidInputError
        A binary format to a stream.
    OutputError
        The disk refuses; the message names the path.
    """
    if isinstance(destination, str | os.PathLike):
        with whole_file(destination, binary=form.binary) as file:
            writer = form.make(file, about)
            try:
                yield writer
            except BaseException:
                writer.abandon()
                raise
            writer.close()
        return
    if form.binary:
        raise InvalidInputError(f"the format {form.name} is binary; name a file to write to")
    writer = form.make(destination, about)
    yield writer
    writer.close()
    destination.flush()


def _span(event: Record) -> str:
    return f"{clock(event['onset_s']):>9} - {clock(event['offset_s']):>9}"


def _encoding(file: IO[str]) -> str:
    # A text file in memory has no encoding and takes everything.
    return getattr(file, "encoding", None) or "utf-8"


def _can_write(file: IO[str], text: str) -> bool:
    try:
        text.encode(_encoding(file))
    except (UnicodeEncodeError, LookupError):
        return False
    return True

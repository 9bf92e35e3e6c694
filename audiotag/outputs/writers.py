"""Writers: records to text, JSON, JSON Lines, CSV, Parquet, Audacity labels, Raven selection tables and WebVTT.

`open_writer` is the way in: a file it makes appears whole or not at all, a stream such as stdout gets every record as
it comes. Writers of one recording per file (Audacity, Raven, WebVTT) refuse a second one.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, Protocol

from ..errors import InvalidInputError, MissingDependencyError
from ..files import whole_file
from ..text import clock, text_table
from .records import COLUMNS, KINDS, Record, kind_of, rows

PARQUET_ROWS = 50_000  # held in memory until they are written as one row group


class Writer(Protocol):
    """Takes records one at a time; `close` writes what comes after the last and leaves the file open."""

    def write(self, record: Record) -> None: ...
    def close(self) -> None: ...


class TextWriter:
    """Aligned tables for people. Tags: the clip's; windows are not shown."""

    def __init__(self, file: IO[str], kind: str) -> None:
        self._file = file
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

    def close(self) -> None:
        pass


class JsonLinesWriter:
    """One JSON object a line, in strict JSON: no NaN, UTF-8."""

    def __init__(self, file: IO[str], kind: str) -> None:
        self._file = file

    def write(self, record: Record) -> None:
        self._file.write(dumps(record) + "\n")

    def close(self) -> None:
        pass


class JsonWriter:
    """One JSON array of all records, each on a line."""

    def __init__(self, file: IO[str], kind: str) -> None:
        self._file = file
        self._before = "["

    def write(self, record: Record) -> None:
        self._file.write(f"{self._before}\n{dumps(record)}")
        self._before = ","

    def close(self) -> None:
        self._file.write("[]\n" if self._before == "[" else "\n]\n")


class CsvWriter:
    """RFC 4180: a header, then a row per tag or event, see `audiotag.outputs.records.rows`."""

    def __init__(self, file: IO[str], kind: str) -> None:
        self._kind = kind
        self._writer = csv.DictWriter(file, list(COLUMNS[kind]), lineterminator="\r\n")
        self._writer.writeheader()

    def write(self, record: Record) -> None:
        self._writer.writerows(rows(record, self._kind))

    def close(self) -> None:
        pass


class ParquetWriter:
    """The rows of the CSV, typed: seconds as float64, scores as float32, what is missing as null."""

    def __init__(self, file: IO[bytes], kind: str) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise MissingDependencyError(
                'the format parquet needs pyarrow: pip install "audiotag-dymn[parquet]"'
            ) from error
        types = {str: pyarrow.string(), int: pyarrow.int32(), float: pyarrow.float32()}
        self._kind = kind
        self._schema = pyarrow.schema(
            [
                (name, pyarrow.float64() if name.endswith("_s") else types[type_])
                for name, type_ in COLUMNS[kind].items()
            ]
        )
        self._table = pyarrow.Table
        self._writer = pyarrow.parquet.ParquetWriter(file, self._schema)
        self._rows: list[dict[str, Any]] = []

    def write(self, record: Record) -> None:
        self._rows.extend(rows(record, self._kind))
        if len(self._rows) >= PARQUET_ROWS:
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
            self._writer.is_open = False  # or it would try again when it is collected, with the file closed


class OneRecordingWriter:
    """Base of the formats that know one recording only; an error leaves nothing but the empty form of the format."""

    header = ""

    def __init__(self, file: IO[str], kind: str) -> None:
        self._file = file
        self._source: str | None = None
        file.write(self.header)

    def write(self, record: Record) -> None:
        if self._source is not None:
            raise InvalidInputError(
                f"this format holds one recording a file: {self._source} is in it, {record['source']} cannot be; "
                "write to a folder, or choose jsonl, csv or parquet"
            )
        self._source = record["source"]
        if kind_of(record) != "error":
            for number, event in enumerate(record["events"], 1):
                self._file.write(self.line(number, event, record))

    def line(self, number: int, event: Record, record: Record) -> str:
        raise NotImplementedError

    def close(self) -> None:
        pass


class AudacityWriter(OneRecordingWriter):
    """Audacity label track: onset, offset and label separated by tabs, decimal points, UTF-8, no header."""

    def line(self, number: int, event: Record, record: Record) -> str:
        return f"{event['onset_s']:.6f}\t{event['offset_s']:.6f}\t{_one_line(event['label'])}\n"


class RavenWriter(OneRecordingWriter):
    """Raven selection table: Raven's seven columns, then label and scores as annotations, and the file.

    The box of a selection spans the frequencies the network hears, 0 to 15,000 Hz; a label has none of its own.
    """

    fmax_hz = 15_000
    header = (
        "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\t"
        "Annotation\tPeak Score\tMean Score\tBegin Path\n"
    )

    def line(self, number: int, event: Record, record: Record) -> str:
        # Raven opens the sound along with the table if it finds it there.
        path = os.path.abspath(record["source"]) if os.path.exists(record["source"]) else record["source"]
        return (
            f"{number}\tSpectrogram 1\t1\t{event['onset_s']:.6f}\t{event['offset_s']:.6f}\t0.000\t{self.fmax_hz:.3f}\t"
            f"{_one_line(event['label'])}\t{event['peak']:.4f}\t{event['mean']:.4f}\t{path}\n"
        )


class WebVttWriter(OneRecordingWriter):
    """WebVTT: a cue per event with label and peak score, for players that show subtitles or chapters."""

    header = "WEBVTT\n"

    def line(self, number: int, event: Record, record: Record) -> str:
        onset, offset = round(event["onset_s"] * 1000), round(event["offset_s"] * 1000)
        # A cue must end after it starts.
        times = f"{_vtt_time(onset)} --> {_vtt_time(max(offset, onset + 1))}"
        label = _one_line(event["label"]).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        return f"\n{number}\n{times}\n{label} ({event['peak']:.2f})\n"


@dataclass(frozen=True)
class Format:
    """What a name after ``--format`` means.

    Attributes
    ----------
    kinds : tuple of str
        What it can hold: ``tags``, ``events``.
    suffix : str
        Ending of files of one recording, in folders that mirror the input.
    about : str
        For people who choose.
    one_recording : bool
        Whether a file holds one recording only.
    binary : bool
        Whether it needs a binary file.
    """

    name: str
    kinds: tuple[str, ...]
    suffix: str
    about: str
    make: Callable[[Any, str], Writer]
    one_recording: bool = False
    binary: bool = False


FORMATS = {
    f.name: f
    for f in (
        Format("text", KINDS, ".txt", "tables to read", TextWriter),
        Format("json", KINDS, ".json", "one JSON array", JsonWriter),
        Format("jsonl", KINDS, ".jsonl", "one JSON object a line", JsonLinesWriter),
        Format("csv", KINDS, ".csv", "one row per tag or event", CsvWriter),
        Format("parquet", KINDS, ".parquet", "the same rows, typed; extra [parquet]", ParquetWriter, binary=True),
        Format("audacity", ("events",), ".labels.txt", "Audacity label track", AudacityWriter, one_recording=True),
        Format("raven", ("events",), ".selections.txt", "Raven selection table", RavenWriter, one_recording=True),
        Format("webvtt", ("events",), ".vtt", "WebVTT cues for players", WebVttWriter, one_recording=True),
    )
}


def formats_for(kind: str) -> tuple[str, ...]:
    """Names of the formats that can hold ``tags`` or ``events``."""
    return tuple(name for name, form in FORMATS.items() if kind in form.kinds)


def find_format(name: str | None, kind: str, path: str | os.PathLike | None = None) -> Format:
    """The format with this name; where there is none, the one a file name's ending says, else text.

    Raises
    ------
    InvalidInputError
        The name is unknown, or the format cannot hold the kind.
    """
    if name is None:
        ending = os.fspath(path).lower() if path is not None else ""
        suffixes = [f for f in FORMATS.values() if ending.endswith(f.suffix) and kind in f.kinds]
        return max(suffixes, key=lambda f: len(f.suffix), default=FORMATS["text"])
    if name not in FORMATS or kind not in FORMATS[name].kinds:
        raise InvalidInputError(f"format must be one of {', '.join(formats_for(kind))} for {kind}, got {name!r}")
    return FORMATS[name]


@contextlib.contextmanager
def open_writer(form: Format, kind: str, destination: str | os.PathLike | IO[str]) -> Iterator[Writer]:
    """A writer to a path or an open text stream.

    At the path the file appears, replacing one that was there, when the block ends without an exception, and nothing
    otherwise. A stream is flushed after every record and left open.

    Raises
    ------
    InvalidInputError
        A binary format to a stream.
    OutputError
        The disk refuses; the message names the path.
    """
    if isinstance(destination, str | os.PathLike):
        with whole_file(destination, binary=form.binary) as file:
            writer = form.make(file, kind)
            try:
                yield writer
            except BaseException:
                with contextlib.suppress(Exception):  # the first exception is the one to report
                    writer.close()
                raise
            writer.close()
        return
    if form.binary:
        raise InvalidInputError(f"the format {form.name} is binary; name a file to write to")
    writer = _Flushing(form.make(destination, kind), destination)
    yield writer
    writer.close()


class _Flushing:
    def __init__(self, writer: Writer, file: IO[str]) -> None:
        self._writer, self._file = writer, file

    def write(self, record: Record) -> None:
        self._writer.write(record)
        self._file.flush()

    def close(self) -> None:
        self._writer.close()
        self._file.flush()


def dumps(record: Record) -> str:
    """One line of strict JSON in UTF-8."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False)


def _span(event: Record) -> str:
    return f"{clock(event['onset_s']):>9} - {clock(event['offset_s']):>9}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _vtt_time(milliseconds: int) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{rest:03d}"


def _encoding(file: IO[str]) -> str:
    # A text file in memory has no encoding and takes everything.
    return getattr(file, "encoding", None) or "utf-8"


def _can_write(file: IO[str], text: str) -> bool:
    try:
        text.encode(_encoding(file))
    except (UnicodeEncodeError, LookupError):
        return False
    return True

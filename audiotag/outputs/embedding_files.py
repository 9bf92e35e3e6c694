"""Embeddings of any number of recordings into .npz, .npy, Parquet or JSON Lines, never all in memory.

numpy's own savers want whole arrays, so rows go into a temporary file and are copied behind numpy's header.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ..errors import InvalidInputError, MissingDependencyError
from ..files import whole_file
from ..text import printable, shortest

if TYPE_CHECKING:
    from ..results.embeddings import WindowEmbeddings

FORMATS = ("npz", "npy", "parquet", "jsonl")
PARQUET_ROWS = 1000
SAME_TIME = (1980, 1, 1, 0, 0, 0)  # of the members of an .npz, so that equal contents are equal files
Record = Mapping[str, Any]


def embedding_record(source: str, found: WindowEmbeddings, *, per: str) -> dict[str, Any]:
    """What is kept of one recording, JSON-ready: one vector for the clip, the mean over its windows, or one a window.

    Parameters
    ----------
    found : WindowEmbeddings
    per : {"clip", "window"}
    """
    end_s = float(found.end_s[-1])
    kept = found.vectors.mean(0, keepdims=True) if per == "clip" else found.vectors
    return {
        "source": printable(source),
        "duration_s": end_s,
        "vectors": base64.b64encode(np.ascontiguousarray(kept, "<f4").tobytes()).decode("ascii"),
        "start_s": [0.0] if per == "clip" else found.start_s.tolist(),
        "end_s": [end_s] if per == "clip" else found.end_s.tolist(),
        "warnings": list(map(printable, found.warnings)),
    }


def vectors_of(record: Record) -> np.ndarray:
    """The vectors in a record: float32 (rows, features)."""
    flat = np.frombuffer(base64.b64decode(record["vectors"]), "<f4")
    return flat.reshape(len(record["start_s"]), -1)


class NpyWriter:
    """One matrix, float32 (rows, features); a recording that failed is a row of NaN, so that rows match the inputs."""

    def __init__(self, file: IO[bytes], features: int, per: str) -> None:
        self._file, self._features = file, features
        self._rows = _Column(file, np.dtype("<f4"), (features,))

    def write(self, record: Record) -> None:
        failed = "error" in record
        self._rows.add(np.full((1, self._features), np.nan, "<f4") if failed else vectors_of(record))

    def close(self) -> None:
        self._rows.write_to(self._file)


class NpzWriter:
    """Arrays ``embeddings`` float32 (rows, features) and ``source`` (rows,), per window also ``start_s`` and ``end_s``.

    What failed has no row; ``failed`` and ``error`` name it.
    """

    def __init__(self, file: IO[bytes], features: int, per: str) -> None:
        self._file, self._per = file, per
        self._columns: dict[str, Any] = {
            "embeddings": _Column(file, np.dtype("<f4"), (features,)),
            "source": _Texts(file),
        }
        if per == "window":
            self._columns |= {"start_s": _Column(file, np.dtype("<f8")), "end_s": _Column(file, np.dtype("<f8"))}
        self._columns |= {"failed": _Texts(file), "error": _Texts(file)}

    def write(self, record: Record) -> None:
        columns = self._columns
        if "error" in record:
            columns["failed"].add([record["source"]])
            columns["error"].add([record["error"]])
            return
        vectors = vectors_of(record)
        columns["embeddings"].add(vectors)
        columns["source"].add([record["source"]] * len(vectors))
        if self._per == "window":
            columns["start_s"].add(np.array(record["start_s"]))
            columns["end_s"].add(np.array(record["end_s"]))

    def close(self) -> None:
        with zipfile.ZipFile(self._file, "w") as archive:
            for name, column in self._columns.items():
                with archive.open(zipfile.ZipInfo(f"{name}.npy", SAME_TIME), "w", force_zip64=True) as member:
                    column.write_to(member)


class JsonLinesWriter:
    """One object a line: source, duration_s and ``embedding``, or ``windows`` with times and embeddings, or error."""

    def __init__(self, file: IO[bytes], features: int, per: str) -> None:
        self._file, self._per = file, per

    def write(self, record: Record) -> None:
        plain = dict(record)
        if "error" not in record:
            rows = [[shortest(x) for x in row] for row in vectors_of(record)]
            start_s, end_s = plain.pop("start_s"), plain.pop("end_s")
            del plain["vectors"]
            if self._per == "clip":
                plain["embedding"] = rows[0]
            else:
                keys = ("start_s", "end_s", "embedding")
                plain["windows"] = [dict(zip(keys, w, strict=True)) for w in zip(start_s, end_s, rows, strict=True)]
        self._file.write(json.dumps(plain, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        pass


class ParquetWriter:
    """Columns source, start_s, end_s, embedding (a list of float32) and error, which is null where there is none."""

    def __init__(self, file: IO[bytes], features: int, per: str) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise MissingDependencyError(
                'the format parquet needs pyarrow: pip install "audiotag-dymn[parquet]"'
            ) from error
        self._arrow = pyarrow
        self._schema = pyarrow.schema(
            {
                "source": pyarrow.string(),
                "start_s": pyarrow.float64(),
                "end_s": pyarrow.float64(),
                "embedding": pyarrow.list_(pyarrow.float32(), features),
                "error": pyarrow.string(),
            }
        )
        self._writer = pyarrow.parquet.ParquetWriter(file, self._schema)
        self._rows: list[dict[str, Any]] = []

    def write(self, record: Record) -> None:
        source = record["source"]
        if "error" in record:
            self._rows.append({"source": source, "error": record["error"]})
        else:
            for start_s, end_s, vector in zip(record["start_s"], record["end_s"], vectors_of(record), strict=True):
                self._rows.append({"source": source, "start_s": start_s, "end_s": end_s, "embedding": vector})
        if len(self._rows) >= PARQUET_ROWS:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(self._arrow.Table.from_pylist(self._rows, schema=self._schema))
        self._rows.clear()

    def close(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()


WRITERS: dict[str, Any] = {
    "npz": NpzWriter,
    "npy": NpyWriter,
    "parquet": ParquetWriter,
    "jsonl": JsonLinesWriter,
}


def find_format(name: str | None, path: str | os.PathLike | None) -> str:
    """The format of this name, or of a file name's ending.

    Raises
    ------
    InvalidInputError
        Neither says one of `FORMATS`.
    """
    if name is None and path is not None:
        name = Path(path).suffix.lower().removeprefix(".")
    if name not in FORMATS:
        raise InvalidInputError(
            f"embeddings go to a file ending in {', '.join('.' + f for f in FORMATS)}, or to a folder with --format; "
            f"got {os.fspath(path) if path is not None else 'standard output'!r}"
        )
    return name


@contextlib.contextmanager
def open_writer(name: str, destination: Path | Any, features: int, per: str) -> Iterator[Any]:
    """A writer of this format to a path, where the file appears whole or not at all, or to a stream (JSON Lines).

    Raises
    ------
    OutputError
        The disk refuses.
    """
    if isinstance(destination, Path):
        with whole_file(destination, binary=True) as file:
            writer = WRITERS[name](file, features, per)
            yield writer
            writer.close()
    else:
        yield WRITERS[name](destination.buffer, features, per)


class _Column:
    """An array that grows by rows in a temporary file, beside the file that will hold it."""

    def __init__(self, beside: IO[bytes], dtype: np.dtype, row: tuple[int, ...] = ()) -> None:
        self._dtype, self._row, self._count = dtype, row, 0
        self._file = _temporary(beside)

    def add(self, rows: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(rows, self._dtype).tobytes())
        self._count += len(rows)

    def write_to(self, file: IO[bytes]) -> None:
        _write_header(file, self._dtype, (self._count, *self._row))
        self._file.seek(0)
        shutil.copyfileobj(self._file, file)
        self._file.close()


class _Texts:
    """A column of strings: numpy gives all of them the width of the longest, known only at the end."""

    def __init__(self, beside: IO[bytes]) -> None:
        self._count, self._width = 0, 1
        self._file = _temporary(beside)

    def add(self, texts: list[str]) -> None:
        for text in texts:
            self._file.write(json.dumps(text).encode() + b"\n")
            self._width = max(self._width, len(text))
        self._count += len(texts)

    def write_to(self, file: IO[bytes]) -> None:
        _write_header(file, np.dtype(f"<U{self._width}"), (self._count,))
        for text in self._texts():
            file.write(text.encode("utf-32-le").ljust(4 * self._width, b"\0"))
        self._file.close()

    def _texts(self) -> Iterator[str]:
        self._file.seek(0)
        return map(json.loads, self._file)


def _temporary(beside: IO[bytes]) -> IO[bytes]:
    return tempfile.TemporaryFile(dir=Path(beside.name).parent)


def _write_header(file: IO[bytes], dtype: np.dtype, shape: tuple[int, ...]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)

"""Embeddings of any number of recordings into .npz and .npy, never all in memory.

numpy's own savers want whole arrays, so rows go into a temporary file and are copied behind numpy's header.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from .formats import About
from .records import Record, vectors_of
from .writers import Writer

SAME_TIME = (1980, 1, 1, 0, 0, 0)  # of the members of an .npz, so that equal contents are equal files


class NpyWriter(Writer):
    """One matrix, float32 (rows, features); a recording that failed is a row of NaN, so that rows match the inputs."""

    def __init__(self, file: IO[bytes], about: About) -> None:
        super().__init__(file, about)
        self._rows = _Column(file, np.dtype("<f4"), (about.features,))

    def write(self, record: Record) -> None:
        failed = "error" in record
        self._rows.add(np.full((1, self._about.features), np.nan, "<f4") if failed else vectors_of(record))

    def close(self) -> None:
        self._rows.write_to(self._file)


class NpzWriter(Writer):
    """Arrays ``embeddings`` float32 (rows, features) and ``source`` (rows,), per window also ``start_s`` and ``end_s``.

    What failed has no row; ``failed`` and ``error`` name it.
    """

    def __init__(self, file: IO[bytes], about: About) -> None:
        super().__init__(file, about)
        self._columns: dict[str, Any] = {
            "embeddings": _Column(file, np.dtype("<f4"), (about.features,)),
            "source": _Texts(file),
        }
        if about.per == "window":
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
        if self._about.per == "window":
            columns["start_s"].add(np.array(record["start_s"]))
            columns["end_s"].add(np.array(record["end_s"]))

    def close(self) -> None:
        with zipfile.ZipFile(self._file, "w") as archive:
            for name, column in self._columns.items():
                with archive.open(zipfile.ZipInfo(f"{name}.npy", SAME_TIME), "w", force_zip64=True) as member:
                    column.write_to(member)


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

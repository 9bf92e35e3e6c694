"""The bytes of a recording, as C decoders may be given them."""

from __future__ import annotations

import io
import os
from typing import Any, BinaryIO

from ..errors import AudioError

INSTALL = "pip install av"  # PyAV, where it is not installed
BUFFER_BYTES = 1 << 16


class UndecodableError(Exception):
    """Raised where a decoder cannot read a file; another may. ``damaged``: it knows the format, but not these bytes."""

    def __init__(self, reason: str, *, damaged: bool = False) -> None:
        super().__init__(reason)
        self.damaged = damaged


class SourceFile(io.BufferedReader):
    """A seekable file that keeps what goes wrong for `check`: raised in a C callback, an error could only be printed.

    Parameters
    ----------
    file
        Opened for reading bytes.
    owned
        Whether closing this closes `file`.
    """

    def __init__(self, file: BinaryIO, *, owned: bool) -> None:
        self._raw = _Raw(file, owned)
        super().__init__(self._raw, BUFFER_BYTES)
        self.size = self.seek(0, os.SEEK_END)
        self.seek(0)

    def check(self, name: str) -> None:
        """Raise an AudioError of what went wrong while a decoder was reading, if anything."""
        if self._raw.error is not None:
            raise read_error(name, self._raw.error) from self._raw.error

    def consumed(self) -> int:
        """Count the bytes from the file's beginning to where decoders have read, give or take a buffer."""
        return self._raw.file.tell()

    def for_libsndfile(self) -> Any:
        """Return what libsndfile is given, at the beginning, for it to close: a descriptor, or this object."""
        # A descriptor spares a callback into Python, and a wait for the interpreter's lock, every few kilobytes; on
        # Windows descriptors do not cross C runtimes. Without a path no file name can mislead libsndfile.
        if os.name == "posix" and isinstance(self._raw.file, io.FileIO):
            self._raw.file.seek(0)
            # one of its own: libsndfile 1.2.0 closes what it cannot open even when told not to
            return os.dup(self._raw.file.fileno())
        self.seek(0)
        return self


class _Raw(io.RawIOBase):
    def __init__(self, file: BinaryIO, owned: bool) -> None:
        self.file, self._owned, self._position = file, owned, 0
        self.error: Exception | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            self.file.seek(offset, whence)
            self._position = self.file.tell()  # not every file's seek says where it is
            return self._position
        except Exception as error:
            self.error = self.error or error
            return 0

    def readinto(self, buffer: Any) -> int:
        try:
            self.file.seek(self._position)  # libsndfile's descriptor moves this one's position
            data = read_some(self.file, len(buffer))
            buffer[: len(data)] = data
            self._position += len(data)
            return len(data)
        except Exception as error:
            self.error = self.error or error
            return 0

    def close(self) -> None:
        super().close()
        if self._owned:
            self.file.close()


def read_some(file: Any, size: int) -> bytes:
    """Read up to ``size`` bytes, none at the end; a file that has none yet, as a non-blocking one may, raises."""
    data = file.read(size)
    if data is None:
        raise BlockingIOError("it is non-blocking and has nothing to read yet; open it so that reads wait")
    return data


def read_error(name: str, error: Exception) -> AudioError:
    """Make the AudioError for an exception of any type that a file raised."""
    return AudioError(f"{name}: cannot be read: {str(error) or type(error).__name__}")

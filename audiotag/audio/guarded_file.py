"""A file as C libraries may be given it: nothing that goes wrong in it can be lost or printed."""

from __future__ import annotations

import io
import os
from typing import Any, BinaryIO

from ..errors import AudioError

_CHUNK_BYTES = 1 << 16


class GuardedFile(io.RawIOBase):
    """A seekable file whose failures are kept for later: an exception inside a C callback could only be printed."""

    def __init__(self, file: BinaryIO, *, owned: bool) -> None:
        super().__init__()
        self.file, self._owned = file, owned
        self._error: Exception | None = None
        file.seek(0, os.SEEK_END)
        self.size = file.tell()
        self._position = 0
        self._chunk, self._chunk_at = b"", 0

    def raise_error(self, name: str) -> None:
        """Raise what a callback had to keep, if anything."""
        if self._error is not None:
            raise AudioError(f"{name}: cannot be read: {self._error}") from self._error

    def release(self) -> None:
        """Close the file if it was opened here."""
        if self._owned:
            self.file.close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        # mpg123 asks for 4 bytes, then for a few hundred: one read of the file serves many of its questions
        offset = self._position - self._chunk_at
        if not 0 <= offset <= len(self._chunk) - len(buffer):
            self._chunk_at, offset = self._position, 0
            self._chunk = self._read_fully(max(_CHUNK_BYTES, len(buffer)))
        count = min(len(buffer), len(self._chunk))
        buffer[:count] = self._chunk[offset : offset + count]
        self._position += count
        return count

    def _read_fully(self, wanted: int) -> bytes:
        parts = []
        try:
            self.file.seek(self._position)
            while wanted > 0 and (part := self.file.read(wanted)):
                parts.append(part)
                wanted -= len(part)
        except Exception as error:
            self._error = error
        return b"".join(parts)

    def for_libsndfile(self) -> Any:
        """What to give to libsndfile, at the beginning of the file, for it to close: a descriptor, or this object."""
        # A descriptor spares a callback into Python, and a wait for the interpreter's lock, every few kilobytes; on
        # Windows descriptors do not cross C runtimes. Without a path no file name can mislead libsndfile.
        if os.name == "posix" and isinstance(self.file, io.FileIO):
            self.file.seek(0)
            # one of its own: libsndfile 1.2.0 closes what it cannot open even when told not to
            return os.dup(self.file.fileno())
        self.seek(0)
        return self

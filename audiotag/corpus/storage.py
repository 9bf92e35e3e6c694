"""Files wherever they are: local paths, and addresses that pyarrow or fsspec can open (s3://, gs://, hdfs://, ...).

pyarrow is needed for Parquet anyway and brings S3, Google Cloud Storage, Azure and HDFS; fsspec knows the rest.
"""

from __future__ import annotations

import io
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from ..checks import imported
from ..errors import AudioError, InvalidInputError, OutputError
from ..files import write_whole

FIRST_FETCH_BYTES = 1 << 18
LARGEST_FETCH_BYTES = 1 << 23
WHOLE_FETCH_BYTES = 1 << 22  # a file this small costs one request
ATTEMPTS = 4
T = TypeVar("T")


class Found(NamedTuple):
    """A file that a listing gave. path: in its file system. version: changes when the contents do (time in ns)."""

    path: str
    size: int
    version: int


def is_address(text: str) -> bool:
    """Whether this is an address with a scheme rather than a local path; ``C:\\x`` is a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) is not None


def pyarrow() -> Any:
    """Import pyarrow, with its file systems and Parquet.

    Raises
    ------
    MissingDependencyError
        It is not installed.
    """
    message = 'a corpus needs pyarrow: pip install "audiotag-dymn[parquet]"'
    return imported(message, "pyarrow", "pyarrow.fs", "pyarrow.parquet")


def locate(text: str) -> tuple[Place, str]:
    """Find the place of a path or an address, and what it is called there.

    Only the head of an address is parsed, ``s3://bucket`` and options at its end (``?endpoint_override=...``): what is
    between may hold any character.
    """
    if not is_address(text):
        return place(""), os.path.abspath(text)
    scheme, rest = text.split("://", 1)
    options = re.search(r"\?\w+=[^/]*$", rest)
    rest, query = (rest[: options.start()], options[0]) if options else (rest, "")
    authority, _, path = rest.partition("/")
    where = place(f"{scheme}://{authority}{'' if authority else '/'}{query}")
    return where, f"{where.path.rstrip('/')}/{path}".rstrip("/") if path else where.path


class Place:
    """A file system and how its files are called.

    Parameters
    ----------
    root : str
        The head of addresses in it, as `locate` finds it, with options; empty: the local file system.
    """

    def __init__(self, root: str = "") -> None:
        self.root = root
        self._fs_module = pyarrow().fs
        self.local = not is_address(root)
        if self.local:
            self.fs, self.path, self._prefix = self._fs_module.LocalFileSystem(), "", ""
        else:
            self.fs, self.path = self._open(root)
            plain, scheme = root.split("?")[0], root.split("://")[0]
            self._prefix = plain[: len(plain) - len(self.path)] if plain.endswith(self.path) else f"{scheme}://"

    def _open(self, root: str) -> tuple[Any, str]:
        try:
            return self._fs_module.FileSystem.from_uri(root)
        except Exception as error:
            reason = error
        try:
            from fsspec.core import url_to_fs

            found, path = url_to_fs(root)
        except ImportError:
            raise InvalidInputError(
                f"{root}: pyarrow cannot open this address ({reason}); fsspec and its package for it may: pip install "
                "fsspec"
            ) from reason
        except Exception as error:
            raise InvalidInputError(f"{root}: cannot be opened: pyarrow says {reason}; fsspec says {error}") from error
        return self._fs_module.PyFileSystem(self._fs_module.FSSpecHandler(found)), path

    def __reduce__(self) -> tuple[Any, ...]:
        return place, (self.root,)

    def uri(self, path: str) -> str:
        """Return what a file is called in outputs: its address, or its absolute path."""
        return self._prefix + path

    def kind(self, path: str) -> str:
        """Tell ``file`` from ``folder``; an empty string where nothing is there."""
        info = self._called(lambda: self.fs.get_file_info(path), path)
        return {"File": "file", "Directory": "folder"}.get(info.type.name, "")

    def entries(self, folder: str) -> tuple[list[str], list[Found]]:
        """List subfolders and files of one folder, unordered."""
        selector = self._fs_module.FileSelector(folder, recursive=False, allow_not_found=True)
        folders, files = [], []
        for info in self._called(lambda: self.fs.get_file_info(selector), folder):
            if info.type.name == "Directory":
                folders.append(info.path)
            elif info.type.name == "File":
                files.append(Found(info.path, info.size or 0, info.mtime_ns or 0))
        return folders, files

    def find(self, path: str) -> Found:
        """Look up one file; of size 0 where it cannot be found, which opening it will report."""
        info = self._called(lambda: self.fs.get_file_info(path), path)
        return Found(path, info.size or 0, info.mtime_ns or 0)

    def open_ranged(self, path: str) -> RangedFile:
        """Open a file that is read in ranges as they are asked for.

        Raises
        ------
        AudioError
            It cannot be opened.
        """
        try:
            file = self.fs.open_input_file(path)
            return RangedFile(file, file.size(), self.uri(path))
        except FileNotFoundError:
            raise AudioError(f"{self.uri(path)}: no such file") from None
        except Exception as error:
            raise AudioError(f"{self.uri(path)}: cannot be opened: {error}") from error

    def read(self, path: str) -> bytes | None:
        """Read a file's contents; None where there is none."""

        def get() -> bytes | None:
            try:
                with self.fs.open_input_stream(path, compression=None) as file:
                    return file.read()
            except FileNotFoundError:
                return None

        return self._called(get, path)

    def write(self, path: str, contents: bytes) -> None:
        """Make a file appear whole, replacing one that was there.

        An object store shows an object when it is complete, and not before; elsewhere the file is renamed into place.

        Raises
        ------
        OutputError
            The store refuses, several times over.
        """
        if self.local:
            try:
                os.makedirs(os.path.dirname(path), exist_ok=True)
            except OSError as error:
                raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
            write_whole(path, contents)
            return
        atomic = re.search("s3|gcs|gs|abfs|az", self.fs.type_name) is not None
        folder, name = path.rsplit("/", 1) if "/" in path else ("", path)
        target = path if atomic else f"{folder}/.{name}.{os.getpid()}.{threading.get_ident()}.part"

        def put() -> None:
            if not atomic:
                self.fs.create_dir(folder, recursive=True)
            with self.fs.open_output_stream(target, compression=None) as file:
                file.write(contents)
            if not atomic:
                if self.fs.get_file_info(path).type.name == "File":  # not every file system moves onto a file
                    self.fs.delete_file(path)
                self.fs.move(target, path)

        self._called(put, path, OutputError)

    def _called(self, act: Callable[[], T], path: str, kind: type[Exception] = InvalidInputError) -> T:
        """Call `act` and return what it does, again and again where a store fails for a while."""
        for attempt in range(ATTEMPTS):
            try:
                return act()
            except Exception as error:
                if self.local or attempt == ATTEMPTS - 1:
                    verb = "written" if kind is OutputError else "read"
                    reason = getattr(error, "strerror", None) or error
                    raise kind(f"{self.uri(path)}: cannot be {verb}: {reason}") from error
                time.sleep(0.5 * 4**attempt)
        raise AssertionError


@lru_cache(maxsize=64)
def place(root: str) -> Place:
    """Return the place of a root; one per process, for connections are kept in it."""
    return Place(root)


class RangedFile(io.RawIOBase):
    """A seekable file fetched in ranges; ranges grow while it is read on, so that a stream costs few requests.

    Holds two ranges of at most `LARGEST_FETCH_BYTES`.
    """

    def __init__(self, file: Any, size: int, name: str) -> None:
        super().__init__()
        self._file, self.size, self.name = file, size, name
        self._position = 0
        self._ranges: list[tuple[int, bytes]] = []  # the latest last
        self._fetch = WHOLE_FETCH_BYTES if size <= WHOLE_FETCH_BYTES else FIRST_FETCH_BYTES

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
        data = self._at(self._position)
        count = min(len(buffer), len(data))
        buffer[:count] = data[:count]
        self._position += count
        return count

    def _at(self, position: int) -> memoryview:
        """Return what is there from a position on: at least a byte, unless it is the end."""
        for start, data in reversed(self._ranges):
            if start <= position < start + len(data):
                return memoryview(data)[position - start :]
        if position >= self.size:
            return memoryview(b"")
        if self._ranges:
            start, data = self._ranges[-1]
            on = start + len(data) == position
            self._fetch = min(2 * self._fetch, LARGEST_FETCH_BYTES) if on else FIRST_FETCH_BYTES
        data = self._file.read_at(min(self._fetch, self.size - position), position)
        self._ranges = [*self._ranges[-1:], (position, data)]
        return memoryview(data)

    def close(self) -> None:
        if not self.closed:
            self._ranges.clear()
            self._file.close()
        super().close()


def walk(at: Place, top: str, order: Callable[[str], Any]) -> Iterator[Found]:
    """Yield files below a folder, hidden ones left out, folder by folder, in the given order of names."""
    stack = [top]
    while stack:
        folders, files = at.entries(stack.pop())
        for found in sorted(files, key=lambda f: order(_name(f.path))):
            if not _name(found.path).startswith("."):
                yield found
        stack.extend(sorted((f for f in folders if not _name(f).startswith(".")), key=lambda f: order(_name(f)))[::-1])


def _name(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]

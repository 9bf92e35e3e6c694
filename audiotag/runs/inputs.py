"""Which files to work on: paths, folders, patterns and lists, in a fixed order, one folder in memory at a time."""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import IO

from ..audio.formats import AUDIO_EXTENSIONS
from ..errors import InvalidInputError

STDIN = "-"
DIGITS = 20  # numbers in names are compared as numbers up to this length
LIST_CHUNK = 1 << 16


@dataclass(frozen=True)
class Input:
    """One thing to work on.

    Attributes
    ----------
    path : str
        As given, or below the folder as given; `STDIN` for standard input.
    size_bytes : int
        For telling how much is left; 0 where unknown.
    error : str or None
        Why this is no input after all: a folder that cannot be read or holds nothing, a pattern without matches.
    """

    path: str
    size_bytes: int = 0
    error: str | None = None


def is_audio_name(name: str) -> bool:
    """Whether a file found in a folder is taken: not hidden, and with an ending of `AUDIO_EXTENSIONS`."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in AUDIO_EXTENSIONS


def expand(
    paths: Iterable[str], listed: Iterable[str] = (), *, takes: Callable[[str], bool] = is_audio_name
) -> Iterator[Input]:
    """Yield the inputs that paths, folders and patterns mean: in the order given, each once.

    A folder means the audio files in it and below, in natural order (``take 2`` before ``take 10``); hidden ones and
    other endings are left out. Links to folders are followed, but no folder is entered twice, so links may form
    loops. A pattern (``*``, ``?``, ``[...]``, ``**``) that no file is called means the audio files and folders it
    matches. What is named twice, or named and in a folder that is named, is taken where it comes first. Two links to
    one file are two inputs, for they have two names.

    Memory: the names in one folder at a time, and some 100 bytes for each folder and each file named explicitly.

    Parameters
    ----------
    paths : iterable of str
        ``"-"`` is standard input.
    listed : iterable of str
        Further files and folders, from a list: taken literally, never as patterns.
    takes : callable
        Whether a file of this name is taken where it is found in a folder.
    """
    seen = _Seen(takes)
    for path in paths:
        if path == STDIN:
            if seen.add(STDIN):
                yield Input(STDIN)
        else:
            yield from _named(path, seen, pattern=True)
    for path in listed:
        # In a list "-" is a file that is called so.
        yield from _named(os.path.join(os.curdir, path) if path == STDIN else path, seen, pattern=False)


def natural_key(name: str) -> tuple[str, str]:
    """Make a key that sorts names as people do: whatever the case, numbers by value; never the same for two names."""
    return re.sub(r"[0-9]+", lambda digits: digits[0].zfill(DIGITS), name.casefold()), name


def read_list(stream: IO[bytes], name: str) -> Iterator[str]:
    """Read the paths in a list: one per line, or separated by NUL as ``find -print0`` writes them; not empty ones.

    Raises
    ------
    InvalidInputError
        The list is UTF-16, as some shells on Windows write it.
    """
    held = stream.read(LIST_CHUNK)
    if held.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InvalidInputError(f"list {name}: is UTF-16; save it as UTF-8, one path per line")
    held = held.removeprefix(b"\xef\xbb\xbf")
    separator = b"\0" if b"\0" in held else b"\n"
    while True:
        *whole, held = held.split(separator)
        for entry in whole:
            yield from _entry(entry, separator)
        chunk = stream.read(LIST_CHUNK)
        if not chunk:
            break
        held += chunk
    yield from _entry(held, separator)


def _entry(raw: bytes, separator: bytes) -> Iterator[str]:
    if separator == b"\n":
        raw = raw.removesuffix(b"\r")
    if raw:
        yield os.fsdecode(raw)


def common_folder(paths: Iterable[str]) -> str:
    """Find the deepest folder that holds everything given, below which an output tree mirrors the inputs.

    A folder given alone is itself that folder. Absolute; the working directory if nothing but standard input is given.

    Raises
    ------
    InvalidInputError
        No folder holds them all (several drives on Windows).
    """
    common: str | None = None
    for path in paths:
        if path == STDIN:
            continue
        folder = os.path.abspath(path)
        if not os.path.isdir(folder):
            while glob.has_magic(folder) and not os.path.lexists(folder):
                folder = os.path.dirname(folder)
            if not os.path.isdir(folder):
                folder = os.path.dirname(folder)
        try:
            common = folder if common is None else os.path.commonpath([common, folder])
        except ValueError:
            raise InvalidInputError(
                f"no folder holds both {common} and {folder}; mirror each into an output folder of its own"
            ) from None
    return os.getcwd() if common is None else common


class _Seen:
    """Inputs that have been given out: folders by identity, named files by a digest of their folder and name."""

    def __init__(self, takes: Callable[[str], bool]) -> None:
        self.takes = takes
        self.folders: set[tuple[int, int]] = set()
        self.met = 0  # files and folders met while walking, also those given out before
        self._files: set[bytes] = set()
        self._identity = lru_cache(maxsize=1)(_identity)  # files come folder by folder

    def add(self, path: str) -> bool:
        """Note a file; False if it was noted before, or a folder that gave it was walked."""
        folder, name = os.path.split(os.path.abspath(path))
        identity = self._identity(folder)
        if identity in self.folders and self.takes(name) and os.path.lexists(path):
            return False
        digest = _digest(identity or folder, name)
        if digest in self._files:
            return False
        self._files.add(digest)
        return True

    def named(self, folder: tuple[int, int], name: str) -> bool:
        """Whether a file found in a folder was named before."""
        return bool(self._files) and _digest(folder, name) in self._files


def _identity(folder: str) -> tuple[int, int] | None:
    try:
        info = os.stat(folder)
    except OSError:
        return None
    return info.st_dev, info.st_ino


def _digest(folder: tuple[int, int] | str, name: str) -> bytes:
    text = f"{folder}/{name}".encode("utf-8", "surrogateescape")
    return hashlib.blake2b(text, digest_size=16).digest()


def _named(path: str, seen: _Seen, *, pattern: bool) -> Iterator[Input]:
    if "\0" in path:
        yield Input(path, error="not a path: it holds a NUL character")
    elif os.path.isdir(path):
        yield from _folder(path, seen)
    elif pattern and glob.has_magic(path) and not os.path.lexists(path):
        yield from _matches(path, seen)
    elif seen.add(path):
        yield _file(path)


def _file(path: str) -> Input:
    try:
        return Input(path, size_bytes=os.stat(path).st_size)
    except OSError:  # opening it will say what is wrong
        return Input(path)


def _matches(pattern: str, seen: _Seen) -> Iterator[Input]:
    before, matched = seen.met, False
    parts = pattern.split(os.sep)
    found = _below(parts, parts.index("**"), seen.takes) if "**" in parts else sorted(glob.glob(pattern), key=_path_key)
    for path in found:
        matched = True
        if os.path.isdir(path):
            yield from _walk(path, seen)
        elif seen.takes(os.path.basename(path)):
            seen.met += 1
            if seen.add(path):
                yield _file(path)
    if seen.met == before:
        why = "nothing it matches is an audio file" if matched else "it matches nothing, and no file is called so"
        yield Input(pattern, error=f"no input from this pattern: {why}")


def _below(parts: list[str], at: int, takes: Callable[[str], bool]) -> Iterator[str]:
    """Find audio files by a pattern with ``**`` as component `at`; `glob` would go round loops of links."""
    head, tail = os.sep.join(parts[:at]), parts[at:]
    for base in sorted(glob.glob(head), key=_path_key) if head else [os.sep if at else os.curdir]:
        for item in _walk(base, _Seen(takes)):
            path = os.path.relpath(item.path, base)
            if item.error is None and fits(path.split(os.sep), tail):
                yield os.path.join(base, path) if head or at else path


def fits(path: list[str], pattern: list[str]) -> bool:
    """Whether a path, or a folder it lies in, matches component by component; ``**`` is any number of folders."""
    if not pattern or pattern == [""]:
        return True
    if pattern[0] == "**":
        return any(fits(path[skipped:], pattern[1:]) for skipped in range(len(path)))
    return bool(path) and fnmatch.fnmatch(path[0], pattern[0]) and fits(path[1:], pattern[1:])


def _folder(path: str, seen: _Seen) -> Iterator[Input]:
    before = seen.met
    yield from _walk(path, seen)
    if seen.met == before:
        yield Input(path, error="no audio file in this folder or below; a file of any ending can be named itself")


def _walk(top: str, seen: _Seen) -> Iterator[Input]:
    """Find audio files below a folder, by a stack: folders may be nested deeper than Python recurses."""
    stack = [_entries(top, seen)]
    while stack:
        entry = next(stack[-1], None)
        if entry is None:
            stack.pop()
        elif isinstance(entry, Input):
            yield entry
        else:
            stack.append(_entries(entry, seen))


def _entries(folder: str, seen: _Seen) -> Iterator[Input | str]:
    """List the audio files in one folder as inputs and its subfolders as paths, in natural order."""
    try:
        info = os.stat(folder)
        identity = (info.st_dev, info.st_ino)
        if identity in seen.folders:
            seen.met += 1
            return
        seen.folders.add(identity)
        with os.scandir(folder) as scan:
            folders = {entry.name: _is_folder(entry) for entry in scan if _is_wanted(entry, seen.takes)}
    except OSError as error:
        seen.met += 1
        yield Input(folder, error=f"folder cannot be read: {error.strerror or error}")
        return
    for name in sorted(folders, key=natural_key):
        path = os.path.join(folder, name)
        if folders[name]:
            yield path
            continue
        seen.met += 1
        if not seen.named(identity, name):
            yield _file(path)


def _is_wanted(entry: os.DirEntry[str], takes: Callable[[str], bool]) -> bool:
    if entry.name.startswith("."):
        return False
    if _is_folder(entry):
        return True
    # A broken link is taken, so that it is reported; a pipe or socket is not, for opening it could wait forever.
    return takes(entry.name) and (os.path.isfile(entry.path) or not os.path.exists(entry.path))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link into a folder that may not be entered
        return False


def _path_key(path: str) -> list[tuple[str, str]]:
    return [natural_key(part) for part in path.split(os.sep)]

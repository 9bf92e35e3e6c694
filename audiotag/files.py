"""Files that appear whole or not at all: written under another name in their folder, flushed, renamed into place."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from .errors import AudiotagError, InvalidInputError, OutputError
from .text import printable

ADVICE = "check that the folder exists, its space and its permissions"


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str], *, binary: bool = False) -> Iterator[IO[Any]]:
    """Open a file for writing that takes its name when the block ends well.

    The file behind a link is replaced rather than the link; what is no file, such as ``/dev/null``, is written to.

    Raises
    ------
    OutputError
        The disk refuses, then or while writing; nothing is left behind.
    """
    target = Path(os.path.realpath(path))
    special = target.exists() and not target.is_file() and not target.is_dir()
    temporary = target if special else _beside(target)
    try:
        with open(temporary, "wb") if binary else open(temporary, "w", encoding="utf-8", newline="") as file:
            yield file
            if special:
                file.flush()
            else:
                sync(file)
        if not special:
            os.replace(temporary, target)
    except BaseException as error:
        if not special:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        # Reading an input may fail inside the block too; such an error names another file.
        if isinstance(error, OSError) and error.filename in (None, os.fspath(temporary)):
            raise _refused(target, error) from error
        raise


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file in one step.

    Raises
    ------
    OutputError
        The disk refuses; nothing is left behind.
    """
    with whole_file(path, binary=True) as file:
        file.write(content)


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Make a folder that takes its name, with all that the block put into it, when the block ends well.

    Raises
    ------
    InvalidInputError
        Something is there already that is not an empty folder.
    OutputError
        The disk refuses; nothing is left behind.
    """
    target = Path(path).expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InvalidInputError(f"folder must be new or empty, got {target}; choose another, or delete it first")
    made = _beside(target)
    try:
        made.mkdir(parents=True)
        yield made
        if target.exists():
            target.rmdir()
        made.rename(target)
    except BaseException as error:
        shutil.rmtree(made, ignore_errors=True)
        if isinstance(error, OutputError):  # of a file inside, under a name that nobody asked for
            raise OutputError(str(error).replace(printable(str(made)), printable(str(target)))) from error
        if isinstance(error, OSError) and not isinstance(error, AudiotagError):
            raise _refused(target, error) from error
        raise


def write_json(path: str | os.PathLike[str], plain: dict[str, Any]) -> None:
    """Write a dictionary as one line of JSON, whole or not at all; raises what `write_whole` does."""
    write_whole(path, json_bytes(plain))


def read_json(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Read the dictionary in a file; None where there is none."""
    try:
        found = json.loads(Path(path).read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def json_bytes(plain: dict[str, Any]) -> bytes:
    """Write a dictionary as one line of ASCII JSON."""
    return json.dumps(plain).encode("ascii") + b"\n"


def sync(file: IO[Any]) -> None:
    """Flush a file to the disk itself."""
    file.flush()
    os.fsync(file.fileno())


def _beside(target: Path) -> Path:
    # Not the target's name with something behind it: a name of 255 bytes could have nothing added.
    return target.with_name(f".{target.name[:40]}.{os.getpid()}.part")


def _refused(target: Path, error: OSError) -> OutputError:
    return OutputError(f"{target}: cannot be written ({error.strerror or error}); {ADVICE}")

"""Audio files of any format: opened, spooled where they cannot seek, and given to the decoder that reads them best."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import AudioError, InvalidInputError
from .ffmpeg import MediaReader
from .formats import better_with_ffmpeg
from .libsndfile import SoundFileReader
from .source import SourceFile, UndecodableError, read_error, read_some

_COPIED_BYTES = 1 << 20


def open_path(path: Path) -> SoundFileReader | MediaReader:
    """Open the file at ``path``; see `open_file`.

    Raises
    ------
    AudioError
        Missing, a folder, not a regular file, not permitted, or not audio.
    """
    name = str(path)
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise AudioError(f"{name}: is a folder, not a recording; name the files in it")
        if not stat.S_ISREG(mode):
            raise AudioError(f"{name}: is not a regular file; pass its contents as an open binary file or as bytes")
        file = open(path, "rb", buffering=0)  # noqa: SIM115
    except FileNotFoundError:
        hint = "; addresses are not fetched, download it first" if "://" in name or ":/" in name[2:] else ""
        raise AudioError(f"{name}: no such file (looked from {Path.cwd()}){hint}") from None
    except PermissionError:
        raise AudioError(f"{name}: not permitted to read it; check its access rights") from None
    except (OSError, ValueError) as error:
        raise AudioError(f"{name}: cannot be opened: {error}") from error
    return _open(file, name, owned=True)


def open_file(file: Any, name: str) -> SoundFileReader | MediaReader:
    """Open the contents of a binary file object, from where it stands; what cannot seek is copied to a file first.

    Raises
    ------
    AudioError
        Empty, unreadable, or not audio.
    InvalidInputError
        A text file object.
    """
    try:
        seekable = bool(file.seekable()) if hasattr(file, "seekable") else hasattr(file, "seek")
        position = file.tell() if seekable else 0
        if isinstance(file.read(0), str):
            raise InvalidInputError(f"{name}: the file object gives text; open it in binary mode ('rb')")
        if seekable and position == 0:
            return _open(file, name, owned=False)
        with ExitStack() as on_failure:
            spooled: Any = on_failure.enter_context(tempfile.TemporaryFile(buffering=0))
            while data := read_some(file, _COPIED_BYTES):
                spooled.write(data)
            if seekable and spooled.tell() == 0:
                raise AudioError(f"{name}: the file object stands at its end ({position} bytes); seek(0) first")
            on_failure.pop_all()
        return _open(spooled, name, owned=True)
    except (AudioError, InvalidInputError):
        raise
    except TypeError as error:
        raise InvalidInputError(f"{name}: the file object does not give bytes ({error}); open it as 'rb'") from error
    except (
        Exception
    ) as error:  # whatever a foreign file object raises: gzip, zip and network files have their own types
        raise read_error(name, error) from error


def _open(file: BinaryIO, name: str, *, owned: bool) -> SoundFileReader | MediaReader:
    with ExitStack() as on_failure:
        source = on_failure.enter_context(SourceFile(file, owned=owned))
        head = source.read(64)
        source.check(name)
        if not head:
            raise AudioError(f"{name}: is empty (0 bytes); an audio file is needed")
        reader = _decoder(source, name, head)
        on_failure.pop_all()
    return reader


def _decoder(source: SourceFile, name: str, head: bytes) -> SoundFileReader | MediaReader:
    if head[:2] == b"\xf0\x7e":
        raise AudioError(f"{name}: is a MIDI sample dump, which is not read; convert it to wav or flac first")
    by_ffmpeg = better_with_ffmpeg(head) and find_spec("av") is not None
    reasons: list[UndecodableError] = []
    for decoder in (MediaReader,) if by_ffmpeg else (SoundFileReader, MediaReader):
        try:
            reader = decoder(source, name)
        except UndecodableError as error:
            source.check(name)
            reasons.append(error)
        else:
            for reason in reasons:
                if reason.damaged:
                    reader.warnings.append(f"truncated or damaged ({reason}); what ffmpeg reads of it is used")
            return reader
    raise AudioError(
        f"{name}: not audio that can be decoded ({'; '.join(map(str, reasons))}); wav, flac, ogg, opus, mp3, m4a, mp4, "
        "webm, aiff and many others are; is it whole?"
    )

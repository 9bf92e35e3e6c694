"""Audio files through libsndfile (python-soundfile): the formats people have, decoded in pieces."""

from __future__ import annotations

import io
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile

from .audio_arrays import MAX_CHANNELS, mix
from .errors import AudioError, InvalidInputError
from .resample import HIGHEST_RATE_HZ, LOWEST_RATE_HZ

BLOCK_VALUES = 1 << 17  # float32 values decoded at once: half a megabyte, within a core's cache
UNKNOWN_FRAMES = 1 << 62  # libsndfile says 2**63 - 1 where a header leaves the length open

# libsndfile's parse log: the size a header claims, then what the file has room for
_CLAIMED = re.compile(r"^\s*(?:data|SSND|Data Size|riff)\s*:\s*(\d+) \(should be (\d+)\)", re.MULTILINE)
_CLAIMED_FRAMES = re.compile(r"Calculated frame count (\d+) does not match value from 'ds64' chunk of (\d+)")
_STREAMED_SIZE = 0x7FFF_0000  # writers to a pipe put 2 or 4 GiB where they cannot know the size
_MP3_SLACK_FRAMES = 4608  # encoder delay and padding that only some decoders cut


def open_path(path: Path) -> Any:
    """A reader for the file at ``path``; see `open_file`.

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
        if isinstance(error, AudioError):
            raise
        raise AudioError(f"{name}: cannot be opened: {error}") from error
    return _open(file, name, owned=True)


def open_file(file: Any, name: str) -> Any:
    """A reader for the contents of a binary file object, from where it stands; one that cannot seek is spooled.

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
        if seekable and position == 0:
            if isinstance(file.read(0), str):
                raise InvalidInputError(f"{name}: the file object gives text; open it in binary mode ('rb')")
            return _open(file, name, owned=False)
        spooled = tempfile.TemporaryFile()  # noqa: SIM115
        with ExitStack() as on_failure:
            on_failure.callback(spooled.close)
            shutil.copyfileobj(file, spooled)
            if seekable and spooled.tell() == 0:
                raise AudioError(f"{name}: the file object stands at its end ({position} bytes); seek(0) first")
            spooled.seek(0)
            on_failure.pop_all()
        return _open(spooled, name, owned=True)
    except TypeError as error:
        raise InvalidInputError(f"{name}: the file object does not give bytes ({error}); open it as 'rb'") from error
    except (OSError, ValueError) as error:
        if isinstance(error, (AudioError, InvalidInputError)):
            raise
        raise AudioError(f"{name}: cannot be read: {error}") from error


def _open(file: BinaryIO, name: str, *, owned: bool) -> Any:
    guarded = GuardedFile(file)
    with ExitStack() as on_failure:
        if owned:
            on_failure.callback(file.close)
        if guarded.size == 0:
            raise AudioError(f"{name}: is empty (0 bytes); an audio file is needed")
        try:
            reader = SoundFileReader(guarded, name, owned=owned)
        except soundfile.LibsndfileError as error:
            guarded.raise_error(name)
            raise AudioError(f"{name}: not audio that can be decoded ({error.error_string})") from error
        on_failure.pop_all()
    return reader


class GuardedFile(io.RawIOBase):
    """A seekable file whose failures are kept for later: an exception inside a C callback could only be printed."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self.file = file
        self.error: Exception | None = None
        file.seek(0, os.SEEK_END)
        self.size = file.tell()
        self._position = 0
        file.seek(0)

    def raise_error(self, name: str) -> None:
        """Raise what a callback had to keep, if anything."""
        if self.error is not None:
            raise AudioError(f"{name}: cannot be read: {self.error}") from self.error

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
        try:
            self.file.seek(self._position)
            data = self.file.read(len(buffer))
            buffer[: len(data)] = data
        except Exception as error:
            self.error = error
            return 0
        self._position += len(data)
        return len(data)


class SoundFileReader:
    """Mono blocks of a file that libsndfile decodes; contents decide the format, never the name."""

    def __init__(self, file: GuardedFile, name: str, *, owned: bool) -> None:
        self._file, self._name, self._owned = file, name, owned
        self.warnings: list[str] = []
        self._sound = soundfile.SoundFile(_handle(file), closefd=False)
        self.rate_hz, self.channels = self._sound.samplerate, self._sound.channels
        frames = self._sound.frames
        self.frames = None if frames >= UNKNOWN_FRAMES else frames
        try:
            self._check()
        except AudioError:
            self._sound.close()
            raise

    def _check(self) -> None:
        if not LOWEST_RATE_HZ <= self.rate_hz <= HIGHEST_RATE_HZ:
            raise AudioError(
                f"{self._name}: its header gives a sample rate of {self.rate_hz} Hz; "
                f"{LOWEST_RATE_HZ} to {HIGHEST_RATE_HZ} Hz can be read; correct the header"
            )
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise AudioError(
                f"{self._name}: its header gives {self.channels} channels; 1 to {MAX_CHANNELS} can be read; "
                "extract the channels that matter"
            )
        if self.frames is not None and self.frames <= 0:
            raise AudioError(f"{self._name}: holds no samples; at least 1 sample is needed")

    def blocks(self, start: int, stop: int | None) -> Iterator[np.ndarray]:
        """Mono blocks, float32 (n,), of the frames from ``start`` to ``stop`` (None: the end)."""
        position = self._go_to(start)
        per_read = max(256, min(BLOCK_VALUES // self.channels, 4 * self.rate_hz))
        buffer = np.empty((per_read, self.channels), np.float32)
        while stop is None or position < stop:
            wanted = per_read if stop is None else min(per_read, stop - position)
            frames, failure = self._read(buffer[:wanted])
            skipped = max(0, start - position)
            if frames > skipped:
                # a single channel would be handed on as a view of the buffer, which the next read overwrites
                yield mix(buffer[skipped:frames].T) if self.channels > 1 else buffer[skipped:frames, 0].copy()
            position += frames
            if failure is not None:
                self.warnings.append(
                    f"decoding stopped at {position / self.rate_hz:.3f} s ({failure}); what came before is used"
                )
                return
            if frames == 0:
                break
        if stop is None or position < stop:
            self._note_missing(position)

    def _go_to(self, start: int) -> int:
        if start == 0:
            return 0
        try:
            return self._sound.seek(start)
        except soundfile.LibsndfileError:
            return 0

    def _read(self, buffer: np.ndarray) -> tuple[int, str | None]:
        # On an error soundfile does not say how many frames came before it; the mark shows.
        buffer[:] = np.nan
        try:
            frames = len(self._sound.read(out=buffer))
        except soundfile.LibsndfileError as error:
            self._file.raise_error(self._name)
            bad = np.isnan(buffer).any(axis=1)
            return (int(np.argmax(bad)) if bad.any() else len(buffer)), error.error_string
        self._file.raise_error(self._name)
        return frames, None

    def _note_missing(self, decoded: int) -> None:
        claimed = self.frames
        log = self._sound.extra_info
        sizes, counts = _CLAIMED.search(log), _CLAIMED_FRAMES.search(log)
        if counts:
            claimed = int(counts[2])
        elif sizes and 0 < int(sizes[2]) < int(sizes[1]) < _STREAMED_SIZE:
            claimed = decoded * int(sizes[1]) // int(sizes[2])
        slack = _MP3_SLACK_FRAMES if self._sound.format == "MP3" else 0
        if claimed is not None and decoded + slack < claimed:
            self.warnings.append(
                f"truncated: {decoded / self.rate_hz:.3f} s of {claimed / self.rate_hz:.3f} s are there and used, "
                f"{(claimed - decoded) / self.rate_hz:.3f} s are missing"
            )

    def close(self) -> None:
        """Release libsndfile's handle, and the file if it was opened here."""
        self._sound.close()
        if self._owned:
            self._file.file.close()


def _handle(file: GuardedFile) -> Any:
    # A descriptor spares a callback into Python, and a wait for the interpreter's lock, every few kilobytes; on Windows
    # descriptors do not cross C runtimes. Without a path libsndfile cannot be misled by the file's name.
    if os.name == "posix" and isinstance(file.file, io.FileIO):
        return file.file.fileno()
    return file

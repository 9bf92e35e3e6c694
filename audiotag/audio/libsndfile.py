"""Audio files through libsndfile (python-soundfile): the formats people have, decoded in pieces."""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile

from ..checks import HIGHEST_RATE_HZ, LOWEST_RATE_HZ
from ..errors import AudioError, InvalidInputError
from .arrays import MAX_CHANNELS, mix
from .ffmpeg import MediaReader, recognise
from .guarded_file import GuardedFile
from .mp3 import Mp3Layout, OpenEnded, find_mp3, may_be_mp3, silenced_stderr

BLOCK_VALUES = 1 << 17  # float32 values decoded at once: half a megabyte, within a core's cache
UNKNOWN_FRAMES = 1 << 62  # libsndfile says 2**63 - 1 where a header leaves the length open

_HEAD_BYTES = 1024
_FIRST_SKIP = 4096  # frames; encoders make blocks of at most this many
_MAX_GAPS = 100
_MALFORMED = 3  # SF_ERR_MALFORMED_FILE

# libsndfile's parse log: the size a header claims, then what the file has room for
_CLAIMED = re.compile(r"^\s*(?:data|SSND|Data Size|riff)\s*:\s*(\d+) \(should be (\d+)\)", re.MULTILINE)
_CLAIMED_FRAMES = re.compile(r"Calculated frame count (\d+) does not match value from 'ds64' chunk of (\d+)")
_STREAMED_SIZE = 0x7FFF_0000  # writers to a pipe put 2 or 4 GiB where they cannot know the size
_MP3_SLACK_FRAMES = 4608  # encoder delay and padding that only some decoders cut


def open_path(path: Path) -> SoundFileReader | MediaReader:
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


def open_file(file: Any, name: str) -> SoundFileReader | MediaReader:
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


def _open(file: BinaryIO, name: str, *, owned: bool) -> SoundFileReader | MediaReader:
    with ExitStack() as on_failure:
        if owned:
            on_failure.callback(file.close)
        guarded = GuardedFile(file, owned=owned)
        if guarded.size == 0:
            raise AudioError(f"{name}: is empty (0 bytes); an audio file is needed")
        head = guarded.read(_HEAD_BYTES)
        mp3 = find_mp3(guarded, guarded.size) if may_be_mp3(head) else None
        guarded.raise_error(name)
        try:
            reader: SoundFileReader | MediaReader = SoundFileReader(guarded, name, mp3, quietly=may_be_mp3(head))
        except soundfile.LibsndfileError as error:
            guarded.raise_error(name)
            reader = _open_otherwise(guarded, name, head, error)
        on_failure.pop_all()
    return reader


def _open_otherwise(
    file: GuardedFile, name: str, head: bytes, error: soundfile.LibsndfileError
) -> SoundFileReader | MediaReader:
    kind = recognise(head)
    if kind is None or kind == "RIFF":
        # mp3 behind a few stray bytes or in a RIFF wrapper: libsndfile knows it only by its first bytes
        mp3 = find_mp3(file, file.size)
        file.raise_error(name)
        if mp3 is not None:
            with suppress(soundfile.LibsndfileError):
                return SoundFileReader(file, name, mp3, quietly=True, from_first_frame=True)
    reason = error.error_string.strip(" .")
    if kind is None:
        raise AudioError(
            f"{name}: not audio that can be decoded ({reason}); wav, flac, ogg, opus, mp3, aiff, au, caf and others "
            "are read, and mp4, webm, wma and others with the extra [media]"
        )
    try:
        reader = MediaReader(file, name, kind)
    except AudioError:
        file.raise_error(name)
        raise
    if error.code == _MALFORMED:
        reader.warnings.append(f"truncated or damaged ({reason}); what ffmpeg's libraries can decode is used")
    return reader


class _ForwardSoundFile(soundfile.SoundFile):
    """After each read, SoundFile seeks to where it already is, which costs opus and mp3 more than the reading."""

    def seekable(self) -> bool:
        return False


class SoundFileReader:
    """Mono blocks of a file that libsndfile decodes; contents decide the format, never the name.

    Parameters
    ----------
    file
        The whole file.
    name
        For messages.
    mp3
        Where its frames are, if it is an mp3 file.
    quietly
        Whether mpg123 may decode it, and print.
    from_first_frame
        Show libsndfile nothing but the frames.

    Raises
    ------
    soundfile.LibsndfileError
        Not a format that libsndfile knows.
    AudioError
        Its header cannot be that of a recording.
    """

    def __init__(
        self,
        file: GuardedFile,
        name: str,
        mp3: Mp3Layout | None,
        *,
        quietly: bool,
        from_first_frame: bool = False,
    ) -> None:
        self._file, self._name = file, name
        self.warnings: list[str] = []
        self._quietly = silenced_stderr if quietly else nullcontext
        self._frames_only = mp3 if mp3 is not None and (from_first_frame or not mp3.length_known) else None
        self._gaps: list[tuple[int, int]] = []
        self._sound = self._open()
        self._format, self._log = self._sound.format, self._sound.extra_info
        self.rate_hz, self.channels = self._sound.samplerate, self._sound.channels
        known = self._sound.frames < UNKNOWN_FRAMES and (mp3 is None or mp3.length_known)
        self.frames = self._sound.frames if known else None
        try:
            self._check()
        except AudioError:
            self._sound.close()
            raise

    def _open(self) -> soundfile.SoundFile:
        mp3 = self._frames_only
        handle = self._file.for_libsndfile() if mp3 is None else OpenEnded(self._file, mp3.begin, mp3.end)
        with self._quietly():
            return _ForwardSoundFile(handle, closefd=True)

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
        failure = None
        while stop is None or position < stop:
            wanted = per_read if stop is None else min(per_read, stop - position)
            frames, failure = self._read(buffer[:wanted])
            skipped = max(0, start - position)
            if frames > skipped:
                # a single channel would be handed on as a view of the buffer, which the next read overwrites
                yield mix(buffer[skipped:frames].T) if self.channels > 1 else buffer[skipped:frames, 0].copy()
            position += frames
            if failure is not None:
                resumed = self._skip_damage(position)
                resumed = resumed if stop is None else min(resumed, stop)
                for begin in range(max(start, position), resumed, per_read):
                    yield np.zeros(min(per_read, resumed - begin), np.float32)
                frames, position = resumed - position, resumed
            if frames == 0:
                break
        if stop is None or position < stop:
            self._note_missing(position, failure)
        self._note_gaps()

    def _go_to(self, position: int) -> int:
        if position == 0:
            return 0
        try:
            with self._quietly():
                return self._sound.seek(position)
        except soundfile.LibsndfileError as error:
            self._file.raise_error(self._name)
            raise AudioError(
                f"{self._name}: cannot be read from {position / self.rate_hz:g} s on; it is damaged before or there "
                f"({error.error_string.strip(' .')})"
            ) from error

    def _skip_damage(self, position: int) -> int:
        """Where decoding can go on after it failed at ``position``, which it returns if nowhere."""
        # One bad frame ends a FLAC decoder for good; a new one can start behind it. Other formats resynchronise alone.
        if self._format != "FLAC" or self.frames is None or len(self._gaps) >= _MAX_GAPS:
            return position
        skip = _FIRST_SKIP
        while position + skip < self.frames:
            with suppress(soundfile.LibsndfileError):
                self._sound.close()
                self._sound = self._open()
                self._sound.seek(position + skip)
                if len(self._sound.read(1)):  # seeking alone may succeed where nothing can be decoded
                    self._sound.seek(position + skip)
                    self._gaps.append((position, position + skip))
                    return position + skip
            skip *= 2
        return position

    def _note_gaps(self) -> None:
        if self._gaps:
            seconds = sum(end - begin for begin, end in self._gaps) / self.rate_hz
            others = f" and {len(self._gaps) - 1} other places" if len(self._gaps) > 1 else ""
            self.warnings.append(
                f"damaged at {self._gaps[0][0] / self.rate_hz:.3f} s{others}; "
                f"{seconds:.3f} s could not be decoded and are taken as silence"
            )

    def _read(self, buffer: np.ndarray) -> tuple[int, str | None]:
        # On an error soundfile does not say how many frames came before it; the mark shows.
        buffer[:] = np.nan
        try:
            with self._quietly():
                frames = len(self._sound.read(out=buffer))
        except soundfile.LibsndfileError as error:
            self._file.raise_error(self._name)
            bad = np.isnan(buffer).any(axis=1)
            frames = int(np.argmax(bad)) if bad.any() else len(buffer)
            return frames, error.error_string.removeprefix("Error : ").strip(" .")
        self._file.raise_error(self._name)
        return frames, None

    def _note_missing(self, decoded: int, failure: str | None) -> None:
        claimed = self.frames
        sizes, counts = _CLAIMED.search(self._log), _CLAIMED_FRAMES.search(self._log)
        if counts:
            claimed = int(counts[2])
        elif sizes and 0 < int(sizes[2]) < int(sizes[1]) < _STREAMED_SIZE:
            claimed = decoded * int(sizes[1]) // int(sizes[2])
        slack = _MP3_SLACK_FRAMES if self._format == "MP3" else 0
        used = f"{decoded / self.rate_hz:.3f} s"
        if claimed is not None and decoded + slack < claimed:
            used += f" of {claimed / self.rate_hz:.3f} s"
        elif failure is None and (self._format != "OGG" or _ends_with_mark(self._file)):
            return
        reason = f"decoding stopped: {failure}" if failure else "the file ends early"
        self.warnings.append(f"truncated or damaged ({reason}); {used} could be read and are used")

    def close(self) -> None:
        """Release libsndfile's handle, and the file if it was opened here."""
        self._sound.close()
        self._file.release()


def _ends_with_mark(file: GuardedFile) -> bool:
    # RFC 3533: a stream's last page has flag 4 in its sixth byte; a page is 27 bytes, n lengths, and the sum of these.
    file.seek(max(0, file.size - (1 << 17)))
    tail = file.read(1 << 17)
    start = tail.rfind(b"OggS")
    if start < 0 or len(tail) < start + 27:
        return False
    lengths = tail[start + 27 : start + 27 + tail[start + 26]]
    return bool(tail[start + 5] & 4) and len(tail) >= start + 27 + tail[start + 26] + sum(lengths)

"""Audio files through libsndfile (python-soundfile): the formats people have, decoded in pieces."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import soundfile

from ..checks import HIGHEST_RATE_HZ, LOWEST_RATE_HZ
from ..errors import AudioError
from .arrays import MAX_CHANNELS, mix
from .source import INSTALL, SourceFile, UndecodableError

BLOCK_VALUES = 1 << 17  # float32 values decoded at once: half a megabyte, within a core's cache
# libsndfile reads these formats' 16-bit samples in one go; asked for float32 it takes them 8 KB at a time, each, where
# there is no descriptor, a call back into Python that wants the interpreter's lock.
IN_ONE_GO = frozenset(["WAV", "WAVEX", "RF64", "W64", "AIFF", "AU"])
SCALE_16 = np.float32(2.0**-15)  # libsndfile's own, exact
UNKNOWN_FRAMES = 1 << 62  # libsndfile says 2**63 - 1 where a header leaves the length open

_FIRST_SKIP = 4096  # frames; encoders make blocks of at most this many
_MAX_GAPS = 100
_MALFORMED = 3  # SF_ERR_MALFORMED_FILE

# libsndfile's parse log: the size a header claims, then what the file has room for
_CLAIMED = re.compile(r"^\s*(?:data|SSND|Data Size|riff)\s*:\s*(\d+) \(should be (\d+)\)", re.MULTILINE)
_CLAIMED_FRAMES = re.compile(r"Calculated frame count (\d+) does not match value from 'ds64' chunk of (\d+)")
_STREAMED_SIZE = 0x7FFF_0000  # writers to a pipe put 2 or 4 GiB where they cannot know the size
_MP3_SLACK_FRAMES = 4608  # encoder delay and padding that only some decoders cut
_MP3_LEFT_BYTES = 1 << 18  # more than the tags behind the last frame and a buffer take


class _ForwardSoundFile(soundfile.SoundFile):
    """A SoundFile that is read forwards: it would seek to where it is after each read, at more than the read costs."""

    def seekable(self) -> bool:
        return False


class SoundFileReader:
    """Reader of a file that libsndfile decodes, as mono blocks; contents decide the format, never the name.

    Parameters
    ----------
    file
        The whole file; `close` closes it.
    name
        For messages.

    Raises
    ------
    UndecodableError
        Not a format that libsndfile knows.
    AudioError
        Its header cannot be that of a recording.
    """

    def __init__(self, file: SourceFile, name: str) -> None:
        self._file, self._name = file, name
        self.warnings: list[str] = []
        self._gaps: list[tuple[int, int]] = []
        try:
            self._sound = self._open()
        except soundfile.LibsndfileError as error:
            reason = error.error_string.strip(" .")
            raise UndecodableError(f"libsndfile: {reason}", damaged=error.code == _MALFORMED) from error
        self._format, self._log = self._sound.format, self._sound.extra_info
        self._in_one_go = self._format in IN_ONE_GO and self._sound.subtype == "PCM_16"
        self.rate_hz, self.channels = self._sound.samplerate, self._sound.channels
        self.frames = self._sound.frames if self._sound.frames < UNKNOWN_FRAMES and self._format != "MP3" else None
        try:
            self._check()
        except AudioError:
            self._sound.close()
            raise

    def _open(self) -> soundfile.SoundFile:
        return _ForwardSoundFile(self._file.for_libsndfile(), closefd=True)

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
        """Yield mono blocks, float32 (n,), of the frames from ``start`` to ``stop`` (None: the end)."""
        position = self._go_to(start)
        per_read = max(256, min(BLOCK_VALUES // self.channels, 4 * self.rate_hz))
        buffer = np.empty((per_read, self.channels), np.float32)
        failure = None
        while stop is None or position < stop:
            wanted = per_read if stop is None else min(per_read, stop - position)
            read = self._read_16_bit if self._in_one_go else self._read
            frames, failure = read(buffer[:wanted], position)
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
            return self._sound.seek(position)
        except soundfile.LibsndfileError as error:
            self._file.check(self._name)
            raise AudioError(
                f"{self._name}: cannot be read from {position / self.rate_hz:g} s on; it is damaged before or there "
                f"({error.error_string.strip(' .')})"
            ) from error

    def _skip_damage(self, position: int) -> int:
        """Find where decoding can go on after it failed at ``position``; returns that itself if nowhere."""
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

    def _read(self, buffer: np.ndarray, position: int) -> tuple[int, str | None]:
        # On an error soundfile does not say how many frames came before it; the mark shows.
        buffer[:] = np.nan
        try:
            frames = len(self._sound.read(out=buffer))
        except soundfile.LibsndfileError as error:
            self._file.check(self._name)
            bad = np.isnan(buffer).any(axis=1)
            frames = int(np.argmax(bad)) if bad.any() else len(buffer)
            return frames, error.error_string.removeprefix("Error : ").strip(" .")
        self._file.check(self._name)
        return frames, None

    def _read_16_bit(self, buffer: np.ndarray, position: int) -> tuple[int, str | None]:
        samples, failure = np.empty(buffer.shape, np.int16), None
        try:
            frames = len(self._sound.read(out=samples))
        except soundfile.LibsndfileError as error:  # of the file, since nothing is decoded; what came before it is kept
            frames, failure = self._sound.tell() - position, error.error_string.removeprefix("Error : ").strip(" .")
        self._file.check(self._name)
        np.multiply(samples[:frames], SCALE_16, out=buffer[:frames])
        return frames, failure

    def _note_missing(self, decoded: int, failure: str | None) -> None:
        claimed, slack = self.frames, 0
        if self._format == "MP3":  # where PyAV, which reads these better, is not installed
            claimed, slack = self._sound.frames, _MP3_SLACK_FRAMES
            left = self._file.size - self._file.consumed()
            if left > _MP3_LEFT_BYTES:
                self.warnings.append(f"the last {left} bytes were left out by libsndfile; PyAV reads them: {INSTALL}")
        sizes, counts = _CLAIMED.search(self._log), _CLAIMED_FRAMES.search(self._log)
        if counts:
            claimed = int(counts[2])
        elif sizes and 0 < int(sizes[2]) < int(sizes[1]) < _STREAMED_SIZE:
            claimed = decoded * int(sizes[1]) // int(sizes[2])
        used = f"{decoded / self.rate_hz:.3f} s"
        if claimed is not None and decoded + slack < claimed:
            used += f" of {claimed / self.rate_hz:.3f} s"
        elif failure is None and (self._format != "OGG" or _ends_with_mark(self._file)):
            return
        reason = f"decoding stopped: {failure}" if failure else "the file ends early"
        self.warnings.append(f"truncated or damaged ({reason}); {used} could be read and are used")

    def close(self) -> None:
        """Release libsndfile's handle and the file."""
        self._sound.close()
        self._file.close()


def _ends_with_mark(file: SourceFile) -> bool:
    # RFC 3533: a stream's last page has flag 4 in its sixth byte; a page is 27 bytes, n lengths, and the sum of these.
    file.seek(max(0, file.size - (1 << 17)))
    tail = file.read(1 << 17)
    start = tail.rfind(b"OggS")
    if start < 0 or len(tail) < start + 27:
        return False
    lengths = tail[start + 27 : start + 27 + tail[start + 26]]
    return bool(tail[start + 5] & 4) and len(tail) >= start + 27 + tail[start + 26] + sum(lengths)

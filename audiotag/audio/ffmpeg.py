"""Containers that libsndfile cannot open (mp4, webm, wma, the sound of a video) through PyAV, which brings ffmpeg's
libraries along; an extra, because they are large and few need them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..checks import HIGHEST_RATE_HZ, LOWEST_RATE_HZ
from ..errors import AudioError, MissingDependencyError
from .arrays import MAX_CHANNELS, mix
from .guarded_file import GuardedFile

INSTALL = 'pip install "audiotag-dymn[media]"'

# Only these of ffmpeg's demuxers may run: others follow addresses in the file (hls, concat) or take text for data.
DEMUXERS = (
    "aac,ac3,aiff,amr,ape,asf,avi,caf,dsf,dts,eac3,flac,flv,matroska,mov,mp3,mpc,mpc8,mpeg,mpegts,ogg,rm,tta,wav,w64,wv"
)

_MAGIC = (
    (0, b"\x1a\x45\xdf\xa3", "Matroska or WebM"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "ASF (wma, wmv)"),
    (0, b"FLV\x01", "Flash video"),
    (0, b"\x00\x00\x01\xba", "MPEG program stream"),
    (0, b"#!AMR", "AMR"),
    (0, b"\x0b\x77", "AC-3"),
    (0, b"\x7f\xfe\x80\x01", "DTS"),
    (0, b"MAC ", "Monkey's Audio"),
    (0, b"wvpk", "WavPack"),
    (0, b"TTA1", "True Audio"),
    (0, b"DSD ", "DSF"),
    (0, b"MPCK", "Musepack"),
    (0, b"MP+", "Musepack"),
    (0, b".RMF", "RealMedia"),
    (0, b"OggS", "Ogg"),
    (0, b"caff", "CAF"),
    (0, b"RIFF", "RIFF"),
    (0, b"FORM", "AIFF"),
    (0, b"ADIF", "AAC"),
)
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_TS_PACKETS = ((0, 188), (4, 192))  # offset of the sync byte 0x47 and packet length: plain, and with time stamps


def recognise(head: bytes) -> str | None:
    """The container that a file's first bytes announce, in words, if it is one that PyAV may open."""
    for offset, magic, name in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return name
    if head[4:8] in _MP4_BOXES:
        return "MP4 or QuickTime (m4a, mp4, mov)"
    for offset, length in _TS_PACKETS:
        if head[offset : offset + 2 * length + 1 : length] == b"\x47\x47\x47":
            return "MPEG transport stream"
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return "AAC"
    return None


class MediaReader:
    """Mono blocks of the first sound track of a container that ffmpeg's libraries can open.

    Parameters
    ----------
    file
        The whole file; `close` releases it.
    name, kind
        The source's name and container, for messages.

    Raises
    ------
    MissingDependencyError
        PyAV is not installed.
    AudioError
        The container cannot be opened or has no usable sound track.
    """

    def __init__(self, file: GuardedFile, name: str, kind: str) -> None:
        try:
            import av
        except ImportError as error:
            raise MissingDependencyError(
                f"{name}: {kind} needs PyAV to be decoded; install it with: {INSTALL} ({error})"
            ) from error
        self._av, self._file, self._name = av, file, name
        self.warnings: list[str] = []
        file.seek(0)
        try:
            self._container = av.open(file, "r", options={"format_whitelist": DEMUXERS}, metadata_errors="ignore")
        except (av.FFmpegError, OSError, ValueError) as error:
            raise AudioError(f"{name}: {kind}, but it cannot be decoded ({_reason(error)}); is it whole?") from error
        try:
            self._prepare(kind)
        except BaseException:
            self._container.close()
            raise

    def _prepare(self, kind: str) -> None:
        if not self._container.streams.audio:
            raise AudioError(f"{self._name}: {kind} without a sound track; nothing to listen to")
        self._stream = self._container.streams.audio[0]
        codec = self._stream.codec_context
        if codec is None:
            raise AudioError(f"{self._name}: {kind} whose sound track is in an unknown encoding; convert it first")
        self.rate_hz, self.channels = codec.rate or 0, codec.channels or 0
        if not LOWEST_RATE_HZ <= self.rate_hz <= HIGHEST_RATE_HZ or not 1 <= self.channels <= MAX_CHANNELS:
            raise AudioError(
                f"{self._name}: its sound track gives {self.rate_hz} Hz and {self.channels} channels; "
                f"{LOWEST_RATE_HZ} to {HIGHEST_RATE_HZ} Hz and 1 to {MAX_CHANNELS} channels can be read"
            )
        length, base = self._stream.duration, self._stream.time_base
        claimed = float(length * base) if length and base else (self._container.duration or 0) / self._av.time_base
        self._claimed_s = claimed
        self.frames: int | None = None  # containers round, and count what encoders added

    def blocks(self, start: int, stop: int | None) -> Iterator[np.ndarray]:
        """Mono blocks, float32 (n,), of the samples from ``start`` to ``stop`` (None: the end)."""
        position = 0
        for block in self._decoded():
            end = position + len(block)
            first, last = max(0, start - position), len(block) if stop is None else min(len(block), stop - position)
            if first < last:
                yield block[first:last]
            position = end
            if stop is not None and position >= stop:
                return
        self._file.raise_error(self._name)
        missing_s = self._claimed_s - position / self.rate_hz
        if missing_s > max(0.5, 0.01 * self._claimed_s):
            self.warnings.append(
                f"truncated or damaged (the file ends early); {position / self.rate_hz:.3f} s "
                f"of {self._claimed_s:.3f} s could be read and are used"
            )

    def _decoded(self) -> Iterator[np.ndarray]:
        # interleaved: of planar sound with more than 8 channels, PyAV reads planes that are not there, and crashes
        to_float = self._av.AudioResampler(format="flt")
        damaged = 0
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    break
                frames = [block for frame in packet.decode() for block in self._converted(to_float, frame)]
            except self._av.error.InvalidDataError:
                damaged += 1
                continue
            except (self._av.FFmpegError, OSError) as error:
                self.warnings.append(f"decoding stopped ({_reason(error)}); what came before is used")
                break
            yield from frames
        if damaged:
            self.warnings.append(f"damaged: {damaged} packets could not be decoded and were left out")

    def _converted(self, to_float: Any, frame: Any) -> Iterator[np.ndarray]:
        if frame.sample_rate != self.rate_hz:
            raise AudioError(
                f"{self._name}: its sample rate changes from {self.rate_hz} to {frame.sample_rate} Hz on the way; "
                "convert it to one rate first"
            )
        for converted in to_float.resample(frame):
            if converted.samples:
                yield mix(converted.to_ndarray().reshape(converted.samples, -1).T)

    def close(self) -> None:
        """Release the decoder, and the file if it was opened here."""
        self._container.close()
        self._file.release()


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)

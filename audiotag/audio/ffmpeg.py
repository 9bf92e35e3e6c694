"""MPEG audio, and the containers that libsndfile cannot open, through PyAV: it brings ffmpeg's libraries along, so
m4a, mp4, webm, wma and the sound of videos need no program on the machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..checks import HIGHEST_RATE_HZ, LOWEST_RATE_HZ
from ..errors import AudioError
from .arrays import MAX_CHANNELS, mix, to_float
from .source import INSTALL, SourceFile, UndecodableError

# Only these of ffmpeg's demuxers may run: others follow addresses in the file (hls, concat) or take text for data.
DEMUXERS = (
    "aac,ac3,aiff,amr,ape,asf,avi,caf,dsf,dts,eac3,flac,flv,matroska,mov,mp3,mpc,mpc8,mpeg,mpegts,ogg,rm,tta,wav,w64,wv"
)
# Of these ffmpeg guesses the length from the first frame's bit rate, for they have none.
_BARE = ("aac", "ac3", "amr", "dts", "eac3", "mp3")
_MP3_COUNT = re.compile(rb"(?:(?:Xing|Info)\0\0\0[\1\3\5\7\x09\x0b\x0d\x0f]|VBRI.{10})(.{4})", re.DOTALL)
_TAG_WITHIN = 4096  # bytes from the first frame
_CHANCE_FRAMES = 20
_SKIP_MANUAL = 1 << 29  # AV_CODEC_FLAG2_SKIP_MANUAL
BLOCK_SAMPLES = 1 << 16


class MediaReader:
    """Reader of the first sound track of a file that ffmpeg's libraries can open, as mono blocks.

    Parameters
    ----------
    file
        The whole file; `close` closes it.
    name
        For messages.

    Raises
    ------
    UndecodableError
        Not a format that ffmpeg knows, or PyAV is not installed.
    AudioError
        No usable sound track.
    """

    def __init__(self, file: SourceFile, name: str) -> None:
        try:
            import av
        except ImportError as error:
            raise UndecodableError(f"m4a, mp4, webm, wma and others need PyAV: {INSTALL}") from error
        self._av, self._file, self._name = av, file, name
        self.warnings: list[str] = []
        self.frames: int | None = None  # containers round, and count what encoders added
        counted = _mp3_frames(file)
        self._container = self._opened()
        try:
            self._prepare(counted)
        except (AudioError, UndecodableError):
            self._container.close()
            raise

    def _opened(self) -> Any:
        self._file.seek(0)
        # a RIFF header before mp3 misleads ffmpeg's guess
        for demuxer in (None, "mp3") if self._file.read(4) == b"RIFF" else (None,):
            self._file.seek(0)
            try:
                options = {"format_whitelist": DEMUXERS}
                return self._av.open(self._file, "r", demuxer, options=options, metadata_errors="ignore")
            except (self._av.FFmpegError, OSError, ValueError) as error:
                reason = error
        raise UndecodableError(f"ffmpeg: {_reason(reason)}") from reason

    def _prepare(self, mp3_frames: int | None) -> None:
        container = self._container
        if not container.streams.audio:
            raise AudioError(f"{self._name}: {container.format.long_name} without a sound track; nothing to listen to")
        self._stream = container.streams.audio[0]
        codec = self._stream.codec_context
        if codec is None:
            raise AudioError(f"{self._name}: its sound track is in an unknown encoding; convert it first")
        self.rate_hz, self.channels = codec.rate or 0, codec.channels or 0
        if not self.rate_hz or not self.channels:
            raise UndecodableError("ffmpeg: no sound in it")
        if not LOWEST_RATE_HZ <= self.rate_hz <= HIGHEST_RATE_HZ or not 1 <= self.channels <= MAX_CHANNELS:
            raise AudioError(
                f"{self._name}: its sound track gives {self.rate_hz} Hz and {self.channels} channels; "
                f"{LOWEST_RATE_HZ} to {HIGHEST_RATE_HZ} Hz and 1 to {MAX_CHANNELS} channels can be read"
            )
        if container.format.name == "caf":
            codec.flags2 |= _SKIP_MANUAL  # its last packet is short by what ffmpeg then takes off again
        length, base = self._stream.duration, self._stream.time_base
        self._claimed_s = float(length * base) if length and base else (container.duration or 0) / self._av.time_base
        self._bare = container.format.name in _BARE
        if self._bare:
            self._claimed_s = (mp3_frames or 0) * (codec.frame_size or 0) / self.rate_hz

    def blocks(self, start: int, stop: int | None) -> Iterator[np.ndarray]:
        """Yield mono blocks, float32 (n,), of the samples from ``start`` to ``stop`` (None: the end)."""
        position = 0
        for block in self._decoded():
            end = position + len(block)
            first, last = max(0, start - position), len(block) if stop is None else min(len(block), stop - position)
            if first < last:
                yield block[first:last]
            position = end
            if stop is not None and position >= stop:
                return
        self._file.check(self._name)
        missing_s = self._claimed_s - position / self.rate_hz
        if missing_s > max(0.5, 0.01 * self._claimed_s):
            self.warnings.append(
                f"truncated or damaged (the file ends early); {position / self.rate_hz:.3f} s "
                f"of {self._claimed_s:.3f} s could be read and are used"
            )

    def _decoded(self) -> Iterator[np.ndarray]:
        decoded = damaged = foreign = gathered = 0
        blocks: list[np.ndarray] = []  # a packet's are too short to be worth handing on one by one
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    break
                for frame in packet.decode():
                    if frame.sample_rate != self.rate_hz:
                        foreign += 1
                        continue
                    samples = self._samples(frame)
                    changed = blocks and (len(samples) != len(blocks[0]) or samples.dtype != blocks[0].dtype)
                    if changed or gathered >= BLOCK_SAMPLES:
                        yield mix(to_float(np.concatenate(blocks, axis=1)))
                        blocks, gathered = [], 0
                    blocks.append(samples)
                    gathered += samples.shape[1]
                    decoded += 1
            except self._av.error.InvalidDataError:
                damaged += 1
            except Exception as error:  # PyAV lets ValueError, IndexError and others through where data is damaged
                self.warnings.append(f"decoding stopped ({_reason(error)}); what came before is used")
                break
        if blocks:
            yield mix(to_float(np.concatenate(blocks, axis=1)))
        # ffmpeg finds a few frames in many a file that has no sound
        if self._bare and damaged and decoded < min(damaged + 1, _CHANCE_FRAMES):
            raise AudioError(f"{self._name}: not audio that can be decoded (ffmpeg: {damaged} packets are damaged)")
        if damaged:
            self.warnings.append(f"damaged: {damaged} packets could not be decoded and were left out")
        if foreign:
            self.warnings.append(f"not all at {self.rate_hz} Hz: {foreign} frames at other rates were left out")

    def _samples(self, frame: Any) -> np.ndarray:
        channels = frame.layout.nb_channels
        if frame.format.is_planar and channels > 8:  # of more than 8 planes, PyAV reads some that are not there
            (frame,) = self._av.AudioResampler(format=frame.format.packed).resample(frame)
        samples = frame.to_ndarray()
        return samples if frame.format.is_planar else samples.reshape(-1, channels).T

    def close(self) -> None:
        """Release the decoder and the file."""
        self._container.close()
        self._file.close()


def _mp3_frames(file: SourceFile) -> int | None:
    """Return the number of frames that the encoder of an mp3 counted, if this is one and has a count."""
    file.seek(0)
    head = file.read(10)
    if head[:3] == b"ID3" and len(head) == 10:
        file.seek(10 + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True)))
    found = _MP3_COUNT.search(file.read(_TAG_WITHIN))
    return int.from_bytes(found[1], "big") if found else None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__

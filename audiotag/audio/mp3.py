"""What libsndfile leaves open about mp3: where the frames are, how far to trust a length, and its decoder's chatter."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

# ISO/IEC 11172-3 and 13818-3, tables of bit rates (kbit/s) by (MPEG-1?, layer) and of sample rates (Hz) by version bits
_BIT_RATES = {
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_SAMPLE_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}

_SEARCHED_BYTES = 1 << 17
_CHAINED_FRAMES = 4  # so many headers that point to one another are no accident
_FRAME_BYTES = range(24, 2000)
_ID3V1_BYTES = 128


class Frame(NamedTuple):
    """One frame header: its whole length in bytes and where an encoder's table of contents may stand in it."""

    length: int
    tag_offset: int


class Mp3Layout(NamedTuple):
    """Byte range of the frames, and whether the encoder's own count of them fits that range."""

    begin: int
    end: int
    length_known: bool


def parse_frame(header: bytes) -> Frame | None:
    """The frame that a four-byte MPEG audio header announces, or None if these are not such a header."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    bit_rate, sample_rate = header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or layer == 4 or bit_rate in (0, 15) or sample_rate == 3:
        return None
    mpeg1, mono = version == 3, header[3] >> 6 == 3
    bits_per_s = 1000 * _BIT_RATES[mpeg1, layer][bit_rate]
    rate_hz, padded = _SAMPLE_RATES[version][sample_rate], header[2] >> 1 & 1
    if layer == 1:
        return Frame((12 * bits_per_s // rate_hz + padded) * 4, 0)
    samples = 1152 if mpeg1 or layer == 2 else 576
    side_info = (17 if mono else 32) if mpeg1 else (9 if mono else 17)
    return Frame(samples // 8 * bits_per_s // rate_hz + padded, 4 + side_info)


def may_be_mp3(head: bytes) -> bool:
    """Whether a file's first bytes are the sync bits of MPEG audio or a tag that usually comes before them."""
    return head[:3] == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0)


def find_mp3(file: Any, size: int) -> Mp3Layout | None:
    """Where the mp3 frames of a seekable binary file of ``size`` bytes are, or None if it does not look like mp3.

    Tags before the first frame are skipped, and anything else within _SEARCHED_BYTES of it.
    """
    start = _after_id3v2(file, size)
    file.seek(start)
    head = file.read(_SEARCHED_BYTES)
    offset = head.find(b"\xff")
    while offset >= 0 and not _chained(head, offset, at_end=start + len(head) >= size):
        offset = head.find(b"\xff", offset + 1)
    if offset < 0:
        return None
    end = size
    if size - start > _ID3V1_BYTES:
        file.seek(size - _ID3V1_BYTES)
        end -= _ID3V1_BYTES if file.read(3) == b"TAG" else 0
    frame = parse_frame(head[offset : offset + 4])
    assert frame is not None
    counted = _encoder_count(head[offset : offset + frame.length], frame)
    if counted is None:
        return Mp3Layout(start + offset, end, False)
    frames, claimed = counted
    # More bytes than the tag counts: files joined end to end, which a decoder that trusts the tag would cut short.
    trusted = frames and claimed // frames in _FRAME_BYTES and end - start - offset <= claimed * 1.02 + 4096
    return Mp3Layout(start + offset + (0 if trusted else frame.length), end, bool(trusted))


def _after_id3v2(file: Any, size: int) -> int:
    start = 0
    while start < size:
        file.seek(start)
        head = file.read(10)
        if len(head) < 10 or head[:3] != b"ID3" or max(head[6:10]) > 127:
            break
        length = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        start += 10 + length + (10 if head[5] & 0x10 else 0)
    return min(start, size)


def _chained(head: bytes, offset: int, *, at_end: bool) -> bool:
    for _ in range(_CHAINED_FRAMES):
        if offset >= len(head) and at_end:
            return True
        frame = parse_frame(head[offset : offset + 4])
        if frame is None:
            return False
        offset += frame.length
    return True


def _encoder_count(data: bytes, frame: Frame) -> tuple[int, int] | None:
    """Frames and bytes as the Xing, Info or VBRI tag in the first frame counts them."""
    tag = data[frame.tag_offset :]
    if tag[:4] in (b"Xing", b"Info") and len(tag) >= 16 and tag[7] & 3 == 3:
        return struct.unpack(">II", tag[8:16])
    vbri = data[36:54]
    if vbri[:4] == b"VBRI" and len(vbri) == 18:
        claimed, frames = struct.unpack(">II", vbri[10:18])
        return frames, claimed
    return None


class OpenEnded:
    """The frames of an mp3 file, presented as longer than they are.

    Without a trustworthy tag mpg123 guesses the length from the first frame's bit rate, and libsndfile reads no further
    than that guess: a variable bit rate file may lose two thirds. A size far too large makes the guess too long, and
    reading ends where the frames do.
    """

    def __init__(self, file: Any, begin: int, end: int) -> None:
        self._file, self._begin, self._bytes = file, begin, end - begin
        # the highest bit rate is 40 times the lowest
        self.size = 64 * self._bytes + (1 << 20)
        self._position = 0

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._bytes - self._position)
        if wanted > 0:
            self._file.seek(self._begin + self._position)
            count = self._file.readinto(memoryview(buffer)[:wanted])
        elif self._position >= self.size - _ID3V1_BYTES:
            count = min(len(buffer), self.size - self._position)  # where mpg123 looks for an ID3v1 tag: none
            buffer[:count] = bytes(count)
        else:
            count = 0
        self._position += count
        return count


_lock = threading.Lock()
_silencing = 0
_saved: int | None = None
_sink: int | None = None


@contextmanager
def silenced_stderr() -> Iterator[None]:
    """Discard what C code prints through ``stderr`` meanwhile, where the C library allows it.

    mpg123 prints a line or two for every damaged frame, thousands for a damaged file, and libsndfile has no switch for
    it. The C library's variable ``stderr`` is set to another stream, which glibc's manual and macOS allow; the file
    descriptor is not touched, so Python's own output and other processes' go on.
    """
    global _silencing, _saved
    stream = _c_stderr()
    if stream is None:
        yield
        return
    with _lock:
        if _silencing == 0:
            _saved, stream.value = stream.value, _sink
        _silencing += 1
    try:
        yield
    finally:
        with _lock:
            _silencing -= 1
            if _silencing == 0:
                stream.value = _saved


def _c_stderr() -> Any | None:
    global _sink
    name = "__stderrp" if sys.platform == "darwin" else "stderr"
    if sys.platform != "darwin" and not (sys.platform == "linux" and _is_glibc()):
        return None  # elsewhere stderr is a constant
    try:
        libc = ctypes.CDLL(None)
        with _lock:
            if _sink is None:
                libc.fopen.restype = ctypes.c_void_p
                _sink = libc.fopen(os.devnull.encode(), b"w")
        return ctypes.c_void_p.in_dll(libc, name) if _sink else None
    except (OSError, ValueError, AttributeError):
        return None


def _is_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (ValueError, OSError):
        return False


def _restore_in_child() -> None:
    # A fork copies the thread that forks, not those that would have restored the variable.
    global _lock, _silencing
    _lock = threading.Lock()
    if _silencing:
        _silencing = 0
        stream = _c_stderr()
        if stream is not None:
            stream.value = _saved


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_restore_in_child)

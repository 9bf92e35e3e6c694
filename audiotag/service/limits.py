"""What a client may cost: bounds on bodies, decoded audio, waiting and time, and the readers that keep to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..audio.recording import AudioStream
from ..errors import InvalidInputError

BYTES_PER_S = 192_000 * 2 * 4  # of decoded float32 samples that a second of audio may take: 192 kHz stereo


class TooLargeError(InvalidInputError):
    """Raised where a body or a recording is larger than the service takes."""


@dataclass(frozen=True)
class Limits:
    """Bounds of a service, all of them on.

    Attributes
    ----------
    max_seconds : float
        Length of one recording, decoded.
    max_bytes : int
        Of one request's body; all bodies together, four times as many.
    max_files : int
        In one request.
    max_channels, max_rate_hz : int
        Of a recording.
    max_waiting_s : float
        Seconds of audio taken in and not yet worked on, over all requests.
    max_requests : int
        At once, from their heads to their answers.
    max_connections : int
        At once, idle ones too.
    max_streams : int
        Live streams at once.
    max_frame_bytes : int
        Of one WebSocket message.
    max_lag_s : float
        How far scoring may fall behind a stream before the stream is ended.
    head_s, idle_s, write_s : float
        How long a request's head may take, how long a body or a stream may stand still, and how long a client may
        leave an answer unread.
    keep_alive_s : float
        How long a connection may be idle between requests.
    min_bytes_per_s : int
        Slowest body, on average, after the first `idle_s`.
    grace_s : float
        How long a stop waits for work in hand.
    stuck_s : float
        How long one run of the network may take before the service says that it is not ready.
    """

    max_seconds: float = 3600.0
    max_bytes: int = 1 << 30
    max_files: int = 100
    max_channels: int = 16
    max_rate_hz: int = 384_000
    max_waiting_s: float = 7200.0
    max_requests: int = 64
    max_connections: int = 512
    max_streams: int = 64
    max_frame_bytes: int = 1 << 18
    max_lag_s: float = 30.0
    head_s: float = 10.0
    idle_s: float = 20.0
    write_s: float = 30.0
    keep_alive_s: float = 15.0
    min_bytes_per_s: int = 4096
    grace_s: float = 30.0
    stuck_s: float = 60.0

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if not getattr(self, name) > 0:
                raise InvalidInputError(f"{name} must be positive, got {getattr(self, name)!r}")
        # One recording must fit the queue, or it could never be taken.
        object.__setattr__(self, "max_waiting_s", max(self.max_waiting_s, self.max_seconds))


def check_head(stream: AudioStream, limits: Limits) -> None:
    """Refuse a recording whose header already says that it is beyond the limits.

    Raises
    ------
    TooLargeError
    """
    if stream.channels > limits.max_channels:
        raise TooLargeError(f"{stream.name}: has {stream.channels} channels; at most {limits.max_channels} are taken")
    if stream.source_rate_hz > limits.max_rate_hz:
        raise TooLargeError(
            f"{stream.name}: has a sample rate of {stream.source_rate_hz} Hz; at most {limits.max_rate_hz} Hz are taken"
        )
    if stream.duration_s is not None and stream.duration_s > limits.max_seconds:
        raise TooLargeError(
            f"{stream.name}: lasts {stream.duration_s:.0f} s; at most {limits.max_seconds:g} s are taken; cut it first"
        )


def bounded_blocks(stream: AudioStream, limits: Limits) -> Iterator[np.ndarray]:
    """Yield a recording's blocks, counted while they are decoded, whatever its header claimed.

    Raises
    ------
    TooLargeError
        As soon as more has been decoded than a recording may hold.
    """
    check_head(stream, limits)
    # Samples at the target rate after which the seconds, or the bytes of the source as decoded, are too many.
    bytes_per_s = stream.source_rate_hz * stream.channels * 4
    longest_s = min(limits.max_seconds, limits.max_seconds * BYTES_PER_S / bytes_per_s)
    most = round(longest_s * stream.target_rate_hz)
    taken = 0
    for block in stream.blocks():
        taken += len(block)
        if taken > most:
            raise TooLargeError(
                f"{stream.name}: more than {longest_s:g} s of {stream.channels} channel(s) at "
                f"{stream.source_rate_hz} Hz; that is all that is taken; cut it first"
            )
        yield block

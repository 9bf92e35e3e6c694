"""What the worker takes turns at: recordings that are decoded beside it, and live streams."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..audio.recording import open_audio
from ..errors import AudioError, AudiotagError
from ..frontend.windows import Window, cut_windows
from ..inference.batches import Analysis
from ..inference.frames import Shown
from ..inference.sources import Begun, Ended
from ..live.stream import Stream, StreamWindow
from .limits import Limits, bounded_blocks

STEP_S = 0.005  # a decoder goes on to the next recording after this long
AHEAD = 8  # windows of a recording that wait for the network, or one more
LEAST_BYTES_PER_S = 4000  # 32 kbit/s, to guess a length from a size
HEAD_START_S = 2.0  # how far ahead of the clock a stream may be and still be live


class CancelledWork(Exception):
    """Raised in place of an analysis that nobody waits for any more."""


class Prepared(NamedTuple):
    """A window that waits for the network, and what the network is shown of it."""

    window: Window
    shown: Shown


@dataclass(frozen=True)
class Scored:
    """One window of a recording, scored.

    row: float32 (labels,) or (features,). logmel: float32 (1, mels, frames), or None unless the recording was asked to
    keep it. samples: float32 (n,), what no window before it had, or None.
    """

    window: Window
    row: np.ndarray
    logmel: np.ndarray | None = None
    samples: np.ndarray | None = None


class Recording:
    """One recording on its way through decoder and network.

    Parameters
    ----------
    source : bytes or file object, as `open_audio` takes it
        Closed when it is read.
    name : str
        What it is called in results and errors.
    n_bytes : int
        Its size, from which a length is guessed until a header tells one.
    rate_hz, window, hop : int
        The checkpoint's rate; the window and hop asked for, in samples.
    limits : Limits
    layers : tuple of str or None
        Feature vectors wanted; None for scores.
    watch : callable, optional
        Called on the worker's thread with each window that was scored.
    keep : bool
        Whether `watch` gets log-mel and samples too.
    """

    def __init__(
        self,
        source: Any,
        name: str,
        *,
        n_bytes: int,
        rate_hz: int,
        window: int,
        hop: int,
        limits: Limits,
        layers: tuple[str, ...] | None = None,
        watch: Callable[[Scored], None] | None = None,
        keep: bool = False,
    ) -> None:
        self.source, self.name, self.limits = source, name, limits
        self.window, self.hop = window, hop
        self.layers, self.watch, self.keep = layers, watch, keep
        self.done: Future[Analysis] = Future()
        self.done.set_running_or_notify_cancel()  # who waits may go; the future stays the worker's
        self.analysis = Analysis(name, rate_hz, name)
        self.begun = False
        self.cancelled = False
        # The rest is the worker's, under its lock.
        self.waiting: deque[Prepared] = deque()
        self.decoding = self.ended = False
        self.error: AudiotagError | None = None
        self.prepare: Callable[[Window], Shown] | None = None
        self._guessed_s = min(limits.max_seconds, n_bytes / LEAST_BYTES_PER_S)
        self._windows = self._decode()

    @property
    def left_s(self) -> float:
        """Seconds of audio still to analyse, as far as can be told."""
        expected_s = self.analysis.expected_s
        return max(0.0, (self._guessed_s if expected_s is None else expected_s) - self.analysis.duration_s)

    @property
    def wants_worker(self) -> bool:
        """Whether windows wait for the network, or the outcome can be told."""
        return bool(self.waiting) or ((self.ended or self.cancelled) and not self.decoding)

    def _decode(self) -> Generator[Window, None, None]:
        with open_audio(self.source, target_rate_hz=self.analysis.rate_hz) as stream:
            self.analysis.begin(Begun(self.name, stream.duration_s))
            self.begun = True
            yield from cut_windows(bounded_blocks(stream, self.limits), self.window, self.hop)
            self.analysis.ended = Ended(tuple(stream.warnings))

    def step(self) -> tuple[list[Prepared], bool]:
        """Decode for a little while; returns the windows that came of it, and whether that was the end."""
        found: list[Prepared] = []
        since = time.perf_counter()
        try:
            while not self.cancelled and (not found or (len(found) < AHEAD and time.perf_counter() - since < STEP_S)):
                self._next_window(found)
            if found and self._seems_last(found[-1].window) and not self.cancelled:
                self._next_window(found)  # so that to find the end takes no step of its own
            if not self.cancelled:
                return found, False
        except StopIteration:
            pass
        except AudiotagError as error:
            self.error = error
        except Exception as error:  # a decoder's own failure must not end the service
            self.error = AudioError(f"{self.name}: unexpected {type(error).__name__} while reading: {error}")
        self.close()
        return found, True

    def _next_window(self, found: list[Prepared]) -> None:
        assert self.prepare is not None
        window = next(self._windows)
        found.append(Prepared(window, self.prepare(window)))

    def _seems_last(self, window: Window) -> bool:
        expected_s = self.analysis.expected_s
        return expected_s is not None and window.stop >= round(expected_s * self.analysis.rate_hz)

    def close(self) -> None:
        """Release decoder and source."""
        self._windows.close()
        close = getattr(self.source, "close", None)
        if close is not None:
            close()

    def add(self, window: Window, row: np.ndarray, logmel: np.ndarray | None) -> None:
        """Note what the network said of the next window."""
        done = round(self.analysis.duration_s * self.analysis.rate_hz)
        self.analysis.add(window, row)
        if self.watch is not None:
            samples = None if logmel is None else window.samples[done - window.start : window.stop - window.start]
            self.watch(Scored(window, row, logmel, samples))


class Feed:
    """A live stream's audio on its way to the worker, in pieces of at most half a hop.

    Parameters
    ----------
    stream : Stream
    give : callable
        Called on the worker's thread with the windows a piece gave, or the error that ends the stream, and
        whether they are the last.
    """

    def __init__(self, stream: Stream, give: Callable[[list[StreamWindow] | Exception, bool], None]) -> None:
        self.stream, self.give = stream, give
        self.pending: deque[tuple[np.ndarray | None, float]] = deque()  # samples (channels, n), None ends; when it came
        self.pending_s = 0.0
        self.piece_samples = max(1, round(min(0.5, stream.hop_s / 2) * stream.sample_rate))
        self._started = time.monotonic()

    def seconds(self, samples: np.ndarray | None) -> float:
        """Return the length of samples (channels, n) in seconds; 0 for None."""
        return 0.0 if samples is None else samples.shape[1] / self.stream.sample_rate

    @property
    def is_live(self) -> bool:
        """Whether audio comes no faster than it sounds; a file sent as fast as it goes waits with the recordings."""
        return self.stream.position_s <= time.monotonic() - self._started + HEAD_START_S

    @property
    def lag_s(self) -> float:
        """Seconds that the oldest audio has been waiting."""
        try:
            return time.monotonic() - self.pending[0][1]
        except IndexError:
            return 0.0

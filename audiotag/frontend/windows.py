"""Window arithmetic: where windows lie in a recording, cutting one that arrives in blocks, tiling short clips."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from ..errors import InvalidInputError


class Window(NamedTuple):
    """A stretch of a recording and what the network is shown of it.

    start, stop: samples in the recording. samples: float32 (window,), tiled where ``stop - start`` is shorter.
    """

    start: int
    stop: int
    samples: np.ndarray


def window_starts(n_samples: int, window: int, hop: int) -> list[int]:
    """List the first samples of the windows over a recording; the last window is moved back to end with it.

    >>> window_starts(25, 10, 10)
    [0, 10, 15]
    """
    if n_samples <= window:
        return [0]
    starts = list(range(0, n_samples - window + 1, hop))
    if starts[-1] + window < n_samples:
        starts.append(n_samples - window)
    return starts


def tile(samples: np.ndarray, window: int) -> np.ndarray:
    """Repeat a clip (samples,) until it fills (window,); a clip already as long is returned as it is."""
    return samples if len(samples) == window else np.resize(samples, window)


class WindowCutter:
    """Cuts a recording that arrives in blocks into windows, each as soon as its last sample is there.

    The windows are those of `window_starts`, whatever the blocks' lengths. Holds two windows of samples at most.

    Parameters
    ----------
    window, hop : int
        Length of the windows and step between them in samples, ``1 <= hop <= window``.

    Raises
    ------
    InvalidInputError
        Lengths out of range.
    """

    def __init__(self, window: int, hop: int) -> None:
        if not 1 <= hop <= window:
            raise InvalidInputError(f"hop must be in [1, {window}] samples, got {hop!r}")
        self.window, self.hop = window, hop
        self._buffer = np.empty(2 * window, np.float32)
        self.reset()

    def reset(self) -> None:
        """Forget everything; the next sample is the first of a new recording."""
        self._buffer_start = 0  # position in the recording of the buffer's first sample
        self._n_buffered = 0
        self._stop = 0  # where the latest window ended
        self._next_stop = self.window

    @property
    def n_samples(self) -> int:
        """Number of samples pushed since the start."""
        return self._buffer_start + self._n_buffered

    def push(self, samples: np.ndarray) -> Iterator[Window]:
        """Take samples, float32 (n,), n of any size; yield the windows they complete, in order.

        Samples are taken as the iterator is consumed, so run it to its end.
        """
        while len(samples):
            # Never past the next window's end, so that no more than a window has to be kept.
            taken = samples[: self._next_stop - self.n_samples]
            samples = samples[len(taken) :]
            self._append(taken)
            if self.n_samples == self._next_stop:
                self._stop = self._next_stop
                self._next_stop += self.hop
                yield self._cut(self._stop - self.window)

    def finish(self) -> Window | None:
        """Cut the window over the samples that no window has covered yet; changes no state.

        It is moved back to end with the recording, or tiled if the recording is shorter than one; None if nothing is
        left.
        """
        return None if self._stop == self.n_samples else self._cut(max(0, self.n_samples - self.window))

    def _append(self, samples: np.ndarray) -> None:
        if self._n_buffered + len(samples) > len(self._buffer):
            # Keep what the next window needs and, for a last one moved back, a whole window up to the end.
            keep_from = min(self._next_stop - self.window, self.n_samples + len(samples) - self.window)
            dropped = keep_from - self._buffer_start
            self._n_buffered -= dropped
            self._buffer[: self._n_buffered] = self._buffer[dropped : dropped + self._n_buffered].copy()
            self._buffer_start = keep_from
        self._buffer[self._n_buffered : self._n_buffered + len(samples)] = samples
        self._n_buffered += len(samples)

    def _cut(self, start: int) -> Window:
        stop = min(start + self.window, self.n_samples)
        offset = start - self._buffer_start
        return Window(start, stop, tile(self._buffer[offset : offset + stop - start].copy(), self.window))


def cut_windows(blocks: Iterable[np.ndarray], window: int, hop: int) -> Iterator[Window]:
    """Cut a recording that arrives in blocks into its windows; see `WindowCutter`.

    Parameters
    ----------
    blocks : iterable of ndarray
        float32 (samples,), any lengths, at least one sample in all.
    window, hop : int
        In samples, ``1 <= hop <= window``.

    Raises
    ------
    InvalidInputError
        No samples at all, or lengths out of range.
    """
    cutter = WindowCutter(window, hop)
    for block in blocks:
        yield from cutter.push(block)
    if not cutter.n_samples:
        raise InvalidInputError("blocks: no samples at all")
    last = cutter.finish()
    if last is not None:
        yield last

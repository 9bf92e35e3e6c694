"""Long recordings in parts that give exactly the windows of the whole.

Windows lie on a grid, one every hop, and the last is moved back to end with the recording. A segment is a run of
windows of the grid; the last segment has the moved-back one too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ..audio.recording import AudioStream
from ..errors import AudioError


class Grid(NamedTuple):
    """Where windows lie, in samples at the checkpoint's rate."""

    window: int
    hop: int
    rate_hz: int


class Segment(NamedTuple):
    """A run of windows: the first one's number, and how many; None: all to the end of the recording."""

    first: int
    windows: int | None

    def start(self, grid: Grid) -> int:
        """Return its first sample."""
        return self.first * grid.hop

    def stop(self, grid: Grid) -> int | None:
        """Return one past its last sample; None for the recording's end."""
        return None if self.windows is None else (self.first + self.windows - 1) * grid.hop + grid.window


WHOLE = Segment(0, None)


def cut(n_samples: int, grid: Grid, segment_s: float) -> list[Segment]:
    """Cut a recording into segments, each of windows that begin within `segment_s` seconds.

    >>> cut(100, Grid(10, 10, 1), 40)
    [Segment(first=0, windows=4), Segment(first=4, windows=4), Segment(first=8, windows=None)]
    """
    per_segment = max(1, int(segment_s * grid.rate_hz / grid.hop + 1e-6))
    on_grid = max(1, (n_samples - grid.window) // grid.hop + 1)
    firsts = range(0, on_grid, per_segment)
    return [Segment(first, per_segment) for first in firsts[:-1]] + [Segment(firsts[-1], None)]


class SegmentStream:
    """A segment, read as `AudioStream` reads a recording.

    Recordings may end before their headers say. So as to find the window that then is the last, a window's length
    before the segment is read too.

    Parameters
    ----------
    open_whole : callable
        Opens the recording; called again where it is damaged so that its decoder cannot seek.

    Attributes
    ----------
    start : int
        First sample of what `blocks` gives, at the checkpoint's rate: the segment's, or, where the recording ends
        within a window of it, of the last window. Known when the first block has come.
    """

    def __init__(self, open_whole: Callable[[], AudioStream], segment: Segment, grid: Grid) -> None:
        self._open, self._segment, self._grid = open_whole, segment, grid
        self._opened = opened = open_whole()
        self.name, self.warnings = opened.name, opened.warnings
        self.start, stop = segment.start(grid), segment.stop(grid)
        whole_s = opened.duration_s
        self.duration_s = None if whole_s is None else max(0.0, whole_s - self.start / grid.rate_hz)
        if stop is not None:
            self.duration_s = (stop - self.start) / grid.rate_hz

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield mono float32 blocks, as `AudioStream.blocks` does.

        Raises
        ------
        AudioError
            The recording ends before the segment.
        """
        grid, start = self._grid, self._segment.start(self._grid)
        begin = max(0, start - grid.window)
        blocks = self._read(begin, self._segment.stop(grid))
        held: list[np.ndarray] = []
        total = begin  # position behind what is held
        for block in blocks:
            held.append(block)
            total += len(block)
            if total >= start + grid.window:
                yield np.concatenate(held)[start - begin :]
                yield from blocks
                break
        else:
            before = start - grid.hop + grid.window if self._segment.first else 0
            if total <= before:
                at_s, end_s = start / grid.rate_hz, total / grid.rate_hz
                raise AudioError(f"{self.name}: ends at {end_s:g} s, before this segment, which begins at {at_s:g} s")
            self.start = max(0, total - grid.window) if self._segment.first else 0
            yield np.concatenate(held)[self.start - begin :]
        self.warnings = self._opened.warnings

    def _read(self, begin: int, stop: int | None) -> Iterator[np.ndarray]:
        read = False
        try:
            for block in self._opened.section(begin, stop):
                read = True
                yield block
            return
        except AudioError:
            if read or not begin:
                raise
        self._opened.close()
        self._opened = self._open()
        position = 0
        for block in self._opened.blocks():
            wanted = block[max(0, begin - position) : None if stop is None else max(0, stop - position)]
            position += len(block)
            if len(wanted):
                yield wanted
            if stop is not None and position >= stop:
                return

    def close(self) -> None:
        """Release the recording."""
        self._opened.close()

    def __enter__(self) -> SegmentStream:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

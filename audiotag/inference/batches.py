"""Batches: windows of several sources gathered for one run of the network, and their rows sorted back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import AudiotagError
from ..frontend.windows import Window
from ..results.embeddings import WindowEmbeddings
from .frames import Shown
from .sources import Begun, Ended


@dataclass(eq=False)
class Analysis:
    """Rows that the network gave for one source: scores or features, one per window, in order.

    Attributes
    ----------
    source
        As it was given.
    name : str
        In words.
    rate_hz : int
        Of the windows' positions.
    expected_s : float or None
        Its length as its header tells.
    duration_s : float
        Seconds analysed so far.
    start_s, end_s : list of float
        Where the windows lie.
    rows : list of ndarray
        float32, scores or features.
    ended : Ended or None
        Set when the source is read.
    failed : AudiotagError or None
        Set when the network said what cannot be.
    """

    source: Any
    rate_hz: int
    name: str = ""
    expected_s: float | None = None
    duration_s: float = 0.0
    start_s: list[float] = field(default_factory=list)
    end_s: list[float] = field(default_factory=list)
    rows: list[np.ndarray] = field(default_factory=list)
    ended: Ended | None = None
    failed: AudiotagError | None = None

    def begin(self, begun: Begun) -> None:
        """Note what opening the source told."""
        self.name, self.expected_s = begun.name, begun.duration_s

    def add(self, window: Window, row: np.ndarray) -> None:
        """Note what the network said of the next window."""
        self.start_s.append(window.start / self.rate_hz)
        self.end_s.append(window.stop / self.rate_hz)
        self.rows.append(row)
        self.duration_s = max(self.duration_s, window.stop / self.rate_hz)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was not as it should be; complete when the source is read."""
        return self.ended.warnings if self.ended else ()

    @property
    def error(self) -> AudiotagError | None:
        """Why the source cannot be used, if it cannot."""
        return (self.ended.error if self.ended else None) or self.failed

    def stacked(self) -> np.ndarray:
        """Stack the rows to (windows, ...), read-only so that nobody copies it; once, for they may be many."""
        stacked = np.stack(self.rows)
        self.rows.clear()
        stacked.flags.writeable = False
        return stacked

    def embeddings(self) -> WindowEmbeddings:
        """Make embeddings of rows that are feature vectors; takes the rows, as `stacked` does."""
        return WindowEmbeddings(self.stacked(), np.array(self.start_s), np.array(self.end_s), self.warnings)


@dataclass(frozen=True)
class Waiting:
    """A window that waits for the network: whose it is, where it lies, and what was prepared of it."""

    analysis: Analysis
    window: Window
    shown: Shown


class Batcher:
    """Gathers windows until there are enough for a run.

    Parameters
    ----------
    size : int
        Windows per run.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._waiting: list[Waiting] = []

    @property
    def full(self) -> bool:
        """Whether there are enough for a run."""
        return len(self._waiting) >= self.size

    def add(self, waiting: Waiting) -> None:
        """Take a window."""
        self._waiting.append(waiting)

    def take(self) -> list[Waiting]:
        """Hand out what waits; nothing waits any more."""
        taken, self._waiting = self._waiting, []
        return taken

    def forget(self, analysis: Analysis) -> None:
        """Drop the windows of a source that turned out to be unusable."""
        self._waiting = [one for one in self._waiting if one.analysis is not analysis]

    def holds(self, analysis: Analysis) -> bool:
        """Whether windows of that source wait."""
        return any(one.analysis is analysis for one in self._waiting)

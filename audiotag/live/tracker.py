"""Events of a live stream: which labels are up, since when and until when, decided window by window."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..checks import checked_seconds, checked_threshold
from ..errors import InvalidInputError
from ..labels.label_set import LabelLike, LabelSet
from ..results.events import OFF_RATIO, ON, Event
from ..text import shortest

MAX_GAP_S = 2.0
RECOGNITION_S = 1.0  # how much of a sound the network mostly needs before its score moves; measured, see EventTracker


@dataclass(frozen=True)
class Onset:
    """A label that has just started: the onset in seconds of the stream, and the score in [0, 1] it started with."""

    label: str
    onset_s: float
    score: float
    index: int
    mid: str

    def to_dict(self) -> dict[str, Any]:
        """Return a plain JSON-ready dictionary."""
        return asdict(self)


class EventTracker:
    """Tells from the scores of successive windows when each label starts and ends.

    An event starts with the first window that scores at least ``on`` and goes on while windows score at least ``off``.
    Its onset is the end of the last window below ``off`` before it, less a second that the network needs to recognise a
    sound: what raised the score is what the next window added. Its offset is the start of the first window below
    ``off`` after it: what lowered the score is what had just left that window. The README says how exact this is.

    Memory is a few numbers per label, however long the stream.

    Parameters
    ----------
    labels : LabelSet
    rate_hz : int
        Samples per second; all times are counted in samples.
    on : float, or ndarray (labels,)
        Score in [0, 1] at which an event starts.
    off : float, optional
        Score below which it ends, at most ``on``; None: half of ``on``.
    min_duration_s : float
        How long after its first window at or above ``on`` an event must still be up to be reported, in seconds;
        those that are not never are.
    max_gap_s : float
        How long scores may be below ``off`` without ending the event, in seconds. Ends are reported this much later.
    include, exclude : names, mids, indices or Labels, optional
        Which labels to follow, see `LabelSet.select`.

    Raises
    ------
    InvalidInputError
        A threshold outside [0, 1], ``off`` above ``on``, a negative time, an unknown label, no label left.
    """

    def __init__(
        self,
        labels: LabelSet,
        rate_hz: int,
        *,
        on: float | np.ndarray = ON,
        off: float | None = None,
        min_duration_s: float = 0.0,
        max_gap_s: float = MAX_GAP_S,
        include: LabelLike | Iterable[LabelLike] | None = None,
        exclude: LabelLike | Iterable[LabelLike] | None = None,
    ) -> None:
        self._indices = labels.select(include, exclude)
        given = on[self._indices] if isinstance(on, np.ndarray) else checked_threshold(on, "on")
        self._on = np.asarray(given, np.float32)
        self._off = np.asarray(self._on * OFF_RATIO if off is None else checked_threshold(off, "off"), np.float32)
        if (self._off > self._on).any():
            raise InvalidInputError(f"off must not exceed on, got off={off!r} and on={on!r}")
        self._min_duration = round(checked_seconds(min_duration_s, "min_duration_s") * rate_hz)
        self._max_gap = round(checked_seconds(max_gap_s, "max_gap_s") * rate_hz)
        self._recognition = round(RECOGNITION_S * rate_hz)
        self._rate_hz = rate_hz
        self._labels = [labels[i] for i in self._indices]
        self.reset()

    def reset(self) -> None:
        """Forget everything, open events too."""
        n = len(self._indices)
        self._previous_stop = 0
        self._up = np.zeros(n, bool)  # at least `on` once and never too long below `off` since
        self._reported = np.zeros(n, bool)
        self._low = np.ones(n, bool)  # whether the latest window was below `off`
        self._rise = np.zeros(n, np.int64)  # end of the last window below `off`; this and the next four in samples
        self._onset = np.zeros(n, np.int64)
        self._first_stop = np.zeros(n, np.int64)  # end of the event's first window
        self._last_stop = np.zeros(n, np.int64)  # end of the latest window at or above `off`
        self._offset = np.zeros(n, np.int64)
        self._peak = np.zeros(n, np.float32)
        self._sum, self._count = np.zeros(n), np.zeros(n, np.int64)  # over all windows since the first
        self._event_sum, self._event_count = np.zeros(n), np.zeros(n, np.int64)  # the same, up to `last_stop`

    def update(self, start: int, stop: int, scores: np.ndarray) -> tuple[tuple[Onset, ...], tuple[Event, ...]]:
        """Take the next window and return what starts and what ends with it, best score and earliest onset first.

        Parameters
        ----------
        start, stop : int
            The window's ends in samples, neither before those of the window before.
        scores : float32 (labels,)
        """
        s = scores[self._indices]
        high, low = s >= self._on, s < self._off

        new = high & ~self._up
        self._up |= new
        self._rise[self._low] = self._previous_stop
        self._low = low
        # Never before the window that shows it, nor before the end of the event before.
        onset = np.maximum(np.maximum(self._rise - self._recognition, start), self._offset)
        self._onset[new], self._first_stop[new] = onset[new], stop
        for array in (self._peak, self._sum, self._count):
            array[new] = 0

        self._sum[self._up] += s[self._up]
        self._count[self._up] += 1
        still = self._up & ~low
        falling = self._up & low & (self._last_stop == self._previous_stop)
        self._offset[falling] = np.maximum(start, self._first_stop[falling])
        self._last_stop[still] = stop
        np.maximum(self._peak, s, out=self._peak, where=still)
        self._event_sum[still], self._event_count[still] = self._sum[still], self._count[still]

        # An event that was never reported ends as soon as it falls, whatever the gap allowed.
        over = self._up & low & ((stop - self._last_stop > self._max_gap) | ~self._reported)
        ended = self._events(over & self._reported)
        self._up &= ~over
        self._reported &= ~over
        begins = still & ~self._reported & (stop - self._first_stop >= self._min_duration)
        self._reported |= begins
        self._previous_stop = stop
        return self._onsets(begins, s), ended

    def close(self) -> tuple[Event, ...]:
        """End what is open, at the end of the stream where it lasted so long."""
        self._offset[self._up & (self._last_stop == self._previous_stop)] = self._previous_stop
        ended = self._events(self._up & self._reported)
        self._up[:] = self._reported[:] = False
        return ended

    def _onsets(self, which: np.ndarray, scores: np.ndarray) -> tuple[Onset, ...]:
        found = [
            Onset(
                self._labels[i].display_name,
                int(self._onset[i]) / self._rate_hz,
                shortest(scores[i]),
                self._labels[i].index,
                self._labels[i].mid,
            )
            for i in np.flatnonzero(which)
        ]
        return tuple(sorted(found, key=lambda onset: -onset.score))

    def _events(self, which: np.ndarray) -> tuple[Event, ...]:
        found = [
            Event(
                label=self._labels[i].display_name,
                onset_s=int(self._onset[i]) / self._rate_hz,
                offset_s=int(self._offset[i]) / self._rate_hz,
                peak=shortest(self._peak[i]),
                mean=shortest(self._event_sum[i] / self._event_count[i]),
                index=self._labels[i].index,
                mid=self._labels[i].mid,
            )
            for i in np.flatnonzero(which)
        ]
        return tuple(sorted(found, key=lambda event: event.onset_s))

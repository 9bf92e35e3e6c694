"""Events: what one is, and the pure functions on arrays that find them in window scores."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..checks import checked_seconds, one_of
from ..errors import InvalidInputError

COMBINE = ("geometric", "mean", "max")
FLOOR = 1e-6  # keeps one score of exactly 0 from deciding a geometric mean alone
# Defaults of `Prediction.events`, chosen by measurement (README, Events).
ON, OFF_RATIO = 0.3, 0.5


@dataclass(frozen=True)
class Event:
    """A label between an onset and an offset, in seconds of the recording.

    ``peak`` and ``mean`` are the highest and the average score in between, in [0, 1].
    """

    label: str
    onset_s: float
    offset_s: float
    peak: float
    mean: float
    index: int
    mid: str

    def to_dict(self) -> dict[str, Any]:
        """Return a plain JSON-ready dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class Span:
    """A label, by index, between an onset and an offset in seconds; highest and mean score in between."""

    index: int
    onset_s: float
    offset_s: float
    peak: float
    mean: float


def hop_scores(
    window_scores: np.ndarray,
    window_start_s: np.ndarray,
    window_end_s: np.ndarray,
    *,
    hop_s: float,
    combine: str = "geometric",
) -> tuple[np.ndarray, np.ndarray]:
    """Combine the scores of overlapping windows into one row of scores per hop step.

    The recording is cut into steps of ``hop_s`` from 0, the last one shorter if need be. A window belongs to a step
    if it covers the step's middle, and the scores of a step's windows are combined.

    The geometric mean is the default because a window says that something occurs somewhere in it: one window that
    covers the step and does not hear the sound says more than one that hears it. README tells what was measured.

    Parameters
    ----------
    window_scores : (windows, labels), in [0, 1]
    window_start_s, window_end_s : (windows,), seconds, both ascending; together they cover the recording
    hop_s : float
        Length of a step in seconds.
    combine : {"geometric", "mean", "max"}
        Of scores below 1e-6, the geometric mean takes 1e-6.

    Returns
    -------
    scores : numpy.ndarray, float32, (steps, labels)
    edges_s : numpy.ndarray, float64, (steps + 1,)
        Step ``i`` lies between ``edges_s[i]`` and ``edges_s[i + 1]``.

    Raises
    ------
    InvalidInputError
        Shapes that do not fit, a ``hop_s`` that is not positive or leaves gaps between windows, an unknown
        ``combine``.
    """
    scores = np.asarray(window_scores)
    start_s, end_s = np.asarray(window_start_s, np.float64), np.asarray(window_end_s, np.float64)
    if scores.ndim != 2 or start_s.shape != (len(scores),) or end_s.shape != start_s.shape or not len(scores):
        raise InvalidInputError(
            "window_scores must be (windows >= 1, labels) with one start and end per window, "
            f"got {scores.shape}, {start_s.shape}, {end_s.shape}"
        )
    one_of(combine, COMBINE, "combine")
    if not (math.isfinite(hop_s) and hop_s > 0):
        raise InvalidInputError(f"hop_s must be a positive number of seconds, got {hop_s!r}")
    duration_s = float(end_s[-1])
    # The small number keeps a rounding error in the division from adding an empty step.
    n_steps = max(1, math.ceil(duration_s / hop_s - 1e-6))
    edges_s = np.minimum(np.arange(n_steps + 1) * hop_s, duration_s)
    edges_s[-1] = duration_s
    middle_s = (edges_s[:-1] + edges_s[1:]) / 2
    # Windows first[i] to last[i] - 1 cover the middle of step i.
    first, last = np.searchsorted(end_s, middle_s, side="left"), np.searchsorted(start_s, middle_s, side="right")
    if (first >= last).any():
        raise InvalidInputError(f"between {middle_s[first >= last][0]:g} s and the next window there is no score")
    # reduceat needs every index inside the array, also those that only end a range: hence one more row.
    given = np.pad(scores.astype(np.float64), ((0, 1), (0, 0)), constant_values=1.0)
    if combine == "geometric":
        given = np.log(np.maximum(given, FLOOR))
    ranges = np.stack([first, last], axis=1).reshape(-1)
    combined = (np.maximum if combine == "max" else np.add).reduceat(given, ranges, axis=0)[::2]
    if combine != "max":
        combined /= (last - first)[:, None]
    if combine == "geometric":
        combined = np.exp(combined)
    return combined.astype(np.float32), edges_s


def smooth(scores: np.ndarray, steps: int) -> np.ndarray:
    """Smooth scores by a running median; the first and last scores are repeated beyond the ends.

    Parameters
    ----------
    scores : (steps, labels)
    steps : int
        Odd; 1 changes nothing.
    """
    if steps <= 1:
        return scores
    padded = np.pad(scores, ((steps // 2, steps // 2), (0, 0)), mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, steps, axis=0), axis=-1)


def find_events(
    scores: np.ndarray,
    edges_s: np.ndarray,
    *,
    on: Any,
    off: Any = None,
    min_duration_s: float = 0.0,
    max_gap_s: float = 0.0,
    median_s: float = 0.0,
) -> list[Span]:
    """Find the stretches where a label's score reaches ``on`` somewhere and is at least ``off`` throughout.

    In this order: running median, thresholds, gaps of at most ``max_gap_s`` between two events of a label filled,
    events shorter than ``min_duration_s`` dropped.

    Parameters
    ----------
    scores : (steps, labels), in [0, 1]
    edges_s : (steps + 1,), seconds, ascending
    on, off : float or (labels,)
        Thresholds in [0, 1], compared in float32, ``off <= on``. ``off`` None: the same as ``on``.
    min_duration_s, max_gap_s : float
        Seconds, at least 0.
    median_s : float
        Length of the running median; rounded to an odd number of steps, so less than two steps changes nothing.

    Returns
    -------
    list of Span
        By onset, then label. Spans of one label neither overlap nor touch. ``peak`` and ``mean`` are of the scores
        as given, before the median, filled gaps included; steps count by their length.

    Raises
    ------
    InvalidInputError
        Shapes that do not fit, thresholds outside [0, 1] or ``off`` above ``on``, a negative length of time.
    """
    scores, edges_s = np.asarray(scores, np.float32), np.asarray(edges_s, np.float64)
    if scores.ndim != 2 or edges_s.shape != (len(scores) + 1,) or not len(scores):
        raise InvalidInputError(
            f"scores must be (steps >= 1, labels) and edges_s (steps + 1,), got {scores.shape} and {edges_s.shape}"
        )
    up = _thresholds(on, "on", scores.shape[1])
    down = up if off is None else _thresholds(off, "off", scores.shape[1])
    if (down > up).any():
        raise InvalidInputError(f"off must not exceed on, got off={off!r} and on={on!r}")
    min_duration_s = checked_seconds(min_duration_s, "min_duration_s")
    max_gap_s, median_s = checked_seconds(max_gap_s, "max_gap_s"), checked_seconds(median_s, "median_s")

    # Most labels never get up: a median is never above the maximum, so they can be left out at once.
    labels = np.flatnonzero((scores >= up).any(axis=0))
    raw, up, down = scores[:, labels], up[labels], down[labels]
    step_s = float(np.median(np.diff(edges_s)))
    smoothed = smooth(raw, 2 * int(median_s / step_s / 2) + 1) if step_s else raw

    # Runs of steps at or above `down`, all labels at once: each row is one label with a False at both ends, so that
    # no run crosses from one label to the next.
    row, first, last = _runs((smoothed >= down).T)
    reaches = np.concatenate([np.zeros((1, len(labels)), np.int64), np.cumsum(smoothed >= up, axis=0)])
    kept = reaches[last, row] > reaches[first, row]
    row, first, last = row[kept], first[kept], last[kept]

    # A run joins the one before it if both are of one label and the gap between them is short enough.
    joins = (row[1:] == row[:-1]) & (edges_s[first[1:]] - edges_s[last[:-1]] <= max_gap_s + 1e-9)
    begins = np.concatenate([[True], ~joins])[: len(row)]
    ends = np.concatenate([~joins, [True]])[: len(row)]
    row, first, last = row[begins], first[begins], last[ends]

    long_enough = edges_s[last] - edges_s[first] >= min_duration_s - 1e-9
    row, first, last = row[long_enough], first[long_enough], last[long_enough]
    order = np.lexsort((row, first))
    row, first, last = row[order], first[order], last[order]

    # Means are differences of running sums of score times length; peaks are maxima over ranges of the scores laid
    # out label after label, each with a zero behind it that lets a range end at the end.
    length_s = np.diff(edges_s)[:, None]
    running = np.concatenate([np.zeros((1, len(labels))), np.cumsum(raw * length_s, axis=0)])
    flat = np.pad(raw, ((0, 1), (0, 0))).T.reshape(-1)
    start = row * (len(raw) + 1)
    ranges = np.stack([start + first, start + last], axis=1).reshape(-1)
    peak = np.maximum.reduceat(flat, ranges)[::2].astype(np.float64) if len(row) else np.empty(0)
    mean = np.minimum((running[last, row] - running[first, row]) / (edges_s[last] - edges_s[first]), peak)
    return list(
        map(Span, labels[row].tolist(), edges_s[first].tolist(), edges_s[last].tolist(), peak.tolist(), mean.tolist())
    )


def _runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return row, first and one-past-last column of every run of True, row by row."""
    padded = np.pad(mask, ((0, 0), (1, 1)))
    row, first = np.nonzero(padded[:, 1:] & ~padded[:, :-1])
    _, last = np.nonzero(~padded[:, 1:] & padded[:, :-1])
    return row, first, last


def _thresholds(value: Any, argument: str, n_labels: int) -> np.ndarray:
    """Return one float32 threshold per label."""
    try:
        array = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        raise InvalidInputError(f"{argument} must be a number in [0, 1] or one per label, got {value!r}") from None
    if array.shape not in ((), (n_labels,)) or not ((array >= 0) & (array <= 1)).all():
        raise InvalidInputError(f"{argument} must be a number in [0, 1] or {n_labels} of them, got {value!r}")
    return np.broadcast_to(array, (n_labels,))

"""Recordings with timed labels as short clips: excerpts of events, and the stretches between them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from .clips import Clip

SHORTEST_S = 1.0  # an event's excerpt is widened to this, where the recording has it
LEAST_OVERLAP = 0.5  # of the event or of the excerpt, from which a label is taken to be in an excerpt


def cut_timed(clips: list[Clip], window_s: float) -> list[Clip]:
    """Recordings with timed labels as short clips: an excerpt for each event, and the stretches in between.

    An excerpt is the event, widened to `SHORTEST_S` and cut into equal parts where it is longer than a window. It has
    the labels of the events that overlap half of it, or lie in it by half; those that overlap less are unknown in it. A
    recording that has timed labels is taken to be annotated whole: what lies between events is background.
    """
    whole = [clip for clip in clips if clip.onset_s is None]
    timed: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        if clip.onset_s is not None:
            timed[clip.path].append(clip)
    cut = list(whole)
    for events in timed.values():
        length = events[0].duration_s
        seen: set[tuple[float, float]] = set()
        for event in events:
            if not (event.present or event.absent or event.unknown):
                continue
            for start, stop in _excerpts(event, length, window_s):
                if (start, stop) not in seen:
                    seen.add((start, stop))
                    cut.append(_excerpt(event, events, start, stop))
        cut += _between(events, length, window_s)
    return cut


def _excerpts(event: Clip, length: float, window_s: float) -> Iterator[tuple[float, float]]:
    assert event.onset_s is not None and event.offset_s is not None
    start, stop = event.onset_s, min(event.offset_s, length)
    if stop - start < SHORTEST_S:
        start = max(0.0, min((start + stop - SHORTEST_S) / 2, length - SHORTEST_S))
        stop = min(length, start + SHORTEST_S)
    parts = max(1, int(np.ceil((stop - start) / window_s - 1e-9)))
    edges = np.linspace(start, stop, parts + 1)
    yield from zip(np.round(edges[:-1], 6).tolist(), np.round(edges[1:], 6).tolist(), strict=True)


def _excerpt(event: Clip, events: Iterable[Clip], start: float, stop: float) -> Clip:
    present, unknown, absent = set(event.present), set(event.unknown), set(event.absent)
    for other in events:
        assert other.onset_s is not None and other.offset_s is not None
        shared = min(stop, other.offset_s) - max(start, other.onset_s)
        if shared <= 0:
            continue
        enough = shared >= LEAST_OVERLAP * min(stop - start, other.offset_s - other.onset_s)
        (present if enough else unknown).update(other.present)
        unknown.update(other.unknown)
    return replace(
        event,
        onset_s=start,
        offset_s=stop,
        duration_s=stop - start,
        present=frozenset(present),
        unknown=frozenset(unknown - present),
        absent=frozenset(absent - present - unknown),
    )


def _between(events: list[Clip], length: float, window_s: float) -> Iterator[Clip]:
    """What lies between events, in windows of at least `SHORTEST_S`; at most ten windows an event."""
    busy = sorted((c.onset_s or 0.0, c.offset_s or 0.0) for c in events if c.present or c.unknown)
    free, at = [], 0.0
    for onset, offset in [*busy, (length, length)]:
        start = at
        while onset - start >= SHORTEST_S:
            free.append((start, min(start + window_s, onset)))
            start += window_s
        at = max(at, offset)
    free = [(start, stop) for start, stop in free if stop - start >= SHORTEST_S]
    most = 10 * max(1, len(busy))
    kept = [free[i] for i in np.linspace(0, len(free) - 1, most).astype(int)] if len(free) > most else free
    for start, stop in kept:
        start, stop = round(start, 6), round(stop, 6)
        nothing: frozenset[str] = frozenset()
        yield replace(
            events[0],
            onset_s=start,
            offset_s=stop,
            duration_s=stop - start,
            present=nothing,
            absent=nothing,
            unknown=nothing,
        )

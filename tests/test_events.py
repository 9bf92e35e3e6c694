"""From window scores to events, against slow loops that say the same in the obvious way."""

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from audiotag.errors import InvalidInputError
from audiotag.frontend.windows import window_starts
from audiotag.results.events import FLOOR, Span, find_events, hop_scores, smooth

POOLS = {
    "mean": lambda values: sum(values) / len(values),
    "max": max,
    "geometric": lambda values: math.prod(max(v, FLOOR) for v in values) ** (1 / len(values)),
}


def windows_over(samples, window, hop, labels=2, seed=0):
    """Random scores of the windows that the tagger cuts a recording of this many samples (at 10 Hz) into."""
    starts = np.array(window_starts(samples, window, hop))
    scores = np.random.default_rng(seed).random((len(starts), labels), dtype=np.float32)
    return scores, starts / 10, np.minimum(starts + window, samples) / 10


def slow_hop_scores(scores, start_s, end_s, hop_s, combine):
    duration, rows, edges = end_s[-1], [], [0.0]
    while edges[-1] < duration - 1e-6 * hop_s:
        edges.append(min((len(edges)) * hop_s, duration))
        middle = (edges[-1] + edges[-2]) / 2
        inside = [row for row, a, b in zip(scores, start_s, end_s, strict=True) if a <= middle <= b]
        rows.append([POOLS[combine]([float(row[label]) for row in inside]) for label in range(scores.shape[1])])
    return np.array(rows), np.array(edges)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 400), st.integers(1, 100), st.integers(1, 100), st.sampled_from(sorted(POOLS)), st.integers(0, 99)
)
def test_hop_scores_are_those_of_the_slow_loop(samples, window, hop, combine, seed):
    assume(hop <= window)
    scores, start_s, end_s = windows_over(samples, window, hop, seed=seed)
    found, edges_s = hop_scores(scores, start_s, end_s, hop_s=hop / 10, combine=combine)
    expected, expected_edges_s = slow_hop_scores(scores, start_s, end_s, hop / 10, combine)
    assert found.dtype == np.float32 and np.allclose(found, expected, rtol=1e-6, atol=1e-7)
    assert np.allclose(edges_s, expected_edges_s) and edges_s[0] == 0 and edges_s[-1] == end_s[-1]
    assert (np.diff(edges_s) > 0).all()


def test_hop_scores_by_hand():
    # Windows of 2 s every second over 3.5 s; the last one moved back to 1.5 s.
    scores = np.array([[0.2], [0.8], [0.5]], np.float32)
    start_s, end_s = np.array([0, 1, 1.5]), np.array([2, 3, 3.5])
    means, edges_s = hop_scores(scores, start_s, end_s, hop_s=1.0, combine="mean")
    assert edges_s.tolist() == [0, 1, 2, 3, 3.5]
    # Middles 0.5, 1.5, 2.5, 3.25: the first window; all three; the last two; the last.
    assert means[:, 0] == pytest.approx([0.2, 0.5, 0.65, 0.5])
    assert hop_scores(scores, start_s, end_s, hop_s=1.0, combine="max")[0][:, 0] == pytest.approx([0.2, 0.8, 0.8, 0.5])
    geometric = hop_scores(scores, start_s, end_s, hop_s=1.0)[0][:, 0]
    assert geometric == pytest.approx([0.2, 0.08 ** (1 / 3), 0.4**0.5, 0.5])


def test_one_zero_does_not_decide_a_geometric_mean():
    scores, start_s = np.full((10, 1), 0.9, np.float32), np.arange(10.0)
    scores[4] = 0
    found, _ = hop_scores(scores, start_s, start_s + 10, hop_s=1.0)
    assert found[9] == pytest.approx(0.9**0.9 * FLOOR**0.1, rel=1e-5)


def test_hop_scores_of_no_overlap_are_the_windows():
    scores, start_s, end_s = windows_over(300, 100, 100)
    for combine in POOLS:
        found, edges_s = hop_scores(scores, start_s, end_s, hop_s=10.0, combine=combine)
        assert np.allclose(found, scores, rtol=1e-6) and edges_s.tolist() == [0, 10, 20, 30]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hop_s": 0}, "hop_s must be a positive"),
        ({"hop_s": float("nan")}, "hop_s"),
        ({"combine": "sum"}, "combine must be one of geometric, mean, max"),
        ({"window_scores": np.zeros((0, 2))}, "windows >= 1"),
        ({"window_scores": np.zeros(2)}, "windows >= 1"),
        ({"window_end_s": np.zeros(3)}, "one start and end per window"),
        ({"window_start_s": np.array([0.0, 30.0]), "window_end_s": np.array([10.0, 40.0])}, "there is no score"),
    ],
)
def test_hop_scores_say_what_is_wrong(change, message):
    values = {
        "window_scores": np.zeros((2, 2)),
        "window_start_s": np.array([0.0, 10.0]),
        "window_end_s": np.array([10.0, 20.0]),
        "hop_s": 5.0,
    }
    with pytest.raises(InvalidInputError, match=message):
        hop_scores(**{**values, **change})


def slow_median(column, steps):
    half = steps // 2
    padded = [column[0]] * half + list(column) + [column[-1]] * half
    return [sorted(padded[i : i + steps])[half] for i in range(len(column))]


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.sampled_from([1, 3, 5, 7, 25]))
def test_the_running_median_is_that_of_the_slow_loop(column, steps):
    assert smooth(np.array(column, float)[:, None], steps)[:, 0].tolist() == slow_median(column, steps)


def slow_events(scores, edges, on, off, min_duration, max_gap, median):
    """The definition, label by label and step by step."""
    steps = max(s for s in range(1, 100, 2) if s == 1 or s <= median + 1)
    found = []
    for label in range(scores.shape[1]):
        smoothed, runs, begun = slow_median(list(scores[:, label]), steps), [], None
        for i, score in enumerate([*smoothed, -1]):
            if score >= off[label] and begun is None:
                begun = i
            if score < off[label] and begun is not None:
                if max(smoothed[begun:i]) >= on[label]:
                    runs.append([begun, i])
                begun = None
        joined = []
        for a, b in runs:
            if joined and edges[a] - edges[joined[-1][1]] <= max_gap:
                joined[-1][1] = b
            else:
                joined.append([a, b])
        for a, b in joined:
            if edges[b] - edges[a] >= min_duration:
                lengths = [edges[i + 1] - edges[i] for i in range(a, b)]
                mean = sum(s * n for s, n in zip(scores[a:b, label], lengths, strict=True)) / sum(lengths)
                found.append((edges[a], label, edges[b], max(scores[a:b, label]), mean))
    return sorted(found)


# Steps of a second and quarters as scores, so that sums and comparisons are exact and thresholds are often met.
quarters = st.integers(0, 4).map(lambda n: n / 4)
tables = st.integers(1, 3).flatmap(
    lambda labels: st.lists(st.lists(quarters, min_size=labels, max_size=labels), min_size=1, max_size=30)
)


@settings(max_examples=300, deadline=None)
@given(
    tables,
    st.lists(st.tuples(quarters, quarters), min_size=3, max_size=3),
    st.integers(0, 4),
    st.integers(0, 4),
    st.sampled_from([0, 1, 1.9, 2, 3, 4, 6]),
    st.sampled_from([1.0, 0.5, 0.25]),
)
def test_events_are_those_of_the_slow_loop(table, thresholds, min_duration, max_gap, median, last):
    scores = np.array(table, np.float32)
    edges = np.arange(len(table) + 1.0)
    edges[-1] = len(table) - 1 + last  # the last step of a recording is often shorter
    assume(len(table) > 1 or last == 1)
    on = np.array([max(pair) for pair in thresholds])[: scores.shape[1]]
    off = np.array([min(pair) for pair in thresholds])[: scores.shape[1]]
    options = {"min_duration_s": min_duration, "max_gap_s": max_gap, "median_s": median}
    spans = find_events(scores, edges, on=on, off=off, **options)
    expected = slow_events(scores, edges, on, off, min_duration, max_gap, 2 * int(median / 2))
    assert [(s.onset_s, s.index, s.offset_s, s.peak) for s in spans] == [row[:4] for row in expected]
    assert [s.mean for s in spans] == pytest.approx([row[4] for row in expected])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1), st.floats(0, 5), st.floats(0, 5), st.floats(0, 9))
def test_what_holds_for_all_events(seed, one, other, min_duration, max_gap, median):
    on, off = max(one, other), min(one, other)
    rng = np.random.default_rng(seed)
    scores = rng.random((rng.integers(1, 60), 4), dtype=np.float32)
    edges = np.cumsum(np.append(0, rng.uniform(0.1, 2, len(scores))))
    options = {"min_duration_s": min_duration, "max_gap_s": max_gap, "median_s": median}
    spans = find_events(scores, edges, on=on, off=off, **options)
    assert [(s.onset_s, s.index) for s in spans] == sorted((s.onset_s, s.index) for s in spans)
    for span in spans:
        assert 0 <= span.onset_s < span.offset_s <= edges[-1]
        assert span.offset_s - span.onset_s >= min_duration - 1e-6
        assert 0 <= span.mean <= span.peak <= 1
    for label in range(4):
        mine = [s for s in spans if s.index == label]
        assert all(b.onset_s - a.offset_s > max_gap for a, b in itertools.pairwise(mine))
    # Without smoothing and minimum length, what reaches the threshold is in an event, and what is in one keeps `off`.
    spans = find_events(scores, edges, on=on, off=off)
    inside = np.zeros(scores.shape, bool)
    for span in spans:
        inside[np.searchsorted(edges, span.onset_s) : np.searchsorted(edges, span.offset_s), span.index] = True
    assert inside[scores >= np.float32(on)].all() and (scores[inside] >= np.float32(off)).all()
    # Events of events are the same events.
    again = find_events(inside.astype(np.float32), edges, on=1.0)
    assert [(s.onset_s, s.offset_s, s.index) for s in again] == [(s.onset_s, s.offset_s, s.index) for s in spans]


def test_events_by_hand():
    scores = np.array([[0.1, 0.4, 0.6, 0.4, 0.1, 0.4, 0.4, 0.1, 0.6, 0.1]], np.float32).T
    edges = np.arange(11.0)

    def found(**options):
        return [(s.onset_s, s.offset_s) for s in find_events(scores, edges, **options)]

    assert found(on=0.5) == [(2, 3), (8, 9)]
    assert found(on=0.5, off=0.3) == [(1, 4), (8, 9)], "5 to 7 never reaches on"
    assert found(on=0.3) == [(1, 4), (5, 7), (8, 9)]
    assert found(on=0.3, max_gap_s=1) == [(1, 9)]
    assert found(on=0.3, min_duration_s=2) == [(1, 4), (5, 7)]
    assert found(on=0.3, max_gap_s=1, min_duration_s=8) == [(1, 9)], "gaps are filled before lengths are judged"
    assert found(on=0.3, median_s=3) == [(1, 8)]
    assert found(on=0.0) == [(0, 10)]
    assert found(on=0.7) == []
    assert find_events(scores, edges, on=0.5, off=0.3)[0] == Span(
        0, 1.0, 4.0, pytest.approx(0.6), pytest.approx(1.4 / 3)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"on": 1.5}, r"on must be a number in \[0, 1\]"),
        ({"on": "loud"}, "on must be a number"),
        ({"on": [0.5, 0.5, 0.5]}, "or 2 of them"),
        ({"on": float("nan")}, "on must be"),
        ({"off": -0.1}, "off must be"),
        ({"on": 0.3, "off": 0.4}, "off must not exceed on"),
        ({"min_duration_s": -1}, "min_duration_s"),
        ({"max_gap_s": float("inf")}, "max_gap_s"),
        ({"median_s": float("nan")}, "median_s"),
        ({"edges_s": np.arange(4.0)}, "edges_s"),
        ({"scores": np.zeros(4)}, "steps >= 1, labels"),
    ],
)
def test_find_events_says_what_is_wrong(change, message):
    with pytest.raises(InvalidInputError, match=message):
        find_events(**{"scores": np.zeros((4, 2)), "edges_s": np.arange(5.0), "on": 0.5, **change})


def test_an_hour_takes_less_than_seconds():
    rng = np.random.default_rng(0)
    scores = np.clip(rng.standard_normal((3591, 527)).cumsum(0) / 100 + 0.2, 0, 1).astype(np.float32)
    start_s = np.arange(3591.0)
    began = time.process_time()
    steps, edges_s = hop_scores(scores, start_s, start_s + 10, hop_s=1.0)
    spans = find_events(steps, edges_s, on=0.5, off=0.3, median_s=3, max_gap_s=2, min_duration_s=1)
    assert len(spans) > 100 and time.process_time() - began < 3, "loops over steps would take a minute"

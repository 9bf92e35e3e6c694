"""Stream events against a plain reading of their definition, and the promise of one start and one end."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiotag.errors import InvalidInputError
from audiotag.labels.label_set import LabelSet, audioset_labels
from audiotag.live.tracker import EventTracker

WINDOW = 10


def windows(n, hop=1, tail=None):
    """Ends of a stream's windows, one sample per second: tiled ones, whole ones, perhaps one moved back."""
    stops = [hop * (i + 1) for i in range(n)] + ([tail] if tail else [])
    return [(max(0, stop - WINDOW), stop) for stop in stops]


def plainly(spans, scores, on, off, min_duration, max_gap, second):
    """Events of one label, read off the whole list of scores at once; times in samples, `second` of them in one.

    Returns (window that reports the start, onset, window that reports the end or None, offset, peak, mean).
    """
    found, free_from, i = [], 0, 0
    while i < len(spans):
        if scores[i] < on:
            i += 1
            continue
        first = i
        last = first  # the last window of the event: from there on, `off` is not reached within the gap
        reported = None
        j = first
        end = None
        while j < len(spans):
            if scores[j] >= off:
                last = j
                if reported is None and spans[j][1] - spans[first][1] >= min_duration:
                    reported = j
            elif reported is None or spans[j][1] - spans[last][1] > max_gap:
                end = j
                break
            j += 1
        rise = first
        while rise > 0 and scores[rise - 1] >= off:
            rise -= 1
        onset = max((spans[rise - 1][1] if rise else 0) - second, spans[first][0], free_from)
        offset = spans[-1][1] if last == len(spans) - 1 else max(spans[last + 1][0], spans[first][1])
        if reported is not None:
            inside = scores[first : last + 1]
            up = [s for s in inside if s >= off]
            found.append((reported, onset, end, offset, max(up), float(np.mean(inside, dtype=np.float64))))
        if last < len(spans) - 1:
            free_from = offset
        if end is None:
            break
        i = end
    return found


levels = st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.5, 0.9])


@settings(max_examples=300, deadline=None)
@given(
    scores=st.lists(levels, min_size=1, max_size=60),
    thresholds=st.sampled_from([(0.3, 0.2), (0.3, 0.3), (0.5, 0.1), (0.0, 0.0)]),
    min_duration=st.integers(0, 4),
    max_gap=st.integers(0, 4),
    tail=st.booleans(),
    rate=st.sampled_from([1, 4]),
)
def test_events_are_what_the_definition_says(scores, thresholds, min_duration, max_gap, tail, rate):
    on, off = thresholds
    spans = windows(len(scores) - tail, hop=2, tail=2 * (len(scores) - tail) + 1 if tail else None)
    tracker = EventTracker(
        LabelSet.from_names(["other", "this"]),
        rate,
        on=on,
        off=off,
        min_duration_s=min_duration / rate,
        max_gap_s=max_gap / rate,
        include="this",
    )
    starts, ends = [], []
    for i, ((start, stop), score) in enumerate(zip(spans, scores, strict=True)):
        started, ended = tracker.update(start, stop, np.array([1.0, score], np.float32))
        ends += [(i, e) for e in ended]
        starts += [(i, o) for o in started]
    ends += [(None, e) for e in tracker.close()]
    expected = plainly(spans, np.float32(scores), np.float32(on), np.float32(off), min_duration, max_gap, rate)
    assert [(i, o.onset_s * rate) for i, o in starts] == [e[:2] for e in expected]
    assert [o.score for _, o in starts] == pytest.approx([scores[e[0]] for e in expected])
    assert [(e.onset_s * rate, i, e.offset_s * rate) for i, e in ends] == [(e[1], e[2], e[3]) for e in expected]
    assert [e.peak for _, e in ends] == pytest.approx([e[4] for e in expected])
    assert [e.mean for _, e in ends] == pytest.approx([e[5] for e in expected])
    assert {x.label for _, x in starts + ends} <= {"this"}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 80), st.integers(0, 3), st.integers(0, 3))
def test_every_event_starts_once_and_ends_once(seed, n, min_duration, max_gap):
    labels = audioset_labels()
    rng = np.random.default_rng(seed)
    scores = np.clip(0.3 + 0.1 * rng.standard_normal((n, len(labels))).cumsum(0), 0, 1).astype(np.float32)
    tracker = EventTracker(labels, 1, min_duration_s=min_duration, max_gap_s=max_gap)
    is_open, previous = {}, {}

    def close(events, now):
        for event in events:
            onset = is_open.pop(event.index)  # KeyError: it never started, or ended before
            assert event.onset_s == onset.onset_s
            assert 0 <= event.onset_s < event.offset_s <= now
            assert event.onset_s >= previous.get(event.index, 0)
            assert event.mean <= event.peak and event.peak >= np.float32(0.3)
            assert (event.label, event.mid) == (labels[event.index].display_name, labels[event.index].mid)
            previous[event.index] = event.offset_s

    for (start, stop), row in zip(windows(n), scores, strict=True):
        started, ended = tracker.update(start, stop, row)
        close(ended, stop)
        for onset in started:
            assert onset.index not in is_open
            is_open[onset.index] = onset
        assert [o.score for o in started] == sorted((o.score for o in started), reverse=True)
    close(tracker.close(), n)
    assert not is_open and tracker.close() == ()


def test_a_sound_of_two_seconds_is_given_its_time():
    spans = windows(60)
    heard = [0.8 if start < 32 and stop > 30 else 0.05 for start, stop in spans]  # windows that touch 30 s to 32 s
    tracker = EventTracker(LabelSet.from_names(["dog"]), 1, max_gap_s=0)
    got = [tracker.update(*span, np.array([score], np.float32)) for span, score in zip(spans, heard, strict=True)]
    ((i, onset),) = [(i, o) for i, (started, _) in enumerate(got) for o in started]
    ((j, event),) = [(j, e) for j, (_, ended) in enumerate(got) for e in ended]
    assert spans[i][1] == 31 and onset.onset_s == 29  # a second is allowed for recognition
    assert spans[j][0] == 32 and (event.onset_s, event.offset_s) == (29, 32)


def test_a_score_that_wavers_is_one_event():
    scores = [0.0, 0.35, 0.25, 0.32, 0.2, 0.31, 0.14, 0.33, 0.1, 0.1, 0.16, 0.0, 0.0, 0.0, 0.0]
    tracker = EventTracker(LabelSet.from_names(["dog"]), 1)
    got = [
        tracker.update(*span, np.array([s], np.float32)) for span, s in zip(windows(len(scores)), scores, strict=True)
    ]
    assert sum(len(started) for started, _ in got) == sum(len(ended) for _, ended in got) == 1


def test_reset_forgets_open_events():
    tracker = EventTracker(LabelSet.from_names(["dog"]), 1)
    loud = np.array([0.9], np.float32)
    first = tracker.update(0, 1, loud)
    tracker.reset()
    assert tracker.close() == ()
    assert tracker.update(0, 1, loud) == first


@pytest.mark.parametrize(
    "options",
    [
        {"on": -0.1},
        {"on": float("nan")},
        {"off": 0.4},
        {"off": "low"},
        {"min_duration_s": -1},
        {"max_gap_s": None},
        {"max_gap_s": float("nan")},
        {"include": "cat"},
        {"exclude": "dog"},
    ],
)
def test_options_out_of_range(options):
    with pytest.raises(InvalidInputError, match=next(iter(options))):
        EventTracker(LabelSet.from_names(["dog"]), 1, **options)

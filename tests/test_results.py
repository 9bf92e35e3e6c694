"""Prediction: what is read out of scores, and that it cannot be broken by its readers."""

import copy
import dataclasses
import json
import pickle
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiotag.errors import InvalidInputError, MissingDependencyError
from audiotag.labels.label_set import LabelSet, audioset_labels
from audiotag.results.prediction import Prediction
from audiotag.results.tags import Tag

LABELS = audioset_labels()
SMALL = LabelSet.from_names(["calm", "storm, thunder", "<b>&", "雷雨"])


def predicted(window_scores, labels=SMALL, *, hop_s=1.0, window_s=4.0, **fields):
    """A prediction with these window scores, the last window moved back by half a hop."""
    window_scores = np.asarray(window_scores, np.float32)
    start_s = np.arange(len(window_scores)) * hop_s
    if len(start_s) > 1:
        start_s[-1] -= hop_s / 2
    values = {
        "scores": window_scores.max(0),
        "window_scores": window_scores,
        "window_start_s": start_s,
        "window_end_s": start_s + window_s,
        "labels": labels,
        "source": "a.wav",
        "duration_s": float(start_s[-1] + window_s),
        "checkpoint": "tiny",
        "runtime": "",
        "hop_s": hop_s,
        "window_s": window_s,
        "aggregate": "max",
    }
    return Prediction(**{**values, **fields})


def random_prediction(windows=3, seed=0, **fields):
    return predicted(np.random.default_rng(seed).random((windows, 527)) ** 8, LABELS, **fields)


def test_top_is_the_best_first():
    prediction = random_prediction()
    ranked = sorted(range(527), key=lambda i: (-prediction.scores[i], i))
    tags = prediction.top(None)
    assert [tag.index for tag in tags] == ranked and prediction.top() == tags[:10] and prediction.top(600) == tags
    assert all(tag.label == LABELS.names[tag.index] and tag.mid == LABELS.mids[tag.index] for tag in tags)
    assert [np.float32(tag.score) for tag in tags] == prediction.scores[ranked].tolist()


def test_top_keeps_the_order_of_labels_where_scores_are_equal():
    assert [t.index for t in predicted([[0.5, 0.7, 0.5, 0.7]]).top()] == [1, 3, 0, 2]
    tied = random_prediction(scores=np.round(np.random.default_rng(1).random(527, dtype=np.float32), 1))
    assert [t.index for t in tied.top(None)] == sorted(range(527), key=lambda i: (-tied.scores[i], i))


def test_top_filters():
    prediction = random_prediction()
    animals = set(LABELS.select("Animal").tolist())
    assert {tag.index for tag in prediction.top(None, include="Animal")} == animals
    assert not {tag.index for tag in prediction.top(None, exclude="Animal")} & animals
    threshold = prediction.top(7)[-1].score
    assert len(prediction.top(None, threshold=threshold)) == 7, "a score equal to the threshold counts"
    assert predicted([[0.1, 0.2, 0.3, 0.7]]).top(threshold=0.7)[0] == Tag("雷雨", 0.7, 3, "")
    assert predicted([[0.1, 0.2, 0.3, 0.7]]).top(threshold=0.8) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be a positive integer or None"),
        ({"k": True}, "k must be"),
        ({"k": 2.0}, "k must be"),
        ({"threshold": 1.1}, r"threshold must be a number in \[0, 1\], got 1.1"),
        ({"threshold": float("nan")}, "threshold"),
        ({"threshold": "loud"}, "threshold must be a number"),
        ({"include": "strom"}, "'storm, thunder'"),
        ({"exclude": SMALL.names}, "leave no label"),
    ],
)
def test_top_says_what_is_wrong(options, message):
    with pytest.raises(InvalidInputError, match=message):
        predicted([[0.1, 0.2, 0.3, 0.7]]).top(**options)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scores": np.zeros(3)}, r"scores must have shape \(4,\), got \(3,\)"),
        ({"window_scores": np.zeros((1, 4))}, "window_scores must have shape"),
        ({"window_end_s": np.zeros(3)}, "window_end_s"),
        ({"scores": [0, 0, np.nan, 0]}, "holds NaN"),
        ({"scores": [0, 0, 1.5, 0]}, "0 to 1.5"),
        ({"window_scores": [[0, 0, -0.5, 0]] * 2}, "-0.5 to 0"),
        ({"scores": [0, 0, np.inf, 0]}, "inf"),
    ],
)
def test_scores_that_are_none_are_refused(fields, message):
    with pytest.raises(InvalidInputError, match=message):
        dataclasses.replace(predicted(np.zeros((2, 4))), **fields)


def test_arrays_cannot_be_changed_by_anyone():
    given_scores = np.full((2, 4), 0.5, np.float32)
    prediction = predicted(given_scores)
    given_scores[:] = 0
    assert (prediction.window_scores == 0.5).all(), "not even through the array it was made of"
    for again in (
        prediction,
        pickle.loads(pickle.dumps(prediction)),
        copy.copy(prediction),
        copy.deepcopy(prediction),
        dataclasses.replace(prediction, source="b.wav"),
        prediction.roll_up(),
    ):
        for name in ("scores", "window_scores", "window_start_s", "window_end_s"):
            with pytest.raises(ValueError):
                getattr(again, name)[0] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        prediction.source = "b.wav"


def test_equality():
    prediction = random_prediction()
    for again in (random_prediction(), pickle.loads(pickle.dumps(prediction)), copy.deepcopy(prediction)):
        assert again == prediction
    assert prediction != random_prediction(seed=1) and prediction != random_prediction(source="b.wav")
    assert prediction != "a.wav"
    with pytest.raises(TypeError):
        hash(prediction)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4))
def test_a_dictionary_is_strict_json_and_rounds_nothing_away(scores):
    prediction = predicted([scores, scores[::-1]])
    plain = json.loads(json.dumps(prediction.to_dict(windows=True), allow_nan=False))
    back = np.zeros((3, 4), np.float32)
    for row, tags in enumerate([plain["tags"], *(window["tags"] for window in plain["windows"])]):
        for tag in tags:
            back[row, tag["index"]] = tag["score"]
    assert np.array_equal(back[0], prediction.scores) and np.array_equal(back[1:], prediction.window_scores)


def test_dictionary_fields_and_filters():
    prediction = predicted([[0.1, 0.2, 0.3, 0.7]] * 2, source="odd \udcff\n.wav", warnings=["cut short"])
    assert prediction.to_dict(k=2, threshold=0.25, exclude=3, windows=True) == {
        "source": r"odd \xff\n.wav",
        "duration_s": 4.5,
        "checkpoint": "tiny",
        "runtime": "",
        "window_s": 4.0,
        "hop_s": 1.0,
        "aggregate": "max",
        "warnings": ["cut short"],
        "tags": [{"label": "<b>&", "score": 0.3, "index": 2, "mid": ""}],
        "windows": [
            {"start_s": start, "end_s": start + 4, "tags": [{"label": "<b>&", "score": 0.3, "index": 2, "mid": ""}]}
            for start in (0.0, 0.5)
        ],
    }


def test_frames():
    pandas = pytest.importorskip("pandas")
    prediction = random_prediction()
    frame = prediction.to_frame()
    assert isinstance(frame, pandas.DataFrame) and len(frame) == 527
    assert list(zip(frame.label, frame.score, frame["index"], frame.mid, strict=True)) == [
        (tag.label, np.float32(tag.score), tag.index, tag.mid) for tag in prediction.top(None)
    ]
    assert frame.score.dtype == np.float32 and (frame.source == "a.wav").all()
    tidy = prediction.to_frame(windows=True)
    wide = tidy.pivot(index="start_s", columns="index", values="score")
    assert np.array_equal(wide.to_numpy(), prediction.window_scores)
    assert np.array_equal(wide.index, prediction.window_start_s)
    assert (tidy.groupby("start_s").end_s.first().to_numpy() == prediction.window_end_s).all()


@pytest.mark.parametrize(("module", "method"), [("pandas", "to_frame"), ("matplotlib.axes", "plot")])
def test_missing_packages_are_named(monkeypatch, module, method):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "audiotag.results.plot", raising=False)
    with pytest.raises(
        MissingDependencyError, match=f"pip install .*{module.split('.')[0].replace('matplotlib', 'plot')}"
    ):
        getattr(random_prediction(), method)()


def test_repr():
    text = repr(predicted([[0.1, 0.25, 0.3, 0.7]] * 3, source="street.wav", warnings=["cut short"]))
    assert text.splitlines() == [
        "Prediction: street.wav  5.5 s, 3 windows (max), tiny",
        "  warning: cut short",
        "  雷雨            0.700  ██████████████",
        "  <b>&            0.300  ██████",
        "  storm, thunder  0.250  █████",
        "  calm            0.100  ██",
    ]


def test_html_shows_names_as_they_are():
    class Texts(HTMLParser):
        def __init__(self):
            super().__init__()
            self.texts, self.tags = [], set()

        def handle_starttag(self, tag, attributes):
            self.tags.add(tag)

        def handle_data(self, data):
            self.texts.append(data)

    page = Texts()
    page.feed(predicted([[0.1, 0.2, 0.3, 0.7]], source="<script>.wav", warnings=["<i>"])._repr_html_())
    assert page.tags == {"div", "table", "tr", "td"}
    assert {"<b>&", "0.300", "雷雨", "warning: <i>"} <= set(page.texts) and "<script>.wav" in page.texts[0]


def test_roll_up():
    prediction = random_prediction()
    rolled = prediction.roll_up()
    assert np.array_equal(rolled.scores, LABELS.roll_up(prediction.scores))
    assert np.array_equal(rolled.window_scores, LABELS.roll_up(prediction.window_scores))


def occurring(label, first, last, high=0.9, windows=40, low=0.05):
    """Windows of 4 s every second that hear `label` where they overlap ``first`` to ``last`` seconds."""
    scores = np.full((windows, 527), low, np.float32)
    starts = np.arange(windows)
    scores[(starts + 4 > first) & (starts < last), label] = high
    return scores


def test_events_of_an_ideal_network():
    """A network that hears a sound in every window that overlaps it: the events are the sound, to a step."""
    prediction = predicted(np.maximum(occurring(0, 10, 17), occurring(137, 20, 24)), LABELS)
    speech, music = prediction.events(0.8, off=0.8)
    assert (speech.label, speech.onset_s, speech.offset_s, speech.mid) == ("Speech", 10, 17, "/m/09x0r")
    assert (music.label, music.onset_s, music.offset_s, music.index) == ("Music", 20, 24, 137)
    assert speech.peak == speech.mean == music.mean == 0.9
    assert prediction.events(0.8, off=0.8, include="Music") == [music]
    assert prediction.events(0.8, off=0.8, exclude="Human sounds") == [music]
    assert prediction.events(0.95) == []
    # The maximum says of every step what any window around it says.
    first = prediction.events(0.8, combine="max")[0]
    assert (first.onset_s, first.offset_s) == (7, 20)


def test_an_event_lasts_while_half_of_its_threshold_is_kept():
    scores = np.zeros((7, 4), np.float32)
    scores[:, 0] = [0.14, 0.16, 0.31, 0.16, 0.14, 0.12, 0.12]
    prediction = predicted(scores, window_s=1.0, hop_s=1.0)

    def found(*threshold, **options):
        return [(event.onset_s, event.offset_s) for event in prediction.events(*threshold, **options)]

    assert found() == found(0.3) == found(0.3, off=0.15) == found({"calm": 0.3})
    assert found() == [(1, 4)] and found(off=0.3) == [(2, 3)] and found(0.2) == [(0, 6.5)]


def test_events_of_one_window():
    prediction = predicted([[0.1, 0.2, 0.3, 0.7]], window_s=3.3)
    assert [dataclasses.astuple(e) for e in prediction.events(0.3)] == [
        ("<b>&", 0.0, 3.3, 0.3, 0.3, 2, ""),
        ("雷雨", 0.0, 3.3, 0.7, 0.7, 3, ""),
    ]


def test_thresholds_by_label():
    scores = np.maximum(occurring(0, 10, 17, 0.25), occurring(75, 20, 24, 0.5))  # Speech, Bark
    prediction = predicted(np.maximum(scores, occurring(137, 1, 5, 0.4)), LABELS)

    def found(threshold, **options):
        return {event.label for event in prediction.events(threshold, **options)}

    assert found(0.3) == {"Bark", "Music"}
    assert found({"Speech": 0.2}) == {"Speech", "Bark", "Music"}, "labels without a threshold keep the default"
    assert found({"Animal": 0.6}) == {"Music"}, "a category means everything under it"
    assert found({"Bark": 0.4, "Animal": 0.6}) == found({"Animal": 0.6, "Bark": 0.4}) == {"Bark", "Music"}
    longer = [e for e in prediction.events({"Bark": 0.4}, off={"Bark": 0.06}) if e.label == "Bark"]
    shorter = [e for e in prediction.events({"Bark": 0.4}, off={"Bark": 0.4}) if e.label == "Bark"]
    assert longer[0].offset_s - longer[0].onset_s > shorter[0].offset_s - shorter[0].onset_s


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on": 2}, "on must be"),
        ({"on": {"Spech": 0.3}}, "no label is called 'Spech'"),
        ({"on": {"Speech": 3}}, r"on\['Speech'\] must be"),
        ({"on": 0.3, "off": 0.5}, "off must not exceed on; for 'Speech' they are 0.5 and 0.3"),
        ({"on": {"Dog": 0.1}, "off": 0.2}, "for 'Dog' they are 0.2 and 0.1"),
        ({"max_gap_s": -1}, "max_gap_s"),
        ({"min_duration_s": float("nan")}, "min_duration_s"),
        ({"median_s": float("inf")}, "median_s"),
        ({"combine": "sum"}, "combine must be one of geometric, mean, max"),
    ],
)
def test_events_say_what_is_wrong(options, message):
    with pytest.raises(InvalidInputError, match=message):
        random_prediction().events(**options)


def test_options_can_be_tried_on_silence():
    labels = LabelSet.from_names(["a", "b"])
    silent = Prediction.silent(labels, np.array([0.5, np.nan], np.float32))
    assert silent.events(on="auto") == [] and silent.top(2, threshold="auto") == []
    with pytest.raises(InvalidInputError, match="no label is called 'c'"):
        silent.top(include="c")
    with pytest.raises(InvalidInputError, match="stores no thresholds"):
        Prediction.silent(labels).events(on="auto")

"""The page computes events by itself, so that thresholds act at once; they are those of Python for random scores."""

import io
import json
import operator
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from audiotag.labels.label_set import LabelSet
from audiotag.live.tracker import EventTracker
from audiotag.outputs.formats import About, find_format
from audiotag.outputs.writers import open_writer
from audiotag.results.prediction import Prediction
from audiotag.text import clock, shortest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "audiotag" / "service" / "page"
RATE = 32_000
INDEX = operator.itemgetter("index")


@pytest.fixture(scope="module")
def ask():
    node = shutil.which("node")
    if node is None:
        pytest.skip("the page's modules are run by node, which is not here")

    def ask(cases):
        run = subprocess.run(
            [node, str(ROOT / "tests" / "page_port.mjs"), str(PAGE)],
            input=json.dumps(cases),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert run.returncode == 0, run.stderr
        return json.loads(run.stdout)

    return ask


def random_scores(rng, windows, labels):
    """Scores that wander, with some exactly at round numbers, 0 and 1."""
    walk = np.cumsum(rng.normal(0, 0.8, (windows, labels)), axis=0)
    scores = 1 / (1 + np.exp(-walk))
    round_ = rng.random(scores.shape)
    scores[round_ < 0.15] = np.round(scores, 1)[round_ < 0.15]
    scores[round_ > 0.99] = 0
    return scores.astype(np.float32)


def window_times(rng, hop_s, window_s):
    duration = round(rng.uniform(0.3, 60) * RATE)
    window, hop = round(window_s * RATE), round(hop_s * RATE)
    if duration <= window:
        return np.array([0]), np.array([duration])
    starts = list(range(0, duration - window + 1, hop))
    if starts[-1] + window < duration:
        starts.append(duration - window)
    return np.array(starts), np.array(starts) + window


def plain(event):
    return {k: v for k, v in event.to_dict().items() if k not in ("label", "mid")}


def test_events_of_recordings(ask):
    rng = np.random.default_rng(11)
    labels = LabelSet.from_names([f"label {i}" for i in range(7)])
    cases, expected = [], []
    for _ in range(250):
        hop_s, window_s = rng.choice([0.25, 0.5, 1, 2.5]), rng.choice([2.5, 3, 10])
        starts, ends = window_times(rng, hop_s, window_s)
        scores = random_scores(rng, len(starts), 7)
        on = float(rng.choice([0.1, 0.3, 0.5, round(rng.uniform(0.02, 0.95), 2)]))
        off = None if rng.random() < 0.5 else round(float(rng.uniform(0, on)), 2)
        short, gap = (float(rng.choice([0, 0, 0.5, 1, 2.5])) for _ in range(2))
        length = ends[-1] / RATE
        facts = labels, "x", length, "c", float(hop_s), float(window_s), "max"
        prediction = Prediction(scores.max(0), scores, starts / RATE, ends / RATE, *facts)
        expected.append([plain(e) for e in prediction.events(on, off=off, min_duration_s=short, max_gap_s=gap)])
        options = {"on": on, "off": off, "minDuration": short, "maxGap": gap}
        times = {"starts": (starts / RATE).tolist(), "ends": (ends / RATE).tolist(), "hop": float(hop_s)}
        cases.append({"kind": "events", "scores": scores.tolist(), "options": options, **times})
    same(ask(cases), expected)
    assert sum(map(len, expected)) > 1000


def same(found, expected):
    """Times and labels exactly; scores to a float32's last bits, where sums were taken in another order."""
    for got, wanted in zip(found, expected, strict=True):
        keys = ("index", "onset_s", "offset_s")
        assert [[e[k] for k in keys] for e in got] == [[e[k] for k in keys] for e in wanted]
        for a, b in zip(got, wanted, strict=True):
            assert a["peak"] == pytest.approx(b["peak"], rel=3e-7) and a["mean"] == pytest.approx(b["mean"], rel=3e-7)


def test_events_of_live_streams(ask):
    rng = np.random.default_rng(12)
    labels = LabelSet.from_names([f"label {i}" for i in range(7)])
    cases, expected = [], []
    for _ in range(250):
        hop = round(float(rng.choice([0.25, 0.5, 1, 2])) * RATE)
        stops = np.cumsum(np.full(rng.integers(1, 60), hop))
        starts = np.maximum(0, stops - 10 * RATE)
        scores = random_scores(rng, len(stops), 7)
        on = float(rng.choice([0.1, 0.3, 0.5, 0.77]))
        off = None if rng.random() < 0.5 else round(float(rng.uniform(0, on)), 2)
        short, gap = float(rng.choice([0, 0, 1, 3])), float(rng.choice([0, 2, 5]))
        tracker = EventTracker(labels, RATE, on=on, off=off, min_duration_s=short, max_gap_s=gap)
        windows = []
        for start, stop, row in zip(starts.tolist(), stops.tolist(), scores, strict=True):
            started, ended = tracker.update(start, stop, row)
            windows.append({"started": [plain(o) for o in started], "ended": [plain(e) for e in ended]})
        expected.append({"windows": windows, "closed": [plain(e) for e in tracker.close()]})
        options = {"on": on, "off": off, "minDuration": short, "maxGap": gap}
        times = {"starts": starts.tolist(), "ends": stops.tolist(), "rate": RATE}
        cases.append({"kind": "tracker", "scores": scores.tolist(), "options": options, **times})
    n_events = 0
    for got, wanted in zip(ask(cases), expected, strict=True):
        same([got["closed"]], [wanted["closed"]])
        for a, b in zip(got["windows"], wanted["windows"], strict=True):
            same([a["ended"]], [b["ended"]])
            assert sorted(a["started"], key=INDEX) == sorted(b["started"], key=INDEX)
            n_events += len(b["ended"])
    assert n_events > 500


def test_numbers_and_times_are_written_alike(ask):
    rng = np.random.default_rng(13)
    scores = [*rng.random(400).astype(np.float32).tolist(), 0.0, 1.0, 0.1, 0.30000001192092896, 1e-6]
    times = [*np.round(rng.uniform(0, 9000, 200), 3).tolist(), 0, 59.95, 59.96, 3599.99, 3600]
    shown, clocks = ask([{"kind": "shortest", "values": scores}, {"kind": "clock", "values": times}])
    assert shown == [shortest(np.float32(x)) for x in scores]
    different = [(a, clock(t)) for a, t in zip(clocks, times, strict=True) if a != clock(t)]
    assert len(different) <= 2, different  # halves: Python rounds them to even


def test_exports_are_the_commands(ask):
    event = {"peak": 0.5, "mean": 0.25, "index": 3, "mid": "/m/x"}
    record = {
        "source": 'a "b", c.wav',
        "duration_s": 12.0,
        "warnings": [],
        "events": [
            {"label": "Male speech, man speaking", "onset_s": 0.0, "offset_s": 2.0, **event},
            {"label": "Dog", "onset_s": 1.5, "offset_s": 9.34021875, **event},
        ],
    }
    for kind in ("csv", "audacity"):
        file = io.StringIO(newline="")
        with open_writer(find_format("events", kind), About("events", fmax_hz=15_000.0), file) as writer:
            writer.write(record)
        assert ask([{"kind": kind, "record": record}]) == [file.getvalue()]

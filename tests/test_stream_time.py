"""Streams over time: events once each, memory that stays, clocks that do not drift."""

import tracemalloc

import numpy as np
import pytest
import torch

from audiotag.config import CheckpointConfig, FrontendConfig, NetworkConfig
from audiotag.frontend.logmel import LogMel
from audiotag.inference.engine import Engine
from audiotag.labels.label_set import LabelSet
from audiotag.live.stream import Stream

from .test_stream import run
from .tiny import sound

LABELS = LabelSet.from_names(["loud", "never"])


class ScriptedRuntime:
    """The frontend alone."""

    def __init__(self, frontend):
        self.frontend = LogMel(frontend)

    def log_mel(self, waveforms):
        return self.frontend(torch.from_numpy(waveforms))

    def concatenate(self, parts, axis):
        return torch.cat(list(parts), axis)


def scripted(scores=lambda logmel: np.zeros((1, 2), np.float32), *, sample_rate, **options):
    """A stream whose network is a function of the log-mel, at a low rate: it is cheap."""
    frontend = FrontendConfig(8_000, n_fft=256, window_samples=200, hop_samples=80, n_mels=8, fmax_hz=4_000)
    config = CheckpointConfig("scripted", NetworkConfig(n_labels=2), frontend, 10.0, ("loud", "never"))
    engine = Engine(config, ScriptedRuntime(frontend))
    engine.scores = scores
    return Stream(engine, LABELS, sample_rate=sample_rate, **options)


def loudness(logmel):
    """Scores of `scripted`: 0.9 if the window's loudest frame is loud."""
    return np.array([[0.9 if logmel.max() > 1 else 0.1, 0.0]], np.float32)


def burst(seconds, loud_from, loud_to):
    x = np.zeros(round(seconds * 8_000), np.float32)
    x[round(loud_from * 8_000) : round(loud_to * 8_000)] = sound(1)[: round((loud_to - loud_from) * 8_000)]
    return x


def test_an_event_is_reported_once_as_it_starts_and_once_as_it_ends():
    stream = scripted(loudness, sample_rate=8_000)
    windows = run(stream, np.array_split(burst(60, 20.2, 22.3), 1_000))
    started = [(w.end_s, onset) for w in windows for onset in w.started]
    ended = [(w.end_s, event) for w in windows for event in w.ended]
    ((reported_s, onset),) = started
    assert (reported_s, onset.label, onset.onset_s) == (21, "loud", 19)  # 1 s is allowed for recognition
    ((reported_s, event),) = ended
    assert (event.onset_s, event.offset_s) == (19, 23)
    assert reported_s == 23 + 10 + 2  # out of the window, and the gap allowed
    assert (event.peak, event.mean) == pytest.approx((0.9, 0.9))


def test_flush_ends_open_events_where_the_audio_ends():
    for seconds in (30.0, 30.4):  # the latter with a window moved back to the end
        windows = run(scripted(loudness, sample_rate=8_000), [burst(seconds, 28.2, 30)])
        (event,) = [event for w in windows for event in w.ended]
        assert (event.onset_s, event.offset_s) == (27, seconds)
        assert windows[-1].ended == (event,) and windows[-1].started == ()
        assert (windows[-1].start_s, windows[-1].end_s) == (30.0 if seconds == 30 else seconds - 10, seconds)


@pytest.mark.parametrize("tagged", [{"include": "never"}, {"exclude": "loud"}, {"on": 0.95}])
def test_options_decide_what_is_an_event(tagged):
    windows = run(scripted(loudness, sample_rate=8_000, **tagged), [burst(30, 10, 12)])
    assert len(windows) == 30 and not any(w.started or w.ended for w in windows)


def test_an_hour_in_one_chunk_takes_no_more_memory_than_a_minute():
    hour = np.zeros(3600 * 8_000, np.int16)
    hour[:: 7 * 8_000] = 20_000

    def peak(chunk):
        stream = scripted(loudness, sample_rate=8_000, hop_s=10.0)
        tracemalloc.start()
        try:
            n = len(stream.push(chunk))
            return n, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    minute = peak(hour[: 60 * 8_000])
    n, most = peak(hour)
    assert (minute[0], n) == (6, 360)
    assert most < minute[1] + 1_000_000  # the windows' own scores and times; the hour as float32 would be 115 MB


def test_memory_does_not_grow_with_time():
    stream = scripted(loudness, sample_rate=11_025)
    second = np.resize(burst(1, 0.1, 0.5), 11_025)

    def after(seconds):
        for _ in range(seconds):
            stream.push(second)
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = after(30)
        assert after(120) < before + 20_000
    finally:
        tracemalloc.stop()


def jump(stream, hops):
    """Put a stream's clocks ahead, as if as many hops had passed."""
    n = hops * stream._cutter.hop
    for name in ("_buffer_start", "_stop", "_next_stop"):
        setattr(stream._cutter, name, getattr(stream._cutter, name) + n)
    stream._prepare.__self__._next_start += n
    stream._n_taken += round(n * stream.sample_rate / stream._rate_hz)
    stream._stop += n
    for name in ("_previous_stop", "_rise", "_offset"):
        setattr(stream._tracker, name, getattr(stream._tracker, name) + n)


def test_thousands_of_hours_on_nothing_has_drifted():
    hours = 5_000
    fresh, old = (scripted(loudness, sample_rate=16_000) for _ in range(2))
    x = np.repeat(burst(40, 25.2, 26.3), 2)
    head, tail = x[: 12 * 16_000], x[12 * 16_000 :]
    fresh.push(head), old.push(head)
    jump(old, hours * 3600)
    expected, found = run(fresh, [tail]), run(old, [tail])
    assert [w.end_s - hours * 3600 for w in found] == [w.end_s for w in expected]  # exactly
    assert [w.scores.tobytes() for w in found] == [w.scores.tobytes() for w in expected]
    (early,), (late,) = ([event for w in windows for event in w.ended] for windows in (expected, found))
    assert (late.onset_s - hours * 3600, late.offset_s - hours * 3600) == (early.onset_s, early.offset_s) == (24, 27)


def test_the_resampler_keeps_time():
    stream = scripted(sample_rate=11_025, hop_s=10.0)
    minute = np.zeros(60 * 11_025, np.int16)
    for _ in range(20):
        stream.push(minute)
    stream.flush()
    assert stream._cutter.n_samples == 20 * 60 * 8_000

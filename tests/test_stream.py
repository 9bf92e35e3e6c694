"""Streams against the definition of their windows, however the audio is cut, and what they refuse."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import soxr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audiotag import AudioError, AudiotagError, InvalidInputError, Tagger
from audiotag.checkpoints.load import build
from audiotag.frontend.logmel import LogMel
from audiotag.live.stream import Stream
from audiotag.runtimes.fused import fuse

from .tiny import RATE, sound, tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint():
    return tiny_checkpoint()


@pytest.fixture(scope="module")
def tagger(checkpoint, runtime):
    return Tagger(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def short_tagger(checkpoint):
    """The same with windows of 1 s, for what does not depend on their length."""
    return Tagger(replace(checkpoint, config=replace(checkpoint.config, window_s=1.0)), device="cpu")


@pytest.fixture(scope="module")
def textbook(checkpoint):
    """The definition: frontend, network, sigmoid on one whole window, nothing shared between windows."""
    network = fuse(build(checkpoint))

    def scores(clip, window_s):
        with torch.no_grad():
            window = np.resize(clip, round(window_s * RATE))
            return network(LogMel()(torch.from_numpy(window)[None])).logits.sigmoid()[0].numpy()

    return scores


def run(stream, chunks):
    """Everything a stream gives for chunks and the flush after them."""
    return [w for chunk in chunks for w in stream.push(chunk)] + stream.flush()


def scored(windows):
    """Without the window of no length that may carry the last ends."""
    return [w for w in windows if w.start_s < w.end_s]


def bits(windows):
    return [(w.start_s, w.end_s, w.scores.tobytes(), w.started, w.ended) for w in windows]


# -- windows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "window_s", "hop_s", "seconds", "stops"),
    [
        (32_000, 10.0, 3.0, 20.5, [4, 7, 10, 13, 16, 19, 20.5]),
        (16_000, 10.0, 2.0, 13.2, [2, 4, 6, 8, 10, 12, 13.2]),
        (16_000, 10.0, 2.0, 4.0, [2, 4]),
        (44_100, 1.0, 0.25, 1.8, [0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 1.8]),
        (8_000, 1.0, 0.4, 2.2, [0.6, 1, 1.4, 1.8, 2.2]),
        (22_050, 1.0, 1.0, 3.0, [1, 2, 3]),
        (32_000, 1.0, 0.123, 1.4, [0.139, 0.262, 0.385, 0.508, 0.631, 0.754, 0.877, 1, 1.123, 1.246, 1.369, 1.4]),
        (48_000, 1.0, 0.5, 0.3, [0.3]),
        (16_000, 10.0, 10.0, 0.001, [0.001]),
    ],
)
def test_windows_are_the_textbooks(checkpoint, textbook, rate, window_s, hop_s, seconds, stops):
    tagger = Tagger(replace(checkpoint, config=replace(checkpoint.config, window_s=window_s)), device="cpu")
    x = soxr.resample(sound(seconds + 1), RATE, rate)[: round(seconds * rate)].astype(np.float32)
    whole = soxr.resample(x, rate, RATE, quality="HQ") if rate != RATE else x
    windows = scored(run(tagger.stream(sample_rate=rate, hop_s=hop_s), np.array_split(x, 17)))
    np.testing.assert_allclose([w.end_s for w in windows], stops, atol=1e-9)
    np.testing.assert_allclose([w.start_s for w in windows], np.maximum(np.subtract(stops, window_s), 0), atol=1e-9)
    for w in windows:
        clip = whole[round(w.start_s * RATE) : round(w.end_s * RATE)]
        if w.end_s < window_s:  # as a recording that ends here
            head = x[: round(w.end_s * rate)]
            clip = soxr.resample(head, rate, RATE, quality="HQ") if rate != RATE else head
        np.testing.assert_allclose(w.scores, textbook(clip, window_s), atol=1e-5)
    if len(windows) > 3:  # else every window would pass for every other
        assert np.ptp([w.scores for w in windows], axis=0).max() > 1e-2


def test_equal_to_the_offline_windows(tagger):
    x = np.stack([sound(14.3, 3), sound(14.3, 4)])
    pcm = np.round(soxr.resample(x.T, RATE, 44_100).T * 32_767).astype(np.int16)
    windows = run(tagger.stream(sample_rate=44_100, channels=2), np.array_split(pcm, 100, axis=1))
    offline = tagger.predict((pcm, 44_100), hop_s=1.0)
    whole = [w for w in windows if w.end_s >= 10]
    assert len(windows) == len(whole) + 9
    np.testing.assert_allclose([w.start_s for w in whole], offline.window_start_s, atol=1e-4)
    np.testing.assert_allclose([w.scores for w in whole], offline.window_scores, atol=1e-4)
    for w in windows[:9:4]:
        start = tagger.predict((pcm[:, : round(w.end_s * 44_100)], 44_100))
        np.testing.assert_allclose(w.scores, start.scores, atol=1e-4)


def test_equal_to_the_offline_windows_on_recordings(shared_dir):
    tagger = Tagger.from_pretrained(shared_dir / "reference" / "mn04_as_mAP_432.pt", device="cpu")
    waves = np.load(shared_dir / "reference" / "real_audio.npz")
    x = np.concatenate([waves[name] for name in waves.files if name.endswith("/wave")])[: 17 * RATE]
    windows = scored(run(tagger.stream(sample_rate=RATE), np.array_split(x, 200)))
    offline = tagger.predict(x, hop_s=1.0)
    np.testing.assert_allclose([w.scores for w in windows[9:]], offline.window_scores, atol=1e-4)
    logits = next(waves[name] for name in waves.files if name.endswith("/logits"))
    np.testing.assert_allclose(windows[9].scores, 1 / (1 + np.exp(-logits)), atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 18_000), max_size=20),
    rate=st.sampled_from([8_000, 11_025, RATE]),
    hop_s=st.sampled_from([0.25, 0.31, 1.0]),
)
def test_cutting_changes_not_one_bit(short_tagger, cuts, rate, hop_s):
    x = sound(1, 5)[:18_000]
    options = {"sample_rate": rate, "hop_s": hop_s, "on": 0.5}
    in_one = bits(run(short_tagger.stream(**options), [x]))
    assert bits(run(short_tagger.stream(**options), np.split(x, sorted(cuts)))) == in_one


def test_single_samples(short_tagger):
    x = sound(1, 6)[:12_001]
    options = {"sample_rate": 8_000, "hop_s": 0.25}
    assert bits(run(short_tagger.stream(**options), x[:, None])) == bits(run(short_tagger.stream(**options), [x]))


def test_number_types_and_containers(short_tagger):
    pcm = np.round(sound(1.2, 7) * 32_767).astype(np.int16)
    options = {"sample_rate": RATE, "hop_s": 0.5}
    expected = bits(run(short_tagger.stream(**options), [pcm]))
    for same in (
        pcm / np.float32(32_768),
        pcm / 32_768,
        pcm.astype(np.int32) << 16,
        pcm.astype(">i2"),
        pcm[None],
        np.repeat(pcm, 2)[::2],
        torch.from_numpy(pcm),
        pcm.astype("<i2").tobytes(),
        bytearray(pcm.astype("<i2").tobytes()),
        (pcm, RATE),
        (torch.from_numpy(pcm / np.float32(32_768)), float(RATE)),
    ):
        assert bits(run(short_tagger.stream(**options), [same])) == expected


def test_channels_are_averaged(short_tagger):
    left, right = (np.round(sound(1.2, seed) * 8_191).astype(np.int16) * 2 for seed in (8, 9))
    expected = bits(run(short_tagger.stream(sample_rate=RATE), [(left + right) // 2]))
    stereo = np.stack([left, right])
    for chunks in ([stereo], np.split(stereo, [1, 2, 9_999], axis=1), [stereo.T.astype("<i2").tobytes()]):
        assert bits(run(short_tagger.stream(sample_rate=RATE, channels=2), chunks)) == expected


def test_the_callers_array_may_be_reused(short_tagger):
    x = sound(1.5, 10)
    expected = bits(run(short_tagger.stream(sample_rate=RATE), [x]))
    stream, buffer, windows = short_tagger.stream(sample_rate=RATE), np.empty(4_800, np.float32), []
    for chunk in x.reshape(-1, 4_800):
        buffer[:] = chunk
        windows += stream.push(buffer)
        buffer[:] = np.nan
    assert bits(windows + stream.flush()) == expected


def test_silence(tagger):
    windows = run(tagger.stream(sample_rate=16_000, hop_s=5.0), [np.zeros(16_000 * 12, np.int16)])
    assert [w.end_s for w in windows] == [5, 10, 12]
    for w in windows:
        np.testing.assert_array_equal(w.scores, windows[0].scores)
    assert np.isfinite(windows[0].scores).all()


def test_top_of_a_window(short_tagger):
    (window,) = short_tagger.stream(sample_rate=RATE).push(sound(1.0))
    best = window.top(3)
    assert [tag.index for tag in best] == np.argsort(-window.scores)[:3].tolist()
    assert [tag.label for tag in best] == [short_tagger.labels[tag.index].display_name for tag in best]
    assert window.top(5, include="Music") and all(t.score >= 0.9 for t in window.top(None, threshold=0.9))
    with pytest.raises(ValueError, match="read-only"):
        window.scores[0] = 1


# -- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_a_refused_chunk_leaves_no_trace(short_tagger, bad):
    x = sound(5, 11)
    stream, undisturbed = (short_tagger.stream(sample_rate=RATE) for _ in range(2))
    given = stream.push(x[:40_000])
    spoilt = x[40_000:].copy()
    spoilt[-7] = bad  # far behind samples that would have completed windows
    with pytest.raises(AudioError, match=rf"sample {len(x) - 7} \(at 5\.000 s\)"):
        stream.push(spoilt)
    assert stream.position_s == 1.25
    assert bits(given + stream.push(x[40_000:]) + stream.flush()) == bits(run(undisturbed, [x]))


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        ((np.zeros(10, np.float32), 44_100), "32000 Hz and the chunk is at 44100"),
        (np.zeros((2, 10), np.float32), r"1 channel.*got \(2, 10\)"),
        (np.zeros((10, 1), np.float32), r"pass the transpose"),
        (torch.zeros(2, 1), r"1 channel.*got \(2, 1\)"),
        (torch.zeros(10, 1), r"pass the transpose"),
        (np.zeros((1, 1, 10), np.float32), "shape"),
        (np.zeros((), np.float32), "shape"),
        (np.zeros(10, complex), "complex"),
        (np.zeros(10, bool), "bool"),
        (np.array(["a"]), "dtype"),
        ([0.0, 1.0], "list"),
        (None, "NoneType"),
        ("file.wav", "str"),
        (b"\0\0\0", "whole frames of 2 bytes"),
        ((np.zeros(3), 16_000, 1), "3 things"),
        (torch.zeros(10, dtype=torch.bool), "bool"),
    ],
)
def test_what_is_no_chunk(short_tagger, chunk, message):
    stream = short_tagger.stream()
    with pytest.raises(InvalidInputError, match=message):
        stream.push(chunk)
    assert stream.position_s == 0 and stream.flush() == []


def test_empty_chunks_are_nothing(short_tagger):
    stream = short_tagger.stream(sample_rate=RATE)
    for nothing in (np.zeros(0, np.float32), np.zeros((1, 0), np.int16), b"", torch.zeros(0)):
        assert stream.push(nothing) == []
    assert bits(run(stream, [sound(1.1)])) == bits(run(short_tagger.stream(sample_rate=RATE), [sound(1.1)]))


@pytest.mark.parametrize(
    "options",
    [
        {"sample_rate": 0},
        {"sample_rate": 16_000.5},
        {"channels": 0},
        {"channels": True},
        {"channels": 1.0},
        {"hop_s": 0},
        {"hop_s": 1.5},
        {"hop_s": float("nan")},
        {"window_s": 1.5},
        {"window_s": 0.5, "hop_s": 0.7},
        {"on": 1.5},
        {"on": "high"},
        {"on": 0.2, "off": 0.3},
        {"max_gap_s": -1},
        {"min_duration_s": float("inf")},
        {"include": "Spech"},
    ],
)
def test_options_out_of_range(short_tagger, options):
    with pytest.raises(InvalidInputError):
        short_tagger.stream(**options)


def test_after_flush_only_reset_helps(short_tagger):
    x = sound(1.7, 12)
    stream = short_tagger.stream(sample_rate=RATE, on=0.5)
    first = run(stream, [x])
    with pytest.raises(AudiotagError, match="reset"):
        stream.push(x)
    assert stream.flush() == []
    stream.reset()
    assert stream.position_s == 0
    stream.push(sound(0.6, 13))  # what came before a reset, flushed or not, must not matter
    stream.reset()
    assert bits(run(stream, [x])) == bits(first)
    assert len(first) == 2


def test_chunks_without_a_rate_have_the_checkpoints(short_tagger):
    x = sound(2.3, 4)
    assert short_tagger.stream().sample_rate == RATE
    assert bits(run(short_tagger.stream(), [x])) == bits(run(short_tagger.stream(sample_rate=RATE), [x]))


def test_shorter_windows_are_those_of_predict(tagger):
    x = sound(7.5, 6)
    windows = scored(run(tagger.stream(window_s=3.0, hop_s=1.5), np.split(x, [5_000, 100_001])))
    expected = tagger.predict(x, window_s=3.0, hop_s=1.5)
    whole = [w for w in windows if w.end_s - w.start_s == 3]
    assert [w.start_s for w in whole] == expected.window_start_s.tolist() == [0, 1.5, 3, 4.5]
    np.testing.assert_allclose([w.scores for w in whole], expected.window_scores, atol=1e-5)


@pytest.mark.parametrize(("window_s", "hop_s"), [(10.0, 2.5), (10.0, None), (3.0, 1.5)])
def test_whoever_watches_sees_what_is_scored(tagger, window_s, hop_s):
    """Each window once, with the log-mel of it alone, shared frames or not."""
    seen = []
    stream = Stream(
        tagger.engine,
        tagger.labels,
        window_s=window_s,
        hop_s=hop_s,
        watch=lambda window, logmel: seen.append((window, np.asarray(logmel))),
    )
    assert stream.hop_s == (window_s if hop_s is None else hop_s)
    clip = sound(21)
    windows = scored(run(stream, np.array_split(clip, 7)))
    assert [(w.start / RATE, w.stop / RATE) for w, _ in seen] == [(w.start_s, w.end_s) for w in windows]
    for window, logmel in seen:
        whole = np.resize(clip[window.start : window.stop], 10 * RATE)
        expected = LogMel()(torch.from_numpy(whole)[None]).numpy()
        assert logmel.shape == expected.shape and np.abs(logmel - expected).max() < 1e-3


def test_threads_that_push_into_one_stream_are_taken_in_turn(short_tagger):
    stream = short_tagger.stream(hop_s=0.5)
    chunks = [sound(0.3, seed) for seed in range(4)] * 10
    with ThreadPoolExecutor(4) as pool:
        windows = [w for found in pool.map(stream.push, chunks) for w in found]
    assert stream.position_s == pytest.approx(12)
    assert sorted(w.end_s for w in windows) == pytest.approx(np.arange(0.5, 12.1, 0.5))

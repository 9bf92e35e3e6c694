"""The Tagger: one against many, batches, windows, layers, threads, and what bad arguments get."""

import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audiotag import AudioError, AudiotagError, InvalidInputError, Prediction, Tagger
from audiotag.frontend.logmel import LogMel
from audiotag.networks.build import build_network
from audiotag.results.embeddings import MID_LAYERS

from .tiny import RATE, sound, tensors, tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint():
    return tiny_checkpoint()


@pytest.fixture(scope="module")
def tagger(checkpoint, runtime):
    return Tagger(checkpoint, device="cpu")


def textbook_scores(checkpoint, window):
    """The definition: frontend, network, sigmoid on one whole window, nothing fused or shared."""
    network = build_network(checkpoint.config.network)
    network.load_state_dict(tensors(checkpoint.state))
    with torch.no_grad():
        logits = network.eval()(LogMel()(torch.from_numpy(window)[None])).logits
    return logits.sigmoid()[0].numpy()


def test_windows_and_aggregates_are_the_textbooks(tagger, checkpoint):
    x = sound(23.7)
    starts = [0, 4, 8, 12, 13.7]
    expected = np.stack([textbook_scores(checkpoint, x[round(s * RATE) : round(s * RATE) + 10 * RATE]) for s in starts])
    found = tagger.predict(x, hop_s=4.0)
    np.testing.assert_allclose(found.window_scores, expected, atol=1e-5)
    np.testing.assert_allclose(found.window_start_s, starts)
    np.testing.assert_allclose(found.window_end_s, np.add(starts, 10))
    np.testing.assert_allclose(found.scores, expected.max(0), atol=1e-5)
    np.testing.assert_allclose(tagger.scores(x, hop_s=4.0, aggregate="mean"), expected.mean(0), atol=1e-5)
    assert found.duration_s == pytest.approx(23.7)
    assert np.ptp(expected, axis=0).max() > 1e-3  # else every window would pass for every other


@pytest.mark.parametrize("n", [1, 10, 200, 16_000, 319_999, 320_000])
def test_short_clips_are_tiled(tagger, checkpoint, n):
    x = sound(10, 1)[:n]
    tiled = np.concatenate([x] * math.ceil(320_000 / n))[:320_000]
    found = tagger.predict(x)
    np.testing.assert_allclose(found.window_scores, textbook_scores(checkpoint, tiled)[None], atol=1e-5)
    assert found.window_end_s.tolist() == [n / RATE]


def test_shorter_windows_are_tiled_to_whole_ones(tagger, checkpoint):
    x = sound(12.3)
    found = tagger.predict(x, window_s=4, hop_s=3)
    starts = [0, 3, 6, 8.3]
    np.testing.assert_allclose(found.window_start_s, starts)
    np.testing.assert_allclose(found.window_end_s, np.add(starts, 4))
    pieces = [x[round(s * RATE) : round(s * RATE) + 4 * RATE] for s in starts]
    expected = [textbook_scores(checkpoint, np.resize(piece, 10 * RATE)) for piece in pieces]
    # A seam is loud beside quiet bands, where each transform rounds in its own way (torch's by 2e-4 in the log-mel).
    np.testing.assert_allclose(found.window_scores, expected, atol=2e-5)
    assert found.window_s == 4 and tagger.predict(x, window_s=4).hop_s == 4


def test_one_gives_one_and_a_list_a_list(tagger, tmp_path):
    x, y = sound(3, 1), sound(12, 2)
    soundfile.write(tmp_path / "y.wav", y, RATE, subtype="FLOAT")
    one, two = tagger.predict(x), tagger.predict([x, str(tmp_path / "y.wav")])
    assert isinstance(one, Prediction) and isinstance(two, list) and len(two) == 2
    np.testing.assert_array_equal(one.scores, two[0].scores)
    np.testing.assert_allclose(two[1].scores, tagger.scores(y), atol=1e-5)
    assert two[1].source == str(tmp_path / "y.wav")
    assert tagger.predict([]) == [] and tagger.scores([]).shape == (0, 527)
    assert tagger.scores(x).shape == (527,) and tagger.scores([x]).shape == (1, 527)
    assert tagger.embed(x).ndim == 1 and tagger.embed([x]).shape == (1, tagger.layers["embedding"])
    assert tagger.embed([], layer=["stem", "hidden"]).shape == (0, tagger.layers["stem"] + tagger.layers["hidden"])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
@pytest.mark.parametrize("workers", [1, 3])
def test_batches_companions_and_workers_change_nothing(tagger, batch_size, workers):
    clips = [sound(s, i) for i, s in enumerate([3, 25, 10, 0.5, 31])]
    alone = [tagger.predict(c) for c in clips]
    together = [r for _, r in tagger.predict_each(clips, batch_size=batch_size, workers=workers)]
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_allclose(a.window_scores, b.window_scores, atol=1e-5)
        np.testing.assert_array_equal(a.window_start_s, b.window_start_s)


def test_a_batch_of_any_size_stays_within_the_stated_bound(tagger):
    clips = [sound(10, i) for i in range(64)]
    alone = np.stack([r.scores for _, r in tagger.predict_each(clips)])
    together = np.stack([r.scores for _, r in tagger.predict_each(clips, batch_size=64)])
    np.testing.assert_allclose(together, alone, atol=2e-5)


def test_thread_count_changes_nothing(tagger):
    x, before = sound(10), torch.get_num_threads()
    one = tagger.scores(x)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            np.testing.assert_allclose(tagger.scores(x), one, atol=1e-5)
    finally:
        torch.set_num_threads(before)


def test_threads_may_share_a_tagger(tagger):
    clips = [sound(10, i) for i in range(8)]
    alone = [tagger.scores(c) for c in clips]
    with ThreadPoolExecutor(4) as pool:
        shared = list(pool.map(tagger.scores, clips))
    np.testing.assert_allclose(shared, alone, atol=1e-6)


def test_one_bad_input_stops_no_other_and_is_reported(tagger, tmp_path):
    bad = tmp_path / "bad.wav"
    bad.write_text("not audio")
    nan = sound(25)
    nan[20 * RATE] = np.nan  # found only after windows of it have run
    inputs = [sound(1), bad, tmp_path / "missing.wav", nan, sound(2)]
    found = list(tagger.predict_each(inputs, batch_size=2))
    assert [source is given for (source, _), given in zip(found, inputs, strict=True)] == [True] * 5
    kinds = [type(result) for _, result in found]
    assert kinds[0] is kinds[4] is Prediction
    assert all(issubclass(kind, AudiotagError) for kind in kinds[1:4])
    assert str(bad) in str(found[1][1]) and "missing.wav" in str(found[2][1])
    with pytest.raises(AudioError, match=r"missing\.wav"):
        tagger.predict([inputs[0], inputs[2]])


def test_layers_have_their_sizes_and_concatenate(tagger):
    x = sound(12)
    parts = {name: tagger.embed(x, layer=name) for name in tagger.layers}
    assert {name: part.shape for name, part in parts.items()} == {n: (s,) for n, s in tagger.layers.items()}
    assert all(part.dtype == np.float32 and np.isfinite(part).all() for part in parts.values())
    np.testing.assert_allclose(parts["mid"], np.concatenate([parts[n] for n in MID_LAYERS]), atol=1e-6)
    np.testing.assert_allclose(
        tagger.embed(x, layer=["hidden", "stem"]), np.concatenate([parts["hidden"], parts["stem"]]), atol=1e-6
    )
    mel = LogMel()(torch.from_numpy(np.stack([x[: 10 * RATE], x[2 * RATE :]]))).mean((0, 1, 3)).numpy()
    np.testing.assert_allclose(parts["logmel"], mel, atol=1e-5)


def test_block_embeddings_are_hooked_feature_maps(tagger, checkpoint):
    network = build_network(checkpoint.config.network)
    network.load_state_dict(tensors(checkpoint.state))
    seen = {}
    network.layers[7].register_forward_hook(lambda _m, _i, out: seen.update(map=out))
    x = sound(10)
    with torch.no_grad():
        network.eval()(LogMel()(torch.from_numpy(x)[None]))
    np.testing.assert_allclose(tagger.embed(x, layer="block7"), seen["map"].mean((2, 3))[0], atol=1e-4)


def test_window_embeddings_average_to_the_clips(tagger):
    x = sound(31)
    windows = tagger.embed(x, per="window", hop_s=5)
    assert windows.vectors.shape == (6, tagger.layers["embedding"])
    np.testing.assert_allclose(windows.start_s, [0, 5, 10, 15, 20, 21])
    np.testing.assert_allclose(windows.end_s - windows.start_s, 10)
    np.testing.assert_allclose(windows.vectors.mean(0), tagger.embed(x, hop_s=5), atol=1e-6)


def test_rates_and_array_kinds_agree(tagger):
    x = (sound(4) * 32767).astype(np.int16)
    expected = tagger.scores(x)
    for same in (
        torch.from_numpy(x),
        (x, RATE),
        {"array": x, "sampling_rate": RATE},
        x.astype(np.float32) / 32768,
        np.stack([x, x]),
    ):
        np.testing.assert_allclose(tagger.scores(same), expected, atol=1e-5)
    half = tagger.scores(x[::2], sample_rate=RATE // 2)
    assert half.shape == expected.shape and not np.array_equal(half, tagger.scores(x[::2]))


def test_other_heads_have_their_own_labels():
    tagger = Tagger(tiny_checkpoint(n_labels=4), device="cpu")
    assert tagger.labels.names == ("label 0", "label 1", "label 2", "label 3")
    assert {tag.label for tag in tagger.predict(sound(1)).top(4)} == set(tagger.labels.names)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_low_precision_is_close_and_float32_outside(checkpoint, tagger, dtype):
    low = Tagger(checkpoint, device="cpu", dtype=dtype)
    x = sound(10)
    scores = low.scores(x)
    assert scores.dtype == np.float32
    assert 0 < np.abs(scores - tagger.scores(x)).max() < 0.1


def test_nothing_carries_gradients_and_globals_stay(checkpoint):
    before = (torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype(), torch.random.get_rng_state())
    tagger = Tagger(checkpoint, device="cpu")
    x = torch.from_numpy(sound(1)).requires_grad_()
    tagger.predict(x)
    after = (torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype(), torch.random.get_rng_state())
    assert before[:3] == after[:3] and torch.equal(before[3], after[3])
    assert x.grad is None


def test_predict_each_is_lazy(tagger):
    taken = []

    def sources():
        for i in range(1000):
            taken.append(i)
            yield sound(0.1, i)

    results = tagger.predict_each(sources())
    assert not taken
    next(results)
    results.close()
    assert len(taken) < 10


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.predict(sound(1), aggregate="sum"), "aggregate must be one of max, mean"),
        (lambda t: t.predict(sound(1), hop_s=11), r"hop_s must be .* \(0, 10\]"),
        (lambda t: t.predict(sound(1), window_s=10.1), r"window_s must be .* \(0, 10\]"),
        (lambda t: t.predict(sound(1), window_s=2, hop_s=3), r"hop_s must be .* \(0, 2\]"),
        (lambda t: t.predict(sound(1), batch_size=0), "batch_size must be a positive integer"),
        (lambda t: t.predict_each("street.wav"), "put it in a list"),
        (lambda t: t.predict([0.1, 0.2]), "numpy.asarray"),
        (lambda t: t.embed(sound(1), layer="block15"), "this network has logmel, stem, block0"),
        (lambda t: t.embed(sound(1), layer=[]), "this network has"),
        (lambda t: t.embed(sound(1), layer=None), "layer None: this network has"),
        (lambda t: t.embed(sound(1), layer=[["embedding"]]), "this network has"),
        (lambda t: t.predict(sound(1)).top(3, include=torch.tensor(2.5)), "include: a label is given by name"),
        (lambda t: t.predict(""), "a path must not be empty"),
        (lambda t: t.embed(sound(1), per="frame"), "per must be"),
        (lambda t: Tagger(t.checkpoint, device="gpu"), "device 'gpu'"),
        (lambda t: Tagger(t.checkpoint, dtype="int8"), "dtype must be one of float32"),
    ],
)
def test_bad_arguments_say_what_is_allowed(tagger, call, message):
    with pytest.raises(InvalidInputError, match=message):
        call(tagger)


def test_saved_and_loaded_again_gives_the_same_scores(tagger, tmp_path):
    tagger.save_pretrained(tmp_path / "saved")
    again = Tagger.from_pretrained(tmp_path / "saved", device="cpu")
    np.testing.assert_array_equal(again.scores(sound(2)), tagger.scores(sound(2)))


def test_embeddings_and_scores_take_windows_as_predictions_do(tagger):
    x = sound(12.3)
    windows = tagger.embed(x, per="window", window_s=4, hop_s=3)
    np.testing.assert_allclose(windows.start_s, [0, 3, 6, 8.3])
    alone = [tagger.embed(x[round(s * RATE) : round(s * RATE) + 4 * RATE]) for s in windows.start_s]
    np.testing.assert_allclose(windows.vectors, alone, rtol=1e-4, atol=1e-5)
    expected = tagger.predict(x, window_s=4, hop_s=3).scores
    np.testing.assert_array_equal(tagger.scores(x, window_s=4, hop_s=3), expected)


@pytest.mark.parametrize("call", ["predict_each", "embed_each"])
@pytest.mark.parametrize(
    ("sources", "options", "message"),
    [
        ((np.zeros(10, np.float32), 44_100), {}, r"one \(array, sample_rate\); put it in a list"),
        ([sound(1)], {"sample_rate": 44_100.5}, "sample_rate must be a whole number"),
        ([sound(1)], {"sample_rate": -1}, "sample_rate must be a whole number"),
        ([sound(1)], {"window_s": 11}, "window_s must be"),
        ([sound(1)], {"window_s": 2, "hop_s": 3}, r"hop_s must be .* \(0, 2\]"),
    ],
)
def test_what_concerns_all_sources_is_checked_before_the_first(tagger, call, sources, options, message):
    with pytest.raises(InvalidInputError, match=message):
        getattr(tagger, call)(sources, **options)


def test_an_open_file_is_one_recording_not_a_list_of_lines(tagger, tmp_path):
    soundfile.write(tmp_path / "x.wav", sound(1), RATE)
    with open(tmp_path / "x.wav", "rb") as file:
        with pytest.raises(InvalidInputError, match="put it in a list"):
            tagger.predict_each(file)
        ((_, found),) = tagger.predict_each([file])
    assert isinstance(found, Prediction)


def fresh(code, timeout=60):
    """Run a program with a tagger `tagger` and a clip `x`; its standard output."""
    program = f"""
import os, sys, threading
from audiotag import Tagger
from tests.tiny import sound, tiny_checkpoint
tagger, x = Tagger(tiny_checkpoint(), device="cpu"), sound(10)
{code}
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_goes_on_with_its_parents_tagger():
    code = """
import torch
torch.set_num_threads(2)
before = tagger.scores(x)
child = os.fork()
if not child:
    os._exit(0 if abs(tagger.scores(x) - before).max() < 1e-5 else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert fresh(code) == "0\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_stream_that_was_in_use_at_a_fork_is_an_error_in_the_child_and_others_go_on():
    code = """
stream, other = tagger.stream(), tagger.stream()
held, free = threading.Event(), threading.Event()
def hold():
    with stream._lock:
        held.set()
        free.wait()
threading.Thread(target=hold).start()
held.wait()
child = os.fork()
if not child:
    assert other.push(x)
    try:
        stream.push(x)
    except ValueError as error:
        os._exit(0 if "was forked while" in str(error) else 4)
    os._exit(3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
free.set()
"""
    assert fresh(code) == "0\n"


def test_a_run_that_was_left_does_not_keep_the_program_from_ending():
    code = """
run = tagger.predict_each([x] * 100, workers=3)
next(run)
print("left")
"""
    assert fresh(code) == "left\n"

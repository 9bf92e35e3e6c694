"""Audio for training: banks, mixing, batches, noise; and what is measured of a network on a bank."""

import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from sklearn.metrics import average_precision_score

from audiotag.config import CheckpointConfig, FrontendConfig
from audiotag.errors import InvalidInputError
from audiotag.frontend.logmel import LogMel
from audiotag.training.augment import jittered_frontend, mixup
from audiotag.training.bank import PieceBank, read_split
from audiotag.training.batches import Batches
from audiotag.training.evaluate import evaluate_bank, scores_of
from audiotag.training.mixing import (
    MixConfig,
    Mixer,
    coloured_noise,
    in_room,
    machine_noise,
    rarity_weights,
    steady,
)
from audiotag.training.prepare import prepare_bank
from audiotag.training.recipes import recipe
from audiotag.training.run import export
from tests.test_training import DYMN, MN, random_network

RATE = 32_000


def tone(hz, seconds, amplitude=0.3):
    return (amplitude * np.sin(2 * np.pi * hz * np.arange(round(RATE * seconds)) / RATE)).astype(np.float32)


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    """Five tones and a broken file, from a folder and a tar, two of them for validation, with labels."""
    root = tmp_path_factory.mktemp("bank")
    folder = root / "folder"
    folder.mkdir()
    for number in range(4):
        soundfile.write(folder / f"tone{number}.wav", tone(300 * (number + 1), 1.0), RATE)
    (folder / "broken.wav").write_bytes(b"RIFF nothing")
    soundfile.write(root / "long.flac", tone(5000, 2.5), RATE)
    with tarfile.open(root / "more.tar", "w") as tar:
        tar.add(root / "long.flac", "deep/long.flac")
    index = root / "index.csv"
    index.write_text("id,split,licence\ntone0,val,CC0\ntone1,val,CC0\nlong,train,MIT\n")
    labels = root / "labels.csv"
    labels.write_text("id,label\ntone0,Speech\ntone1,Sine wave\ntone2,Sine wave\nlong,/m/09x0r\nlong,Sine wave\n")
    count = prepare_bank([folder, root / "more.tar"], root / "out", index=index, labels=labels, max_s=1.0)
    assert count == 4 + 3  # the long one makes three pieces
    return root / "out"


def test_prepared_bank_holds_what_went_in(bank):
    pieces = PieceBank.open(bank)
    np.testing.assert_allclose(pieces[2], tone(900, 1.0), atol=2 / 32_768)
    np.testing.assert_allclose(np.concatenate([pieces[i] for i in (4, 5, 6)]), tone(5000, 2.5), atol=2 / 32_768)
    assert read_split([bank], "val").tolist() == [0, 1]
    assert "broken.wav" in (bank / "left_out.txt").read_text()
    assert "long,train" in (bank / "index.csv").read_text()
    assert np.load(bank / "labels.npy")[4:, 0].tolist() == [1, 1, 1]
    with pytest.raises(InvalidInputError, match="already holds"):
        prepare_bank([bank], bank)
    with pytest.raises(InvalidInputError, match="train, val"):
        read_split([bank], "test")


def test_mixer_is_decided_by_its_generator_and_bounded(bank):
    pieces = PieceBank.open(bank)
    mixer = Mixer(pieces, np.ones(len(pieces)), MixConfig(synthetic=0.3, clipped=0.3))
    first, again = (mixer.clips(np.random.default_rng(3), 40, 20_000) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (40, 20_000) and first.dtype == np.float32
    assert np.isfinite(first).all() and np.abs(first).max() <= 1
    assert not np.array_equal(first, mixer.clips(np.random.default_rng(4), 40, 20_000))


def test_every_way_of_mixing_makes_clips(bank):
    pieces = PieceBank.open(bank)
    ways = MixConfig(
        padded=1.0,
        excerpt=1.0,
        common_limits=1.0,
        coloured=1.0,
        room=1.0,
        machine=1.0,
        synthetic=0,
        scene=1.0,
        texture=1.0,
        equalised=1.0,
    )
    clips = Mixer(pieces, np.ones(len(pieces)), ways).clips(np.random.default_rng(0), 8, 48_000)
    assert np.isfinite(clips).all() and np.abs(clips).max() <= 1 and (np.abs(clips).max(1) > 0).all()


def test_padded_tracks_hold_silence_and_excerpts_repeat(bank):
    pieces = PieceBank.open(bank).subset(np.arange(1))
    plain = {name: 0.0 for name in ("second_piece", "third_piece", "speed", "coloured", "noise", "synthetic", "quiet")}
    still = MixConfig(**plain, clipped=0, gain_db=(0, 0), padded=1.0)
    padded = Mixer(pieces, np.ones(1), still).clips(np.random.default_rng(1), 20, 96_000)
    assert (padded == 0).mean() > 0.1
    repeated = Mixer(pieces, np.ones(1), MixConfig(**plain, clipped=0, gain_db=(0, 0), excerpt=1.0))
    for clip in repeated.clips(np.random.default_rng(1), 5, 40_000):
        spectrum = np.abs(np.fft.fft(clip[:16_000]))
        assert np.argmax(spectrum[:8_000]) * RATE / 16_000 == pytest.approx(300, abs=10)


def test_tiled_clips_repeat_as_a_whole(bank):
    """Noise and room with it, so that nothing but the tile can be the period; half of them have half the length."""
    pieces = PieceBank.open(bank)
    ways = MixConfig(tiled=1.0, noise=1.0, room=1.0, machine=1.0, noise_level_db=(0, 0), synthetic=0)
    periods = []
    for clip in Mixer(pieces, np.ones(len(pieces)), ways).clips(np.random.default_rng(0), 24, 20_000):
        shifts = [n for n in range(2_000, 20_000) if clip[n] == clip[0] and np.array_equal(clip[n:], clip[:-n])]
        periods.append(shifts[0])
    assert 6 <= periods.count(10_000) <= 18 and len(set(periods)) > 6
    others = replace(ways, tiled=0.0)
    clips = Mixer(pieces, np.ones(len(pieces)), others).clips(np.random.default_rng(0), 4, 20_000)
    assert not any(np.array_equal(clip[10_000:], clip[:10_000]) for clip in clips)


def test_a_room_rings_and_a_machine_turns():
    click = np.zeros(32_000, np.float32)
    click[0] = 1
    ringing = in_room(np.random.default_rng(0), click, 0.5, RATE)
    energy = [np.square(ringing[n : n + 4_000]).sum() for n in (1_000, 9_000, 15_000)]
    assert ringing[0] >= 1 and energy[0] > 10 * energy[1] and energy[1] > 1e-9 and np.abs(ringing[18_000:]).max() < 1e-5
    chord = tone(440, 2.0) + tone(3_000, 2.0)
    noise = steady(np.random.default_rng(0), chord)
    halves = [np.abs(np.fft.rfft(half * np.hanning(len(half)))) for half in (noise[:32_000], noise[32_000:])]
    assert all({440, 3_000} <= set(np.argsort(half)[-6:].tolist()) for half in halves)
    noises = [machine_noise(np.random.default_rng(seed), 64_000, RATE) for seed in range(6)]
    assert all(np.isfinite(noise).all() and noise.dtype == np.float32 and noise.std() > 0.1 for noise in noises)


def test_rarity_weights_even_out_labels():
    scores = np.zeros((100, 2))
    scores[:95, 0] = scores[95:, 1] = 1
    weights = rarity_weights(scores, smoothing=0)
    assert weights[:95].sum() == pytest.approx(0.5) and weights.sum() == pytest.approx(1)
    assert rarity_weights(scores * [1, 0])[95:].sum() == 0


def test_a_piece_without_weight_is_never_drawn(bank):
    pieces = PieceBank.open(bank)
    only = Mixer(
        pieces,
        np.arange(len(pieces)) == 2.0,
        MixConfig(second_piece=0, third_piece=0, synthetic=0, speed=0, coloured=0, noise=0),
    )
    for clip in only.clips(np.random.default_rng(0), 20, 8_000):
        loudest = np.abs(np.fft.rfft(clip * np.hanning(8_000))).argmax() * RATE / 8_000
        assert loudest == pytest.approx(900, abs=8)


def test_batches_go_on_where_they_stopped(bank):
    picks = read_split([bank], "train")
    whole = Batches(PieceBank.open(bank).subset(picks), recipe("features"), seed=1)
    stream = iter(whole)
    batches = [next(stream)["waveform"] for _ in range(3)]
    later = Batches(PieceBank.open(bank).subset(picks), recipe("features"), seed=1)
    later.first_step = 2
    torch.testing.assert_close(next(iter(later))["waveform"], batches[2], atol=0, rtol=0)
    other = Batches(PieceBank.open(bank).subset(picks), recipe("features"), seed=1, process=1)
    assert not torch.equal(next(iter(other))["waveform"], batches[0])


def test_offline_batches_carry_labels_and_logits(bank):
    labels = np.load(bank / "labels.npy")
    logits = np.arange(labels.size, dtype=np.float32).reshape(labels.shape) % 7 - 6
    batches = Batches(PieceBank.open(bank), recipe("paper"), logits=logits, labels=labels)
    batch = batches.batch(0)
    assert batch["waveform"].shape == (120, 320_000)
    picked = [int(np.flatnonzero((logits == row.numpy()).all(1))[0]) for row in batch["logits"]]
    np.testing.assert_array_equal(batch["labels"].numpy(), labels[picked])
    with pytest.raises(InvalidInputError, match="labels"):
        Batches(PieceBank.open(bank), recipe("paper"), logits=logits)
    with pytest.raises(InvalidInputError, match="logits"):
        Batches(PieceBank.open(bank), recipe("paper"), labels=labels)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_noise_has_its_colour(exponent):
    power = np.abs(np.fft.rfft(coloured_noise(np.random.default_rng(0), 64_000, exponent))) ** 2
    octaves = [power[n : 2 * n].mean() for n in (1_000, 2_000, 4_000, 8_000, 16_000)]
    np.testing.assert_allclose(np.diff(np.log2(octaves)), -2 * exponent, atol=0.2)


def test_jitter_moves_the_filterbank_within_bounds():
    for seed in range(5):
        config = jittered_frontend(FrontendConfig(), np.random.default_rng(seed), 1000.0).config
        assert 0 <= config.fmin_hz <= 10 and 14_000 <= config.fmax_hz <= 16_000
        assert config != FrontendConfig()


def test_mixup_mixes_everything_alike():
    x = torch.eye(6)
    a, b = mixup(np.random.default_rng(0), 0.3, x, 2 * x)
    torch.testing.assert_close(2 * a, b)
    torch.testing.assert_close(a.sum(1), torch.ones(6))
    assert (a.diagonal() >= 0.5).all() and (a.diagonal() < 1).any()


# Evaluation and export


def test_export_evaluate_and_report(bank, tmp_path):
    network, config = random_network(DYMN), CheckpointConfig(name="tiny", network=DYMN)
    path = export(network, config, {"licence": "MIT"}, tmp_path / "m.safetensors")
    teacher = export(random_network(MN), CheckpointConfig(name="t", network=MN), {}, tmp_path / "t.safetensors")
    report = evaluate_bank(bank, tmp_path / "report", checkpoint=str(path), teacher=str(teacher))
    plain = json.loads((tmp_path / "report" / "report.json").read_text())
    assert plain["n_clips"] == 2 and plain["checkpoint"] == "tiny"
    assert plain["agreement"]["class_mean_ap"] is None  # no label has three positives in two clips
    assert plain["labels"]["n_labels"] == 2 and report.summary().startswith("tiny")
    assert (tmp_path / "report" / "report.png").read_bytes().startswith(b"\x89PNG")
    pieces = PieceBank.open(bank).subset(read_split([bank], "val"))
    scores = scores_of(network, config, pieces)
    labels = np.load(bank / "labels.npy")[read_split([bank], "val")]
    used = [c for c in range(527) if 0 < labels[:, c].sum() < 2]
    expected = np.mean([average_precision_score(labels[:, c], scores[:, c]) for c in used])
    assert report.labels.mean_ap == pytest.approx(expected)
    tiled = LogMel()(torch.from_numpy(np.tile(pieces[0], 10))[None])
    np.testing.assert_allclose(scores[0], network(tiled).logits.sigmoid().detach().numpy()[0], atol=1e-5)


def test_export_refuses_weights_that_are_not_finite(tmp_path):
    network = random_network(DYMN)
    with torch.no_grad():
        network.classifier[2].weight[0, 0] = 1e6
    with pytest.raises(InvalidInputError, match=r"classifier\.2\.weight"):
        export(network, CheckpointConfig(network=DYMN), {}, tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())

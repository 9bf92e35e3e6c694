"""Training without Lightning: losses, schedules, audio, and the fast form of the blocks."""

import json
import math
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from sklearn.metrics import average_precision_score

from audiotag.config import CheckpointConfig, FrontendConfig, NetworkConfig
from audiotag.errors import InvalidInputError
from audiotag.frontend.logmel import LogMel
from audiotag.networks.build import build_network
from audiotag.training.augment import jittered_frontend, mixup
from audiotag.training.bank import PieceBank, read_split
from audiotag.training.batches import Batches
from audiotag.training.evaluate import evaluate_bank, scores_of
from audiotag.training.feature_maps import channel_error, map_variances, student_maps, teacher_maps
from audiotag.training.inherit import exact_blocks, inherit
from audiotag.training.mixing import (
    MixConfig,
    Mixer,
    coloured_noise,
    in_room,
    machine_noise,
    rarity_weights,
    steady,
)
from audiotag.training.objectives import (
    check_teacher,
    ensemble_scores,
    gates_objective,
    logit_loss,
    score_loss,
    set_trainable,
    whole_objective,
)
from audiotag.training.pool import MapPool
from audiotag.training.prepare import prepare_bank
from audiotag.training.recipes import Phase, read_recipe, recipe, write_recipe
from audiotag.training.run import export
from audiotag.training.schedule import rate_factor, temperature_at

RATE = 32_000
DYMN, MN = NetworkConfig("dymn", 0.1), NetworkConfig("mn", 0.1)


def random_network(config, seed=0):
    """Random weights, attentions that are not all alike, and batch norms that have seen such input."""
    torch.manual_seed(seed)
    network = build_network(config).train()
    for name, value in network.state_dict().items():
        if "residuals" in name or "coef_net" in name:
            value.normal_(0, 0.5)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network(torch.randn(4, 1, 128, 64))
    return network.eval()


@pytest.fixture(scope="module")
def logmel():
    return torch.randn(2, 1, 128, 96, generator=torch.Generator().manual_seed(0))


# Losses and schedules, against hand computation


def test_score_loss_by_hand():
    logits = torch.tensor([[0.0, 2.0]])
    teacher, labels = torch.tensor([[0.5, 0.1]]), torch.tensor([[1.0, 0.0]])

    def bce(z, p):
        q = 1 / (1 + math.exp(-z))
        return -(p * math.log(q) + (1 - p) * math.log(1 - q))

    soft, hard = (bce(0, 0.5) + bce(2, 0.1)) / 2, (bce(0, 1) + bce(2, 0)) / 2
    assert score_loss(logits, teacher).item() == pytest.approx(soft, rel=1e-5)
    assert score_loss(logits, teacher, labels, label_share=0.1).item() == pytest.approx(
        0.9 * soft + 0.1 * hard, rel=1e-5
    )
    with pytest.raises(InvalidInputError, match="label_share"):
        score_loss(logits, teacher, label_share=0.1)


def test_logit_loss_is_nothing_for_the_teacher_itself():
    teacher = torch.tensor([[-3.0, 0.5, 4.0]])
    assert logit_loss(teacher, teacher).item() == pytest.approx(0, abs=1e-6)
    p, q = 1 / (1 + math.exp(-1)), 0.5
    kl = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert logit_loss(torch.zeros(1, 1), torch.ones(1, 1)).item() == pytest.approx(kl, rel=1e-5)


def test_channel_error_is_relative_and_bounded_for_dead_channels():
    rng = torch.Generator().manual_seed(0)
    target = torch.randn(4, 2, 5, 7, generator=rng) * torch.tensor([1.0, 1e-6])[:, None, None]
    live = target[:, :1] - target[:, :1].mean()
    one = channel_error(live * 0, live, live.var(unbiased=False)[None], floor=0.0)
    assert one.item() == pytest.approx(1, rel=0.01)  # predicting the mean is an error of one variance
    variance = target.var((0, 2, 3))
    assert channel_error(target + 0.1, target, variance, floor=0.1).item() < 0.2  # not 1e10, as the dead channel's says


def test_rate_and_temperature():
    paper = {"warmup": 8, "rampdown_start": 80, "rampdown": 95, "last": 0.01}
    assert rate_factor(0, **paper) == pytest.approx(math.exp(-5))
    assert rate_factor(4, **paper) == pytest.approx(math.exp(-1.25))
    assert [rate_factor(epoch, **paper) for epoch in (8, 79, 80)] == [1, 1, 1]
    assert rate_factor(80 + 47.5, **paper) == pytest.approx(0.505)
    assert rate_factor(500, **paper) == pytest.approx(0.01)
    assert rate_factor(9, warmup=1, rampdown_start=1, rampdown=0, last=0.01) == 1
    assert [temperature_at(step, start=30, end=1, steps=10) for step in (0, 5, 10, 99)] == [30, 15.5, 1, 1]


def test_recipes():
    paper = recipe("paper")
    assert paper.label_share == 0.1 and paper.mixup_alpha == 0.3 and paper.phases[0].learning_rate == 8e-4
    ours = recipe("features")
    phase, within = ours.at(ours.phases[0].steps + 3)
    assert (phase.objective, phase.first_block, within) == ("whole", 10, 3)
    assert abs(ours.scaled(0.5).steps - ours.steps / 2) <= len(ours.phases)
    with pytest.raises(InvalidInputError, match="features, paper"):
        recipe("papr")
    with pytest.raises(InvalidInputError, match="objective"):
        Phase("block", 1, 1.0, 1, 1e-3)
    with pytest.raises(InvalidInputError, match="fresh_clips"):
        Phase("whole", 1, 1.0, 1, 1e-3, fresh_clips=2)


def test_a_recipe_survives_its_file(tmp_path):
    for name in ("features", "paper"):
        write_recipe(recipe(name), tmp_path / "r.json")
        assert read_recipe(tmp_path / "r.json") == recipe(name) == recipe(str(tmp_path / "r.json"))
    plain = json.loads((tmp_path / "r.json").read_text())
    for broken in ({**plain, "epochs": 3}, {**plain, "phases": [{"objective": "scores"}]}, {}, []):
        (tmp_path / "r.json").write_text(json.dumps(broken))
        with pytest.raises(InvalidInputError, match=r"r\.json"):
            read_recipe(tmp_path / "r.json")


# The blocks' training form and the places in them


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_student_maps_are_the_networks_own(logmel, mode):
    network = random_network(DYMN)
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    getattr(network, mode)()
    maps = student_maps(network, logmel)
    out = network(logmel, taps=("block3", "block14", "hidden"))
    torch.testing.assert_close(maps.logits, out.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(maps.stages[3].out.mean((2, 3)), out.taps["block3"], atol=1e-4, rtol=1e-4)


def test_student_gradients_are_the_networks_own(logmel):
    network = random_network(DYMN).double()
    grads = []
    for run in (lambda: student_maps(network, logmel.double()).logits, lambda: network(logmel.double()).logits):
        network.zero_grad()
        run().square().sum().backward()
        grads.append({name: p.grad.clone() for name, p in network.named_parameters()})
    for name in grads[0]:
        torch.testing.assert_close(grads[0][name], grads[1][name], atol=1e-6, rtol=1e-6, msg=name)


def test_teacher_maps_are_the_networks_own(logmel):
    network = random_network(MN)
    maps = teacher_maps(network, logmel)
    out = network(logmel, taps=("stem", "block5", "block14", "embedding"))
    torch.testing.assert_close(maps.logits, out.logits)
    torch.testing.assert_close(maps.before.mean((2, 3)), out.taps["stem"])
    torch.testing.assert_close(maps.stages[5].out.mean((2, 3)), out.taps["block5"])
    assert len(maps.stages) == 15 and maps.given(6) is maps.stages[5].out
    later = teacher_maps(network, maps.given(6), first=6)
    torch.testing.assert_close(later.logits, out.logits)


def test_a_student_inherits_all_that_is_static(logmel):
    teacher, student = random_network(MN), random_network(DYMN, 1)
    assert exact_blocks(teacher) == 3
    before = teacher_maps(teacher, logmel).logits
    inherit(student, teacher, logmel)
    ours, theirs = student(logmel, taps=("stem", "block2")), teacher(logmel, taps=("stem", "block2"))
    for name in ("stem", "block2"):  # as far as a DyMN can repeat it, exactly
        torch.testing.assert_close(ours.taps[name], theirs.taps[name], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(theirs.logits, before)
    maps = teacher_maps(teacher, logmel)
    for number in (4, 12):  # and in every block up to what follows the depthwise convolution
        stage = student_maps(student, maps.given(number), first=number).stages[0]
        torch.testing.assert_close(stage.filtered, maps.stages[number].filtered, atol=1e-4, rtol=1e-4)


def trained(objective, teacher, student, x, steps=40, **options):
    """Losses of a student that learns with one objective."""
    phase = Phase(objective, steps, 1.0, len(x), 1e-2, **options)
    scale = map_variances([teacher_maps(teacher, x)])
    front = teacher_maps(teacher, x)
    begin = front.given(phase.first_block)
    taught = teacher_maps(teacher, begin, first=phase.first_block)
    set_trainable(phase, student)
    rate = 1e-2 if objective == "gates" else 1e-3
    optimiser = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], lr=rate)
    losses = []
    for _ in range(steps):
        if objective == "gates":
            loss, parts = gates_objective(phase, student, taught, scale)
        else:
            loss, parts = whole_objective(phase, student, begin, taught, scale)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses, parts


@pytest.mark.parametrize("objective", ["gates", "whole"])
def test_student_learns_from_features(logmel, objective):
    teacher, student = random_network(MN), random_network(DYMN, 1)
    inherit(student, teacher, logmel)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    losses, parts = trained(objective, teacher, student, logmel, first_block=3, first_kernel_block=10)
    assert np.mean(losses[-5:]) < 0.5 * losses[0], losses
    blocks = [name for name in parts if name.startswith("block")]
    assert blocks == [f"block{i}" for i in range(3, 15)]
    changed = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(name.startswith(("in_c", "layers.0.", "layers.1.", "layers.2.")) for name in changed)
    assert not any("running" in name for name in changed)
    assert any(name.startswith("classifier") for name in changed) == (objective == "whole")
    assert ("layers.12.depth_conv.weight" in changed) == (objective == "whole")
    assert "layers.5.depth_conv.weight" not in changed and "layers.5.depth_act.coef_net.0.weight" in changed


def test_gates_are_right_where_the_whole_is(logmel):
    """Nothing is left to learn where teacher and student are one: the errors are those of blocks that differ."""
    teacher, student = random_network(MN), random_network(DYMN, 1)
    inherit(student, teacher, logmel)
    maps = teacher_maps(teacher, logmel)
    _, parts = gates_objective(Phase("gates", 1, 1.0, 2, 1e-3), student, maps, map_variances([maps]))
    assert all(parts[f"block{i}"] < 1e-9 for i in range(3)) and parts["block3"] > 1e-9


def test_a_pool_keeps_the_last_clips():
    pool = MapPool(4)
    pool.put([torch.arange(3.0)[:, None], 10 * torch.arange(3.0)[:, None]], 0)
    first, second = pool.draw(np.random.default_rng(0), 3, 1)
    assert first[0] == 2 and set(first.flatten().tolist()) <= {0.0, 1.0, 2.0}
    torch.testing.assert_close(10 * first, second)
    pool.put([torch.arange(3.0, 6.0)[:, None]] * 2, 3)
    seen = set()
    for seed in range(30):
        seen |= set(pool.draw(np.random.default_rng(seed), 3, 1)[0].flatten().tolist())
    assert seen == {2.0, 3.0, 4.0, 5.0}


def test_feature_objectives_need_a_teacher_of_the_same_shape():
    with pytest.raises(InvalidInputError, match="width"):
        check_teacher(build_network(NetworkConfig("mn", 0.2)), build_network(DYMN))
    with pytest.raises(InvalidInputError, match="static MN"):
        check_teacher(build_network(DYMN), build_network(DYMN))


def test_ensemble_is_the_mean_of_scores(logmel):
    teachers = [random_network(MN, seed) for seed in (1, 2)]
    expected = sum(teacher(logmel).logits.sigmoid() for teacher in teachers) / 2
    torch.testing.assert_close(ensemble_scores(teachers, logmel), expected)


# Audio


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

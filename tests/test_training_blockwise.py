"""Blockwise training: fits at a few places against whole maps, and tiny runs that are killed and go on."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from audiotag.checkpoints.load import build, load_checkpoint
from audiotag.cli import main
from audiotag.config import CheckpointConfig, NetworkConfig
from audiotag.errors import InvalidInputError
from audiotag.networks.build import build_network
from audiotag.training.blockwise import clips as scored_clips
from audiotag.training.blockwise import fits
from audiotag.training.blockwise.clips import ScoredClips, at_places, prepare_clips, read_clips, score_clips, turned
from audiotag.training.blockwise.fits import (
    GateInputs,
    StudentMaps,
    gates_error,
    minimise,
    trained_parts,
)
from audiotag.training.blockwise.plan import Fit, Plan, dict_of, read_plan
from audiotag.training.blockwise.run import train_blockwise
from audiotag.training.feature_maps import channel_error
from audiotag.training.inherit import exact_blocks
from audiotag.training.mixing import MixConfig, split_mixer
from audiotag.training.run import export
from tests.test_training import random_network

STUDENT, TEACHER = NetworkConfig("dymn", 0.1), NetworkConfig("mn", 0.1)


def fit(objective, steps=4, **options):
    return Fit(objective, steps, batch_size=4, learning_rate=3e-3, warmup_steps=1, **options)


PLAN = Plan(
    "tiny",
    "teacher.safetensors",
    ("bank",),
    (
        fit("blocks"),
        fit("head"),
        fit("whole", first_block=12, feature_weight=0.1, gradient_clip=5.0, checks=2),
    ),
    seed=3,
    mix=MixConfig(room=0.5, coloured=0.5),
    clip_s=0.5,
    clips=10,
    held_out_clips=4,
    places=3,
    threshold_clips=8,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Folder of a plan: a bank of noise and tones with an index, and a teacher."""
    base = tmp_path_factory.mktemp("base")
    bank = base / "bank"
    bank.mkdir()
    rng, t = np.random.default_rng(0), np.arange(8_000) / 32_000
    pieces = [rng.standard_normal(8_000) * 3_000 for _ in range(3)]
    pieces += [8_000 * np.sin(2 * np.pi * hz * t) for hz in (400, 2_000, 6_000)]
    np.concatenate(pieces).astype("<i2").tofile(bank / "pcm.i16")
    split = ["train", "train", "val"] * 2
    np.savez(bank / "pieces.npz", start=np.arange(6) * 8_000, length=np.full(6, 8_000), split=np.array(split))
    rows = [f"{n},{split[n]},{('noise', 'tones')[n // 3]},CC0 1.0" for n in range(6)]
    (bank / "index.csv").write_text("\n".join(["id,split,source,licence", *rows]) + "\n")
    teacher = random_network(TEACHER)
    export(teacher, CheckpointConfig(name="teacher", network=TEACHER), {}, base / "teacher.safetensors")
    return base


def write_plan(base, plan=PLAN, name="plan.json"):
    (base / name).write_text(json.dumps(dict_of(plan)))
    return base / name


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """A run that nothing stopped, and its lines."""
    out, lines = tmp_path_factory.mktemp("runs") / "whole", []
    train_blockwise(write_plan(base), out, tell=lines.append)
    return out, lines


def scored(student, x, places, *, first=0):
    """Clips as a teacher would have scored them, aiming at noise, with all or some places."""
    rng, y, out = torch.Generator().manual_seed(1), x, []
    for block in student.layers[first:]:
        y = block(y)
        out.append(torch.randn(y.shape, generator=rng))
    where = [places(o[0, 0].numel()) for o in out]
    targets = [at_places(o, w).half() for o, w in zip(out, where, strict=True)]
    clips = ScoredClips(list(x.half()), where, targets, torch.zeros(len(x), 8), torch.zeros(len(x), 527))
    return clips, out


@pytest.mark.parametrize("number", [3, 5, 6, 7, 12, 14])
def test_gates_at_all_places_give_the_blocks_own_error(number):
    """Strides 1 and 2, with and without a residual: against the textbook block on the whole map, and its gradient."""
    student = random_network(STUDENT)
    block = student.layers[number]
    x = torch.randn(3, block.context_gen.joint_conv.in_channels, 8, 12, generator=torch.Generator().manual_seed(0))
    x = x.half().float()  # as it is kept
    with torch.no_grad():
        y = block(x)
    target = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).half()
    places = torch.stack([torch.randperm(y[0, 0].numel()) for _ in x]).int()
    variance = torch.rand(y.shape[1]) + 0.5
    inputs = GateInputs.of(block, list(x.half()), places, at_places(target, places))
    block.proj_conv.weight.requires_grad_(True).grad = None
    found = gates_error(block, inputs, torch.arange(3), variance)
    found.backward()
    ours = block.proj_conv.weight.grad.clone()
    block.proj_conv.weight.grad = None
    expected = channel_error(block(x), target, variance)
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), rel=2e-3)
    np.testing.assert_allclose(ours, block.proj_conv.weight.grad, atol=5e-3 * float(ours.abs().max()))


def test_maps_of_the_student_are_its_own_and_follow_its_weights():
    student = random_network(STUDENT).requires_grad_(False)
    x = torch.randn(20, student.layers[10].context_gen.joint_conv.in_channels, 4, 6)
    clips, _ = scored(student, x, lambda n: torch.zeros(20, 1, dtype=torch.int32), first=10)
    maps = StudentMaps(student, clips, 10)
    y = student.layers[11](student.layers[10](x.half().float()))
    np.testing.assert_allclose(torch.stack(maps.before(12)), y, atol=2e-2 * float(y.abs().max()))
    student.layers[11].proj_norm.bias.add_(1.0)
    maps.changed(12)
    stale = torch.stack(maps.before(12)).float()
    maps.changed(11)
    np.testing.assert_allclose(torch.stack(maps.before(12)).float() - stale, 1.0, atol=2e-2)


def test_scored_clips_are_the_teachers_maps(base, tmp_path):
    """Whatever of them was on the disk: the same clips, and the values of the teacher's own forward pass."""
    teacher = random_network(TEACHER).requires_grad_(False)
    mixer = split_mixer([base / "bank"], "train")
    options = {"seed": 5, "samples": 16_000, "places": 4, "turns": 0}
    assert list(prepare_clips(tmp_path, "train", 9, teacher, mixer, **options)) == [9]
    clips = read_clips(tmp_path, "train", 9)
    (tmp_path / "train-000000.safetensors").unlink()
    list(prepare_clips(tmp_path, "train", 9, teacher, mixer, **options))
    assert torch.equal(read_clips(tmp_path, "train", 9).logits, clips.logits)
    y = torch.stack(clips.before).float()
    for number, layer in enumerate(list(teacher.features)[exact_blocks(teacher) + 1 : -1]):
        y = layer(y)
        expected = torch.stack([m.flatten(1)[:, p.long()] for m, p in zip(y, clips.places[number], strict=True)])
        np.testing.assert_allclose(clips.out[number].float(), expected, atol=2e-2 * float(y.abs().max()))
    logits = teacher.classifier(teacher.features[-1](y))
    np.testing.assert_allclose(clips.logits, logits, atol=2e-2 * float(logits.abs().max()))
    np.testing.assert_allclose(
        clips.variances().out[0], clips.out[0].float().transpose(0, 1).flatten(1).numpy().var(1, ddof=1), rtol=1e-4
    )


def test_every_pass_takes_every_clip_and_goes_on_anywhere():
    batches = fits._shuffled(10, 3, (1, 2), 0)
    drawn = [next(batches).tolist() for _ in range(6)]
    for part in (drawn[:3], drawn[3:]):
        assert len({clip for batch in part for clip in batch}) == 9
    assert drawn[:3] != drawn[3:]
    later = fits._shuffled(10, 3, (1, 2), 4)
    assert [next(later).tolist() for _ in range(2)] == drawn[4:]


def test_a_target_may_be_the_mean_over_turns(base, monkeypatch):
    teacher = random_network(TEACHER).requires_grad_(False)
    mixer, options = split_mixer([base / "bank"], "train"), {"count": 3, "samples": 16_000, "places": 4}

    def logits(turns):
        return score_clips(teacher, mixer, np.random.default_rng(1), turns=turns, **options)["logits"]

    plain = logits(0)
    assert not torch.equal(logits(2), plain)
    monkeypatch.setattr(scored_clips, "turned", lambda rng, mel: torch.ones_like(mel))
    one = teacher(torch.ones(1, 1, 128, 50)).logits
    np.testing.assert_allclose(logits(2), (plain + 2 * one) / 3, rtol=1e-4, atol=1e-5)


def test_turned_clips_begin_elsewhere_and_lose_nothing():
    mel = torch.arange(50.0).expand(20, 1, 3, 50)
    out = turned(np.random.default_rng(0), mel)
    starts = out[:, 0, 0, 0].long()
    assert len(set(starts.tolist())) > 10 and starts.min() >= 6 and starts.max() < 44
    assert torch.equal(out, (mel + starts[:, None, None, None]) % 50)


def fitted(parameters, loss, check, path, **options):
    rows = []
    minimise(
        replace(fit("head", 40), **options),
        parameters,
        loss,
        8,
        path / "state.pt",
        seed=(0,),
        check=check,
        tell=lambda step, loss, held: rows.append((step, held[0])),
    )
    return rows


@pytest.mark.parametrize(("sign", "expected"), [(-1, 1.0), (1, 0.0)])
def test_the_best_state_on_held_out_clips_is_kept(tmp_path, sign, expected):
    """Clips that teach the opposite of what the held-out ones say, and clips that teach the same."""
    x = torch.nn.Parameter(torch.ones(1))
    squared = x.square
    options = {"learning_rate": 0.2}
    rows = fitted(
        {"x": x}, lambda picks: sign * squared().sum(), lambda: [float(squared().detach())], tmp_path, **options
    )
    assert float(x.detach()) == pytest.approx(expected, abs=0.1)
    assert [step for step, _ in rows] == [0, 10, 20, 30, 40] and not x.requires_grad
    assert float(squared()) == pytest.approx(min(held for _, held in rows))


def test_a_fit_that_diverges_says_so(tmp_path):
    x = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(InvalidInputError, match="lower learning_rate 1e"):
        fitted({"x": x}, lambda picks: x.square().sum(), lambda: [float(x.detach().exp())], tmp_path, learning_rate=1e6)


def test_gates_learn_those_of_another_block(tmp_path):
    student, teacher = random_network(STUDENT), random_network(STUDENT, 1)
    block, other = student.layers[11], teacher.layers[11]
    for part in ("exp_conv", "exp_norm", "depth_conv", "depth_norm"):
        getattr(block, part).load_state_dict(getattr(other, part).state_dict())
    for one in (block, other):  # dynamic kernels behind a context that both have
        one.context_gen.load_state_dict(other.context_gen.state_dict())
    x = torch.randn(8, other.context_gen.joint_conv.in_channels, 4, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = other(x)
    places = torch.arange(y[0, 0].numel()).expand(8, -1)
    inputs = GateInputs.of(block, list(x.half()), places, at_places(y, places))
    variance = y.transpose(0, 1).flatten(1).var(1)
    parameters = trained_parts(fit("blocks"), student, 11)
    assert {name.split(".")[2] for name in parameters} == {"context_gen", "depth_act", "proj_conv", "proj_norm"}
    assert all(name.startswith("layers.11.") for name in parameters)

    def error(picks):
        return gates_error(block, inputs, picks, variance)

    rows = fitted(parameters, error, lambda: [float(error(torch.arange(8)).detach())], tmp_path, steps=150)
    assert rows[-1][1] < 0.3 * rows[0][1]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("steps_done", [2, 30, 51, 55])
def test_a_killed_run_goes_on_to_the_same_network(base, whole, tmp_path, monkeypatch, steps_done):
    """Killed in the first block, in a later one, in the head, and in the last phase, between two states."""
    monkeypatch.setattr(fits, "STATE_STEPS", 1)
    original, count = torch.optim.Adam.step, 0

    def step(self, *args, **options):
        nonlocal count
        if count == steps_done:
            raise Killed
        count += 1
        return original(self, *args, **options)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    with pytest.raises(Killed):
        train_blockwise(base / "plan.json", tmp_path / "run")
    monkeypatch.undo()
    resumed = train_blockwise(base / "plan.json", tmp_path / "run")
    assert resumed.read_bytes() == (whole[0] / "model.safetensors").read_bytes()
    ours, theirs = (json.loads((folder / "record.json").read_text()) for folder in (tmp_path / "run", whole[0]))
    assert ours["curve"] == theirs["curve"]
    assert not list((tmp_path / "run" / "fits").glob("*.pt"))


def test_a_run_leaves_its_record_and_can_be_repeated_from_it(base, whole, tmp_path):
    record = json.loads((whole[0] / "record.json").read_text())
    assert record["plan"] == dict_of(PLAN) and record["versions"]["torch"] == torch.__version__
    assert record["banks"]["bank"]["pieces"] == {"train": 4, "val": 2}
    assert record["banks"]["bank"]["sources"] == {"CC0 1.0": {"noise": 3, "tones": 3}}
    copy = base / "copy.json"
    copy.write_text((whole[0] / "record.json").read_text())
    again = train_blockwise(copy, tmp_path / "again")
    assert again.read_bytes() == (whole[0] / "model.safetensors").read_bytes()
    made = load_checkpoint(again)
    assert made.config.name == "tiny" and made.config.network == STUDENT and made.config.thresholds is not None


def test_a_plan_may_go_on_from_another(base, whole, tmp_path):
    """From the network that the plan before it gave: made anew, or taken over where the folder holds it."""
    last = replace(PLAN, phases=(fit("whole", first_block=10),), seed=9, threshold_clips=0, before=PLAN, turns=1)
    plan = write_plan(base, last, "further.json")
    assert read_plan(plan) == last
    with pytest.raises(InvalidInputError, match=r"another plan \(before, phases, seed, threshold_clips, turns\)"):
        train_blockwise(plan, whole[0])
    shutil.copytree(whole[0], tmp_path / "run" / "before")
    made = train_blockwise(plan, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    earlier = json.loads((whole[0] / "record.json").read_text())
    assert record["plan"]["before"] == dict_of(PLAN) and record["before"]["curve"] == earlier["curve"]
    student = build(load_checkpoint(whole[0] / "model.safetensors")).eval()
    held = read_clips(tmp_path / "run" / "clips", "val", PLAN.held_out_clips)
    begun = fits.held_out_losses(student, StudentMaps(student, held, 3))
    np.testing.assert_allclose(record["curve"][0][4:], begun, rtol=1e-2)
    assert sum(record["curve"][-1][4:]) <= 1.001 * sum(begun)  # the log has four digits
    shutil.copy(tmp_path / "run" / "record.json", base / "further-record.json")
    again = train_blockwise(base / "further-record.json", tmp_path / "again")
    assert again.read_bytes() == made.read_bytes()


def test_the_average_with_the_network_before_may_be_exported(base, whole, tmp_path):
    last = replace(PLAN, phases=(replace(fit("whole", first_block=10), learning_rate=2e-4),), seed=9, threshold_clips=0)
    states = {}
    for share in (0.0, 0.25):
        folder = tmp_path / str(share)
        shutil.copytree(whole[0], folder / "before")
        plan = write_plan(base, replace(last, before=PLAN, before_share=share), f"share{share}.json")
        states[share] = load_checkpoint(train_blockwise(plan, folder)).state
    begun = load_checkpoint(whole[0] / "model.safetensors").state
    shares = []
    for name, value in states[0.25].items():
        average, end, begin = (np.asarray(one, np.float64).ravel() for one in (value, states[0.0][name], begun[name]))
        np.testing.assert_allclose(average, 0.75 * end + 0.25 * begin, rtol=2e-3, atol=1e-6)  # kept as float16
        far = np.abs(begin - end) > 0.02 * np.abs(end)
        shares.append((average - end)[far] / (begin - end)[far])
    assert np.concatenate(shares).size > 100
    assert np.median(np.concatenate(shares)) == pytest.approx(0.25, abs=0.01)
    record = json.loads((tmp_path / "0.25" / "record.json").read_text())
    assert record["plan"]["before_share"] == 0.25 and record["plan"]["before"]["before_share"] == 0
    student = build(load_checkpoint(tmp_path / "0.25" / "model.safetensors")).eval()
    held = StudentMaps(student, read_clips(tmp_path / "0.25" / "clips", "val", PLAN.held_out_clips), 3)
    np.testing.assert_allclose(record["curve"][-1][4:], fits.held_out_losses(student, held), rtol=0.05, atol=1e-6)
    for share, before in ((1.0, PLAN), (-0.1, PLAN), (0.5, None)):
        with pytest.raises(InvalidInputError, match="before_share"):
            replace(last, before=before, before_share=share)


def test_the_log_tells_every_fit_and_no_phase_raises_the_held_out_loss(whole):
    rows = json.loads((whole[0] / "record.json").read_text())["curve"]
    assert all([row[2] for row in rows if row[:2] == [0, block]] == [0, 1, 2, 3, 4] for block in range(3, 15))
    assert [row[2] for row in rows if row[:2] == [2, 12]] == [0, 2, 4]
    after = [sum(next(row for row in rows if row[:2] == [phase, 16])[4:]) for phase in range(3)]
    assert after[1] <= after[0] + 1e-3 and after[2] <= after[1] + 1e-3


def test_first_blocks_stay_the_teachers_own(base, whole):
    state, theirs = (
        load_checkpoint(whole[0] / "model.safetensors").state,
        load_checkpoint(base / "teacher.safetensors").state,
    )
    np.testing.assert_array_equal(state["in_c.0.weight"], theirs["features.0.0.weight"])
    conv = state["layers.1.depth_conv.weight"][0, 0]
    assert (conv == conv[:1]).all()


def test_whole_never_begins_before_what_is_the_teachers_own(base, tmp_path):
    """first_block 0 is the first that is not: the same network as with its number."""
    short = replace(PLAN, threshold_clips=0, clips=4)
    made = []
    for first in (0, 3):
        plan = replace(short, phases=(fit("whole", first_block=first, feature_weight=0.1),))
        made.append(train_blockwise(write_plan(base, plan, f"first{first}.json"), tmp_path / f"{first}"))
    assert made[0].read_bytes() == made[1].read_bytes()


def test_a_folder_holds_one_plan(base, whole):
    with pytest.raises(InvalidInputError, match=r"another plan \(seed\)"):
        train_blockwise(write_plan(base, replace(PLAN, seed=4), "other.json"), whole[0])


def test_a_folder_written_before_a_field_was_there_holds_the_same_plan(base, whole, tmp_path):
    """A younger field's default is what was done then; another value of it is another plan."""
    run = shutil.copytree(whole[0], tmp_path / "run")
    plain = dict_of(PLAN)
    for name in ("before", "before_share", "turns"):
        del plain[name]
    del plain["mix"]["tiled"]
    (run / "plan.json").write_text(json.dumps(plain))
    assert train_blockwise(write_plan(base), run).read_bytes() == (whole[0] / "model.safetensors").read_bytes()
    (run / "plan.json").write_text(json.dumps(plain))
    with pytest.raises(InvalidInputError, match=r"another plan \(mix\)"):
        train_blockwise(write_plan(base, replace(PLAN, mix=replace(PLAN.mix, tiled=0.5)), "tiled.json"), run)


def test_plans_that_cannot_be(base, tmp_path):
    good = dict_of(PLAN)
    with pytest.raises(InvalidInputError, match="same teacher"):
        replace(PLAN, before=replace(PLAN, teacher="other.safetensors"))
    assert read_plan(write_plan(tmp_path)) == PLAN
    broken = [{**good, "epochs": 3}, {**good, "phases": [{"objective": "blocks"}]}, {**good, "clips": 0}, {}, []]
    broken += [{**good, "turns": -1}]
    broken += [{**good, "phases": [{**good["phases"][0], "objective": "gates"}]}, {**good, "banks": []}]
    for plain in broken:
        (tmp_path / "p.json").write_text(json.dumps(plain))
        with pytest.raises(InvalidInputError, match=r"p\.json"):
            read_plan(tmp_path / "p.json")
    student = build_network(STUDENT)
    export(student, CheckpointConfig(name="s", network=STUDENT), {}, base / "dymn.safetensors")
    with pytest.raises(InvalidInputError, match="static MN"):
        train_blockwise(write_plan(base, replace(PLAN, teacher="dymn.safetensors"), "wrong.json"), tmp_path / "w")


def test_command_line(base, whole, capsys):
    """A run that is whole already is left as it is."""
    before = (whole[0] / "model.safetensors").read_bytes()
    assert main(["train", "open", str(base / "plan.json"), "--out", str(whole[0])]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == str(whole[0] / "model.safetensors") and not err
    assert (whole[0] / "model.safetensors").read_bytes() == before
    assert main(["train", "open", str(base / "none.json"), "--out", str(base / "x")]) == 2
    assert "none.json" in capsys.readouterr().err

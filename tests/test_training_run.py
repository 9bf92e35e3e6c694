"""Whole training runs on Lightning: tiny, but stopped, resumed, averaged and exported like the long ones."""

import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from audiotag.checkpoints.load import load_checkpoint
from audiotag.cli import main
from audiotag.config import CheckpointConfig, NetworkConfig
from audiotag.errors import InvalidInputError, MissingDependencyError
from audiotag.networks.build import build_network
from audiotag.training.evaluate import plot_log
from audiotag.training.mixing import MixConfig
from audiotag.training.recipes import Phase, Recipe, recipe
from audiotag.training.run import distil, export, read_log

pytest.importorskip("lightning", reason="training runs need Lightning: pip install audiotag-dymn[train]")

from audiotag.training import module as module_file

STUDENT, TEACHER = NetworkConfig("dymn", 0.1), NetworkConfig("mn", 0.1)


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    """Six pieces of noise and tones, with labels and a teacher's logits."""
    folder = tmp_path_factory.mktemp("bank")
    rng = np.random.default_rng(0)
    t = np.arange(8_000) / 32_000
    pieces = [rng.standard_normal(8_000) * 3_000 for _ in range(3)]
    pieces += [8_000 * np.sin(2 * np.pi * hz * t) for hz in (400, 2_000, 6_000)]
    np.concatenate(pieces).astype("<i2").tofile(folder / "pcm.i16")
    np.savez(
        folder / "pieces.npz",
        start=np.arange(6) * 8_000,
        length=np.full(6, 8_000),
        split=np.array(["train", "train", "val"] * 2),
    )
    labels = np.zeros((6, 527), np.uint8)
    labels[:3, 0] = labels[3:, 1] = 1
    np.save(folder / "labels.npy", labels)
    np.save(folder / "teacher_logits.npy", (8.0 * labels - 4).astype(np.float16))
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    torch.manual_seed(0)
    config = CheckpointConfig(name="teacher", network=TEACHER)
    return str(export(build_network(TEACHER), config, {}, tmp_path_factory.mktemp("teacher") / "t.safetensors"))


def phase(objective, steps=2, **options):
    return Phase(objective, steps, clip_s=0.5, batch_size=2, learning_rate=1e-3, warmup_steps=1, **options)


FEATURES = Recipe(
    "features",
    STUDENT,
    (
        phase("gates", first_block=3, fresh_clips=1, pool=4),
        phase("whole", 3, first_block=10, fresh_clips=1, pool=4),
        phase("whole", first_block=3, first_kernel_block=10),
    ),
    inherit=True,
    temperature_start=1.0,
    ema_decay=0.9,
    gradient_clip=1.0,
)
SCORES = Recipe(
    "scores",
    STUDENT,
    (phase("scores", 6),),
    mix=MixConfig(gain_db=(-3, 3)),
    offline=True,
    label_share=0.1,
    mixup_alpha=0.3,
    jitter_hz=500.0,
    dropout=0.2,
)


def run(bank, out, recipe, teacher, **options):
    teachers = [] if recipe.offline else [teacher]
    return distil(bank, out, recipe=recipe, teachers=teachers, accelerator="cpu", precision="32-true", **options)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("recipe", [FEATURES, SCORES], ids=lambda recipe: recipe.name)
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(bank, teacher, tmp_path, monkeypatch, recipe):
    whole = load_checkpoint(run(bank, tmp_path / "whole", recipe, teacher))
    original = module_file.Distillation.training_step

    def stop_in_the_fifth(self, batch, batch_index):
        if self.global_step == 4:
            raise Stopped
        return original(self, batch, batch_index)

    monkeypatch.setattr(module_file.Distillation, "training_step", stop_in_the_fifth)
    with pytest.raises(Stopped):
        run(bank, tmp_path / "parts", recipe, teacher, save_every=3)
    monkeypatch.undo()
    resumed = load_checkpoint(run(bank, tmp_path / "parts", recipe, teacher, resume=True))
    for name, value in whole.state.items():
        np.testing.assert_array_equal(resumed.state[name], value, name)
    fresh = build_network(STUDENT).state_dict()
    assert all(
        not np.array_equal(value, fresh[name]) for name, value in whole.state.items() if name.endswith("conv.weight")
    )
    assert read_log(tmp_path / "parts")["loss"] == read_log(tmp_path / "whole")["loss"]


@pytest.mark.parametrize("inherit", [True, False])
def test_inherited_norms_keep_their_statistics(bank, teacher, tmp_path, inherit):
    only = Recipe("norms", STUDENT, (phase("whole"),), inherit=inherit)
    state = load_checkpoint(run(bank, tmp_path / "run", only, teacher)).state
    theirs = load_checkpoint(teacher).state
    means = [value for name, value in state.items() if name.endswith("depth_norm.running_mean")]
    static = [value for name, value in theirs.items() if name.endswith("block.1.1.running_mean")]
    assert len(means) == 15 and static
    assert all(bool((value == 0).all()) == inherit for value in means)  # as the untrained teacher's


def test_a_run_can_be_repeated_from_its_own_file(bank, teacher, tmp_path):
    begin = run(bank, tmp_path / "first", replace(FEATURES, phases=FEATURES.phases[:1]), teacher)
    options = {"begin": str(begin), "seed": 3}
    again = run([bank, bank], tmp_path / "second", FEATURES, teacher, **options)
    file = str(tmp_path / "second" / "recipe.json")
    third = distil([bank, bank], tmp_path / "third", recipe=file, teachers=[teacher], accelerator="cpu", **options)
    repeated = load_checkpoint(third).state
    for name, value in load_checkpoint(again).state.items():
        np.testing.assert_array_equal(repeated[name], value, name)
    with pytest.raises(InvalidInputError, match="trains"):
        run(bank, tmp_path / "other", FEATURES, teacher, begin=teacher)


def test_recipe_paper_runs_on_a_bank_prepared_with_its_teacher(teacher, tmp_path):
    """Scores are stored when the bank is made; what cannot be decoded without an extra is left out, not fatal."""
    folder = tmp_path / "audio"
    folder.mkdir()
    for hz in (300, 900):
        soundfile.write(folder / f"{hz}.wav", 0.3 * np.sin(2 * np.pi * hz * np.arange(16_000) / 32_000), 32_000)
    (tmp_path / "labels.csv").write_text("id,label\n300,Speech\n900,Sine wave\n")
    command = ["train", "prepare", str(folder), "--out", str(tmp_path / "bank"), "--teacher", teacher]
    assert main([*command, "--labels", str(tmp_path / "labels.csv")]) == 0
    logits = np.load(tmp_path / "bank" / "teacher_logits.npy")
    assert logits.shape == (2, 527) and np.isfinite(logits).all()
    paper = recipe("paper")
    tiny = replace(paper, network=STUDENT, phases=(replace(paper.phases[0], steps=2, batch_size=2, clip_s=0.5),))
    path = distil(tmp_path / "bank", tmp_path / "run", recipe=tiny, accelerator="cpu", precision="32-true")
    assert load_checkpoint(path).config.network == STUDENT


def test_a_format_that_needs_an_extra_is_left_out(tmp_path, monkeypatch):
    from audiotag.training import prepare

    soundfile.write(tmp_path / "a.wav", np.zeros(8_000), 32_000)
    (tmp_path / "b.m4a").write_bytes(b"....ftypM4A ")
    real = prepare.load_audio

    def without_pyav(content, **options):
        if content[4:8] == b"ftyp":
            raise MissingDependencyError("install audiotag-dymn[media]")
        return real(content, **options)

    monkeypatch.setattr(prepare, "load_audio", without_pyav)
    assert prepare.prepare_bank([tmp_path], tmp_path / "bank") == 1
    assert "b.m4a: install" in (tmp_path / "bank" / "left_out.txt").read_text()


def test_run_folders_are_not_overwritten(bank, teacher, tmp_path):
    with pytest.raises(InvalidInputError, match="holds no last"):
        run(bank, tmp_path / "none", FEATURES, teacher, resume=True)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "last.ckpt").write_bytes(b"state")
    with pytest.raises(InvalidInputError, match="--resume"):
        run(bank, tmp_path / "old", FEATURES, teacher)


def test_a_student_learns_the_scores_of_its_teacher(bank, tmp_path):
    """Noise is label 0, tones are label 1, by the logits stored beside the pieces."""
    steps = replace(phase("scores", 25), learning_rate=1e-2, batch_size=4)
    plain = replace(SCORES, phases=(steps,), label_share=0.0, mixup_alpha=0.0, jitter_hz=0.0, dropout=0.0)
    run(bank, tmp_path / "run", plain, None)
    loss = [value for _, value in read_log(tmp_path / "run")["loss"]]
    assert len(loss) == 25 and np.mean(loss[-3:]) < 0.5 * loss[0]
    assert plot_log(tmp_path / "run").read_bytes().startswith(b"\x89PNG")


def test_command_line(bank, teacher, tmp_path, capsys):
    command = ["train", "distil", str(bank), "--recipe", "features", "--out", str(tmp_path / "run")]
    assert main([*command, "--steps-scale", "1e-9"]) == 2  # the recipe mixes, so it needs a teacher
    assert "teacher" in capsys.readouterr().err
    path = run(bank, tmp_path / "run2", FEATURES, teacher)
    assert json.loads((tmp_path / "run2" / "recipe.json").read_text())["name"] == "features"
    code = main(["train", "evaluate", str(bank), "--checkpoint", str(path), "--out", str(tmp_path / "report")])
    assert code == 0 and "labels: mAP" in capsys.readouterr().out


def test_thresholds_are_kept_with_the_checkpoint(bank, teacher, tmp_path, capsys):
    """A checkpoint held against itself: a threshold for every label that is there often enough."""
    out = tmp_path / "with.safetensors"
    command = ["train", "thresholds", str(bank), "--checkpoint", teacher, "--teacher", teacher, "--out", str(out)]
    assert main([*command, "--clips", "24", "--split", "train"]) == 0
    assert "labels" in capsys.readouterr().out
    made, before = load_checkpoint(out), load_checkpoint(teacher)
    assert made.config == replace(
        before.config, thresholds=made.config.thresholds, threshold_support=made.config.threshold_support
    )
    for name, value in before.state.items():
        np.testing.assert_array_equal(made.state[name], value, name)
    assert len(made.config.thresholds) == len(made.config.threshold_support) == 527
    for threshold, support in zip(made.config.thresholds, made.config.threshold_support, strict=True):
        assert (threshold is None) == (support < 5 or support == 24)

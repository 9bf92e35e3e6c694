"""Whole training runs on Lightning: tiny, but stopped, resumed, averaged and exported like the long ones."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from audiotag.checkpoints.load import load_checkpoint
from audiotag.cli import main
from audiotag.config import CheckpointConfig, NetworkConfig
from audiotag.errors import InvalidInputError
from audiotag.networks.build import build_network
from audiotag.training.bank import MixConfig
from audiotag.training.evaluate import plot_log
from audiotag.training.recipes import Phase, Recipe
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


def phase(objective, steps=2):
    return Phase(objective, steps, clip_s=0.5, batch_size=2, learning_rate=1e-3, warmup_steps=1)


FEATURES = Recipe(
    "features",
    STUDENT,
    tuple(map(phase, ("blocks", "halves", "whole"))),
    temperature_steps=4,
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
        torch.testing.assert_close(resumed.state[name], value, atol=0, rtol=0, msg=name)
    fresh = build_network(STUDENT).state_dict()
    assert all(
        not torch.equal(value, fresh[name]) for name, value in whole.state.items() if name.endswith("conv.weight")
    )
    assert read_log(tmp_path / "parts")["loss"] == read_log(tmp_path / "whole")["loss"]


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_norms_keep_their_statistics(bank, teacher, tmp_path, frozen):
    only = Recipe("frozen", STUDENT, (replace(phase("whole"), frozen_norms=frozen),))
    state = load_checkpoint(run(bank, tmp_path / "run", only, teacher)).state
    means = torch.cat([value for name, value in state.items() if name.endswith("running_mean")])
    assert (means == 0).all() == frozen


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
    command = ["train", "distill", str(bank), "--recipe", "open", "--out", str(tmp_path / "run")]
    assert main([*command, "--steps-scale", "1e-9"]) == 2  # the recipe mixes, so it needs a teacher
    assert "teacher" in capsys.readouterr().err
    path = run(bank, tmp_path / "run2", FEATURES, teacher)
    assert json.loads((tmp_path / "run2" / "recipe.json").read_text())["name"] == "features"
    code = main(["train", "evaluate", str(bank), "--checkpoint", str(path), "--out", str(tmp_path / "report")])
    assert code == 0 and "labels: mAP" in capsys.readouterr().out

"""Fine-tuning on tiny networks: it starts from the probe, resumes to the same weights, keeps AudioSet's labels."""

import numpy as np
import pytest
import torch

import audiotag
from audiotag.checkpoints.load import build
from audiotag.checkpoints.save import save_checkpoint
from audiotag.training.fit import finetune, tuned
from audiotag.training.fit.linear import Linear, Standard
from audiotag.training.fit.tuned import planned_epochs
from audiotag.training.fit.waveforms import Waveforms, batch

from .sounds import RATE, made, write_folders
from .tiny import sound, tiny_checkpoint


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_checkpoint(tiny_checkpoint("mn"), tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("sounds"), takes=4)


@pytest.fixture
def short(monkeypatch):
    """Two epochs, and a state after every step."""
    monkeypatch.setattr(tuned, "EPOCHS", 2)
    monkeypatch.setattr(finetune, "SAVE_EVERY_S", 0.0)


def fit(sounds, base, output, **options):
    cache = output.parent / "cache"
    return audiotag.fit(sounds, output, model=base, method="finetune", folds=2, cache_dir=cache, **options)


def weights(run):
    return {name: np.asarray(tensor) for name, tensor in run.tagger.checkpoint.state.items()}


def test_resumed_anywhere_it_gives_the_same_weights(sounds, base, short, tmp_path, monkeypatch):
    """The process dies after every third step, and dies no more only when all is done."""
    alone = fit(sounds, base, tmp_path / "alone")
    assert alone.metrics["method"] == "finetune" and not (tmp_path / "alone.partial").exists()

    class Killed(BaseException):
        pass

    steps, original = [0], finetune.Trainer._step

    def mortal(self, *args):
        steps[0] += 1
        if steps[0] % 3 == 0:
            raise Killed
        original(self, *args)

    monkeypatch.setattr(finetune.Trainer, "_step", mortal)
    deaths = 0
    while True:
        try:
            again = fit(sounds, base, tmp_path / "again", resume=True)
            break
        except Killed:
            deaths += 1
            assert not (tmp_path / "again").exists()
    assert deaths >= 2
    one, two = weights(alone), weights(again)
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert again.metrics["out_of_fold"] == alone.metrics["out_of_fold"]


def test_everything_trains_and_audiosets_labels_stay(sounds, base, short, tmp_path, monkeypatch):
    monkeypatch.setattr(tuned.FineTuning, "_stop", lambda self, losses, recipe, without: recipe.evaluated_at[-1])
    run = fit(sounds, base, tmp_path / "m", keep_audioset=True)
    before = audiotag.Tagger.from_pretrained(base)
    state, old = weights(run), before.checkpoint.state
    moved = [n for n in old if n.endswith(".weight") and not np.array_equal(state[n], np.asarray(old[n]))]
    assert len(moved) > 0.9 * sum(n.endswith(".weight") for n in old)
    tagger = run.tagger
    assert len(tagger.labels) == 527 + 3
    clip = made("buzz", 50)
    np.testing.assert_allclose(
        tagger.scores(clip, sample_rate=RATE)[:527], before.scores(clip, sample_rate=RATE), atol=0.1
    )
    assert run.metrics["details"]["planned_epochs"] == 2


def test_an_interrupt_keeps_the_probe(sounds, base, short, tmp_path, monkeypatch):
    def interrupted(self, *args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(finetune.Trainer, "_step", interrupted)
        run = fit(sounds, base, tmp_path / "m")
    assert run.metrics["method"] == "probe" and run.metrics["details"]["interrupted"]
    assert run.tagger.labels.names == ("beep", "buzz", "hiss")
    gone_on = fit(sounds, base, tmp_path / "m", resume=True)  # the same command takes the probe's place
    assert gone_on.metrics["method"] == "finetune"


@pytest.mark.parametrize("why", ["interrupt", "deadline"])
def test_stopped_in_the_final_training_it_keeps_the_last_evaluated_epoch(
    sounds, base, short, tmp_path, monkeypatch, why
):
    """Two folds of two epochs go by, then the training on everything is stopped in its second epoch."""
    monkeypatch.setattr(tuned.FineTuning, "_stop", lambda self, losses, recipe, without: recipe.evaluated_at[-1])
    kept, original, step = [], finetune.Trainer.train, finetune.Trainer._step

    def train(self, job, **options):
        if job.name == "final":
            monkeypatch.setattr(finetune.Trainer, "_step", stopped)
        return original(self, job, **options)

    def stopped(self, job, student, optimiser, epoch, *rest):
        if epoch == 1:
            raise KeyboardInterrupt
        step(self, job, student, optimiser, epoch, *rest)
        kept.append({name: tensor.clone() for name, tensor in student.network.state_dict().items()})
        if why == "deadline":
            monkeypatch.setattr(finetune.time, "monotonic", lambda: 1e9)

    monkeypatch.setattr(finetune.Trainer, "train", train)
    with monkeypatch.context() as patch:
        if why == "deadline":
            patch.setattr(finetune.Trainer, "seconds_a_clip", lambda self, job: 1e-9)
            patch.setattr(tuned, "planned_epochs", lambda *args: (2, 2))
        run = fit(sounds, base, tmp_path / "m", time_limit_s=1e5 if why == "deadline" else None)
    details = run.metrics["details"]
    assert run.metrics["method"] == "finetune" and details["epochs"] == 1 and details["planned_epochs"] == 2
    assert details.get("interrupted", False) == (why == "interrupt")
    state = weights(run)
    assert all(np.array_equal(state[name], tensor.numpy()) for name, tensor in kept[0].items())


def test_another_fit_is_not_gone_on_with(sounds, base, short, tmp_path, monkeypatch):
    def interrupted(self, *args):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(finetune.Trainer, "_step", interrupted)
        fit(sounds, base, tmp_path / "m")
    with pytest.raises(audiotag.InvalidInputError, match="another data, seed"):
        fit(sounds, base, tmp_path / "m", seed=1, resume=True)


def test_auto_takes_the_better_one(sounds, base, short, tmp_path, monkeypatch):
    from audiotag.training.fit import candidates

    told = []
    real = candidates.better
    monkeypatch.setattr("audiotag.training.fit.run.better", lambda *args: told.append(real(*args)) or told[-1])
    monkeypatch.setattr(finetune.Trainer, "seconds_a_clip", lambda self, job: 1e-4)
    run = audiotag.fit(
        sounds, tmp_path / "m", model=base, method="auto", folds=3, time_limit_s=600, cache_dir=tmp_path / "c"
    )
    compared = run.metrics["details"]["compared"]
    assert compared["clips"] == 12 and told[0][0].method == run.metrics["method"]
    assert (compared["finetune"] > compared["probe"]) == (run.metrics["method"] == "finetune")


def test_a_short_time_leaves_the_probe(sounds, base, tmp_path):
    run = audiotag.fit(sounds, tmp_path / "m", model=base, method="auto", time_limit_s=0.5, cache_dir=tmp_path / "c")
    assert run.metrics["method"] == "probe"


@pytest.mark.parametrize(
    ("left", "epoch", "folds", "planned"),
    [(6000, 10, 5, (80, 5)), (1200, 10, 5, (20, 5)), (1100, 10, 5, (27, 3)), (200, 10, 5, (10, 1)), (100, 10, 5, None)],
)
def test_planned_epochs(left, epoch, folds, planned):
    assert planned_epochs(left, epoch, folds) == planned


# -- the parts -----------------------------------------------------------------------------------------------------


def test_the_student_starts_as_the_probe():
    checkpoint = tiny_checkpoint("mn")
    rng = np.random.default_rng(0)
    layers = ("embedding", "logmel")
    tagger = audiotag.Tagger(checkpoint)
    clips = [sound(10, i) for i in range(3)]
    features = tagger.embed(clips, layer=list(layers)).astype(np.float64)
    head = Linear(rng.standard_normal((features.shape[1], 4)), rng.standard_normal(4))
    standard = Standard.of(features)
    scaled = Linear(head.weight * standard.scale[:, None], head.bias + standard.mean @ head.weight)
    student = finetune.Student(build(checkpoint), layers, standard, scaled).eval()
    from audiotag.frontend.logmel import LogMel

    with torch.no_grad():
        own, network = student(LogMel()(torch.from_numpy(np.stack(clips))))
    np.testing.assert_allclose(own.numpy(), head(features), rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(network.sigmoid().numpy(), tagger.scores(clips), atol=1e-4)
    np.testing.assert_allclose(student.head()(features), head(features), rtol=1e-3, atol=1e-3)


def test_the_published_schedule():
    recipe = finetune.Recipe(80, (0,), 128, 160_000, 4e-5, 0, False, (80,))
    assert recipe.factor(0) < 0.01 and recipe.factor(10) == 1
    assert recipe.factor(10 + 65 / 2) == pytest.approx(1 - 0.99 / 2)
    assert recipe.factor(75) == pytest.approx(0.01) and recipe.factor(79.9) == pytest.approx(0.01)
    half = finetune.Recipe(40, (0,), 128, 160_000, 4e-5, 0, False, (40,))
    assert [half.factor(e / 2) for e in range(80)] == pytest.approx([recipe.factor(e) for e in range(80)])
    assert finetune.default_rate("dymn", 1.0) == 4e-5 and finetune.default_rate("mn", 1.0) == 6e-5
    assert finetune.default_batch(1600) == 128 and finetune.default_batch(50) == 16


def test_batches(tmp_path, sounds):
    """A function of seed, epoch and step; an epoch sees every clip; mixtures carry both labels in their shares."""
    from audiotag.training.fit.data import read_data

    data = read_data(sounds)
    waves = Waveforms(tmp_path, data.clips, 32_000)
    assert waves.lengths.tolist() == [32_000] * 12
    from audiotag.audio.recording import load_audio

    whole = load_audio(data.clips[5].path, target_rate_hz=32_000)
    np.testing.assert_allclose(waves.piece(5, 40_000, np.random.default_rng(0)), np.resize(whole, 40_000), atol=1e-4)
    assert Waveforms(tmp_path, data.clips, 32_000).starts.tolist() == waves.starts.tolist()

    clips = np.arange(12)

    def take(within, key=(0, 1), epoch=0, targets=data.targets):
        return batch(waves, targets, clips, size=6, samples=16_000, key=key, epoch=epoch, within=within)

    first = take(0)
    assert first[0].shape == (6, 16_000) and first[0].dtype == np.float32 and np.abs(first[0]).max() <= 1
    np.testing.assert_array_equal(first[0], take(0)[0])
    assert not np.array_equal(first[0], take(0, key=(1, 1))[0]) and not np.array_equal(first[0], take(0, epoch=1)[0])
    np.testing.assert_allclose(first[1].sum(1), 1, rtol=1e-5)
    mixed = np.concatenate([take(w, epoch=e)[1] for w in range(2) for e in range(20)])
    assert (
        0.2 < ((mixed > 0.01) & (mixed < 0.99)).any(1).mean() < 0.5
    )  # half are mixed, a third of them with their like
    identity = np.eye(12, dtype=np.float32)
    seen = np.concatenate([take(w, targets=identity)[1] for w in range(2)])
    assert (seen.max(0) > 0).all()
    unknown = data.targets.copy()
    unknown[:, 0] = np.nan
    assert np.isnan(take(0, targets=unknown)[1][:, 0]).all()

"""Fine-tuning with honest figures inside a time limit: folds first, then everything; resumable at any moment."""

from __future__ import annotations

import copy
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...config import HeadConfig
from ...errors import CheckpointError
from ...files import read_json, whole_file, write_json
from .calibrate import Calibration, fit_thresholds
from .clips import Clip, Dataset
from .features import clip_sources
from .finetune import EPOCHS, Job, Recipe, Student, Trainer, default_batch, default_rate, evaluated_at
from .linear import Linear, Standard
from .probe import Probe
from .regression import Model, Problem, Setting, calibrate, clip_scores, cross_fitted, log_loss, train
from .waveforms import Waveforms

if TYPE_CHECKING:
    from ...checkpoints.load import Checkpoint
    from ...tagger import Tagger

log = logging.getLogger(__name__)

RECIPE_FILE = "recipe.json"
FEWEST_EPOCHS, ENOUGH_EPOCHS = 8, 20
SPARE = 0.85  # of the time left, what training is planned to take
FINISHING_S = 8.0  # before a deadline, kept for what comes after training
USUAL_LENGTH = 95  # per cent of the clips are no longer than training clips, unless a window is shorter
ROUND_S = 0.5  # to which the length of training clips is rounded up
FINAL = "final"

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned checkpoint with its figures' raw material, as `Probe` has it.

    Attributes
    ----------
    checkpoint : Checkpoint
        Head folded and calibrated.
    setting : Setting
        Of the head.
    calibration : Calibration
    thresholds, support : ndarray
        (labels,).
    scores, judged : ndarray
        (clips, labels); nan for clips in no evaluated fold.
    details : dict
        For the report.
    """

    checkpoint: Checkpoint
    setting: Setting
    calibration: Calibration
    thresholds: np.ndarray
    support: np.ndarray
    scores: np.ndarray
    judged: np.ndarray
    details: dict[str, Any]


class FineTuning:
    """Everything of one run; `run` does it.

    Parameters
    ----------
    base : Tagger
        What is tuned.
    dataset : Dataset
    problem : Problem
    probe : Probe
        Whose layers and weights the heads start from.
    folder : Path
        Where the run keeps what it resumes from.
    keep_network : bool
        Whether AudioSet's labels are kept, and so learnt along.
    seed : int
    name : str
        Of the checkpoint.
    tell : callable
    """

    def __init__(
        self,
        base: Tagger,
        dataset: Dataset,
        problem: Problem,
        probe: Probe,
        folder: Path,
        *,
        keep_network: bool,
        seed: int,
        name: str,
        tell: Tell,
    ) -> None:
        self.base, self.dataset, self.problem, self.probe = base, dataset, problem, probe
        self.folder, self.keep, self.seed, self.name, self.tell = folder, keep_network, seed, name, tell
        self.device = str(base.device)
        self.interrupted = False

    def run(self, deadline: float | None) -> Tuned | None:
        """Tune, by `time.monotonic` until the deadline; None where that leaves no room for it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        rate_hz = self.base.sample_rate
        waves = Waveforms(
            self.folder, self.dataset.clips, rate_hz, lambda n, of: self.tell("decoding to fine-tune", n, of)
        )
        recipe = self._recipe(waves, deadline)
        if recipe is None:
            return None
        trainer = self._trainer(recipe, waves)
        stop = None if deadline is None else deadline - FINISHING_S
        began, folds = time.monotonic(), list[int]()
        for fold in recipe.folds:
            if folds and deadline is not None and not self._kept(fold, recipe.evaluated_at):
                spent = (time.monotonic() - began) / len(folds)
                if time.monotonic() + 2 * spent > deadline:
                    log.warning(
                        "fine-tuning: %d of %d folds are evaluated, for lack of time", len(folds), len(recipe.folds)
                    )
                    recipe = replace(recipe, folds=tuple(folds))
                    self._note(recipe)
                    break
            if not self._fold(trainer, recipe, fold, stop):
                log.warning("fine-tuning: the time is up; give a longer time limit")
                return None
            folds.append(fold)
        return self._finish(trainer, recipe, stop)

    # -- the plan --------------------------------------------------------------------------------------------------

    def _recipe(self, waves: Waveforms, deadline: float | None) -> Recipe | None:
        """The plan of an earlier run in the folder, or a new one that fits into the time there is."""
        kept = read_json(self.folder / RECIPE_FILE)
        if kept is not None:
            return Recipe(**{**kept, "folds": tuple(kept["folds"]), "evaluated_at": tuple(kept["evaluated_at"])})
        network, rate_hz = self.base.config.network, self.base.sample_rate
        usual = int(np.percentile(waves.lengths, USUAL_LENGTH, method="higher"))
        longest = -(-usual // round(ROUND_S * rate_hz)) * round(ROUND_S * rate_hz)
        trained = int((self.problem.folds.index >= 0).sum())
        count = len(self.problem.folds)
        recipe = Recipe(
            epochs=EPOCHS,
            folds=tuple(range(count)),
            batch_size=default_batch(round(trained * (count - 1) / count)),
            samples=min(longest, self.base.config.window_samples),
            rate=default_rate(network.architecture, network.width),
            seed=self.seed,
            keep_network=self.keep,
            evaluated_at=evaluated_at(EPOCHS),
        )
        if deadline is not None:
            self.tell("timing fine-tuning", 0, 1)
            trainer = self._trainer(recipe, waves)
            epoch_s = trainer.seconds_a_clip(self._job(FINAL, recipe)) * trained
            left = SPARE * (deadline - time.monotonic())
            planned = planned_epochs(left, epoch_s, count)
            if planned is None:
                log.warning(
                    "fine-tuning: an epoch takes about %.0f s, and %.0f s are left; give a longer time limit",
                    epoch_s,
                    left,
                )
                return None
            epochs, n_folds = planned
            recipe = replace(recipe, epochs=epochs, folds=tuple(range(n_folds)), evaluated_at=evaluated_at(epochs))
        self._note(recipe)
        return recipe

    def _note(self, recipe: Recipe) -> None:
        plain = {**recipe.__dict__, "folds": list(recipe.folds), "evaluated_at": list(recipe.evaluated_at)}
        write_json(self.folder / RECIPE_FILE, plain)

    def _trainer(self, recipe: Recipe, waves: Waveforms) -> Trainer:
        return Trainer(
            self.base.checkpoint,
            recipe,
            waves,
            self.problem.row_targets(),
            self.problem.activation,
            self.folder,
            self.device,
        )

    def _job(self, name: str, recipe: Recipe, fold: int | None = None, epochs: int | None = None) -> Job:
        """A training, its head the probe fitted on the same clips."""
        folds = self.problem.folds
        clips = folds.train() if fold is None else folds.train(fold)
        setting = self.probe.setting if fold is None else self.probe.settings[fold]
        model = train(self.problem, setting, clips)[0]
        standard, start = restandardised(self.problem, model, clips)
        number = len(folds) if fold is None else fold
        return Job(
            name,
            number,
            np.flatnonzero(clips),
            recipe.epochs if epochs is None else epochs,
            setting.layers,
            standard,
            start,
        )

    # -- folds -----------------------------------------------------------------------------------------------------

    def _place(self, fold: int, epoch: int) -> Path:
        return self.folder / f"fold{fold}-epoch{epoch}.npy"

    def _kept(self, fold: int, epochs: Sequence[int]) -> bool:
        return all(self._place(fold, epoch).is_file() for epoch in epochs)

    def _fold(self, trainer: Trainer, recipe: Recipe, fold: int, stop: float | None) -> bool:
        """Train a fold's model and keep its logits of the fold's clips after some epochs; False if time was up."""
        if self._kept(fold, recipe.evaluated_at):
            return True
        clips = np.flatnonzero(self.problem.folds.test(fold))

        def evaluate(epoch: int, student: Student) -> None:
            logits = self.logits(student, clips)
            with whole_file(self._place(fold, epoch), binary=True) as file:
                np.save(file, logits, allow_pickle=False)

        return self._train(trainer, self._job(f"fold{fold}", recipe, fold), recipe, evaluate, stop)[1]

    def _train(
        self, trainer: Trainer, job: Job, recipe: Recipe, evaluate: Any, stop: float | None
    ) -> tuple[Student, bool]:
        which = "everything" if job.name == FINAL else f"fold {job.number + 1} of {len(recipe.folds)}"
        tell = lambda n, of: self.tell(f"fine-tuning {which}", n, of)  # noqa: E731
        return trainer.train(job, evaluate=evaluate, tell=tell, deadline=stop)

    def _train_on_all(
        self, trainer: Trainer, recipe: Recipe, epochs: int, stop: float | None
    ) -> tuple[Student, int] | None:
        """The final student and its epochs: `epochs`, or where it had to stop, the last that folds were evaluated at.

        None where it stopped before the first of these.
        """
        reached: list[tuple[Student, int]] = []

        def keep(epoch: int, student: Student) -> None:
            reached[:] = [(copy.deepcopy(student).eval().requires_grad_(False), epoch)]

        try:
            student, ended = self._train(trainer, self._job(FINAL, recipe, epochs=epochs), recipe, keep, stop)
        except KeyboardInterrupt:
            if not reached:
                raise
            self.interrupted, ended = True, False
        if ended:
            return student, epochs
        if not reached:
            log.warning("fine-tuning: the time is up; give a longer time limit")
            return None
        log.warning("fine-tuning: stopped early; what it was after epoch %d of %d is kept", reached[0][1], epochs)
        return reached[0]

    def logits(self, student: Student, clips: np.ndarray) -> np.ndarray:
        """Logits (windows, rows) of clips as inference computes them, in the order of the problem's windows."""
        from ...tagger import Tagger

        layers = student.layers
        head = HeadConfig(
            ("any",) if student.weight.shape[0] == 1 else tuple(map(str, range(student.weight.shape[0]))), layers
        )
        tagger = Tagger(student.checkpoint(self.base.checkpoint, head, "student"), device=self.device)
        linear = student.head()
        windows, _ = self.windows(tagger, clips, layers)
        return windows.astype(np.float64) @ linear.weight + linear.bias

    def windows(self, tagger: Tagger, clips: np.ndarray, layers: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Feature vectors (windows, features) of clips and whose each is, clip after clip."""
        chosen: list[Clip] = [self.dataset.clips[i] for i in clips.tolist()]
        order = sorted(range(len(chosen)), key=lambda i: (chosen[i].path, chosen[i].onset_s or 0.0))
        found: list[Any] = [None] * len(chosen)
        sources = clip_sources([chosen[i] for i in order], tagger.sample_rate)
        for i, (_, result) in zip(order, tagger.embed_each(sources, layer=list(layers)), strict=True):
            if isinstance(result, Exception):
                raise CheckpointError(f"{chosen[i].name}: could not be read again ({result}); fit again") from result
            found[i] = result.vectors
        return np.concatenate(found), np.repeat(clips, [len(rows) for rows in found])

    # -- what comes of it ------------------------------------------------------------------------------------------

    def _finish(self, trainer: Trainer, recipe: Recipe, stop: float | None) -> Tuned | None:
        problem, clip = self.problem, self.problem.features.clip
        tested = {fold: np.flatnonzero(problem.folds.test(fold)[clip]) for fold in recipe.folds}
        logits = {
            (fold, epoch): np.load(self._place(fold, epoch), allow_pickle=False)
            for fold in recipe.folds
            for epoch in recipe.evaluated_at
        }
        losses = {key: log_loss(problem, z, tested[key[0]]) for key, z in logits.items()}
        curve = {epoch: float(np.mean([losses[fold, epoch] for fold in recipe.folds])) for epoch in recipe.evaluated_at}
        chosen = {fold: self._stop(losses, recipe, without=fold) for fold in recipe.folds}
        epochs = self._stop(losses, recipe, without=None)
        trained = self._train_on_all(trainer, recipe, epochs, stop)
        if trained is None:
            return None
        student, reached = trained
        if reached != epochs:  # the figures are those of folds that stopped there, too
            epochs, chosen = reached, dict.fromkeys(recipe.folds, reached)

        windows = np.concatenate([tested[fold] for fold in recipe.folds])
        order = np.argsort(windows, kind="stable")
        windows = windows[order]
        out = np.concatenate([logits[fold, chosen[fold]] for fold in recipe.folds])[order]
        scores, judged = cross_fitted(problem, out, windows, recipe.folds)
        calibration = calibrate(problem, out, windows)
        thresholds, support = fit_thresholds(clip_scores(problem, calibration(out), windows), problem.targets)
        checkpoint = self._checkpoint(student, calibration)
        details = {
            **self.probe.setting.describe(),
            "epochs": epochs,
            "planned_epochs": recipe.epochs,
            "folds_evaluated": len(recipe.folds),
            "learning_rate": recipe.rate,
            "batch_size": recipe.batch_size,
            "clip_s": recipe.samples / self.base.sample_rate,
            "curve": curve,
        }
        return Tuned(checkpoint, self.probe.setting, calibration, thresholds, support, scores, judged, details)

    def _stop(self, losses: dict[tuple[int, int], float], recipe: Recipe, without: int | None) -> int:
        """After how many epochs to stop, by the loss of the other folds; the last where there are too few of them."""
        others = [fold for fold in recipe.folds if fold != without]
        if len(others) < 2:
            return recipe.evaluated_at[-1]
        return min(recipe.evaluated_at, key=lambda epoch: (np.mean([losses[f, epoch] for f in others]), -epoch))

    def _checkpoint(self, student: Student, calibration: Calibration) -> Checkpoint:
        problem = self.problem
        head = HeadConfig(
            labels=self.dataset.labels,
            inputs=student.layers,
            activation=problem.activation,
            rest=problem.rest,
            keep_network=self.keep,
            calibration=calibration.record(),
        )
        made = student.checkpoint(self.base.checkpoint, head, self.name)
        linear = student.head()
        state = dict(made.state)
        weight = linear.weight.T * calibration.scale[:, None]
        state["head.weight"] = np.ascontiguousarray(weight, np.float32)
        state["head.bias"] = (linear.bias * calibration.scale + calibration.shift).astype(np.float32)
        return replace(made, state=state)


def planned_epochs(left_s: float, epoch_s: float, n_folds: int) -> tuple[int, int] | None:
    """Epochs and evaluated folds that fit into the time left, the final training counted in; None where none do.

    All folds if each can have `ENOUGH_EPOCHS`, else three, else one with at least `FEWEST_EPOCHS`.
    """
    for folds, fewest in ((n_folds, ENOUGH_EPOCHS), (min(3, n_folds), ENOUGH_EPOCHS), (1, FEWEST_EPOCHS)):
        epochs = int(left_s / (epoch_s * (folds + 1)))
        if epochs >= fewest:
            return min(EPOCHS, epochs), folds
    return None


def restandardised(problem: Problem, model: Model, clips: np.ndarray) -> tuple[Standard, Linear]:
    """A model's head as one on standardised features, of the windows of the clips (boolean) that it was fitted to."""
    rows = problem.features.windows[clips[problem.features.clip]][:, model.columns]
    standard = Standard.of(rows)
    weight = model.linear.weight * standard.scale[:, None]
    return standard, Linear(weight, model.linear.bias + standard.mean @ model.linear.weight)


def fingerprint(dataset: Dataset, problem: Problem, base_digest: str, **options: Any) -> dict[str, Any]:
    """Everything that decides a fine-tuning, so that only the same one is gone on with."""
    import hashlib

    told = [[c.digest, c.onset_s, c.offset_s, sorted(c.present), sorted(c.unknown)] for c in dataset.clips]
    folds = problem.folds.index.tolist()
    data = hashlib.sha256(json.dumps([told, list(dataset.labels), folds]).encode()).hexdigest()
    return {"data": data, "base": base_digest, "task": dataset.task, **options}

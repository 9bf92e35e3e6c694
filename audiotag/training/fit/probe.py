"""A probe: logistic regression on kept embeddings, its settings chosen inside, folded into one linear head.

Features are standardised, then decorrelated: with S their covariance over the training clips, x is replaced by L^-1 x,
where L L^T = S + shrinkage I (a large shrinkage leaves them as they are). What the logistic regression learns on that
is still linear in the network's features, so standardisation, decorrelation and calibration fold into one weight and
bias. Decorrelated features need fewer iterations, and which shrinkage serves best differs between networks.

Figures are nested. A fold's clips are scored by a model whose layers, regularisation, calibration and thresholds were
chosen on the other folds alone: on pairs of folds that both stay out of training, one of which is then its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...inference.head import activate
from ...results.embeddings import MID_LAYERS
from .calibrate import Calibration, clip_max, fit_platt, fit_temperature, fit_thresholds
from .features import Features
from .linear import Linear, Standard, fit_logistic
from .ridge import Sums
from .splits import Folds

GRID = ((3.0, 0.3), (10.0, 0.3), (10.0, 1.0))  # shrinkage and c of the logistic regression
FIRST = (10.0, 0.3)  # where there is nothing to choose on
RIDGE, RIDGE_SCALE = 0.3, 10.0  # strength of the ridge regression that ranks layers; what makes logits of its outputs
TOLERANCE, SEARCH_TOLERANCE = 1e-4, 1e-3  # of the regression; a smaller one changed no choice on three sets of sounds
MANY_WINDOWS = 0.1  # share of clips with several windows from which it matters how these are learnt from


@dataclass(frozen=True)
class Setting:
    """What is chosen inside.

    pooling: what a clip of several windows is to the regression: "mean", their mean vector; "windows", each of them,
    together weighing as much as one.
    """

    layers: tuple[str, ...]
    shrinkage: float = FIRST[0]
    c: float = FIRST[1]
    pooling: str = "mean"

    def describe(self) -> dict[str, Any]:
        return {"layers": list(self.layers), "shrinkage": self.shrinkage, "c": self.c, "pooling": self.pooling}


def candidate_layers(sizes: dict[str, int]) -> list[tuple[str, ...]]:
    """Sets of layers to choose among: the embedding, with the hidden layer, with ``mid``, all."""
    mid = tuple(name for name in MID_LAYERS if name in sizes)
    sets = [("embedding",), ("embedding", "hidden"), (*mid, "embedding"), (*mid, "embedding", "hidden"), mid]
    return list(dict.fromkeys(names for names in sets if names and all(name in sizes for name in names)))


@dataclass(frozen=True)
class Problem:
    """Everything a probe is fitted to.

    Attributes
    ----------
    features : Features
    targets : ndarray
        float32 (clips, labels): 1, 0, nan.
    folds : Folds
    activation : {"sigmoid", "softmax"}
    rest : bool
        With softmax: whether there are clips with no label, which are a row of their own.
    """

    features: Features
    targets: np.ndarray
    folds: Folds
    activation: str
    rest: bool

    @property
    def n_rows(self) -> int:
        return self.targets.shape[1] + self.rest

    @property
    def classes(self) -> np.ndarray:
        """(clips,) row of each clip's class under softmax; the last row where it has none."""
        known = np.nan_to_num(self.targets)
        return np.where(known.sum(1) > 0, known.argmax(1), self.n_rows - 1)

    def row_targets(self) -> np.ndarray:
        """(clips, rows)."""
        return np.eye(self.n_rows, dtype=np.float32)[self.classes] if self.activation == "softmax" else self.targets


@dataclass(frozen=True)
class Model:
    """A linear map from the features of some layers to logits."""

    setting: Setting
    linear: Linear
    columns: np.ndarray

    def __call__(self, windows: np.ndarray) -> np.ndarray:
        """Logits (windows, rows), float64, of feature rows with all kept layers."""
        return windows[:, self.columns].astype(np.float64) @ self.linear.weight + self.linear.bias


def train(
    problem: Problem,
    setting: Setting,
    clips: np.ndarray,
    start: Linear | None = None,
    *,
    tolerance: float = TOLERANCE,
) -> tuple[Model, Linear]:
    """Fit on some clips (boolean); the model, and its solution on decorrelated features to start the next from."""
    from scipy.linalg import cholesky, solve_triangular

    features, columns = problem.features, problem.features.columns(setting.layers)
    rows, owner, weights = training_rows(features, clips, columns, setting.pooling)
    standard = Standard.of(rows)
    rows = standard(rows)
    covariance = (rows.T @ rows) / np.float32(len(rows))
    covariance[np.diag_indices_from(covariance)] += np.float32(setting.shrinkage)
    lower = cholesky(covariance, lower=True, check_finite=False)
    rows = np.ascontiguousarray(solve_triangular(lower, rows.T, lower=True, check_finite=False).T)
    solved = fit_logistic(
        rows,
        problem.row_targets()[owner],
        c=setting.c,
        activation=problem.activation,
        weights=weights,
        start=start,
        tolerance=tolerance,
    )
    weight = solve_triangular(lower.astype(np.float64), solved.weight, lower=True, trans="T", check_finite=False)
    return Model(setting, Linear(weight, solved.bias).folded(standard), columns), solved


def training_rows(
    features: Features, clips: np.ndarray, columns: np.ndarray, pooling: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Feature rows to train on, whose clip each is, and their weights (None: all 1)."""
    here = clips[features.clip]
    owner, rows = features.clip[here], features.windows[here][:, columns]
    counts = np.bincount(owner, minlength=len(clips))
    if counts.max(initial=0) <= 1:
        return rows, owner, None
    if pooling == "windows":
        return rows, owner, 1.0 / counts[owner]
    starts = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])
    means = np.add.reduceat(rows, starts, axis=0) / counts[owner[starts], None]
    return means.astype(np.float32), owner[starts], None


def calibrate(problem: Problem, logits: np.ndarray, windows: np.ndarray) -> Calibration:
    """The calibration that fits some windows' logits; `windows` are their numbers."""
    clip = problem.features.clip[windows]
    if problem.activation == "softmax":
        return fit_temperature(logits, clip, problem.classes)
    return fit_platt(clip_max(logits, clip, len(problem.targets)), problem.targets)


def clip_scores(problem: Problem, logits: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Scores (clips, labels) in [0, 1] as `Tagger.predict` makes them; nan for clips without one of these windows."""
    scores = activate(logits, problem.activation)[:, : problem.targets.shape[1]]
    return clip_max(scores, problem.features.clip[windows], len(problem.targets))


def log_loss(problem: Problem, logits: np.ndarray, windows: np.ndarray) -> float:
    """Of clips, after the calibration that fits these very logits: what settings are compared by."""
    calibrated = calibrate(problem, logits, windows)(logits)
    clip = problem.features.clip[windows]
    present = np.unique(clip)
    if problem.activation == "softmax":
        likely = clip_max(activate(calibrated, "softmax"), clip, len(problem.targets))
        return float(-np.log(np.clip(likely[present, problem.classes[present]], 1e-12, 1)).mean())
    scores, targets = clip_scores(problem, calibrated, windows)[present], problem.targets[present]
    known = ~np.isnan(targets)
    p = np.clip(scores[known], 1e-7, 1 - 1e-7)
    return float(-(targets[known] * np.log(p) + (1 - targets[known]) * np.log(1 - p)).mean())


@dataclass(frozen=True)
class Probe:
    """A finished probe.

    Attributes
    ----------
    weight, bias : ndarray
        float64 (rows, features of `setting.layers`) and (rows,), everything folded in.
    setting : Setting
    calibration : Calibration
    thresholds, support : ndarray
        (labels,).
    logits : ndarray
        (windows, rows): out-of-fold, before calibration; nan for windows in no fold.
    scores : ndarray
        (clips, labels): out-of-fold, calibrated without the clip's fold; nan for clips in no fold.
    judged : ndarray
        (clips, labels): the thresholds, chosen without the clip's fold, that each clip was judged by.
    settings : list of Setting
        What each fold chose.
    """

    weight: np.ndarray
    bias: np.ndarray
    setting: Setting
    calibration: Calibration
    thresholds: np.ndarray
    support: np.ndarray
    logits: np.ndarray
    scores: np.ndarray
    judged: np.ndarray
    settings: list[Setting]


def fit_probe(
    problem: Problem,
    *,
    layers: Sequence[tuple[str, ...]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Probe:
    """Fit a probe with honest figures; see the module's first lines for how.

    Parameters
    ----------
    layers : sequence, optional
        Sets of layers to choose among; None: `candidate_layers`.
    progress : callable, optional
        Called with the models fitted and how many there will be about.
    """
    sets = list(layers) if layers is not None else candidate_layers(problem.features.sizes)
    count = len(problem.folds)
    with _workers() as run:
        choice = _Choice(problem, sets, run, progress)
        if count >= 3:
            chosen = [choice.best(fold) for fold in range(count)]
            final = choice.best(None)
        else:  # two folds leave none to choose on
            final = Setting(max(sets, key=lambda names: sum(problem.features.sizes[name] for name in names)))
            chosen = [final] * count
        return _finish(problem, chosen, final, choice, run)


def _finish(problem: Problem, chosen: list[Setting], final: Setting, choice: _Choice, run: Any) -> Probe:
    folds, clip = problem.folds, problem.features.clip
    n_clips, n_labels = problem.targets.shape
    tested = [np.flatnonzero(folds.test(fold)[clip]) for fold in range(len(folds))]
    outer = list(run(lambda fold: train(problem, chosen[fold], folds.train(fold))[0], range(len(folds))))
    whole = folds.index >= 0
    model = train(problem, final, whole)[0]
    logits = np.full((len(clip), problem.n_rows), np.nan)
    for fold, windows in enumerate(tested):
        logits[windows] = outer[fold](problem.features.windows[windows])
    inner = choice.inner(chosen) if len(folds) >= 3 else None
    scores = np.full((n_clips, n_labels), np.nan)
    judged = np.full((n_clips, n_labels), np.nan)
    for fold, windows in enumerate(tested):
        if inner is not None:
            others, theirs = inner[fold]
        else:
            others = np.flatnonzero((whole & ~folds.test(fold))[clip])
            theirs = logits[others]
        calibration = calibrate(problem, theirs, others)
        here = folds.test(fold)
        scores[here] = clip_scores(problem, calibration(logits[windows]), windows)[here]
        judged[here] = fit_thresholds(clip_scores(problem, calibration(theirs), others), problem.targets)[0]
    every = np.flatnonzero(whole[clip])
    calibration = calibrate(problem, logits[every], every)
    thresholds, support = fit_thresholds(clip_scores(problem, calibration(logits[every]), every), problem.targets)
    weight = model.linear.weight.T * calibration.scale[:, None]
    bias = model.linear.bias * calibration.scale + calibration.shift
    return Probe(weight, bias, final, calibration, thresholds, support, logits, scores, judged, chosen)


class _Choice:
    """The inner search: pairs of folds next to each other stay out of training, and both are tested on.

    A pair serves either of its folds: tested on one, it says how a setting does without the other. First the sets of
    layers are compared by ridge regression, then regularisations (and poolings, where clips have several windows) of
    the logistic regression on the sets that won.
    """

    def __init__(self, problem: Problem, sets: list[tuple[str, ...]], run: Any, progress: Any) -> None:
        self.problem, self.run, self.progress = problem, run, progress
        count = len(problem.folds)
        self.pairs = [(a, (a + 1) % count) for a in range(count)] if count >= 3 else []
        self.losses: dict[tuple[Setting, int, int], float] = {}  # setting, fold left out, fold tested on
        self.tested: dict[tuple[Setting, int, int], np.ndarray] = {}  # the logits behind them, float32
        per_clip = np.bincount(problem.features.clip, minlength=1)
        several = (per_clip > 1).sum() > MANY_WINDOWS * (per_clip > 0).sum()
        self.poolings = ("mean", "windows") if several else ("mean",)
        self.layers: dict[int | None, tuple[str, ...]] = {}
        self.done = 0
        self.expected = len(self.pairs) * len(GRID) * len(self.poolings)
        if not self.pairs:
            return
        winners = self._best_layers(sets)
        self._compare(
            [
                Setting(layers, shrinkage, c, pooling)
                for layers in winners
                for pooling in self.poolings
                for shrinkage, c in GRID
            ]
        )

    def _best_layers(self, sets: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
        """The sets that some fold, or all of them together, would choose."""
        if len(sets) == 1:
            return sets
        problem, features = self.problem, self.problem.features
        rows, owner, _ = training_rows(
            features, problem.folds.index >= 0, np.arange(features.windows.shape[1]), pooling="mean"
        )
        sums = Sums(rows, problem.row_targets()[owner], problem.folds.index[owner])

        def tested(job: tuple[tuple[str, ...], tuple[int, int]]) -> list[tuple[int, tuple[str, ...], float]]:
            layers, pair = job
            columns = features.columns(layers)
            linear = sums.solve(columns, pair, RIDGE)
            found = []
            for out, test in (pair, pair[::-1]):
                windows = np.flatnonzero(problem.folds.test(test)[features.clip])
                logits = RIDGE_SCALE * Model(Setting(layers), linear, columns)(features.windows[windows])
                found.append((out, layers, log_loss(problem, logits, windows)))
            return found

        losses = [one for found in self.run(tested, [(s, p) for s in sets for p in self.pairs]) for one in found]

        def best(fold: int | None) -> tuple[str, ...]:
            def loss(layers: tuple[str, ...]) -> float:
                return float(np.mean([v for out, s, v in losses if s == layers and fold in (None, out)]))

            return min(sets, key=loss)

        self.layers = {fold: best(fold) for fold in (None, *range(len(problem.folds)))}
        return sorted(set(self.layers.values()))

    def _compare(self, settings: list[Setting]) -> None:
        chains: dict[tuple[Any, ...], list[Setting]] = {}  # settings that differ in c alone start from each other
        for s in settings:
            chains.setdefault((s.layers, s.shrinkage, s.pooling), []).append(s)
        jobs = [(pair, chain) for chain in chains.values() for pair in self.pairs]
        for found in self.run(lambda job: self._tested(*job), jobs):
            self.losses |= found

    def _tested(self, pair: tuple[int, int], chain: list[Setting]) -> dict[tuple[Setting, int, int], float]:
        problem, found, start = self.problem, {}, None
        for setting in chain:
            model, start = train(problem, setting, problem.folds.train(*pair), start, tolerance=SEARCH_TOLERANCE)
            for out, test in (pair, pair[::-1]):
                windows = np.flatnonzero(problem.folds.test(test)[problem.features.clip])
                logits = model(problem.features.windows[windows])
                found[setting, out, test] = log_loss(problem, logits, windows)
                self.tested[setting, out, test] = logits.astype(np.float32)
            self.done += 1
            if self.progress is not None:
                self.progress(self.done, max(self.expected, self.done))
        return found

    def best(self, fold: int | None) -> Setting:
        """The setting of least loss where `fold` stayed out; None: over all pairs."""
        sums: dict[Setting, list[float]] = {}
        for (setting, out, _), loss in self.losses.items():
            if fold in (None, out) and setting.layers == self.layers.get(fold, setting.layers):
                sums.setdefault(setting, []).append(loss)
        return min(sums, key=lambda s: (float(np.mean(sums[s])), s.layers, s.shrinkage, s.c, s.pooling))

    def inner(self, chosen: list[Setting]) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each fold, windows of other folds with logits by models that saw neither."""
        found = []
        for fold, setting in enumerate(chosen):
            parts = []
            for pair in self.pairs:
                if fold in pair:
                    test = pair[0] if pair[1] == fold else pair[1]
                    windows = np.flatnonzero(self.problem.folds.test(test)[self.problem.features.clip])
                    parts.append((windows, self.tested[setting, fold, test].astype(np.float64)))
            windows = np.concatenate([w for w, _ in parts])
            order = np.argsort(windows, kind="stable")
            found.append((windows[order], np.concatenate([z for _, z in parts])[order]))
        return found


@contextmanager
def _workers() -> Iterator[Any]:
    """An ordered parallel map over threads with one BLAS thread each: the same numbers whatever the machine has.

    Matrices here are so small that BLAS's own threads cost more than they gain.
    """
    import os

    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        yield pool.map

"""Logistic regressions on kept embeddings as one linear map: what they are fitted to, how, and how well they do.

Features are standardised, then decorrelated: with S their covariance over the training clips, x is replaced by L^-1 x,
where L L^T = S + shrinkage I (a large shrinkage leaves them as they are). What the logistic regression learns on that
is still linear in the network's features, and so is the mean of several ones, each on layers of its own. Decorrelated
features need fewer iterations, and which shrinkage serves best differs between networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...inference.head import activate
from ...results.embeddings import MID_LAYERS
from .calibrate import Calibration, clip_max, fit_platt, fit_temperature, fit_thresholds
from .features import Features
from .linear import Linear, Standard, fit_logistic
from .splits import Folds

TOLERANCE = 1e-4  # of the regression; a smaller one changed no choice on three sets of sounds

Layers = tuple[str, ...]


@dataclass(frozen=True)
class Setting:
    """What is chosen inside.

    parts: the layers of each regression; with several, the mean of their logits counts. pooling: what a clip of several
    windows is to a regression: "mean", their mean vector; "windows", each of them, together weighing as much as one.
    """

    parts: tuple[Layers, ...]
    shrinkage: float
    c: float
    pooling: str = "mean"

    @property
    def layers(self) -> Layers:
        """All layers of the parts, each once."""
        return tuple(dict.fromkeys(name for part in self.parts for name in part))

    def single(self) -> list[Setting]:
        """The same for each part alone."""
        return [replace(self, parts=(part,)) for part in self.parts]

    def describe(self) -> dict[str, Any]:
        told = {"layers": list(self.layers), "shrinkage": self.shrinkage, "c": self.c, "pooling": self.pooling}
        return told if len(self.parts) == 1 else {**told, "mean_of": [" + ".join(part) for part in self.parts]}


def candidate_parts(sizes: dict[str, int]) -> list[tuple[Layers, ...]]:
    """What to choose among: sets of layers, and means of regressions on several sets."""
    embedding, hidden = ("embedding",), ("hidden",)
    mid = tuple(name for name in MID_LAYERS if name in sizes)
    last = (*embedding, *hidden)
    ways = [
        (embedding,), (hidden,), (last,), (mid,), ((*mid, *embedding),), ((*mid, *last),),
        (embedding, hidden), (last, mid),
    ]  # fmt: skip
    return list(dict.fromkeys(way for way in ways if all(part and set(part) <= set(sizes) for part in way)))


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
    start: list[Linear] | None = None,
    *,
    tolerance: float = TOLERANCE,
) -> tuple[Model, list[Linear]]:
    """Fit on some clips (boolean); the model, and its parts, from which the next may start."""
    columns = problem.features.columns(setting.layers)
    place = np.zeros(problem.features.windows.shape[1], np.int64)
    place[columns] = np.arange(len(columns))
    weight, bias, fitted = np.zeros((len(columns), problem.n_rows)), np.zeros(problem.n_rows), []
    for n, part in enumerate(setting.parts):
        theirs = problem.features.columns(part)
        linear = _train_part(problem, setting, theirs, clips, None if start is None else start[n], tolerance)
        weight[place[theirs]] += linear.weight / len(setting.parts)
        bias += linear.bias / len(setting.parts)
        fitted.append(linear)
    return Model(setting, Linear(weight, bias), columns), fitted


def _train_part(
    problem: Problem, setting: Setting, columns: np.ndarray, clips: np.ndarray, start: Linear | None, tolerance: float
) -> Linear:
    """One regression on the features `columns`, for these as they are."""
    from scipy.linalg import cholesky, solve_triangular

    rows, owner, weights = training_rows(problem.features, clips, columns, setting.pooling)
    standard = Standard.of(rows)
    rows = standard(rows)
    covariance = (rows.T @ rows) / np.float32(len(rows))
    covariance[np.diag_indices_from(covariance)] += np.float32(setting.shrinkage)
    lower = cholesky(covariance, lower=True, check_finite=False)
    rows = np.ascontiguousarray(solve_triangular(lower, rows.T, lower=True, check_finite=False).T)
    if start is not None:
        weight = lower.T.astype(np.float64) @ (start.weight * standard.scale[:, None])
        start = Linear(weight, start.bias + standard.mean @ start.weight)
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
    return Linear(weight, solved.bias).folded(standard)


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


def cross_fitted(
    problem: Problem, logits: np.ndarray, windows: np.ndarray, folds: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Give scores and thresholds (clips, labels) of held-out logits, calibrated on the other parts; nan elsewhere.

    The parts are folds; where there is one fold only, two halves of its groups.
    """
    clip = problem.features.clip[windows]
    if len(folds) > 1:
        part = problem.folds.index[clip]
    else:
        groups = np.unique(problem.folds.group[clip])
        part = np.isin(problem.folds.group[clip], groups[::2]).astype(np.int64)
    scores = np.full(problem.targets.shape, np.nan)
    judged = np.full(problem.targets.shape, np.nan)
    for one in np.unique(part):
        mine, others = part == one, part != one
        if not others.any():
            others = mine
        calibration = calibrate(problem, logits[others], windows[others])
        here = np.unique(clip[mine])
        scores[here] = clip_scores(problem, calibration(logits[mine]), windows[mine])[here]
        theirs = clip_scores(problem, calibration(logits[others]), windows[others])
        judged[here] = fit_thresholds(theirs, problem.targets)[0]
    return scores, judged

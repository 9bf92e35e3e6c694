"""Scores that mean something: a temperature, or Platt's two numbers a label, and a threshold a label.

Temperature: Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599. Platt scaling with his smoothed
targets: "Probabilistic Outputs for Support Vector Machines", 1999. Everything here is fitted on logits of clips that
the model was not trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...inference.head import activate

FEW = 10  # positives or negatives below which a label shares the numbers of all labels
TEMPERATURES = (0.05, 20.0)
SLOPES = (0.05, 20.0)
NEWTON_STEPS = 50
MIN_THRESHOLD, MAX_THRESHOLD = 0.005, 0.995


@dataclass(frozen=True)
class Calibration:
    """Logits times `scale` plus `shift`, both (labels,), or (rows,) with a rest."""

    method: str
    scale: np.ndarray
    shift: np.ndarray

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        return logits * self.scale + self.shift

    def record(self) -> dict[str, Any]:
        """As `audiotag.config.HeadConfig.calibration` keeps it."""
        if self.method == "temperature":
            return {"method": "temperature", "temperature": float(1 / self.scale[0])}
        return {"method": "platt", "a": self.scale.tolist(), "b": self.shift.tolist()}


def clip_max(windows: np.ndarray, clip: np.ndarray, n_clips: int) -> np.ndarray:
    """Highest of each clip's window rows, as `Tagger.predict` makes a clip's score: (clips, outputs).

    `clip` is ascending. A clip without windows has nan.
    """
    out = np.full((n_clips, windows.shape[1]), np.nan)
    if len(clip):
        starts = np.flatnonzero(np.r_[True, clip[1:] != clip[:-1]])
        out[clip[starts]] = np.maximum.reduceat(windows, starts, axis=0)
    return out


def fit_temperature(logits: np.ndarray, clip: np.ndarray, classes: np.ndarray) -> Calibration:
    """The temperature that makes the classes of clips most likely, by their windows' highest softmax.

    Parameters
    ----------
    logits : ndarray
        (windows, rows).
    clip : ndarray of int64, (windows,)
        Index into `classes`, ascending.
    classes : ndarray of int64, (clips,)
        Row of the right class.
    """
    from scipy.optimize import minimize_scalar

    present = np.unique(clip)
    rows = logits.shape[1]
    # As in Platt's targets, one clip more that is wrong: without it clips told apart without a mistake ask for
    # scores of exactly 0 and 1.
    wrong = 1 / (len(present) + 2)
    wanted = np.full((len(present), rows), wrong / max(rows - 1, 1))
    wanted[np.arange(len(present)), classes[present]] = 1 - wrong

    def loss(log_temperature: float) -> float:
        likely = activate(logits / np.exp(log_temperature), "softmax")
        best = clip_max(likely, clip, len(classes))[present]
        best /= best.sum(1, keepdims=True)
        return float(-(wanted * np.log(np.clip(best, 1e-12, 1))).sum(1).mean())

    low, high = np.log(TEMPERATURES)
    temperature = float(np.exp(minimize_scalar(loss, bounds=(low, high), method="bounded").x)) if len(present) else 1.0
    return Calibration("temperature", np.full(rows, 1 / temperature), np.zeros(rows))


def fit_platt(logits: np.ndarray, targets: np.ndarray) -> Calibration:
    """Slope and intercept of each label's logits; those of all labels together where one has few clips.

    Parameters
    ----------
    logits : ndarray
        (clips, labels): the highest of a clip's windows.
    targets : ndarray
        (clips, labels): 1, 0, or nan for unknown.
    """
    known = ~np.isnan(targets) & np.isfinite(logits)
    pooled = _platt(logits[known], targets[known], np.array([1.0, 0.0]), 1e-3)
    scale, shift = np.full(logits.shape[1], pooled[0]), np.full(logits.shape[1], pooled[1])
    for k in range(logits.shape[1]):
        here = known[:, k]
        positives = int(targets[here, k].sum())
        if min(positives, int(here.sum()) - positives) < FEW:
            continue
        # The prior of all labels counts like about one clip: it only matters where the label's own clips leave it open.
        own = _platt(logits[here, k], targets[here, k], pooled, 1.0)
        scale[k], shift[k] = own
    return Calibration("platt", scale, shift)


def _platt(logits: np.ndarray, target: np.ndarray, prior: np.ndarray, strength: float) -> np.ndarray:
    """Slope and intercept by damped Newton steps on the log loss with Platt's targets and a quadratic prior."""
    positives = float(target.sum())
    negatives = len(target) - positives
    if not positives or not negatives:
        return prior
    wanted = np.where(target > 0.5, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    design = np.stack([logits, np.ones_like(logits)], axis=1)

    def loss(value: np.ndarray) -> float:
        z = design @ value
        return float((np.logaddexp(0, z) - z * wanted).sum() + strength / 2 * ((value - prior) ** 2).sum())

    value, current = prior.copy(), loss(prior)
    for _ in range(NEWTON_STEPS):
        p = activate(design @ value, "sigmoid")
        gradient = design.T @ (p - wanted) + strength * (value - prior)
        curvature = (design * (p * (1 - p))[:, None]).T @ design + strength * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        size = 1.0
        while size > 1e-6 and loss(value - size * step) > current:
            size /= 2
        value, before = value - size * step, current
        current = loss(value)
        if before - current < 1e-10 * max(1.0, abs(current)):
            break
    return np.array([np.clip(value[0], *SLOPES), value[1]])


def fit_thresholds(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The score of each label from which taking it to be there gives the best F1, and the positives it rests on.

    Between two scores that decide alike the middle is taken. Where a label has fewer than `FEW` positives, the
    threshold best for all labels together is; nan where nothing is positive at all.

    Parameters
    ----------
    scores, targets : ndarray
        (clips, labels); targets 1, 0, or nan for unknown.
    """
    known = ~np.isnan(targets) & np.isfinite(scores)
    pooled = best_f1(scores[known], targets[known])
    thresholds = np.full(scores.shape[1], pooled)
    support = np.array([int(targets[known[:, k], k].sum()) for k in range(scores.shape[1])])
    for k in np.flatnonzero(support >= FEW):
        thresholds[k] = best_f1(scores[known[:, k], k], targets[known[:, k], k])
    return thresholds, support


def best_f1(scores: np.ndarray, target: np.ndarray) -> float:
    """The threshold of best F1, inclusive; nan without positives."""
    total = float(target.sum())
    if not total:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    hits = np.cumsum(target[order])
    last = np.append(np.diff(ranked) != 0, True)
    f1 = np.where(last, 2 * hits / (np.arange(1, len(hits) + 1) + total), -1.0)
    at = int(f1.argmax())
    below = ranked[at + 1] if at + 1 < len(ranked) else 0.0
    return float(np.clip((ranked[at] + below) / 2, MIN_THRESHOLD, MAX_THRESHOLD))

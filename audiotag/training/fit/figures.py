"""Figures of a fit: from targets and out-of-fold scores, with bootstrap intervals over groups of recordings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

RESAMPLES = 1000
INTERVAL = (2.5, 97.5)  # per cent
RELIABILITY_BINS = 10


def class_rows(targets: np.ndarray, scores: np.ndarray, thresholds: np.ndarray) -> list[dict[str, Any]]:
    """For each label: positives, average precision, AUC, precision, recall and F1 at its threshold.

    Parameters
    ----------
    targets, scores : ndarray
        (clips, labels); targets 1, 0, or nan for unknown, which is left out.
    thresholds : ndarray
        (labels,), or (clips, labels) where each clip was judged by its own fold's; nan is never reached.
    """
    from ..metrics import average_precision, roc_auc

    judged = np.broadcast_to(thresholds, targets.shape)
    rows = []
    for k in range(targets.shape[1]):
        known = ~np.isnan(targets[:, k]) & np.isfinite(scores[:, k])
        target, score = targets[known, k] > 0.5, scores[known, k]
        positives = int(target.sum())
        said = score >= judged[known, k]
        hits = int((said & target).sum())
        both = 0 < positives < len(target)
        rows.append(
            {
                "clips": int(known.sum()),
                "positives": positives,
                "average_precision": average_precision(target, score) if positives else None,
                "auc": roc_auc(target, score) if both else None,
                "precision": hits / int(said.sum()) if said.any() else None,
                "recall": hits / positives if positives else None,
                "f1": 2 * hits / (int(said.sum()) + positives) if positives else None,
                "false_alarms": int((said & ~target).sum()),
            }
        )
    return rows


def summary(targets: np.ndarray, scores: np.ndarray, thresholds: np.ndarray, task: str) -> dict[str, float | None]:
    """The headline figures.

    ``mean_average_precision``, ``mean_auc``, ``macro_f1``: means over labels that have them. ``accuracy`` (single
    task): clips with a label whose highest score is that label's. ``exact``: clips in which the labels at or above
    their thresholds are just the right ones. ``calibration_error``: the mean distance of score and frequency in ten
    bins. ``log_loss``, ``brier``: over all known pairs of clip and label.
    """
    rows = class_rows(targets, scores, thresholds)
    scored = np.isfinite(scores).all(1)
    known = ~np.isnan(targets) & np.isfinite(scores)
    figures: dict[str, float | None] = {}
    if task == "single":
        labelled = scored & (np.nan_to_num(targets).sum(1) > 0)
        right = np.nan_to_num(targets)[labelled].argmax(1) == scores[labelled].argmax(1)
        figures["accuracy"] = float(right.mean()) if len(right) else None
    for name, key in (("mean_average_precision", "average_precision"), ("mean_auc", "auc"), ("macro_f1", "f1")):
        values = [row[key] for row in rows if row[key] is not None]
        figures[name] = float(np.mean(values)) if values else None
    wrong = ((scores >= thresholds) != (np.nan_to_num(targets) > 0.5)) & known
    figures["exact"] = float((~wrong[scored].any(1)).mean()) if scored.any() else None
    p, t = np.clip(scores[known], 1e-7, 1 - 1e-7), targets[known]
    figures["log_loss"] = float(-(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()) if len(t) else None
    figures["brier"] = float(((p - t) ** 2).mean()) if len(t) else None
    figures["calibration_error"] = calibration_error(*top_scores(targets, scores, task))
    return figures


def top_scores(targets: np.ndarray, scores: np.ndarray, task: str) -> tuple[np.ndarray, np.ndarray]:
    """What calibration is about: scores and whether they are right; the highest of each clip in a single task."""
    if task == "single":
        scored = np.isfinite(scores).all(1)
        best = scores[scored].argmax(1)
        rows = np.arange(len(best))
        return scores[scored][rows, best], np.nan_to_num(targets[scored])[rows, best]
    known = ~np.isnan(targets) & np.isfinite(scores)
    return scores[known], targets[known]


def calibration_error(scores: np.ndarray, right: np.ndarray) -> float | None:
    """Mean distance of score and share of right ones, over bins of equal width, weighted by what falls into each."""
    if not len(scores):
        return None
    return float(sum(row["share"] * abs(row["score"] - row["right"]) for row in reliability(scores, right)))


def reliability(scores: np.ndarray, right: np.ndarray) -> list[dict[str, float]]:
    """For each bin of scores that holds any: mean score, share of right ones, share of all, count."""
    bins = np.minimum((scores * RELIABILITY_BINS).astype(int), RELIABILITY_BINS - 1)
    rows = []
    for b in range(RELIABILITY_BINS):
        here = bins == b
        if here.any():
            rows.append(
                {
                    "score": float(scores[here].mean()),
                    "right": float(right[here].mean()),
                    "share": float(here.mean()),
                    "count": int(here.sum()),
                }
            )
    return rows


def bootstrap(
    figure: Callable[[np.ndarray], Sequence[float | None]], group: np.ndarray, *, seed: int, resamples: int = RESAMPLES
) -> list[tuple[float, float] | None]:
    """95 % intervals of figures, resampling whole groups of clips with replacement.

    Parameters
    ----------
    figure : callable
        Indices of clips, with repeats, to figures.
    group : ndarray of int64, (clips,)
    """
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(group == g) for g in np.unique(group)]
    drawn = []
    for _ in range(resamples):
        picks = rng.integers(0, len(members), len(members))
        drawn.append([math.nan if v is None else v for v in figure(np.concatenate([members[i] for i in picks]))])
    table = np.array(drawn, float)
    intervals: list[tuple[float, float] | None] = []
    for column in table.T:
        column = column[np.isfinite(column)]
        intervals.append(tuple(np.percentile(column, INTERVAL).tolist()) if len(column) else None)
    return intervals


def fast_figures(targets: np.ndarray, scores: np.ndarray, thresholds: np.ndarray, task: str) -> Callable[..., Any]:
    """A function from clip indices to (accuracy or None, mean average precision, macro F1), quick enough to resample.

    Every label's clips are ranked once; a resample only weighs them.
    """
    n_clips = len(targets)
    judged = np.broadcast_to(thresholds, targets.shape)
    known = ~np.isnan(targets) & np.isfinite(scores)
    positive = (np.nan_to_num(targets) > 0.5) & known
    safe = np.where(known, scores, -np.inf)
    order = np.argsort(-safe, axis=0, kind="stable")
    said = (safe >= np.nan_to_num(judged, nan=np.inf)) & known
    ranked_positive = np.take_along_axis(positive, order, 0)
    ranked_known = np.take_along_axis(known, order, 0)
    labelled = positive.any(1)
    right = positive[np.arange(n_clips), np.where(known, scores, -1.0).argmax(1)]

    def figures(clips: np.ndarray) -> tuple[float | None, float | None, float | None]:
        weight = np.bincount(clips, minlength=n_clips).astype(np.float64)
        accuracy = None
        if task == "single" and weight[labelled].sum():
            accuracy = float((weight * right)[labelled].sum() / weight[labelled].sum())
        weights = weight[order]  # (clips, labels), by rank
        hits = np.cumsum(weights * ranked_positive, axis=0)
        seen = np.cumsum(weights * ranked_known, axis=0)
        total = hits[-1]
        with np.errstate(invalid="ignore", divide="ignore"):
            ap = (np.where(seen > 0, hits / seen, 0.0) * weights * ranked_positive).sum(0) / total
            true = (weight[:, None] * (said & positive)).sum(0)
            f1 = 2 * true / ((weight[:, None] * said).sum(0) + total)
        has = total > 0
        return accuracy, float(ap[has].mean()) if has.any() else None, float(f1[has].mean()) if has.any() else None

    return figures

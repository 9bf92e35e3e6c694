"""Figures of merit for tagging: against labels (mAP, AUC, d-prime) and against a teacher (agreement)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score, roc_auc_score

from ..errors import InvalidInputError


def average_precision(target: np.ndarray, scores: np.ndarray) -> float:
    """Compute the area under the precision-recall steps, ties in score counted together.

    Parameters
    ----------
    target : ndarray
        (clips,), true where the label is present; at least one must be.
    scores : ndarray
        (clips,), any scale, higher for "present".
    """
    return float(average_precision_score(*_pair(target, scores)))


def roc_auc(target: np.ndarray, scores: np.ndarray) -> float:
    """Compute the chance that a clip with the label outscores one without, ties counting half; needs both kinds."""
    target, scores = _pair(target, scores)
    if target.all():
        raise InvalidInputError("target must hold at least one False for an AUC")
    return float(roc_auc_score(target, scores))


def d_prime(auc: float) -> float:
    """Compute the separation of two unit normals that would give this AUC: sqrt(2) times its probit."""
    if not 0 <= auc <= 1:
        raise InvalidInputError(f"auc must be in [0, 1], got {auc!r}")
    if auc in (0.0, 1.0):
        return math.copysign(math.inf, auc - 0.5)
    return math.sqrt(2) * NormalDist().inv_cdf(auc)


@dataclass(frozen=True)
class LabelMetrics:
    """Metrics averaged over the labels that have a positive and a negative clip.

    mean_ap, mean_auc: in [0, 1]. d_prime: of the mean AUC. average_precision: (labels,), nan where undefined.
    """

    mean_ap: float
    mean_auc: float
    d_prime: float
    n_labels: int
    n_clips: int
    average_precision: np.ndarray


def label_metrics(targets: np.ndarray, scores: np.ndarray, *, min_positives: int = 1) -> LabelMetrics:
    """Compute class-mean AP, AUC and d-prime of `scores` (clips, labels) against boolean `targets` of that shape.

    Raises
    ------
    InvalidInputError
        If shapes differ or no label has `min_positives` positives and one negative.
    """
    targets = np.asarray(targets, dtype=bool)
    if targets.ndim != 2 or targets.shape != np.shape(scores):
        raise InvalidInputError(
            f"targets and scores must both be (clips, labels), got {targets.shape} and {np.shape(scores)}"
        )
    counts = targets.sum(0)
    usable = np.flatnonzero((counts >= min_positives) & (counts > 0) & (counts < len(targets)))
    if not len(usable):
        raise InvalidInputError(
            f"no label has {min_positives} positive clips and one negative; give more labelled clips"
        )
    ap = np.full(targets.shape[1], np.nan)
    ap[usable] = [average_precision(targets[:, c], scores[:, c]) for c in usable]
    auc = float(np.mean([roc_auc(targets[:, c], scores[:, c]) for c in usable]))
    return LabelMetrics(float(np.nanmean(ap)), auc, d_prime(auc), len(usable), len(targets), ap)


@dataclass(frozen=True)
class Agreement:
    """How a student follows a teacher on the same clips.

    class_mean_ap: the student's AP against the teacher's scores above the threshold, over `n_labels` labels with enough
    positives (nan where there are none). top1_in_top3: share of clips whose first label by the teacher is among the
    student's first three. rank_correlation: Spearman's, over labels within a clip, averaged over clips.
    mean_abs_error: of the scores.
    """

    class_mean_ap: float
    n_labels: int
    top1_in_top3: float
    rank_correlation: float
    mean_abs_error: float
    n_clips: int


def agreement(teacher: np.ndarray, student: np.ndarray, *, threshold: float = 0.3, min_positives: int = 3) -> Agreement:
    """Compare scores (clips, labels) in [0, 1] of a student with its teacher's."""
    if teacher.ndim != 2 or teacher.shape != student.shape:
        raise InvalidInputError(
            f"teacher and student must both be (clips, labels), got {teacher.shape} and {student.shape}"
        )
    targets = teacher > threshold
    counts = targets.sum(0)
    usable = np.flatnonzero((counts >= min_positives) & (counts < len(teacher)))
    ap = [average_precision(targets[:, c], student[:, c]) for c in usable]
    first = teacher.argmax(1)
    top3 = np.argsort(-student, axis=1, kind="stable")[:, :3]
    ranks = [(rankdata(t), rankdata(s)) for t, s in zip(teacher, student, strict=True)]
    correlation = [np.corrcoef(t, s)[0, 1] if t.std() and s.std() else 0.0 for t, s in ranks]
    return Agreement(
        float(np.mean(ap)) if ap else math.nan,
        len(ap),
        float((top3 == first[:, None]).any(1).mean()),
        float(np.mean(correlation)),
        float(np.abs(teacher - student).mean()),
        len(teacher),
    )


def _pair(target: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    target, scores = np.asarray(target, dtype=bool), np.asarray(scores, dtype=np.float64)
    if target.ndim != 1 or target.shape != scores.shape:
        raise InvalidInputError(f"target and scores must both be (clips,), got {target.shape} and {scores.shape}")
    if not np.isfinite(scores).all():
        raise InvalidInputError("scores must be finite")
    if not target.any():
        raise InvalidInputError("target must hold at least one True")
    return target, scores


@dataclass(frozen=True)
class Thresholds:
    """For each label the score from which it is taken to be there, and the number of positive clips that rests on.

    score: None where too few clips are positive, or all. f1: at that score, None likewise.
    """

    score: tuple[float | None, ...]
    support: tuple[int, ...]
    f1: tuple[float | None, ...]


def best_f1_thresholds(targets: np.ndarray, scores: np.ndarray, *, min_positives: int = 5) -> Thresholds:
    """Find for each label the threshold with the best F1 of `scores` (clips, labels) against boolean `targets`.

    A threshold lies halfway between the lowest score that it lets in and the next lower one (0 if there is none); of
    equally good ones the highest is taken.
    """
    targets = np.asarray(targets, dtype=bool)
    if targets.ndim != 2 or targets.shape != np.shape(scores):
        raise InvalidInputError(
            f"targets and scores must both be (clips, labels), got {targets.shape} and {np.shape(scores)}"
        )
    support = targets.sum(0)
    found: list[tuple[float | None, float | None]] = []
    for target, score, positives in zip(targets.T, np.asarray(scores, dtype=np.float64).T, support, strict=True):
        if positives < max(min_positives, 1) or positives == len(target):
            found.append((None, None))
            continue
        order = np.argsort(-score, kind="stable")
        ranked, hits = score[order], np.cumsum(target[order])
        f1 = 2 * hits / (np.arange(1, len(hits) + 1) + positives)
        below = np.append(ranked[1:], 0.0)
        f1[ranked == below] = -1.0  # no threshold parts equal scores
        best = int(f1.argmax())
        found.append((float(ranked[best] + below[best]) / 2, float(f1[best])))
    return Thresholds(tuple(t for t, _ in found), tuple(map(int, support)), tuple(f for _, f in found))

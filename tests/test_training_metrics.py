"""Figures of merit, against their definitions computed slowly, and by hand."""

import math

import numpy as np
import pytest
from sklearn.metrics import f1_score

from audiotag.errors import InvalidInputError
from audiotag.training import metrics


def slow_auc(target, scores):
    """Share of pairs (with, without) in the right order, ties half."""
    return np.mean([(a > b) + (a == b) / 2 for a in scores[target] for b in scores[~target]])


def slow_ap(target, scores):
    """Sum over thresholds of the recall gained times the precision there."""
    total = recall = 0.0
    for threshold in sorted(set(scores), reverse=True):
        found = scores >= threshold
        now = (found & target).sum() / target.sum()
        total += (now - recall) * (found & target).sum() / found.sum()
        recall = now
    return total


@pytest.mark.parametrize("levels", [5, 10_000])  # with many ties, and with hardly any
def test_metrics_by_their_definitions(levels):
    rng = np.random.default_rng(levels)
    scores = rng.integers(0, levels, (200, 6)) / levels
    targets = rng.random((200, 6)) < [0.02, 0.1, 0.3, 0.5, 0.9, 0.0]
    targets[0, :5] = True
    got = metrics.label_metrics(targets, scores)
    expected_ap = [slow_ap(targets[:, c], scores[:, c]) for c in range(5)]
    expected_auc = [slow_auc(targets[:, c], scores[:, c]) for c in range(5)]
    np.testing.assert_allclose(got.average_precision[:5], expected_ap, atol=1e-12)
    assert math.isnan(got.average_precision[5])
    assert got.mean_ap == pytest.approx(np.mean(expected_ap))
    assert got.mean_auc == pytest.approx(np.mean(expected_auc))
    assert got.n_labels == 5


def test_d_prime_of_two_normals():
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(1.5, 1, 20_000), rng.normal(0, 1, 20_000)])
    auc = metrics.roc_auc(np.arange(40_000) < 20_000, scores)
    assert metrics.d_prime(auc) == pytest.approx(1.5, abs=0.05)
    assert metrics.d_prime(0.5) == 0
    with pytest.raises(InvalidInputError, match="auc"):
        metrics.d_prime(1.1)


def test_agreement_by_hand():
    teacher = np.array([[0.9, 0.2, 0.1, 0.0], [0.1, 0.8, 0.3, 0.2]])
    student = np.array([[0.5, 0.6, 0.1, 0.0], [0.5, 0.1, 0.3, 0.4]])
    got = metrics.agreement(teacher, student, min_positives=1)
    assert got.top1_in_top3 == 0.5  # label 1 of the second clip comes last
    # Spearman with ranks without ties: 1 - 6 sum d^2 / (n (n^2 - 1)); d = (1,1,0,0), then (3,3,1,1)
    assert got.rank_correlation == pytest.approx(((1 - 6 * 2 / 60) + (1 - 6 * 20 / 60)) / 2)
    assert got.n_labels == 2
    assert got.class_mean_ap == pytest.approx((0.5 + 0.5) / 2)  # both positives are ranked second of two


@pytest.mark.parametrize(
    "targets, scores",
    [(np.zeros((3, 2)), np.zeros((3, 2))), (np.ones((3, 2)), np.zeros((3, 3))), (np.ones(3), np.ones(3))],
)
def test_metrics_refuse_what_has_no_meaning(targets, scores):
    with pytest.raises(InvalidInputError):
        metrics.label_metrics(targets, scores)


def test_thresholds_are_those_of_the_best_f1():
    """Against every threshold tried, with scikit-learn's F1."""
    rng = np.random.default_rng(0)
    targets = rng.random((60, 6)) < [0.3, 0.5, 0.1, 0.9, 0.0, 1.0]
    scores = np.round(np.where(targets, 0.2, 0.0) + rng.random((60, 6)) * 0.8, 1)  # with equal scores
    found = metrics.best_f1_thresholds(targets, scores, min_positives=3)
    assert found.support == tuple(targets.sum(0))
    assert found.score[4] is None and found.score[5] is None and found.f1[4] is None
    for label in range(4):
        tried = [f1_score(targets[:, label], scores[:, label] >= t) for t in np.arange(0, 1.05, 0.05)]
        assert found.f1[label] == pytest.approx(max(tried))
        assert f1_score(targets[:, label], scores[:, label] >= found.score[label]) == pytest.approx(max(tried))
    assert metrics.best_f1_thresholds(targets, scores, min_positives=61).score == (None,) * 6


def test_a_threshold_lies_between_the_scores_it_parts():
    found = metrics.best_f1_thresholds(
        np.array([[1], [1], [0], [0]]), np.array([[0.9], [0.6], [0.2], [0.1]]), min_positives=1
    )
    assert found.score == (pytest.approx(0.4),) and found.f1 == (1.0,)

"""Ridge regression on any of a problem's layers without any of its folds, from sums made once.

It ranks sets of layers as logistic regression does, at a hundredth of the time: leaving folds out is a subtraction.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .linear import FLOOR, Linear


class Sums:
    """Of each fold: how many rows, their sum, their second moments, and those with the targets.

    Parameters
    ----------
    rows : ndarray
        float32 (rows, features).
    targets : ndarray
        (rows, outputs); nan counts as the output's mean.
    fold : ndarray of int64, (rows,)
        -1 for rows in none.
    """

    def __init__(self, rows: np.ndarray, targets: np.ndarray, fold: np.ndarray) -> None:
        known = np.nan_to_num(targets).astype(np.float64)
        self.mean_target = np.nan_to_num(np.nanmean(np.where(fold[:, None] >= 0, targets, np.nan), 0))
        known = np.where(np.isnan(targets), self.mean_target, known)
        self.parts = {}
        for one in np.unique(fold[fold >= 0]).tolist():
            x, y = rows[fold == one].astype(np.float64), known[fold == one]
            self.parts[one] = (len(x), x.sum(0), y.sum(0), x.T @ x, x.T @ y)

    def solve(self, columns: np.ndarray, without: Iterable[int], strength: float) -> Linear:
        """Weights on the features `columns`, as they are, of all folds but some.

        Features are standardised; `strength` is what is added to their correlations' diagonal.
        """
        from scipy.linalg import cho_factor, cho_solve

        kept = [part for fold, part in self.parts.items() if fold not in set(without)]
        n = sum(part[0] for part in kept)
        x, y = sum(part[1] for part in kept)[columns] / n, sum(part[2] for part in kept) / n
        square = np.ix_(columns, columns)
        covariance = sum(part[3][square] for part in kept) / n - np.outer(x, x)
        cross = sum(part[4][columns] for part in kept) / n - np.outer(x, y)
        deviation = np.sqrt(np.maximum(np.diag(covariance), 0.0))
        scale = deviation + FLOOR * max(float(deviation.mean()), 1e-12)
        correlation = covariance / np.outer(scale, scale)
        correlation[np.diag_indices_from(correlation)] += strength
        weight = cho_solve(cho_factor(correlation, check_finite=False), cross / scale[:, None]) / scale[:, None]
        return Linear(weight, y - x @ weight)

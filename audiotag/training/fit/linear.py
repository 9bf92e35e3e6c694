"""Logistic regression for many labels at once, with labels that are unknown for some rows.

scikit-learn's `LogisticRegression` minimises the same function and is the oracle in the tests; it fits labels one by
one and knows no masked ones, which for 50 labels over many splits takes longer than embedding the recordings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MAX_ITERATIONS = 200
FLOOR = 1e-3  # added to standard deviations, as a share of their mean, so that a constant feature stays small


@dataclass(frozen=True)
class Standard:
    """Mean and scale of features over training rows."""

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray) -> Standard:
        mean = rows.mean(0, dtype=np.float64)
        deviation = rows.std(0, dtype=np.float64)
        return cls(mean, deviation + FLOOR * max(float(deviation.mean()), 1e-12))

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return ((rows - self.mean) / self.scale).astype(np.float32)


@dataclass(frozen=True)
class Linear:
    """weight (features, outputs) and bias (outputs,), float64, on standardised features."""

    weight: np.ndarray
    bias: np.ndarray

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Logits (rows, outputs), float64."""
        return (rows @ self.weight.astype(rows.dtype)).astype(np.float64) + self.bias

    def folded(self, standard: Standard) -> Linear:
        """The same logits from features that are not standardised."""
        weight = self.weight / standard.scale[:, None]
        return Linear(weight, self.bias - standard.mean @ weight)


def fit_logistic(
    rows: np.ndarray,
    targets: np.ndarray,
    *,
    c: float,
    activation: str,
    weights: np.ndarray | None = None,
    start: Linear | None = None,
    max_iterations: int = MAX_ITERATIONS,
    tolerance: float = 1e-4,
) -> Linear:
    """Minimise  |weight|^2 / 2 + c sum of log losses, by L-BFGS.

    Parameters
    ----------
    rows : ndarray
        float32 (rows, features), standardised.
    targets : ndarray
        (rows, outputs) in [0, 1]; nan leaves an output out of a row's loss ("sigmoid" only).
    c : float
        Inverse of the regularisation, as in scikit-learn.
    activation : {"sigmoid", "softmax"}
    weights : ndarray, optional
        (rows,), of each row's loss.
    start : Linear, optional
        Where to begin.
    tolerance : float
        Relative decrease of the loss at which it stops; a smaller one changed no figure on three sets of sounds.
    """
    from scipy.optimize import minimize

    n_features, n_outputs = rows.shape[1], targets.shape[1]
    weigh = np.broadcast_to(
        np.ones((len(rows), 1)) if weights is None else np.asarray(weights, np.float64)[:, None], targets.shape
    )
    weigh = (weigh * ~np.isnan(targets)).astype(np.float32)
    wanted = np.nan_to_num(targets).astype(np.float32)

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = flat[: n_features * n_outputs].reshape(n_features, n_outputs), flat[n_features * n_outputs :]
        logits = rows @ weight.astype(np.float32) + bias.astype(np.float32)
        if activation == "softmax":
            top = logits.max(1, keepdims=True)
            powers = np.exp(logits - top)
            total = powers.sum(1, keepdims=True)
            losses = weigh[:, 0] * (np.log(total[:, 0]) + top[:, 0] - (logits * wanted).sum(1))
            slope = weigh * (powers / total - wanted)
        else:
            small = np.exp(-np.abs(logits))
            losses = weigh * (np.log1p(small) + np.maximum(logits, 0) - logits * wanted)
            slope = weigh * (np.where(logits >= 0, 1.0, small) / (1 + small) - wanted).astype(np.float32)
        gradient = np.empty_like(flat)
        gradient[: n_features * n_outputs] = (c * (rows.T @ slope) + weight).ravel()
        gradient[n_features * n_outputs :] = c * slope.sum(0, dtype=np.float64)
        return c * float(losses.sum(dtype=np.float64)) + 0.5 * float((weight**2).sum()), gradient

    begin = np.zeros((n_features + 1) * n_outputs)
    if start is not None:
        begin = np.concatenate([start.weight.ravel(), start.bias])
    found = minimize(
        loss,
        begin,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": max_iterations, "ftol": tolerance, "gtol": 1e-5, "maxcor": 10},
    ).x
    return Linear(found[:-n_outputs].reshape(n_features, n_outputs), found[-n_outputs:])

"""Own labels: the linear head that a checkpoint may have beside its network, applied to any runtime's outputs.

numpy and nothing else, so that a head works wherever its network runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..config import CheckpointConfig, HeadConfig
from ..runtimes.protocol import SCORES

WEIGHT, BIAS = "head.weight", "head.bias"


class Head:
    """Scores of own labels from a network's feature vectors; see `audiotag.config.HeadConfig` for what it computes.

    Parameters
    ----------
    config : HeadConfig
    weight : ndarray
        (rows, features), as ``head.weight`` has it.
    bias : ndarray
        (rows,).
    """

    def __init__(self, config: HeadConfig, weight: np.ndarray, bias: np.ndarray) -> None:
        self.config = config
        # In float64 a batch's other rows do not change a row's float32 result, and few outputs cost nothing.
        self._weight = np.ascontiguousarray(np.asarray(weight, np.float64).T)
        self._bias = np.asarray(bias, np.float64)

    @classmethod
    def of(cls, config: CheckpointConfig, state: Mapping[str, Any]) -> Head | None:
        """Make the head of a checkpoint, None where it has none; `state` holds arrays or CPU tensors."""
        if config.head is None:
            return None
        return cls(config.head, np.asarray(state[WEIGHT]), np.asarray(state[BIAS]))

    @property
    def outputs(self) -> tuple[str, ...]:
        """What a runtime is asked for: the layers of the features, and the network's scores where they are kept."""
        return (*self.config.inputs, *((SCORES,) if self.config.keep_network else ()))

    def scores(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Compute scores (B, n_scores), float32 in [0, 1], from a runtime's outputs, each (B, ...)."""
        own = self.own_scores(np.concatenate([outputs[name] for name in self.config.inputs], axis=1))
        return np.concatenate([outputs[SCORES], own], axis=1) if self.config.keep_network else own

    def own_scores(self, features: np.ndarray) -> np.ndarray:
        """Compute scores (B, own labels), float32, from feature vectors (B, features)."""
        logits = features.astype(np.float64) @ self._weight + self._bias
        scores = activate(logits, self.config.activation)[:, : len(self.config.labels)]
        return scores.astype(np.float32)


def activate(logits: np.ndarray, activation: str) -> np.ndarray:
    """Compute sigmoid or softmax of logits (..., rows), without overflow."""
    if activation == "softmax":
        powers = np.exp(logits - logits.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)
    small = np.exp(-np.abs(logits))  # in (0, 1]
    return np.where(logits >= 0, 1.0, small) / (1.0 + small)

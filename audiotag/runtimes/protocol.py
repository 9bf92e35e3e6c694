"""The contract between what runs a network and all that uses one; nothing above knows which runtime it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

# Log-mel as a runtime holds it: a numpy array, or a tensor on its device. Slicing and ``shape`` work as in numpy.
Array: TypeAlias = Any

SCORES = "scores"


class Runtime(Protocol):
    """One checkpoint's frontend and network, ready to run; threads may share it.

    Attributes
    ----------
    name : str
        ``"torch"``, ``"openvino"`` or ``"onnxruntime"``.
    device, dtype : str
        Where the network runs and in what precision, e.g. ``"cpu"`` and ``"float32"``.
    default_batch : int
        Windows per run that suit it.
    """

    name: str
    device: str
    dtype: str
    default_batch: int

    def log_mel(self, waveforms: np.ndarray) -> Array:
        """Compute log-mel (B, 1, mels, frames) of waveforms (B, samples), float32, at the checkpoint's rate."""

    def concatenate(self, parts: Sequence[Array], axis: int) -> Array:
        """Join log-mel arrays along an axis."""

    def run(self, logmel: Array, outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Run the network on log-mel (B, 1, mels, frames).

        Parameters
        ----------
        outputs : sequence of str
            ``"scores"``: the network's own, (B, labels) in [0, 1]. ``"logmel"``: its mean over time, (B, mels).
            ``"stem"``, ``"block0"`` .. ``"block14"``: a feature map's mean over time and frequency. ``"embedding"``:
            the pooled last map. ``"hidden"``: the classifier's hidden layer.

        Returns
        -------
        dict of str to ndarray
            What was asked for, float32, one row a window; more may be in it.
        """

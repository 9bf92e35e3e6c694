"""Embeddings: feature vectors of windows, and the concatenation of layers that serves best."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# The mid-network blocks, counted from 0, and mel means that scored best for MN on HEAR: 86.2 against 76.2 for the
# last layer ("Low-Complexity Audio Embedding Extractors", arXiv 2303.01879; 600 numbers at width 1).
MID_LAYERS = ("block4", "block10", "block12", "block14", "logmel")


@dataclass(frozen=True)
class WindowEmbeddings:
    """Embeddings of one recording's windows.

    vectors: float32 (windows, features). start_s, end_s: float64 (windows,), seconds in the recording. warnings: what
    was not as it should be, e.g. that the file is cut short.
    """

    vectors: np.ndarray
    start_s: np.ndarray
    end_s: np.ndarray
    warnings: tuple[str, ...] = ()

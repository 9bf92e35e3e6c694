"""The check that a saved checkpoint folder says what the trained model said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ...errors import CheckpointError
from .candidates import scores_of
from .clips import Dataset

CHECKED_CLIPS = 16  # of which the saved folder must give the trained model's scores
TOLERANCE = 1e-3  # of a score, between the saved checkpoint on audio and the head on kept embeddings


def check_saved(folder: Path, expected: Callable[[int], np.ndarray], dataset: Dataset, device: str | None) -> None:
    """Load a checkpoint folder and compare its scores, from audio, with the trained model's.

    Raises
    ------
    CheckpointError
        They differ.
    """
    from ...tagger import Tagger

    tagger = Tagger.from_pretrained(folder, device=device)
    picks = np.unique(np.linspace(0, len(dataset.clips) - 1, CHECKED_CLIPS).astype(int))
    for i in picks.tolist():
        wanted = expected(i)
        got = scores_of(tagger, [dataset.clips[i]])[0, -len(wanted) :]
        worst = float(np.abs(got - wanted).max())
        if not worst <= TOLERANCE:
            raise CheckpointError(
                f"{dataset.clips[i].name}: the saved checkpoint scores {worst:.2g} off the trained model, more than "
                f"{TOLERANCE:g}; nothing was kept. Please report this"
            )

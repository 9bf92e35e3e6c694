"""Tags: labels with scores, the best picked out of an array."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checks import checked_count, checked_threshold
from ..labels.label_set import LabelLike, LabelSet
from ..text import shortest


@dataclass(frozen=True)
class Tag:
    """A label and its score in [0, 1]: the shortest decimal that is the network's float32."""

    label: str
    score: float
    index: int
    mid: str

    def to_dict(self) -> dict[str, Any]:
        """Return a plain JSON-ready dictionary."""
        return dict(vars(self))


def top_tags(
    scores: np.ndarray,
    labels: LabelSet,
    *,
    k: int | None = 10,
    threshold: float | np.ndarray | None = None,
    include: LabelLike | Iterable[LabelLike] | None = None,
    exclude: LabelLike | Iterable[LabelLike] | None = None,
) -> list[Tag]:
    """Pick the best labels of scores (labels,), float32, as `Prediction.top` gives them."""
    indices = labels.select(include, exclude)
    if threshold is not None:
        lowest = threshold if isinstance(threshold, np.ndarray) else np.float32(checked_threshold(threshold))
        indices = indices[scores[indices] >= np.broadcast_to(lowest, scores.shape)[indices]]
    order = np.argsort(-scores[indices], kind="stable")[: checked_count(k)]
    return [
        Tag(label.display_name, shortest(scores[label.index]), label.index, label.mid)
        for label in (labels[i] for i in indices[order])
    ]

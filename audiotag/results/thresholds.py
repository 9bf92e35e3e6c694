"""Which score makes a label count: thresholds given by the caller, or stored with the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..checks import checked_threshold, shown
from ..errors import InvalidInputError
from ..labels.label_set import LabelSet
from .events import ON

AUTO = "auto"


def stored(thresholds: Sequence[float | None] | None) -> np.ndarray | None:
    """Return a configuration's thresholds as float32 (labels,), nan for None; None where it has none."""
    return None if thresholds is None else np.array([np.nan if t is None else t for t in thresholds], np.float32)


def label_thresholds(
    value: Any, known: np.ndarray | None, labels: LabelSet, *, default: float | None, argument: str
) -> np.ndarray | None:
    """Return one threshold a label, or None where every score is reported.

    Parameters
    ----------
    value : float, mapping, "auto" or None
        A number for all; by label or category, the narrowest name counting and the others having what None means;
        "auto", those stored with the checkpoint and 0.3 for labels that have none. None: "auto" where a checkpoint of
        own labels stores some, else `default`.
    known : ndarray, optional
        float32 (labels,), nan for a label that has none.
    labels : LabelSet
        Labels without a mid are somebody's own.
    default : float, optional
    argument : str
        What `value` is called, for messages.

    Raises
    ------
    InvalidInputError
        A number outside [0, 1], an unknown name, or "auto" where nothing is stored.
    """
    if isinstance(value, str):
        if value != AUTO:
            raise InvalidInputError(f"{argument} must be a number in [0, 1] or 'auto', got {shown(value)}")
        if known is None:
            raise InvalidInputError(f"{argument} 'auto': this checkpoint stores no thresholds; give a number")
        return np.where(np.isnan(known), np.float32(ON), known).astype(np.float32)
    if value is None:
        if known is not None and "" in labels.mids:
            return label_thresholds(AUTO, known, labels, default=None, argument=argument)
        return None if default is None else np.full(len(labels), default, np.float32)
    usual = label_thresholds(None, known, labels, default=default, argument=argument)
    return per_label(value, labels, np.zeros(len(labels), np.float32) if usual is None else usual, argument)


def per_label(value: Any, labels: LabelSet, usual: np.ndarray, argument: str) -> np.ndarray:
    """Return one threshold a label, float32 (labels,), from a number, a mapping by name, or None (`usual`).

    Raises
    ------
    InvalidInputError
        A number outside [0, 1], or an unknown name.
    """
    if value is None:
        return usual
    if not isinstance(value, Mapping):
        return np.full(len(labels), checked_threshold(value, argument), np.float32)
    named = [(labels.select(name), checked_threshold(v, f"{argument}[{name!r}]")) for name, v in value.items()]
    scores = usual.copy()
    for indices, score in sorted(named, key=lambda pair: -len(pair[0])):
        scores[indices] = score
    return scores

"""Folds that never put one recording, or two copies of the same bytes, on both sides of a split."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import InvalidInputError
from .clips import Clip, Dataset
from .problems import Problems

DEFAULT_FOLDS = 5


@dataclass(frozen=True)
class Folds:
    """Which fold each clip is tested in.

    Attributes
    ----------
    index : ndarray of int64, (clips,)
        From 0; -1 for clips of the test split, which are in no fold.
    group : ndarray of int64, (clips,)
        Equal for clips that must stay together.
    names : tuple of str
        Of the folds.
    given : bool
        Whether the data said so.
    """

    index: np.ndarray
    group: np.ndarray
    names: tuple[str, ...]
    given: bool

    def __len__(self) -> int:
        return len(self.names)

    def test(self, *folds: int) -> np.ndarray:
        """Clips (boolean) of these folds."""
        return np.isin(self.index, folds)

    def train(self, *without: int) -> np.ndarray:
        """Clips (boolean) to train on where these folds, and the test split, are kept apart.

        What shares a group with a clip kept apart is left out as well: given folds and splits may cut through a group.
        """
        kept_apart = np.isin(self.index, (*without, -1))
        return ~kept_apart & ~np.isin(self.group, self.group[kept_apart])


def linked_groups(clips: Sequence[Clip]) -> np.ndarray:
    """A number for each clip's group; groups that hold copies of the same bytes, or one recording, are one."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for clip in clips:
        parent[root(f"group {clip.group}")] = root(f"bytes {clip.digest}")
    roots = [root(f"group {clip.group}") for clip in clips]
    numbers = {name: i for i, name in enumerate(dict.fromkeys(roots))}
    return np.array([numbers[name] for name in roots], np.int64)


def make_folds(
    clips: Sequence[Clip], targets: np.ndarray, *, n_folds: int | None = None, task: str, seed: int, problems: Problems
) -> Folds:
    """Folds as the data gives them, or made: grouped, and stratified by label.

    Parameters
    ----------
    targets : ndarray
        float32 (clips, labels): 1, 0 or nan.
    n_folds : int, optional
        As many as wanted where the data gives none; 5 where None, fewer where there are fewer groups.

    Raises
    ------
    InvalidInputError
        Fewer than two groups or folds.
    """
    group = linked_groups(clips)
    trained = np.array([clip.split != "test" for clip in clips])
    index = np.full(len(clips), -1, np.int64)
    given = [clip.fold for clip, t in zip(clips, trained, strict=True) if t and clip.fold]
    names: tuple[str, ...]
    if given and n_folds is None:
        names = tuple(sorted(set(given), key=_natural))
        # Clips without one, such as negatives from a folder of their own, are dealt out by group.
        dealt = {g: i % len(names) for i, g in enumerate(dict.fromkeys(group[trained].tolist()))}
        for i in np.flatnonzero(trained).tolist():
            index[i] = names.index(clips[i].fold) if clips[i].fold else dealt[int(group[i])]
        cut = [g for g in set(group[trained].tolist()) if len(set(index[trained & (group == g)].tolist())) > 1]
        if cut:
            example = next(clip for clip, g in zip(clips, group, strict=True) if g == cut[0])
            problems.warn(
                example.where,
                f"the given folds cut through groups of recordings, this among {len(cut)}",
                "they are honoured; no model is trained on what shares a group with the clips it is tested on",
            )
    else:
        wanted = DEFAULT_FOLDS if n_folds is None else n_folds
        n_groups = len(set(group[trained].tolist()))
        if wanted < 2 or n_groups < 2:
            raise InvalidInputError(
                f"folds must be at least 2, of at least 2 groups; got {wanted} of {n_groups} groups"
            )
        if n_folds is not None and n_folds > n_groups:
            raise InvalidInputError(f"folds must be at most the number of groups, {n_groups}, got {n_folds}")
        count = min(wanted, n_groups)
        names = tuple(str(i + 1) for i in range(count))
        index[trained] = (
            _single(targets[trained], group[trained], count, seed)
            if task == "single"
            else deal(targets[trained], group[trained], count, seed)
        )
    _tell_shared(clips, group, trained, problems)
    if len(names) < 2:
        raise InvalidInputError(f"folds must be at least 2, the data gives {len(names)}; use --folds 5")
    return Folds(index, group, names, bool(given and n_folds is None))


def _tell_shared(clips: Sequence[Clip], group: np.ndarray, trained: np.ndarray, problems: Problems) -> None:
    """Warn of clips to train on that share a recording or a group with the test split."""
    shared = np.flatnonzero(trained & np.isin(group, group[~trained]))
    if len(shared):
        problems.warn(
            clips[shared[0]].where,
            f"shares bytes or a group with the test split, as do {len(shared) - 1:,} more clips"
            if len(shared) > 1
            else "shares bytes or a group with the test split",
            "no model is trained on it",
        )


def _single(targets: np.ndarray, group: np.ndarray, count: int, seed: int) -> np.ndarray:
    """scikit-learn's grouped stratified folds, with "no label" as a class."""
    import warnings

    from sklearn.model_selection import StratifiedGroupKFold

    classes = np.where(np.nansum(targets, 1) > 0, np.nan_to_num(targets).argmax(1), targets.shape[1])
    if np.unique(classes, return_counts=True)[1].max() < count:  # scikit-learn wants one class with a member a fold
        return deal(targets, group, count, seed)
    index = np.empty(len(targets), np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # some class has fewer members than folds: as may be
        splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
        for fold, (_, test) in enumerate(splitter.split(targets, classes, group)):
            index[test] = fold
    # With few groups the splitter can leave a fold empty.
    return index if len(set(index.tolist())) == count else deal(targets, group, count, seed)


def deal(targets: np.ndarray, group: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Deal groups to folds for several labels: iterative stratification (Sechidis et al., 2011), of groups.

    The label with the fewest groups left comes first; each of its groups, largest first, goes to the fold that lacks
    most of that label, then of clips. "No label" is dealt as a label of its own.
    """
    rng = np.random.default_rng(seed)
    present = np.nan_to_num(targets)
    present = np.concatenate([present, (present.sum(1, keepdims=True) == 0)], axis=1)
    members: dict[int, list[int]] = defaultdict(list)
    for clip, g in enumerate(group.tolist()):
        members[g].append(clip)
    order = rng.permutation(np.array(sorted(members)))
    sums = np.stack([present[members[g]].sum(0) for g in order])
    sizes = np.array([len(members[g]) for g in order])
    lacking = np.repeat(sums.sum(0)[None] / count, count, axis=0)  # of each label, in each fold
    room = np.full(count, sizes.sum() / count)
    left = np.ones(len(order), bool)
    index = np.empty(len(targets), np.int64)
    while left.any():
        holders = ((sums > 0) & left[:, None]).sum(0)
        label = int(np.where(holders > 0, holders, np.iinfo(np.int64).max).argmin())
        holding = np.flatnonzero(left & (sums[:, label] > 0))
        for g in holding[np.argsort(-sums[holding, label], kind="stable")]:
            fold = max(range(count), key=lambda f: (round(float(lacking[f, label]), 9), round(float(room[f]), 9), -f))
            index[members[int(order[g])]] = fold
            lacking[fold] -= sums[g]
            room[fold] -= sizes[g]
            left[g] = False
    empty = [f for f in range(count) if not (index == f).any()]
    for fold in empty:  # only with very few groups: take one from the fold that has most of them
        most = max(range(count), key=lambda f: len(set(group[index == f].tolist())))
        index[group == group[index == most][0]] = fold
    return index


def _natural(name: str) -> tuple[int, float, str]:
    try:
        return 0, float(name), name
    except ValueError:
        return 1, 0.0, name


def describe_data(dataset: Dataset, folds: Folds) -> dict[str, Any]:
    """What a fit would work on, as a dry run tells it."""
    targets = dataset.targets
    length = [clip.duration_s for clip in dataset.clips if math.isfinite(clip.duration_s)]
    return {
        "task": dataset.task,
        "clips": len(dataset.clips),
        "recordings": len({clip.path for clip in dataset.clips}),
        "groups": len(set(folds.group.tolist())),
        "hours": round(sum(length) / 3600, 3),
        "labels": {name: int(np.nansum(targets[:, k])) for k, name in enumerate(dataset.labels)},
        "background": int((np.nan_to_num(targets).sum(1) == 0).sum()),
        "test": int((folds.index < 0).sum()),
        "folds": dict(sorted(Counter(folds.names[i] for i in folds.index if i >= 0).items())),
        "folds_given": folds.given,
        "unreadable": dict(dataset.unreadable),
        "warnings": [str(problem) for problem in dataset.problems.warnings],
    }

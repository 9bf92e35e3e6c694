"""A probe: logistic regression on kept embeddings, its settings chosen inside, folded into one linear head.

Figures are nested. A fold's clips are scored by a model whose layers, regularisation, calibration and thresholds were
chosen on the other folds alone: on pairs of folds that both stay out of training, one of which is then its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from .calibrate import Calibration, fit_thresholds
from .linear import Linear
from .regression import (
    Layers,
    Model,
    Problem,
    Setting,
    calibrate,
    candidate_parts,
    clip_scores,
    log_loss,
    train,
    training_rows,
)
from .ridge import Sums

GRID = ((3.0, 0.3), (30.0, 1.0), (300.0, 10.0))  # shrinkage and c of the logistic regression
FIRST = (10.0, 0.3)  # where there is nothing to choose on
RIDGE, RIDGE_SCALE = 0.3, 10.0  # strength of the ridge regression that ranks layers; what makes logits of its outputs
SEARCH_TOLERANCE = 1e-3  # of the regressions that only choose; a smaller one changed no choice on three sets of sounds
MANY_WINDOWS = 0.1  # share of clips with several windows from which it matters how these are learnt from

Parts = tuple[Layers, ...]


@dataclass(frozen=True)
class Probe:
    """A finished probe.

    Attributes
    ----------
    weight, bias : ndarray
        float64 (rows, features of `setting.layers`) and (rows,), everything folded in.
    setting : Setting
    calibration : Calibration
    thresholds, support : ndarray
        (labels,).
    logits : ndarray
        (windows, rows): out-of-fold, before calibration; nan for windows in no fold.
    scores : ndarray
        (clips, labels): out-of-fold, calibrated without the clip's fold; nan for clips in no fold.
    judged : ndarray
        (clips, labels): the thresholds, chosen without the clip's fold, that each clip was judged by.
    settings : list of Setting
        What each fold chose.
    """

    weight: np.ndarray
    bias: np.ndarray
    setting: Setting
    calibration: Calibration
    thresholds: np.ndarray
    support: np.ndarray
    logits: np.ndarray
    scores: np.ndarray
    judged: np.ndarray
    settings: list[Setting]


def fit_probe(
    problem: Problem,
    *,
    parts: Sequence[Parts] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Probe:
    """Fit a probe with honest figures; see the module's first lines for how.

    Parameters
    ----------
    parts : sequence, optional
        What to choose among; None: `candidate_parts`.
    progress : callable, optional
        Called with the models fitted and how many there will be about.
    """
    ways = list(parts) if parts is not None else candidate_parts(problem.features.sizes)
    count = len(problem.folds)
    with _workers() as run:
        choice = _Choice(problem, ways, run, progress)
        if count >= 3:
            chosen = [choice.best(fold) for fold in range(count)]
            final = choice.best(None)
        else:  # two folds leave none to choose on
            final = Setting(max(ways, key=lambda way: problem.features.columns(way[0]).size), *FIRST)
            chosen = [final] * count
        return _finish(problem, chosen, final, choice, run)


def _finish(problem: Problem, chosen: list[Setting], final: Setting, choice: _Choice, run: Any) -> Probe:
    folds, clip = problem.folds, problem.features.clip
    n_clips, n_labels = problem.targets.shape
    tested = [np.flatnonzero(folds.test(fold)[clip]) for fold in range(len(folds))]

    def trained(fold: int | None) -> Model:
        if fold is None:
            return train(problem, final, folds.train(), choice.start(final, 0))[0]
        return train(problem, chosen[fold], folds.train(fold), choice.start(chosen[fold], fold))[0]

    model, *outer = run(trained, (None, *range(len(folds))))
    whole = folds.index >= 0
    logits = np.full((len(clip), problem.n_rows), np.nan)
    for fold, windows in enumerate(tested):
        logits[windows] = outer[fold](problem.features.windows[windows])
    inner = choice.inner(chosen) if len(folds) >= 3 else None
    scores = np.full((n_clips, n_labels), np.nan)
    judged = np.full((n_clips, n_labels), np.nan)
    for fold, windows in enumerate(tested):
        if inner is not None:
            others, theirs = inner[fold]
        else:
            others = np.flatnonzero((whole & ~folds.test(fold))[clip])
            theirs = logits[others]
        calibration = calibrate(problem, theirs, others)
        here = folds.test(fold)
        scores[here] = clip_scores(problem, calibration(logits[windows]), windows)[here]
        judged[here] = fit_thresholds(clip_scores(problem, calibration(theirs), others), problem.targets)[0]
    every = np.flatnonzero(whole[clip])
    calibration = calibrate(problem, logits[every], every)
    thresholds, support = fit_thresholds(clip_scores(problem, calibration(logits[every]), every), problem.targets)
    weight = model.linear.weight.T * calibration.scale[:, None]
    bias = model.linear.bias * calibration.scale + calibration.shift
    return Probe(weight, bias, final, calibration, thresholds, support, logits, scores, judged, chosen)


class _Choice:
    """The inner search: pairs of folds next to each other stay out of training, and both are tested on.

    A pair serves either of its folds: tested on one, it says how a setting does without the other. First the sets of
    layers, and means of several, are compared by ridge regression, then regularisations (and poolings, where clips have
    several windows) of the logistic regression on those that won.
    """

    def __init__(self, problem: Problem, ways: list[Parts], run: Any, progress: Any) -> None:
        self.problem, self.run, self.progress = problem, run, progress
        count = len(problem.folds)
        self.pairs = [(a, (a + 1) % count) for a in range(count)] if count >= 3 else []
        self.losses: dict[tuple[Setting, int, int], float] = {}  # setting, fold left out, fold tested on
        self.tested: dict[tuple[Setting, int, int], np.ndarray] = {}  # the logits behind them, float32
        per_clip = np.bincount(problem.features.clip, minlength=1)
        several = (per_clip > 1).sum() > MANY_WINDOWS * (per_clip > 0).sum()
        self.poolings = ("mean", "windows") if several else ("mean",)
        self.fits: dict[tuple[Setting, int], Linear] = {}  # parts, by the first fold of the pair left out
        self.ways: dict[int | None, Parts] = {}
        self.done, self.expected = 0, 0
        if not self.pairs:
            return
        winners = self._best_ways(ways)
        parts = sorted({part for way in winners for part in way})
        self.expected = len(self.pairs) * len(GRID) * len(self.poolings) * len(parts)
        self._fit_parts(parts)
        self._compare([Setting(way, *knobs, pooling) for way in winners for pooling in self.poolings for knobs in GRID])

    def _windows(self, fold: int) -> np.ndarray:
        return np.flatnonzero(self.problem.folds.test(fold)[self.problem.features.clip])

    def _best_ways(self, ways: list[Parts]) -> list[Parts]:
        """Those that some fold, or all of them together, would choose."""
        if len(ways) == 1:
            return ways
        problem, features, folds = self.problem, self.problem.features, self.problem.folds
        rows, owner, _ = training_rows(features, folds.index >= 0, np.arange(features.windows.shape[1]), pooling="mean")
        sums = Sums(rows, problem.row_targets()[owner], self._uncut()[owner], self.run)
        parts = sorted({part for way in ways for part in way})

        def tested(pair: tuple[int, int]) -> list[tuple[int, Parts, float]]:
            found = []
            moments = sums.without(*pair)
            linear = {part: moments.solve(features.columns(part), RIDGE) for part in parts}
            for out, test in (pair, pair[::-1]):
                windows = self._windows(test)
                inside = features.windows[windows].astype(np.float64)
                logits = {part: inside[:, features.columns(part)] @ z.weight + z.bias for part, z in linear.items()}
                for way in ways:
                    mean = RIDGE_SCALE * sum(logits[part] for part in way) / len(way)
                    found.append((out, way, log_loss(problem, mean, windows)))
            return found

        losses = [one for found in self.run(tested, self.pairs) for one in found]

        def best(fold: int | None) -> Parts:
            def loss(way: Parts) -> float:
                return float(np.mean([v for out, w, v in losses if w == way and fold in (None, out)]))

            return min(ways, key=loss)

        self.ways = {fold: best(fold) for fold in (None, *range(len(folds)))}
        return sorted(set(self.ways.values()))

    def _uncut(self) -> np.ndarray:
        """Each clip's fold; -1 where its group is in others, too, if any are left."""
        folds = self.problem.folds
        low, high = np.full(folds.group.max() + 1, len(folds)), np.full(folds.group.max() + 1, -2)
        np.minimum.at(low, folds.group, folds.index)
        np.maximum.at(high, folds.group, folds.index)
        kept = np.where((low == high)[folds.group], folds.index, -1)
        return kept if len(set(kept[kept >= 0].tolist())) == len(folds) else folds.index

    def _fit_parts(self, parts: list[Layers]) -> None:
        """Logits of every part for every pair and setting; each setting starts from the one before it."""
        chains = [[Setting((part,), *knobs, pooling) for knobs in GRID] for part in parts for pooling in self.poolings]
        jobs = [(pair, chain) for chain in chains for pair in self.pairs]
        for found in self.run(lambda job: self._fitted(*job), jobs):
            self.tested |= found

    def _fitted(self, pair: tuple[int, int], chain: list[Setting]) -> dict[tuple[Setting, int, int], np.ndarray]:
        problem, found, start = self.problem, {}, None
        for setting in chain:
            model, start = train(problem, setting, problem.folds.train(*pair), start, tolerance=SEARCH_TOLERANCE)
            self.fits[setting, pair[0]] = start[0]
            for out, test in (pair, pair[::-1]):
                found[setting, out, test] = model(problem.features.windows[self._windows(test)]).astype(np.float32)
            self.done += 1
            if self.progress is not None:
                self.progress(self.done, self.expected)
        return found

    def _compare(self, settings: list[Setting]) -> None:
        both = [pair for one in self.pairs for pair in (one, one[::-1])]

        def loss(job: tuple[Setting, tuple[int, int]]) -> float:
            setting, (out, test) = job
            logits = sum(self.tested[part, out, test] for part in setting.single()) / np.float32(len(setting.parts))
            self.tested[setting, out, test] = logits
            return log_loss(self.problem, logits.astype(np.float64), self._windows(test))

        jobs = [(setting, pair) for setting in settings for pair in both]
        self.losses = {(setting, *pair): told for (setting, pair), told in zip(jobs, self.run(loss, jobs), strict=True)}

    def start(self, setting: Setting, fold: int) -> list[Linear] | None:
        """What a model that leaves `fold` out may start from; it saw none of it either."""
        keys = [(part, fold) for part in setting.single()]
        return [self.fits[key] for key in keys] if all(key in self.fits for key in keys) else None

    def best(self, fold: int | None) -> Setting:
        """The setting of least loss where `fold` stayed out; None: over all pairs."""
        sums: dict[Setting, list[float]] = {}
        for (setting, out, _), loss in self.losses.items():
            if fold in (None, out) and setting.parts == self.ways.get(fold, setting.parts):
                sums.setdefault(setting, []).append(loss)
        return min(sums, key=lambda s: (float(np.mean(sums[s])), s.parts, s.shrinkage, s.c, s.pooling))

    def inner(self, chosen: list[Setting]) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each fold, windows of other folds with logits by models that saw neither."""
        found = []
        for fold, setting in enumerate(chosen):
            parts = []
            for pair in self.pairs:
                if fold in pair:
                    test = pair[0] if pair[1] == fold else pair[1]
                    windows = self._windows(test)
                    parts.append((windows, self.tested[setting, fold, test].astype(np.float64)))
            windows = np.concatenate([w for w, _ in parts])
            order = np.argsort(windows, kind="stable")
            found.append((windows[order], np.concatenate([z for _, z in parts])[order]))
        return found


@contextmanager
def _workers() -> Iterator[Any]:
    """An ordered parallel map over threads with one BLAS thread each: the same numbers whatever the machine has.

    Matrices here are so small that BLAS's own threads cost more than they gain.
    """
    import os

    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        yield pool.map

"""What came of a fit or an evaluation: targets, out-of-fold scores, and every figure made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ...version import __version__
from .clips import Dataset
from .figures import RESAMPLES, bootstrap, class_rows, fast_figures, summary
from .splits import Folds

if TYPE_CHECKING:
    from ...checkpoints.load import Checkpoint

HEADLINES = ("accuracy", "mean_average_precision", "macro_f1")
SHOWN_MISTAKES, SHOWN_SUSPECTS = 24, 16
MIN_RESAMPLES, RESAMPLED_PAIRS = 200, 20_000_000  # pairs of clip and label, in all resamples together


@dataclass(frozen=True)
class Doubt:
    """A clip to listen to: what was said of it, what the data says, and both scores."""

    clip: int
    given: str
    said: str
    given_score: float
    said_score: float

    @property
    def margin(self) -> float:
        return self.said_score - self.given_score


@dataclass
class Outcome:
    """Targets, scores and thresholds of clips, and every figure made of them.

    Attributes
    ----------
    scores : ndarray
        (clips, labels): of clips in folds by models that did not see them, of test clips by the final one; nan where
        a clip was not scored.
    judged : ndarray
        (clips, labels): the threshold each was judged by.
    metrics : dict
        What ``metrics.json`` holds.
    """

    method: str
    dataset: Dataset
    folds: Folds | None
    scores: np.ndarray
    judged: np.ndarray
    checkpoint: Checkpoint
    seed: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        method: str,
        dataset: Dataset,
        folds: Folds | None,
        scores: np.ndarray,
        judged: np.ndarray,
        checkpoint: Checkpoint,
        *,
        test_scores: np.ndarray | None = None,
        details: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> Outcome:
        """Figures of a fit (with folds: out-of-fold, and of the test split apart) or of an evaluation (without)."""
        scores, judged = scores.copy(), judged.copy()
        n_own = scores.shape[1]
        thresholds = np.array(
            [math.nan if t is None else t for t in (checkpoint.config.thresholds or [None] * n_own)[-n_own:]], float
        )
        held_out = np.zeros(len(scores), bool) if folds is None else folds.index < 0
        if test_scores is not None and held_out.any():
            scores[held_out], judged[held_out] = test_scores[held_out], thresholds
        made = cls(method, dataset, folds, scores, judged, checkpoint, seed)
        rated = ~held_out & np.isfinite(scores).all(1)
        made.metrics = {
            "audiotag": __version__,
            "method": method,
            "task": dataset.task,
            "checkpoint": checkpoint.config.name,
            "out_of_fold" if folds is not None else "figures": made._figures(rated),
            "test": made._figures(held_out) if held_out.any() else None,
            "thresholds": {
                name: None if math.isnan(t) else float(t) for name, t in zip(dataset.labels, thresholds, strict=True)
            },
            "details": details or {},
            "data": {
                "clips": len(dataset.clips),
                "scored": int(rated.sum()),
                "recordings": len({clip.path for clip in dataset.clips}),
                "groups": None if folds is None else len(set(folds.group.tolist())),
                "folds": None if folds is None else list(folds.names),
                "folds_given": None if folds is None else folds.given,
                "unreadable": dataset.unreadable,
                "warnings": [str(problem) for problem in dataset.problems.warnings],
            },
            "seed": seed,
        }
        return made

    @property
    def targets(self) -> np.ndarray:
        return self.dataset.targets

    @property
    def main(self) -> dict[str, Any]:
        """The figures that count first."""
        return self.metrics.get("out_of_fold") or self.metrics["figures"]

    def _figures(self, rows: np.ndarray) -> dict[str, Any]:
        from .splits import linked_groups

        targets, scores, judged = self.targets[rows], self.scores[rows], self.judged[rows]
        figures: dict[str, Any] = {"clips": int(rows.sum()), **summary(targets, scores, judged, self.dataset.task)}
        group = (self.folds.group if self.folds is not None else linked_groups(self.dataset.clips))[rows]
        resamples = int(np.clip(RESAMPLED_PAIRS // max(targets.size, 1), MIN_RESAMPLES, RESAMPLES))
        figure = fast_figures(targets, scores, judged, self.dataset.task)
        intervals = bootstrap(figure, group, seed=self.seed, resamples=resamples)
        figures["interval_95"] = {
            name: None if pair is None else [round(v, 4) for v in pair]
            for name, pair in zip(HEADLINES, intervals, strict=True)
            if figures.get(name) is not None
        }
        figures["groups"] = len(set(group.tolist()))
        figures["false_alarms"] = self._false_alarms(rows)
        return {key: round(v, 6) if isinstance(v, float) else v for key, v in figures.items()}

    def _false_alarms(self, rows: np.ndarray) -> dict[str, Any] | None:
        """Labels said in clips that have none, by the hour of them."""
        targets = self.targets
        empty = rows & (np.nansum(targets, 1) == 0) & ~np.isnan(targets).any(1)
        seconds = float(np.nansum([clip.duration_s for clip, e in zip(self.dataset.clips, empty, strict=True) if e]))
        if not empty.any() or not seconds:
            return None
        alarms = (self.scores[empty] >= self.judged[empty]).sum(0)
        hours = seconds / 3600
        return {
            "clips": int(empty.sum()),
            "hours": round(hours, 4),
            "per_hour": round(float(alarms.sum() / hours), 3),
            "clips_with_any": int((self.scores[empty] >= self.judged[empty]).any(1).sum()),
            "by_label": {
                name: round(float(n / hours), 3) for name, n in zip(self.dataset.labels, alarms, strict=True) if n
            },
        }

    def card(self) -> dict[str, Any]:
        """Facts for the checkpoint's card."""
        figures = {key: self.main[key] for key in HEADLINES if self.main.get(key) is not None}
        return {
            "own_labels": {
                "method": self.method,
                "clips": len(self.dataset.clips),
                "figures": figures,
                "interval_95": self.main["interval_95"],
                "how": "out-of-fold, splits by recording",
            }
        }

    @cached_property
    def class_table(self) -> list[list[Any]]:
        """Rows of ``per_class.csv``, header first, over the clips that count: out-of-fold, or all of an evaluation."""
        rows = np.isfinite(self.scores).all(1)
        if self.folds is not None:
            rows &= self.folds.index >= 0
        figures = class_rows(self.targets[rows], self.scores[rows], self.judged[rows])
        thresholds = self.metrics["thresholds"]
        header = ["label", "threshold", *figures[0]]
        table = [
            [name, thresholds[name], *row.values()] for name, row in zip(self.dataset.labels, figures, strict=True)
        ]
        return [header, *([_rounded(v) for v in row] for row in table)]

    def said(self) -> np.ndarray:
        """(clips, labels) boolean: scores at or above their thresholds."""
        return self.scores >= np.nan_to_num(self.judged, nan=np.inf)

    @cached_property
    def mistakes(self) -> list[Doubt]:
        """The worst: what was said with most confidence against the data, or missed by most.

        Of clips whose label is not among the `suspects`: these are listed there.
        """
        targets, names = self.targets, self.dataset.labels
        suspected = {doubt.clip for doubt in self.suspects}
        found = []
        for i, (target, score) in enumerate(zip(targets, self.scores, strict=True)):
            if i in suspected or not np.isfinite(score).all():
                continue
            if self.dataset.task == "single":
                given = int(np.nan_to_num(target).argmax()) if np.nansum(target) > 0 else None
                best = int(score.argmax())
                if best == given or (given is None and score[best] < self.judged[i, best]):
                    continue
                rated = float(score[given]) if given is not None else float(1 - score[best])
                found.append(
                    Doubt(i, "no label" if given is None else names[given], names[best], rated, float(score[best]))
                )
                continue
            for k in np.flatnonzero((target == 0) & (score >= self.judged[i])):
                found.append(Doubt(i, f"not {names[k]}", names[k], float(1 - score[k]), float(score[k])))
            for k in np.flatnonzero((target == 1) & (score < self.judged[i])):
                found.append(Doubt(i, names[k], f"not {names[k]}", float(score[k]), float(1 - score[k])))
        return sorted(found, key=lambda d: -d.margin)[:SHOWN_MISTAKES]

    @cached_property
    def suspects(self) -> list[Doubt]:
        """Labels that may be wrong, by confident learning (Northcutt et al., arXiv 1911.00068).

        A label's usual confidence is the mean score of the clips that carry it. A clip is suspected where a label it
        does not carry reaches that label's usual confidence, while what it carries is below half of its own.
        """
        targets, names = self.targets, self.dataset.labels
        scored = np.isfinite(self.scores).all(1)
        usual = np.full(len(names), np.inf)
        for k in range(len(names)):
            carriers = scored & (targets[:, k] == 1)
            if carriers.any():
                usual[k] = max(float(self.scores[carriers, k].mean()), 0.05)
        found = []
        for i in np.flatnonzero(scored):
            carried = np.flatnonzero(targets[i] == 1)
            if len(carried) and not (self.scores[i, carried] < usual[carried] / 2).any():
                continue
            others = np.flatnonzero((targets[i] == 0) & (self.scores[i] >= usual))
            if len(others):
                best = int(others[self.scores[i, others].argmax()])
                low = float(self.scores[i, carried].min()) if len(carried) else 1 - float(self.scores[i, best])
                given = names[int(carried[self.scores[i, carried].argmin()])] if len(carried) else "no label"
                found.append(Doubt(int(i), given, names[best], low, float(self.scores[i, best])))
        return sorted(found, key=lambda d: -d.margin)[:SHOWN_SUSPECTS]


def _rounded(value: Any) -> Any:
    return "" if value is None else round(value, 5) if isinstance(value, float) else value

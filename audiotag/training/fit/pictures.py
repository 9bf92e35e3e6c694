"""Pictures of a report as PNG: confusion, precision and recall, reliability; by matplotlib's Agg, without a display."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from .figures import reliability, top_scores

if TYPE_CHECKING:
    from .outcome import Outcome

INK, ACCENT, FAINT = "#1f2933", "#2563eb", "#9aa5b1"
NAMED_CELLS = 20  # labels up to which a confusion's cells carry numbers
NAMED_AXES = 80  # labels up to which its axes carry names
MAX_CURVES = 100
DENSITY = 2  # pixels of a picture for each that it takes on a page, for sharp screens
NONE = "(none)"
LONGEST_NAME = 40  # letters of a name on an axis; longer ones are cut


def confusion(outcome: Outcome) -> tuple[np.ndarray, list[str], list[str]]:
    """Shares (rows, columns): of the clips with a label, in how many each label was said; rows sum to 1 if single.

    In a single task what is said is the best label if it reaches its threshold, and else none.
    """
    names, targets, said = list(outcome.dataset.labels), outcome.targets, outcome.said()
    scored = np.isfinite(outcome.scores).all(1)
    if outcome.dataset.task == "single":
        best = np.where(scored, np.nan_to_num(outcome.scores, nan=-1).argmax(1), 0)
        reached = said[np.arange(len(said)), best]
        column = np.where(reached, best, len(names))
        cells = np.eye(len(names) + 1)[column]
        columns = [*names, NONE]
    else:
        cells = np.concatenate([said, ~said.any(1, keepdims=True)], axis=1).astype(float)
        columns = [*names, NONE]
    rows = [scored & (targets[:, k] == 1) for k in range(len(names))]
    empty = scored & (np.nansum(targets, 1) == 0)
    labels = names.copy()
    if empty.any():
        rows.append(empty)
        labels.append(NONE)
    return np.stack([cells[r].mean(0) if r.any() else np.zeros(len(columns)) for r in rows]), labels, columns


def confusion_picture(outcome: Outcome) -> bytes:
    """PNG of `confusion`."""
    from matplotlib.textpath import TextPath

    shares, rows, columns = confusion(outcome)
    named, size = len(columns) <= NAMED_AXES, 8 if len(columns) <= NAMED_CELLS else 6.5
    rows, columns = [_short(name) for name in rows], [_short(name) for name in columns]
    side = min(2.0 + 0.2 * max(len(rows), 4), 9.5)
    points = max(TextPath((0, 0), name, size=size).get_extents().width for name in columns) if named else 0.0
    figure, axes = _figure(side + 1.6, side, names=0.1 + points / 72, bar=0.3)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    if named:
        axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=size)
        axes.set_yticks(range(len(rows)), rows, fontsize=size)
    if len(rows) <= NAMED_CELLS:
        for (i, j), share in np.ndenumerate(shares):
            if share >= 0.005:
                axes.text(j, i, f"{share:.0%}".rstrip("%"), ha="center", va="center", fontsize=7,
                          color="white" if share > 0.6 else INK)  # fmt: skip
    axes.set_xlabel("said")
    axes.set_ylabel("given")
    axes.set_title("Share of the clips with a label (%) that were said to have each", fontsize=10)
    figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    return _png(figure)


def precision_recall_picture(outcome: Outcome) -> bytes:
    """PNG: a curve for each label, and all of them together."""
    figure, axes = _figure(4.6, 3.9)
    known = ~np.isnan(outcome.targets) & np.isfinite(outcome.scores)
    for k in range(min(len(outcome.dataset.labels), MAX_CURVES)):
        curve = _curve(outcome.targets[known[:, k], k] > 0.5, outcome.scores[known[:, k], k])
        if curve is not None:
            axes.step(*curve, where="post", color=FAINT, linewidth=0.8, alpha=0.6)
    together = _curve(outcome.targets[known] > 0.5, outcome.scores[known])
    if together is not None:
        axes.step(*together, where="post", color=ACCENT, linewidth=2.2, label="all labels together")
        axes.legend(loc="lower left", frameon=False)
    axes.set(xlim=(0, 1.01), ylim=(0, 1.01), xlabel="recall", ylabel="precision")
    axes.set_title("Precision and recall, each label in grey", fontsize=10)
    return _png(figure)


def _curve(target: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    if not target.any():
        return None
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(target[order])
    last = np.append(np.diff(scores[order]) != 0, True)
    recall, precision = (hits / hits[-1])[last], (hits / np.arange(1, len(hits) + 1))[last]
    return np.r_[0.0, recall], np.r_[precision[0], precision]


def reliability_picture(outcome: Outcome) -> bytes:
    """PNG: how often what was scored so is right, and how many clips there are of each score."""
    scores, right = top_scores(outcome.targets, outcome.scores, outcome.dataset.task)
    rows = reliability(scores, right)
    figure, axes = _figure(4.6, 3.9)
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle="--", label="as it should be")
    axes.plot([r["score"] for r in rows], [r["right"] for r in rows], color=ACCENT, marker="o", linewidth=2, label="is")
    axes.bar(
        [(i + 0.5) / 10 for i in range(10)],
        _shares(scores),
        width=0.09,
        color=ACCENT,
        alpha=0.18,
        label="share of scores",
    )
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="score", ylabel="share that is right")
    what = "the best label of each clip" if outcome.dataset.task == "single" else "every label of every clip"
    axes.set_title(f"Reliability of scores ({what})", fontsize=10)
    axes.legend(loc="upper left", frameon=False)
    return _png(figure)


def _shares(scores: np.ndarray) -> np.ndarray:
    return np.histogram(scores, bins=10, range=(0, 1))[0] / max(len(scores), 1)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _figure(width: float, height: float, *, names: float = 0.0, bar: float = 0.0) -> tuple[Any, Any]:
    """A figure and its axes, of that many inches without the margins.

    names, bar: inches more that the names on both axes take, and the numbers beside a colour bar. The margins are set
    rather than measured, which would draw everything twice.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    left, bottom, right, top = names + 0.65, names + 0.55, bar + 0.15, 0.35
    across, up = width + left + right, height + bottom + top
    figure = Figure(figsize=(across, up), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left / across, bottom / up, 1 - right / across, 1 - top / up)
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(
        file,
        format="png",
        dpi=DENSITY * figure.dpi,
        metadata={"Software": None},
        pil_kwargs={"compress_level": 1},
    )
    return file.getvalue()

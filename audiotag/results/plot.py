"""Pictures: log-mel above, label scores over time below. Needs matplotlib (extra ``plot``), but not pyplot.

pyplot would choose a backend and keep every figure; a `Figure` of its own draws anywhere and is freed like any object.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from ..checks import checked_count
from ..config import FrontendConfig
from ..errors import InvalidInputError, MissingDependencyError
from ..files import whole_file
from ..labels.label_set import LabelLike
from ..text import clock, columns, fit, printable
from .events import hop_scores

if TYPE_CHECKING:
    from .prediction import Prediction

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MultipleLocator
except ImportError as error:
    raise MissingDependencyError('pictures need matplotlib: pip install "audiotag-dymn[plot]"') from error

SUFFIXES = (".png", ".svg", ".pdf")
WIDTH_IN, ROW_IN, LOGMEL_IN, MARGIN_IN = 10.0, 0.27, 2.0, 1.0
MAX_STEPS = 1500  # more than a picture has room for
MAX_NAME = 32
DPI = 120
FREQUENCY_TICKS_HZ = (250, 500, 1000, 2000, 4000, 8000, 16000)
# Steps that are round on a clock, in seconds.
TIME_STEPS_S = (
    0.1,
    0.2,
    0.5,
    1,
    2,
    5,
    10,
    20,
    30,
    60,
    120,
    300,
    600,
    900,
    1800,
    3600,
    7200,
    14400,
    21600,
    43200,
    86400,
)
MAX_TICKS = 12
# Shares of the log-mel values drawn white and black: quiet frames and rare peaks should not set the contrast.
QUIET, LOUD = 0.05, 0.998


class Picture(Figure):
    """A matplotlib Figure that notebooks show without pyplot."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=DPI)
        return file.getvalue()


def plot_prediction(
    prediction: Prediction,
    *,
    logmel: np.ndarray | None = None,
    k: int = 10,
    include: LabelLike | Iterable[LabelLike] | None = None,
    exclude: LabelLike | Iterable[LabelLike] | None = None,
) -> Picture:
    """Draw labels' scores over time, under the log-mel if there is one.

    The labels are those that are up the most: the largest sums over time of squared scores. With a single window
    there is no "over time", and bars show the best scores.

    Parameters
    ----------
    logmel : numpy.ndarray, (mels, columns), optional
        Log-mel of the whole recording by the prediction's frontend, evenly spaced in time, as
        `audiotag.frontend.overview.logmel_image` makes it.
    k : int
        How many labels.
    include, exclude
        Which labels to consider, as for `Prediction.top`.

    Raises
    ------
    InvalidInputError
        A wrong shape of ``logmel``, or what `Prediction.top` refuses.
    """
    steps = len(prediction.window_scores) > 1
    tags = prediction.top(None, include=include, exclude=exclude)
    if steps:
        power = np.square(prediction.window_scores, dtype=np.float64).sum(axis=0)
        tags.sort(key=lambda tag: -power[tag.index])
    tags = tags[: checked_count(k)]
    scores_in = ROW_IN * len(tags)
    heights = [scores_in] if logmel is None else [LOGMEL_IN, scores_in]
    figure = Picture(figsize=(WIDTH_IN, sum(heights) + MARGIN_IN), dpi=DPI, layout="constrained", facecolor="white")
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    lower = axes[-1]
    if logmel is not None:
        _draw_logmel(axes[0], np.asarray(logmel), prediction.duration_s, prediction.frontend)
        _time_axis(axes[0], prediction.duration_s, named=not steps)
        if steps:
            axes[0].tick_params(labelbottom=False)
    if steps:
        _draw_heat(figure, lower, prediction, [tag.index for tag in tags])
        _time_axis(lower, prediction.duration_s)
    else:
        lower.barh(range(len(tags)), [tag.score for tag in tags], color="#2f6db5", height=0.7)
        lower.set_xlim(0, 1)
        lower.set_xlabel("score", fontsize=9)
        lower.tick_params(axis="x", labelsize=8)
        lower.set_ylim(len(tags) - 0.5, -0.5)
        lower.spines[["top", "right"]].set_visible(False)
        for row, tag in enumerate(tags):
            inside = tag.score > 0.9
            lower.text(
                tag.score + (-0.005 if inside else 0.005),
                row,
                f"{tag.score:.3f}",
                va="center",
                ha="right" if inside else "left",
                fontsize=8,
                color="white" if inside else "black",
            )
    names = [fit(tag.label, min(columns(tag.label), MAX_NAME)) for tag in tags]
    lower.set_yticks(range(len(tags)), names, fontsize=9, parse_math=False)
    lower.tick_params(axis="y", length=0)
    heading = f"{_end_of(printable(prediction.source), 90)}   {clock(prediction.duration_s)}   {prediction.checkpoint}"
    axes[0].set_title(heading, loc="left", fontsize=10, parse_math=False)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Write a picture as its name says, ``.png``, ``.svg`` or ``.pdf``; it appears whole or not at all.

    Raises
    ------
    InvalidInputError
        Another ending.
    OutputError
        The disk refuses.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in SUFFIXES:
        raise InvalidInputError(f"a picture's name must end in {', '.join(SUFFIXES)}; got {os.fspath(path)!r}")
    with whole_file(path, binary=True) as file:
        figure.savefig(file, format=suffix[1:], dpi=DPI)


def _draw_logmel(axes: Axes, image: np.ndarray, duration_s: float, config: FrontendConfig) -> None:
    if image.ndim != 2 or image.shape[0] != config.n_mels or not image.shape[1]:
        raise InvalidInputError(f"logmel must have shape ({config.n_mels}, columns), got {image.shape}")
    low, high = np.quantile(image, [QUIET, LOUD])
    mel_low, mel_high = (float(np.log1p(hz / 700)) for hz in (config.fmin_hz, config.fmax_hz))  # HTK mel, unscaled
    axes.imshow(
        image,
        origin="lower",
        aspect="auto",
        extent=(0, duration_s, mel_low, mel_high),
        cmap="Greys",
        vmin=low,
        vmax=max(high, low + 1e-3),
        interpolation="antialiased",
    )
    ticks = [hz for hz in FREQUENCY_TICKS_HZ if config.fmin_hz <= hz <= config.fmax_hz]
    axes.set_yticks([float(np.log1p(hz / 700)) for hz in ticks], [f"{hz / 1000:g}" for hz in ticks], fontsize=8)
    axes.set_ylabel("frequency (kHz)", fontsize=9)


def _draw_heat(figure: Figure, axes: Axes, prediction: Prediction, indices: list[int]) -> None:
    scores, edges_s = hop_scores(
        prediction.window_scores[:, indices],
        prediction.window_start_s,
        prediction.window_end_s,
        hop_s=prediction.hop_s,
    )
    step = -(-len(scores) // MAX_STEPS)
    if step > 1:
        # The maximum, so that a short event in a long recording stays visible.
        firsts = np.arange(0, len(scores), step)
        scores, edges_s = np.maximum.reduceat(scores, firsts, axis=0), np.append(edges_s[firsts], edges_s[-1])
    rows = np.arange(len(indices) + 1) - 0.5
    mesh = axes.pcolormesh(edges_s, rows, scores.T, cmap="Blues", vmin=0, vmax=1, rasterized=True)
    axes.hlines(rows[1:-1], 0, edges_s[-1], color="white", linewidth=2)
    axes.set_ylim(len(indices) - 0.5, -0.5)
    colorbar = figure.colorbar(mesh, ax=axes, pad=0.01, fraction=0.03, aspect=25)
    colorbar.set_label("score", fontsize=9)
    colorbar.ax.tick_params(labelsize=8)
    colorbar.outline.set_visible(False)


def _time_axis(axes: Axes, duration_s: float, *, named: bool = True) -> None:
    axes.set_xlim(0, duration_s)
    step_s = next((s for s in TIME_STEPS_S if duration_s / s <= MAX_TICKS), duration_s / MAX_TICKS)
    axes.xaxis.set_major_locator(MultipleLocator(step_s))
    if duration_s >= 120:
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda seconds, _: clock(seconds, decimals=0, hours=duration_s >= 3600))
        )
    axes.tick_params(axis="x", labelsize=8)
    if named:
        unit = "s" if duration_s < 120 else "min:s" if duration_s < 3600 else "h:min:s"
        axes.set_xlabel(f"time ({unit})", fontsize=9)


def _end_of(text: str, width: int) -> str:
    return text if len(text) <= width else "…" + text[1 - width :]

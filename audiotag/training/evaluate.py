"""Evaluate a checkpoint on a bank of pieces: against labels, and against a teacher; a JSON report and a plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..checkpoints.load import build, load_checkpoint
from ..config import CheckpointConfig
from ..errors import InvalidInputError
from ..files import write_whole
from ..frontend.logmel import LogMel
from ..labels.label_set import audioset_labels
from .bank import LABELS_FILE, LOGITS_FILE, PieceBank, read_split, read_table
from .metrics import Agreement, LabelMetrics, agreement, label_metrics


@dataclass(frozen=True)
class Report:
    """What an evaluation found; a part is None where the bank has no labels or no teacher was given."""

    checkpoint: str
    n_clips: int
    labels: LabelMetrics | None
    teacher_labels: LabelMetrics | None
    agreement: Agreement | None

    def to_dict(self) -> dict[str, Any]:
        """Return a plain JSON-ready dictionary; labels without positives have a null average precision."""
        plain = asdict(self)
        for part in ("labels", "teacher_labels"):
            if plain[part] is not None:
                ap = plain[part]["average_precision"]
                plain[part]["average_precision"] = [None if np.isnan(v) else float(v) for v in ap]
        if plain["agreement"] is not None and np.isnan(plain["agreement"]["class_mean_ap"]):
            plain["agreement"]["class_mean_ap"] = None
        return plain

    def summary(self) -> str:
        """Write a line or two for a terminal."""
        lines = [f"{self.checkpoint}: {self.n_clips} clips"]
        for name, part in (("labels", self.labels), ("labels, teacher", self.teacher_labels)):
            if part is not None:
                figures = f"mAP {part.mean_ap:.3f}, AUC {part.mean_auc:.3f}, d' {part.d_prime:.2f}"
                lines.append(f"{name}: {figures} over {part.n_labels} labels")
        if self.agreement is not None:
            a = self.agreement
            lines.append(
                f"agreement: class-mean AP {a.class_mean_ap:.3f} over {a.n_labels} labels, "
                f"first label in the first three {a.top1_in_top3:.3f}, rank correlation {a.rank_correlation:.3f}"
            )
        return "\n".join(lines)


def scores_of(network: nn.Module, config: CheckpointConfig, bank: PieceBank, *, batch_size: int = 8) -> np.ndarray:
    """Compute scores (pieces, labels), float32, of pieces tiled or cut to the checkpoint's window, in eval mode."""
    return torch.from_numpy(logits_of(network, config, bank, batch_size=batch_size)).sigmoid().numpy()


@torch.inference_mode()
def logits_of(network: nn.Module, config: CheckpointConfig, bank: PieceBank, *, batch_size: int = 8) -> np.ndarray:
    """Compute logits (pieces, labels), float32, of pieces tiled or cut to the checkpoint's window, in eval mode."""
    network.eval()
    logmel = LogMel(config.frontend)
    found = []
    for begin in range(0, len(bank), batch_size):
        pieces = [_window(bank[i], config.window_samples) for i in range(begin, min(begin + batch_size, len(bank)))]
        found.append(network(logmel(torch.from_numpy(np.stack(pieces)))).logits.numpy())
    return np.concatenate(found)


def _window(piece: np.ndarray, samples: int) -> np.ndarray:
    return np.resize(piece, samples) if len(piece) else np.zeros(samples, np.float32)


def evaluate_bank(
    banks: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    checkpoint: str | None = None,
    teacher: str | None = None,
    split: str = "val",
    batch_size: int = 8,
) -> Report:
    """Evaluate and write ``report.json`` and ``report.png`` into `out`; the command ``audiotag train evaluate``.

    Without `teacher`, scores of one stored in the bank (``teacher_logits.npy``) serve, where there are any.

    Raises
    ------
    InvalidInputError
        If the bank has neither labels nor a teacher's scores and no teacher is given, or the split is unknown.
    """
    folders = [banks] if isinstance(banks, (str, Path)) else list(banks)
    picks = read_split(folders, split)
    pieces = PieceBank.open(*folders).subset(picks)
    targets, logits = read_table(folders, LABELS_FILE), read_table(folders, LOGITS_FILE)
    if targets is None and logits is None and teacher is None:
        raise InvalidInputError(
            f"{folders[0]} has no labels: give a teacher to compare with, or prepare the bank with a table of labels"
        )
    loaded = load_checkpoint(checkpoint)
    scores = scores_of(build(loaded), loaded.config, pieces, batch_size=batch_size)
    teacher_scores = None
    if teacher is not None:
        other = load_checkpoint(teacher)
        teacher_scores = scores_of(build(other), other.config, pieces, batch_size=batch_size)
    elif logits is not None:
        teacher_scores = 1 / (1 + np.exp(-logits[picks].astype(np.float32)))
    report = Report(
        loaded.config.name,
        len(pieces),
        None if targets is None else label_metrics(targets[picks] > 0, scores),
        None if targets is None or teacher_scores is None else label_metrics(targets[picks] > 0, teacher_scores),
        None if teacher_scores is None else agreement(teacher_scores, scores),
    )
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "report.json", (json.dumps(report.to_dict(), indent=2) + "\n").encode())
    plot_report(report, scores, teacher_scores, folder / "report.png")
    return report


def plot_report(report: Report, scores: np.ndarray, teacher_scores: np.ndarray | None, path: Path) -> None:
    """Draw average precision by label, where there are labels, and scores over the teacher's, where there is one."""
    from matplotlib.figure import Figure

    panels = [report.labels is not None, teacher_scores is not None]
    axes = iter(
        np.atleast_1d((figure := Figure(figsize=(6 * sum(panels), 5), layout="constrained")).subplots(1, sum(panels)))
    )
    if report.labels is not None:
        ap = report.labels.average_precision
        order = [i for i in np.argsort(ap) if not np.isnan(ap[i])]
        names = audioset_labels().names
        axis = next(axes)
        axis.barh(range(len(order)), ap[order])
        if len(order) <= 60:
            axis.set_yticks(range(len(order)), [names[i] for i in order], fontsize=6)
        axis.set(xlabel="average precision", title=f"mAP {report.labels.mean_ap:.3f}")
    if teacher_scores is not None:
        assert report.agreement is not None
        axis = next(axes)
        axis.hexbin(teacher_scores.ravel(), scores.ravel(), bins="log", gridsize=40, extent=(0, 1, 0, 1))
        axis.plot([0, 1], [0, 1], linewidth=0.5)
        axis.set(
            xlabel="teacher's score",
            ylabel="student's score",
            title=f"class-mean AP {report.agreement.class_mean_ap:.3f}",
        )
    figure.savefig(path, dpi=120)


def plot_log(folder: str | Path) -> Path:
    """Draw a run's loss and learning rate over its steps to ``log.png`` in the run's folder."""
    from matplotlib.figure import Figure

    from .run import read_log

    columns = read_log(folder)
    figure = Figure(figsize=(7, 6), layout="constrained")
    for axis, name in zip(figure.subplots(2, 1, sharex=True), ("loss", "rate"), strict=True):
        if name in columns:
            axis.plot(*zip(*columns[name], strict=True))
        axis.set_ylabel(name)
        axis.set_yscale("log")
    path = Path(folder) / "log.png"
    figure.savefig(path, dpi=120)
    return path

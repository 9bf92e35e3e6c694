"""`evaluate`: the report of a checkpoint on other labelled data, as it is and at its own thresholds."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import AudiotagError, InvalidInputError
from ...files import whole_folder
from .clips import Dataset
from .data import check_unreadable, read_data
from .problems import Problems

DEFAULT_THRESHOLD = 0.3  # of labels that have none of their own, as in events


@dataclass(frozen=True)
class Evaluation:
    """Figures of a checkpoint on labelled data.

    Attributes
    ----------
    metrics : dict
        What ``metrics.json`` holds.
    folder : Path or None
        Where the report is.
    """

    metrics: dict[str, Any]
    folder: Path | None


def evaluate(
    model: str | os.PathLike[str] | None,
    data: Any,
    output: str | os.PathLike[str] | None = None,
    *,
    labels: Sequence[Any] | None = None,
    task: str = "auto",
    negatives: str | os.PathLike[str] | None = None,
    seed: int = 0,
    device: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Score labelled data with a checkpoint and report how well: figures, tables, pictures, a page.

    Parameters
    ----------
    model : str or path, optional
        As for `Tagger.from_pretrained`.
    data, labels, task, negatives
        As for `audiotag.fit`; the labels are the checkpoint's, or some of them.
    output : path, optional
        Folder for the report, new or empty; None for figures alone.

    Raises
    ------
    InvalidInputError
        All that is wrong with the data, among it labels that the checkpoint does not have.
    """
    from ...tagger import Tagger
    from .outcome import Outcome
    from .report import write_report
    from .run import require

    require()
    tell = progress or (lambda *_: None)
    tagger = Tagger.from_pretrained(model, device=device)
    if output is not None and (folder := Path(output).expanduser()).exists() and any(folder.iterdir()):
        raise InvalidInputError(f"output must be a new or empty folder, got {folder}; name another, or delete it first")
    config = tagger.config
    if task == "auto" and config.head is not None:
        task = "single" if config.head.activation == "softmax" else "multi"
    dataset = read_data(
        data, labels, negatives=negatives, task=task, window_s=config.window_s, known=tagger.labels.names
    )
    _tell_seen(model, dataset)
    scores, failed = _scores(tagger, dataset, tell)
    dataset, scores = _scored(dataset, scores, failed)
    used = [k for k, name in enumerate(dataset.labels) if _uses(config, dataset, k, name)]
    dataset = replace(dataset, labels=tuple(dataset.labels[k] for k in used))
    thresholds = [
        DEFAULT_THRESHOLD if config.thresholds is None or (t := config.thresholds[k]) is None else t for k in used
    ]
    judged = np.broadcast_to(np.array(thresholds, float), (len(scores), len(used)))
    named = replace(tagger.checkpoint, config=replace(config, thresholds=None, threshold_support=None))
    outcome = Outcome.of(
        "evaluate",
        dataset,
        None,
        scores[:, used],
        judged,
        named,
        details={"base": None},
        seed=seed,
    )
    outcome.metrics["thresholds"] = dict(zip(dataset.labels, thresholds, strict=True))
    if output is None:
        return Evaluation(outcome.metrics, None)
    with whole_folder(output) as made:
        tell("writing the report", 0, 1)
        write_report(made, outcome)
    return Evaluation(outcome.metrics, Path(output).expanduser())


def _tell_seen(model: Any, dataset: Dataset) -> None:
    """Warn of recordings that the checkpoint was fitted to, by the digests that its folder keeps."""
    from .report import SPLITS_FILE

    if model is None or not (table := Path(model).expanduser() / SPLITS_FILE).is_file():
        return
    with open(table, newline="", encoding="utf-8", errors="surrogateescape") as file:
        fitted = {row.get("sha256") for row in csv.DictReader(file) if row.get("fold") not in ("test", "", None)}
    seen = [clip for clip in dataset.clips if clip.digest in fitted]
    if seen:
        dataset.problems.warn(
            seen[0].where,
            f"{len(seen):,} of {len(dataset.clips):,} clips are of recordings that the checkpoint was fitted to, this "
            "among them, so the figures flatter it",
            "leave them out, or read its out-of-fold figures",
        )


def _uses(config: Any, dataset: Dataset, k: int, name: str) -> bool:
    """Whether a label is reported: the checkpoint's own ones, and of AudioSet's those that the data names."""
    own = config.head is not None and k >= config.n_scores - len(config.head.labels)
    return own or any(name in clip.present | clip.absent | clip.unknown for clip in dataset.clips)


def _scores(tagger: Any, dataset: Dataset, tell: Callable[[str, int, int], None]) -> tuple[np.ndarray, dict[int, str]]:
    """Scores (clips, labels), nan where a clip could not be read, and why."""
    from .features import clip_sources

    order = sorted(range(len(dataset.clips)), key=lambda i: (dataset.clips[i].path, dataset.clips[i].onset_s or 0.0))
    scores = np.full((len(dataset.clips), len(tagger.labels)), math.nan)
    failed = {}
    results = tagger.predict_each(clip_sources([dataset.clips[i] for i in order], tagger.sample_rate))
    for done, (i, (_, result)) in enumerate(zip(order, results, strict=True), start=1):
        if isinstance(result, AudiotagError):
            failed[i] = str(result)
        else:
            scores[i] = result.scores
        tell("tagging", done, len(order))
    return scores, failed


def _scored(dataset: Dataset, scores: np.ndarray, failed: dict[int, str]) -> tuple[Dataset, np.ndarray]:
    """Both without what could not be read; too much of that is an error."""
    if not failed:
        return dataset, scores
    problems = Problems()
    told = {dataset.clips[i].path: reason for i, reason in failed.items()}
    check_unreadable({**dataset.unreadable, **told}, len({clip.path for clip in dataset.clips}), problems)
    problems.stop()
    for path, reason in told.items():
        dataset.problems.warn(path, reason, "it is left out")
    kept = [i for i in range(len(dataset.clips)) if i not in failed]
    return replace(dataset, clips=tuple(dataset.clips[i] for i in kept)), scores[kept]

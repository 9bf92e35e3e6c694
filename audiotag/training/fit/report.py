"""The report of a fit or an evaluation: figures as JSON, tables as CSV, pictures, and a page that opens offline."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...files import write_whole
from .clips import Clip
from .outcome import Outcome
from .page import page_sounds, report_page
from .pictures import confusion_picture, precision_recall_picture, reliability_picture

METRICS_FILE, CLASSES_FILE = "metrics.json", "per_class.csv"
SPLITS_FILE, PREDICTIONS_FILE, PAGE_FILE = "splits.csv", "predictions.csv", "report.html"


def write_report(folder: Path, outcome: Outcome) -> None:
    """Write every file of the report into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(1) as pool:
        sounds = pool.submit(page_sounds, outcome)  # mostly in libsndfile, while Python draws
        write_whole(folder / METRICS_FILE, (json.dumps(outcome.metrics, indent=2, allow_nan=False) + "\n").encode())
        write_whole(folder / CLASSES_FILE, _csv(outcome.class_table))
        write_whole(folder / SPLITS_FILE, _csv(_splits(outcome)))
        write_whole(folder / PREDICTIONS_FILE, _csv(_predictions(outcome)))
        pictures = {
            "confusion.png": confusion_picture(outcome),
            "precision_recall.png": precision_recall_picture(outcome),
            "reliability.png": reliability_picture(outcome),
        }
        for name, picture in pictures.items():
            write_whole(folder / name, picture)
        write_whole(folder / PAGE_FILE, report_page(outcome, pictures, sounds.result()).encode())


def _splits(outcome: Outcome) -> list[list[Any]]:
    dataset, folds = outcome.dataset, outcome.folds
    table: list[list[Any]] = [["file", "onset", "offset", "labels", "fold", "group", "sha256"]]
    for i, clip in enumerate(dataset.clips):
        fold = "" if folds is None else "test" if folds.index[i] < 0 else folds.names[folds.index[i]]
        group = "" if folds is None else int(folds.group[i])
        table.append(
            [
                dataset.shown(_whole(clip)),
                _blank(clip.onset_s),
                _blank(clip.offset_s),
                _given(clip),
                fold,
                group,
                clip.digest,
            ]
        )
    return table


def _predictions(outcome: Outcome) -> list[list[Any]]:
    dataset, said = outcome.dataset, outcome.said()
    table: list[list[Any]] = [["file", "onset", "offset", "fold", "labels", "said", *dataset.labels]]
    folds = outcome.folds
    for i, clip in enumerate(dataset.clips):
        fold = "" if folds is None else "test" if folds.index[i] < 0 else folds.names[folds.index[i]]
        names = ";".join(name for name, s in zip(dataset.labels, said[i], strict=True) if s)
        scores = ["" if not math.isfinite(s) else round(float(s), 5) for s in outcome.scores[i]]
        table.append(
            [
                dataset.shown(_whole(clip)),
                _blank(clip.onset_s),
                _blank(clip.offset_s),
                fold,
                _given(clip),
                names,
                *scores,
            ]
        )
    return table


def _whole(clip: Clip) -> Clip:
    return replace(clip, onset_s=None, offset_s=None)


def _given(clip: Clip) -> str:
    marked = [*sorted(clip.present), *(f"-{n}" for n in sorted(clip.absent)), *(f"?{n}" for n in sorted(clip.unknown))]
    return ";".join(marked)


def _blank(value: float | None) -> Any:
    return "" if value is None else value


def _csv(table: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(table)
    return text.getvalue().encode("utf-8", "surrogateescape")

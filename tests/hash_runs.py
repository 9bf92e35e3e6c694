"""Runs over many inputs with a tagger made of a hash: what any run of them must give is known beforehand."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from audiotag.errors import AudioError
from audiotag.labels.label_set import LabelSet
from audiotag.outputs.formats import FORMATS, About
from audiotag.outputs.records import tag_record
from audiotag.outputs.writers import open_writer
from audiotag.results.prediction import Prediction
from audiotag.runs.inputs import common_folder, expand
from audiotag.runs.progress import Reporter
from audiotag.runs.run import Task, to_file, to_folder

LABELS = LabelSet.from_names(["a", "b, with comma", "c"])
ABOUT = About("tags", fmax_hz=15_000.0)


def predicted(path: str) -> Prediction:
    """A prediction that depends on nothing but the path."""
    seed = int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big")
    scores = np.random.default_rng(seed).random((2, 3)).astype(np.float32)
    return Prediction(
        scores=scores.max(0),
        window_scores=scores,
        window_start_s=np.array([0.0, 5.0]),
        window_end_s=np.array([10.0, 15.0]),
        labels=LABELS,
        source=path,
        duration_s=15.0,
        checkpoint="hash",
        hop_s=5.0,
        window_s=10.0,
        aggregate="max",
        warnings=("cut short",) if os.path.basename(path) == "warn.wav" else (),
    )


class Run:
    """A folder of inputs, and runs over it that note what they analysed and can be stopped."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.inputs = folder / "in"
        for name in names:
            path = self.inputs / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x" * 10)
        self.folder = folder
        self.analysed: list[str] = []

    def task(self, form_name: str = "jsonl", *, stop_at: int | None = None, stop: Any = None, **changes: Any) -> Task:
        form = FORMATS[form_name]
        self.analysed = []

        def analyse(sources: Any, progress: Any) -> Iterator[tuple[str, Any]]:
            for source in sources:
                if len(self.analysed) == stop_at:
                    raise stop
                self.analysed.append(source)
                progress(source, 5.0, 15.0)
                bad = "bad" in source or not os.path.exists(source)
                yield source, AudioError(f"{source}: broken") if bad else predicted(source)

        values: dict[str, Any] = {
            "analyse": analyse,
            "describe": lambda path, prediction: tag_record(prediction),
            "opened": lambda place: open_writer(form, ABOUT, place),
            "suffix": form.suffix,
            "one_input": None,
            "batch_size": 1,
            "fingerprint": {"checkpoint": {"sha256": "0"}, "options": {"threshold": None, "format": form_name}},
        }
        values |= changes
        told = values["fingerprint"]
        return Task(**values | {"fingerprint": lambda: told})

    def file(self, output: Path, *args: Any, resume: bool = False, asked: Any = None, **options: Any) -> int:
        asked = asked or {"paths": [str(self.inputs)]}
        task = self.task(*args, **options)
        return to_file(task, expand([str(self.inputs)]), asked, output, Reporter(quiet=False), resume=resume)

    def tree(self, output: Path, *args: Any, resume: bool = False, **options: Any) -> int:
        task, root = self.task(*args, **options), common_folder([str(self.inputs)])
        return to_folder(task, expand([str(self.inputs)]), root, output, Reporter(quiet=False), resume=resume)


NAMES = [f"{i}.wav" for i in range(12)] + ["bad 1.wav", "sub/bad.wav", "sub/x.flac", "sub/ü\n.wav", "warn.wav"]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".audiotag" not in path.parts
    }

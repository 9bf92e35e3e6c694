"""Compare the built-in checkpoint with its teacher on sounds that training never saw; prints JSON.

    python -m tests.built_in.compare --teacher mn04_as.pt [--bank FOLDER] [--sounds FOLDER] [--recording FILE ...]

bank: a bank whose split "val" was held out. sounds: ``usr/share/tuxpaint/stamps`` of the unpacked Debian package
tuxpaint-stamps-default; ``sounds.csv`` beside this file names the files used and what they hold, all of them absent
from the audio that the checkpoint learned from. recording: audio files whose first labels are shown.
No state of a training run is to be chosen by what this prints.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from audiotag import Tagger
from audiotag.labels.label_set import audioset_labels
from audiotag.training.evaluate import evaluate_bank
from audiotag.training.metrics import average_precision

HERE = Path(__file__).parent


def labelled_sounds(tagger: Tagger, folder: Path) -> dict[str, Any]:
    """How often the right class is first, where a class scores what the best of its labels does."""
    with open(HERE / "sounds.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    names = audioset_labels()
    columns = {row["class"]: [names.resolve(name).index for name in row["labels"].split("|")] for row in rows}
    classes = list(columns)
    scores = np.stack([p.scores for p in tagger.predict([folder / row["path"] for row in rows])])
    of_class = np.stack([scores[:, columns[name]].max(1) for name in classes], 1)
    right = np.array([classes.index(row["class"]) for row in rows])
    rank = (of_class > of_class[np.arange(len(rows)), right][:, None]).sum(1)
    best = np.argsort(-scores, 1)[:, :3]
    among = [bool(set(best[n]) & set(columns[row["class"]])) for n, row in enumerate(rows)]
    return {
        "sounds": len(rows),
        "classes": len(classes),
        "first": float((rank == 0).mean()),
        "in_first_three": float((rank < 3).mean()),
        "class_mean_ap": float(np.mean([average_precision(right == c, of_class[:, c]) for c in range(len(classes))])),
        "right_label_in_first_three_of_all": float(np.mean(among)),
    }


def made_sounds() -> dict[str, np.ndarray]:
    """Ten seconds of what anybody can make, at 32 kHz."""
    t = np.arange(320_000) / 32_000
    noise = np.random.default_rng(0).standard_normal(320_000) * 0.1
    return {"silence": 0 * t, "white noise": noise, "sine of 1 kHz": 0.5 * np.sin(2 * np.pi * 1_000 * t)}


def first_labels(tagger: Tagger, source: Any) -> dict[str, float]:
    return {tag.label: round(tag.score, 3) for tag in tagger.predict(source).top(5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="dymn04_open")
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--bank", type=Path)
    parser.add_argument("--sounds", type=Path)
    parser.add_argument("--recording", type=Path, action="append", default=[])
    parser.add_argument("--out", type=Path, default=Path("comparison"))
    args = parser.parse_args()
    found: dict[str, Any] = {}
    if args.bank:
        report = evaluate_bank(args.bank, args.out, checkpoint=args.checkpoint, teacher=args.teacher)
        found["held_out_pieces"] = report.to_dict()["agreement"]
    for role, name in (("student", args.checkpoint), ("teacher", args.teacher)):
        tagger = Tagger.from_pretrained(name)
        found[role] = {"sounds": labelled_sounds(tagger, args.sounds)} if args.sounds else {}
        found[role] |= {path.name: first_labels(tagger, path) for path in args.recording}
        found[role] |= {kind: first_labels(tagger, wave.astype(np.float32)) for kind, wave in made_sounds().items()}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()

"""Find recordings in banks that were trained on which are also among the labelled sounds, by their waveforms.

    python -m tests.built_in.alike --teacher CHECKPOINT --sounds FOLDER --bank BANK [--bank BANK ...]

Prints each of the sounds of ``sounds.csv`` that a piece of a bank's split "train" correlates with, and ends with 1 if
there is any. Compared are the pieces that the teacher says the most similar things of.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.signal import correlate

from audiotag.audio.recording import load_audio
from audiotag.checkpoints.load import build, load_checkpoint
from audiotag.training.bank import LOGITS_FILE, PieceBank, read_split
from audiotag.training.evaluate import logits_of

HERE = Path(__file__).parent
RATE_HZ = 32_000
NEAREST = 8  # pieces by the teacher's logits whose waveforms are compared
ALIKE = 0.6  # correlation from which two waveforms are one recording
LONGEST = 2 * RATE_HZ  # of the shorter waveform


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Compute the largest correlation, in [0, 1], of the shorter waveform with a stretch of the longer one.

    The shorter may reach beyond the longer's ends by up to half; of more than two seconds its first two are taken.
    """
    short, long = sorted((one.astype(np.float64), other.astype(np.float64)), key=len)
    short = short[:LONGEST] - short[:LONGEST].mean()
    long = np.pad(long - long.mean(), len(short) // 2)
    dot = np.abs(correlate(long, short, "valid"))
    squares = np.cumsum(np.concatenate([[0.0], long**2]))
    power = squares[len(short) :] - squares[: -len(short)]
    floor = 1e-3 * max(power.max(), 1e-12)  # nothing is alike where hardly anything sounds
    return float((dot / np.sqrt(np.maximum(power, floor) * max((short**2).sum(), 1e-12))).max())


def pairs(logits: np.ndarray, of_pieces: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield (row of `logits`, row of `of_pieces`) for the `NEAREST` pieces by cosine of centred logits."""
    centre = of_pieces.astype(np.float32).mean(0)
    ours, theirs = (rows.astype(np.float32) - centre for rows in (logits, of_pieces))
    ours /= np.linalg.norm(ours, axis=1, keepdims=True)
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    for row, likeness in enumerate(ours @ theirs.T):
        for piece in np.argsort(-likeness)[:NEAREST]:
            yield row, int(piece)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--sounds", required=True, type=Path)
    parser.add_argument("--bank", required=True, type=Path, action="append")
    args = parser.parse_args(argv)
    with open(HERE / "sounds.csv", newline="") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    sounds = [load_audio(args.sounds / path, target_rate_hz=RATE_HZ)[: 10 * RATE_HZ] for path in paths]
    loaded = load_checkpoint(args.teacher)
    logits = logits_of(build(loaded), loaded.config, sounds)
    found = 0
    for bank in args.bank:
        rows = read_split([bank], "train")
        pieces = PieceBank.open(bank)
        with open(bank / "index.csv", newline="") as file:
            index = list(csv.DictReader(file))
        for sound, row in pairs(logits, np.load(bank / LOGITS_FILE)[rows]):
            piece = int(rows[row])
            alike = correlation(sounds[sound], pieces[piece])
            if alike >= ALIKE:
                found += 1
                print(f"{paths[sound]}: {alike:.2f} with {index[piece]['source']} {index[piece]['path']} in {bank}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

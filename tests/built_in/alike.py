"""Find what was trained on among the labelled sounds and the held-out pieces: the same recordings, by their waveforms.

    python -m tests.built_in.alike --teacher CHECKPOINT --sounds FOLDER --bank BANK [--bank BANK ...]
        [--held-out BANK --out FOLDER]

Prints each of the sounds of ``sounds.csv`` that a piece of a bank's split "train" correlates with, and ends with 1 if
there is any. Compared are the pieces that the teacher says the most similar things of. `--held-out` compares the split
"val" of that bank as well; `--out` is a bank of those of it that are nowhere found, for `tests.built_in.compare`.
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
from audiotag.training.bank import LOGITS_FILE, PLACES_FILE, PieceBank, read_split
from audiotag.training.evaluate import logits_of
from audiotag.training.prepare import INDEX_FILE

HERE = Path(__file__).parent
RATE_HZ = 32_000
NEAREST = 4  # pieces by the teacher's logits whose waveforms are compared
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
    parser.add_argument("--held-out", type=Path, metavar="BANK")
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    args = parser.parse_args(argv)
    with open(HERE / "sounds.csv", newline="") as file:
        names = [row["path"] for row in csv.DictReader(file)]
    waveforms = [load_audio(args.sounds / name, target_rate_hz=RATE_HZ)[: 10 * RATE_HZ] for name in names]
    loaded = load_checkpoint(args.teacher)
    logits, n_sounds = logits_of(build(loaded), loaded.config, waveforms), len(names)
    if args.held_out:
        rows = read_split([args.held_out], "val")
        names += [f"held-out piece {row}" for row in rows]
        waveforms += list(PieceBank.open(args.held_out).subset(rows))
        logits = np.concatenate([logits, np.load(args.held_out / LOGITS_FILE)[rows]])
    found: set[int] = set()
    for bank in args.bank:
        trained = read_split([bank], "train")
        pieces = PieceBank.open(bank)
        with open(bank / INDEX_FILE, newline="") as file:
            index = list(csv.DictReader(file))
        for ours, theirs in pairs(logits, np.load(bank / LOGITS_FILE)[trained]):
            piece = int(trained[theirs])
            if ours not in found and (alike := correlation(waveforms[ours], pieces[piece])) >= ALIKE:
                found.add(ours)
                print(f"{names[ours]}: {alike:.2f} with {index[piece]['source']} {index[piece]['path']}", flush=True)
    if args.held_out:
        seen = rows[sorted(one - n_sounds for one in found if one >= n_sounds)]
        print(f"{len(seen)} of {len(rows)} held-out pieces are found")
        if args.out:
            write_without(args.held_out, seen, args.out)
    return 1 if any(one < n_sounds for one in found) else 0


def write_without(bank: Path, seen: np.ndarray, out: Path) -> None:
    """Write a bank of the same pieces in which those of `seen` are of the split "seen"."""
    out.mkdir(parents=True)
    for path in bank.iterdir():
        if path.name != PLACES_FILE:
            (out / path.name).symlink_to(path.resolve())
    with np.load(bank / PLACES_FILE) as places:
        split = places["split"].astype("U8")
        split[seen] = "seen"
        np.savez(out / PLACES_FILE, start=places["start"], length=places["length"], split=split)


if __name__ == "__main__":
    sys.exit(main())

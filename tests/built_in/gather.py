"""Gather a second bank of audio from Debian's packages: fetch, unpack, cut, score, choose what is rare.

    python -m tests.built_in.gather PACKAGE... --beside BANK --teacher CHECKPOINT --out FOLDER
        [--apart FOLDER] [--spoken N]

Pieces are chosen for each label in turn, the one with fewest first, as the piece that the teacher scores highest,
until every label has `--per-label` of them or none is left above 0.1. A package gives at most `--per-package` pieces;
what sounds nearly the same to the teacher as a held-out piece of the bank beside it, as a file under `--apart`, or as a
piece already chosen, is left out, and so is what has the waveform of such a held-out piece or file. `--spoken` offers
sentences of Debian's speech synthesiser flite (to be installed) beside the packages.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from audiotag.audio.recording import load_audio
from audiotag.errors import AudiotagError
from audiotag.training.bank import LOGITS_FILE, PieceBank, read_split
from audiotag.training.prepare import SUFFIXES, prepare_bank

from .alike import ALIKE, correlation, pairs

FLITE_LICENCE = "BSD-like (flite's voices) saying sentences of the GPL-3's text"
LICENCE = "Debian main (DFSG-free; see the package copyright file)"
RATE_HZ, LONGEST_S, SHORTEST_S = 32_000, 10.0, 0.3
FLITE_VOICES = ("kal", "awb", "kal16", "rms", "slt")
SAME = 0.985  # cosine of centred logits above which two pieces count as one


def unpack(package: str, folder: Path) -> None:
    """Download a package and unpack it, and the zip archives in it, without installing anything."""
    subprocess.run(["apt-get", "download", "-qq", package], cwd=folder, check=True, capture_output=True)
    for deb in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(deb), str(folder / "files")], check=True)
        deb.unlink()
    for path in [one for one in folder.rglob("*") if one.suffix.lower() in {".zip", ".pk3", ".pk4", ".jar", ".love"}]:
        if path.is_file() and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if Path(name).suffix.lower() in SUFFIXES]
                archive.extractall(path.with_name(path.name + ".d"), names)


def pieces_of(package: str, out: Path, most_per_file: int) -> list[tuple[str, str, float, float]]:
    """Write a package's audio as pieces ``<package>-<number>.flac``; returns (id, path, start, duration) of each."""
    rows: list[tuple[str, str, float, float]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        unpack(package, folder)
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() not in SUFFIXES or path.is_symlink() or not path.is_file():
                continue
            try:
                samples = load_audio(path, target_rate_hz=RATE_HZ)
            except AudiotagError:
                continue
            longest = round(LONGEST_S * RATE_HZ)
            starts = range(0, len(samples), longest)
            for start in list(starts)[:: max(1, -(-len(starts) // most_per_file))]:
                piece = samples[start : start + longest]
                if len(piece) < SHORTEST_S * RATE_HZ or np.abs(piece).max() < 1e-3:
                    continue
                key = f"{package}-{len(rows):05d}"
                soundfile.write(out / f"{key}.flac", np.clip(piece, -1, 1), RATE_HZ, subtype="PCM_16")
                inside = path.relative_to(folder / "files").as_posix()
                rows.append((key, inside, start / RATE_HZ, len(piece) / RATE_HZ))
    return rows


def spoken(count: int, out: Path) -> list[tuple[str, str, float, float]]:
    """Write sentences of the GPL's text spoken by flite's voices at several paces; returns rows as `pieces_of` does."""
    text = " ".join(Path("/usr/share/common-licenses/GPL-3").read_text().split())
    sentences = [one for one in re.split(r"(?<=[.;:]) ", text) if 30 < len(one) < 150]
    rng, rows = np.random.default_rng(0), []
    for number in range(count):
        voice, sentence = FLITE_VOICES[number % len(FLITE_VOICES)], sentences[int(rng.integers(len(sentences)))]
        key, pace = f"flite-{number:05d}", f"{rng.uniform(0.8, 1.4):.2f}"
        path = out / f"{key}.wav"
        subprocess.run(
            ["flite", "-voice", voice, "--setf", f"duration_stretch={pace}", "-t", sentence, "-o", str(path)],
            check=True,
        )
        samples = load_audio(path, target_rate_hz=RATE_HZ)[: round(LONGEST_S * RATE_HZ)]
        path.unlink()
        soundfile.write(out / f"{key}.flac", np.clip(samples, -1, 1), RATE_HZ, subtype="PCM_16")
        rows.append((key, f"voice {voice}", 0.0, len(samples) / RATE_HZ))
    return rows


def choose(
    logits: np.ndarray,
    packages: np.ndarray,
    apart: np.ndarray,
    taken: Sequence[int] = (),
    *,
    per_label: int,
    per_package: int,
) -> list[int]:
    """Choose rows of `logits`, rarest labels first: none that resembles a row of `apart`, and none of `taken`."""
    scores = 1 / (1 + np.exp(-logits.astype(np.float32)))
    centre = logits.astype(np.float32).mean(0)
    unit = _unit(logits - centre)
    free = (unit @ _unit(apart - centre).T).max(1) < SAME
    free[list(taken)] = False
    chosen: list[int] = []
    held = np.zeros(scores.shape[1])
    exhausted = np.zeros(scores.shape[1], bool)
    while not exhausted.all():
        label = int(np.where(exhausted, np.inf, held).argmin())
        best = int(np.where(free, scores[:, label], 0).argmax())
        if held[label] >= per_label or not free[best] or scores[best, label] < 0.1:
            exhausted[label] = True
            continue
        chosen.append(best)
        held += scores[best] > 0.1
        free &= unit @ unit[best] < SAME
        free[best] = False
        if np.count_nonzero(packages[chosen] == packages[best]) >= per_package:
            free &= packages != packages[best]
    return sorted(chosen)


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="+", metavar="PACKAGE")
    parser.add_argument("--beside", required=True, type=Path, metavar="BANK", help="bank with the held-out pieces")
    parser.add_argument("--teacher", required=True, metavar="CHECKPOINT")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER")
    parser.add_argument("--per-label", type=int, default=40)
    parser.add_argument("--per-package", type=int, default=350)
    parser.add_argument("--per-file", type=int, default=12, help="pieces of a long recording")
    parser.add_argument("--apart", type=Path, metavar="FOLDER", help="audio that no chosen piece may resemble")
    parser.add_argument("--spoken", type=int, default=0, metavar="N", help="sentences of flite beside the packages")
    args = parser.parse_args(argv)
    if args.spoken and shutil.which("flite") is None:
        parser.error("--spoken needs flite: apt-get install flite")

    with tempfile.TemporaryDirectory(dir=args.out.parent) as name:
        audio, rows = Path(name) / "audio", []
        audio.mkdir()
        held_out = read_split([args.beside], "val")
        apart = np.load(args.beside / LOGITS_FILE)[held_out]
        waveforms = list(PieceBank.open(args.beside).subset(held_out))
        if args.apart:
            prepare_bank([args.apart], Path(name) / "apart", teacher=args.teacher, max_s=LONGEST_S + 1)
            if left_out := (Path(name) / "apart" / "left_out.txt").read_text():
                parser.error(f"--apart: {left_out}")
            apart = np.concatenate([apart, np.load(Path(name) / "apart" / LOGITS_FILE)])
            waveforms += list(PieceBank.open(Path(name) / "apart"))
        for package in args.packages:
            try:
                found = pieces_of(package, audio, args.per_file)
            except (OSError, subprocess.CalledProcessError) as error:
                print(f"{package}: {error}", file=sys.stderr)
                continue
            rows += [(key, "train", f"debian/{package}", path, start, s, LICENCE) for key, path, start, s in found]
            print(f"{package}: {len(found)} pieces", flush=True)
        if args.spoken:
            rows += [
                (key, "train", "made/flite", path, start, s, FLITE_LICENCE)
                for key, path, start, s in spoken(args.spoken, audio)
            ]
        table = io.StringIO()
        csv.writer(table).writerows([("id", "split", "source", "path", "start_s", "duration_s", "licence"), *rows])
        index = Path(name) / "index.csv"
        index.write_text(table.getvalue())
        every = Path(name) / "every"
        prepare_bank([audio], every, index=index, teacher=args.teacher, max_s=LONGEST_S + 1)
        order = {row[0]: row for row in rows}
        with open(every / "index.csv", newline="") as file:
            known = [order[row["id"]] for row in csv.DictReader(file)]
        packages = np.array([row[2] for row in known])
        logits, pieces = np.load(every / LOGITS_FILE), PieceBank.open(every)
        taken = [piece for row, piece in pairs(apart, logits) if correlation(waveforms[row], pieces[piece]) >= ALIKE]
        print(f"{len(set(taken))} pieces have the waveform of what is kept apart")
        picks = choose(logits, packages, apart, taken, per_label=args.per_label, per_package=args.per_package)
        keep = {known[pick][0] for pick in picks}
        for path in audio.iterdir():
            if path.stem not in keep:
                path.unlink()
        count = prepare_bank([audio], args.out, index=index, teacher=args.teacher, max_s=LONGEST_S + 1)
        hours = sum(row[5] for row in rows if row[0] in keep) / 3600
        print(f"{count} of {len(rows)} pieces, {hours:.2f} h, in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

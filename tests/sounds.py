"""Labelled recordings of made sounds: classes that even a tiny random network tells apart, and takes of each."""

import csv

import numpy as np
import soundfile

RATE = 16_000
KINDS = ("beep", "buzz", "hiss")


def made(kind, seed, seconds=1.0):
    """A sound of a kind, float32 (samples,) at 16 kHz; each seed is another take."""
    rng = np.random.default_rng([seed, len(kind)])
    t = np.arange(round(seconds * RATE)) / RATE
    if kind == "beep":
        wave = np.sin(2 * np.pi * rng.uniform(1500, 3500) * t)
    elif kind == "buzz":
        wave = np.sign(np.sin(2 * np.pi * rng.uniform(60, 180) * t)) * 0.5
    elif kind == "hiss":
        wave = rng.standard_normal(len(t)) * 0.4
    else:
        wave = 0.002 * rng.standard_normal(len(t))
    return (rng.uniform(0.2, 0.6) * wave + 0.003 * rng.standard_normal(len(t))).astype(np.float32)


def write_folders(root, takes=8, kinds=KINDS, seconds=1.0, first=0):
    """root/kind/take.wav; returns root."""
    for kind in kinds:
        (root / kind).mkdir(parents=True, exist_ok=True)
        for take in range(first, first + takes):
            soundfile.write(root / kind / f"{take}.wav", made(kind, take, seconds), RATE)
    return root


def write_table(path, header, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_mixtures(root, count=24, seed=0):
    """Recordings of one or two kinds at once, and silence, with labels.csv (a;b); returns the table."""
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        present = [kind for kind in KINDS if rng.random() < 0.45]
        wave = made("none", 1000 + i) + sum((made(kind, 100 + i) for kind in present), np.zeros(RATE, np.float32))
        soundfile.write(root / f"{i}.wav", 0.6 * wave, RATE)
        rows.append([f"{i}.wav", ";".join(present)])
    return write_table(root / "labels.csv", ["file", "label"], rows)

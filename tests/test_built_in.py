"""The scripts that gather audio for the built-in checkpoint: the same recording is known whatever was done to it."""

import csv

import numpy as np
import pytest
import soxr

from .built_in.alike import ALIKE, HERE, correlation, pairs
from .built_in.gather import choose

RATE = 32_000


@pytest.fixture
def sound():
    """Three seconds of noise that comes and goes."""
    rng = np.random.default_rng(0)
    level = np.interp(np.arange(3 * RATE), np.linspace(0, 3 * RATE, 40), rng.uniform(0, 1, 40))
    return (rng.standard_normal(3 * RATE) * level * 0.2).astype(np.float32)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: -0.1 * x,
        lambda x: x[20_000:],
        lambda x: np.concatenate([np.zeros(50_000, np.float32), x, np.zeros(9_000, np.float32)]),
        lambda x: soxr.resample(soxr.resample(x, RATE, 22_050), 22_050, RATE),
        lambda x: x + np.random.default_rng(1).standard_normal(len(x)) * 0.05,
        lambda x: np.round(x * 127) / 127 + 0.3,
    ],
    ids=["louder", "cut", "padded", "resampled", "noisy", "8 bit, with an offset"],
)
def test_a_changed_copy_correlates(sound, change):
    copy = change(sound)
    assert correlation(sound, copy) > ALIKE and correlation(copy, sound) > ALIKE


def test_other_sounds_do_not_correlate(sound):
    rng = np.random.default_rng(2)
    others = [rng.standard_normal(n) for n in (RATE // 3, 5 * RATE)]
    others += [np.zeros(RATE), np.sin(np.arange(2 * RATE) * 0.3), sound[::-1]]
    assert max(correlation(sound, other) for other in others) < ALIKE / 2


def test_compared_are_the_pieces_of_which_the_teacher_says_the_same():
    rng = np.random.default_rng(3)
    pieces = rng.standard_normal((50, 20)).astype(np.float16)
    found = list(pairs(pieces[[7, 30]] * 0.9, pieces))
    assert found[0] == (0, 7) and found[len(found) // 2] == (1, 30)


def test_what_is_taken_or_resembles_what_is_kept_apart_is_not_chosen():
    rng = np.random.default_rng(4)
    logits = rng.standard_normal((30, 20)) * 3
    packages = np.array(["a", "b", "c"] * 10)
    options = {"per_label": 100, "per_package": 100}
    everything = choose(logits, packages, rng.standard_normal((2, 20)), **options)
    apart = logits[everything[:2]] * 1.0001
    chosen = choose(logits, packages, apart, everything[2:5], **options)
    assert set(everything[:5]).isdisjoint(chosen) and set(everything[5:]) <= set(chosen)


def test_the_labelled_sounds_are_named_once():
    with open(HERE / "sounds.csv", newline="") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    assert len(paths) == len(set(paths)) > 20

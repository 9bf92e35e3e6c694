"""Arguments that mean something else than they say."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from audiotag.checks import check_rate, checked_seconds, checked_sources, checked_threshold, shown
from audiotag.errors import InvalidInputError

CLIP = np.zeros(100, np.float32)


@pytest.mark.parametrize(
    "one",
    [
        "street.wav",
        Path("street.wav"),
        b"RIFF",
        CLIP,
        torch.zeros(9),
        {"array": CLIP, "sampling_rate": 16_000},
        (CLIP, 16_000),
        (torch.zeros(9), 16_000.0),
        ([0.0, 0.1], np.int64(16_000)),
        io.BytesIO(b"RIFF"),
    ],
    ids=lambda one: type(one).__name__,
)
def test_one_input_is_no_iterable_of_inputs(one):
    with pytest.raises(InvalidInputError, match="put it in a list"):
        checked_sources(one)


@pytest.mark.parametrize("many", [["a.wav"], ("a.wav", "b.wav"), (CLIP, CLIP), [(CLIP, 16_000)], [], iter(["a.wav"])])
def test_many_inputs_pass(many):
    assert checked_sources(many) is many


@pytest.mark.parametrize("samples", [[0.1, 0.2], (0, 1, 2), [np.float32(0.1)]])
def test_samples_are_no_list_of_inputs(samples):
    with pytest.raises(InvalidInputError, match=r"numpy\.asarray"):
        checked_sources(samples)


@pytest.mark.parametrize("rate", [10**400, -(10**400), float("nan"), float("inf"), True, "44100", 44100.5, None])
def test_a_rate_is_a_whole_number_of_hz(rate):
    with pytest.raises(InvalidInputError, match=r"^sample_rate must be .{,200}$"):
        check_rate(rate)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1, "2", True, None, 10**400, [1]])
def test_a_length_of_time_is_finite_and_not_negative(seconds):
    with pytest.raises(InvalidInputError, match="max_gap_s must be a number of seconds, at least 0, got "):
        checked_seconds(seconds, "max_gap_s")


def test_checks_need_no_torch():
    code = "import sys, audiotag.checks; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -0.1, 1.1, 10**400, "x", None, [0.5, 0.5], b"x"])
def test_a_threshold_is_a_score(score):
    with pytest.raises(InvalidInputError, match=r"on must be a number in \[0, 1\], got "):
        checked_threshold(score, "on")


def test_a_value_that_cannot_be_shown_is_named_by_its_type():
    class Broken:
        def __repr__(self):
            raise RuntimeError

    assert shown(Broken()) == "an object of type Broken"
    assert shown("x" * 5000) == repr("x" * 5000)[:80] + "..."

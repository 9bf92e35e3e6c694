"""Checks of arguments: what is wrong, what is allowed, what to do next. Each returns the value as it is used."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from .errors import InvalidInputError, MissingDependencyError

LOWEST_RATE_HZ = 1_000
HIGHEST_RATE_HZ = 10_000_000
SHOWN = 80  # characters of a value that a message quotes
_NUMBER = (int, float, np.number)


def checked_sources(sources: Iterable[Any]) -> Iterable[Any]:
    """Return an iterable of inputs; one input alone, or one recording's samples as a list, is refused."""
    single = (str, bytes, bytearray, memoryview, os.PathLike, dict, np.ndarray)
    numbers = [isinstance(s, _NUMBER) for s in sources] if isinstance(sources, (list, tuple)) else []
    pair = isinstance(sources, tuple) and numbers == [False, True]
    if isinstance(sources, single) or is_tensor(sources) or pair or hasattr(sources, "read"):
        what = "(array, sample_rate)" if pair else type(sources).__name__
        raise InvalidInputError(f"sources must be an iterable of inputs, got one {what}; put it in a list")
    if numbers and all(numbers):
        raise InvalidInputError(
            "a list is a list of recordings; give one recording's samples as numpy.asarray(samples)"
        )
    return sources


def is_tensor(value: Any) -> bool:
    """Whether a value is a torch tensor; where torch was never imported, nothing can be one."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def imported(message: str, *modules: str) -> Any:
    """Import modules of a package that may not be installed, and return the first of them.

    Raises
    ------
    MissingDependencyError
        With `message`, which says what needs the package and how to install it.
    """
    try:
        first, *_ = [import_module(name) for name in modules]
    except ImportError as error:
        raise MissingDependencyError(message) from error
    return first


def positive(value: int | None, name: str) -> int | None:
    """Return a whole number above 0, or None."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise InvalidInputError(f"{name} must be a positive integer, got {shown(value)}")
    return value


def one_of(value: Any, allowed: Sequence[str], name: str) -> str:
    """Return a value that is among those allowed."""
    if not isinstance(value, str) or value not in allowed:
        raise InvalidInputError(f"{name} must be one of {', '.join(allowed)}, got {shown(value)}")
    return value


def checked_count(k: Any) -> int | None:
    """Return a number of labels, None for all."""
    if k is not None and (isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1):
        raise InvalidInputError(f"k must be a positive integer or None for all labels, got {shown(k)}")
    return None if k is None else int(k)


def checked_threshold(threshold: Any, argument: str = "threshold") -> float:
    """Return a threshold in [0, 1] as float."""
    try:
        value = float(threshold)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not 0 <= value <= 1:
        raise InvalidInputError(f"{argument} must be a number in [0, 1], got {shown(threshold)}")
    return value


def checked_seconds(seconds: Any, argument: str) -> float:
    """Return a length of time, finite and at least 0, as float seconds."""
    try:
        value = math.nan if isinstance(seconds, (bool, str)) else float(seconds)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not 0 <= value < math.inf:
        raise InvalidInputError(f"{argument} must be a number of seconds, at least 0, got {shown(seconds)}")
    return value


def span_samples(seconds: float, longest: int, sample_rate_hz: int, argument: str) -> int:
    """Return the length of a window, or the step between windows, in samples.

    Parameters
    ----------
    seconds : float
    longest : int
        Samples allowed at most: the checkpoint's window for a window, that window for a step, since a larger one
        would leave audio that no window sees.
    argument : str
        What `seconds` is called, for the message.

    Raises
    ------
    InvalidInputError
        If `seconds` is no number in (0, longest].
    """
    try:
        samples = round(float(seconds) * sample_rate_hz)
    except (TypeError, ValueError, OverflowError):
        samples = 0
    if not 1 <= samples <= longest:
        longest_s = longest / sample_rate_hz
        raise InvalidInputError(f"{argument} must be a number of seconds in (0, {longest_s:g}], got {shown(seconds)}")
    return samples


def check_rate(value: Any, *, what: str = "sample_rate") -> int:
    """Return a sample rate as an int.

    Parameters
    ----------
    value
        An int, a numpy integer, or a float with an integral value, in Hz.
    what
        Name of the argument or file, for the message.

    Raises
    ------
    InvalidInputError
        Not a whole number within [LOWEST_RATE_HZ, HIGHEST_RATE_HZ].
    """
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    # Compared first: an int beyond what a float can hold would overflow in anything else.
    if is_number and LOWEST_RATE_HZ <= value <= HIGHEST_RATE_HZ and value == int(value):
        return int(value)
    raise InvalidInputError(
        f"{what} must be a whole number of Hz from {LOWEST_RATE_HZ} to {HIGHEST_RATE_HZ}, got {shown(value)}; "
        "give the rate the audio was recorded at, such as 44100"
    )


def shown(value: Any) -> str:
    """Return a value as a message quotes it, and no more than a line of it."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    try:
        text = repr(value)
    except Exception:  # a foreign object's own
        text = f"an object of type {type(value).__name__}"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."

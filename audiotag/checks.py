"""Checks of the Tagger's arguments: what is wrong, what is allowed, what to do."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from .errors import InvalidInputError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def checked_sources(sources: Iterable[Any]) -> Iterable[Any]:
    if isinstance(sources, (str, bytes, os.PathLike, dict, np.ndarray, torch.Tensor)):
        raise InvalidInputError(
            f"sources must be an iterable of inputs, got one {type(sources).__name__}; put it in a list"
        )
    if isinstance(sources, list) and sources and all(isinstance(s, (int, float)) for s in sources):
        raise InvalidInputError(
            "a list is a list of recordings; give one recording's samples as numpy.asarray(samples)"
        )
    return sources


def positive(value: int | None, name: str) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise InvalidInputError(f"{name} must be a positive integer, got {value!r}")
    return value


def usable_device(device: str | torch.device | None) -> torch.device:
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise InvalidInputError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return found


def usable_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype or torch.float32
    if found is None or found not in DTYPES.values():
        raise InvalidInputError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return found

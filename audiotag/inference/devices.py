"""Devices and precisions by name: what torch can use on this machine."""

from __future__ import annotations

import torch

from ..errors import InvalidInputError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def usable_device(device: str | torch.device | None) -> torch.device:
    """Return a device that torch can use here; None: CUDA where torch has it, else the CPU."""
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise InvalidInputError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return found


def usable_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    """Return a precision that the networks run in; None: float32."""
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype or torch.float32
    if found is None or found not in DTYPES.values():
        raise InvalidInputError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return found

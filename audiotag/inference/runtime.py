"""From a checkpoint to what runs its network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..checkpoints.load import Checkpoint, build
from ..runtimes.protocol import Runtime

if TYPE_CHECKING:
    import torch


def open_runtime(
    checkpoint: Checkpoint,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    compile: bool = False,
) -> Runtime:
    """Make a checkpoint's network ready to run; arguments as for `Tagger.from_pretrained`.

    Raises
    ------
    InvalidInputError
        `device` or `dtype` cannot be used here.
    CheckpointError
        The state dict does not fit the configuration.
    """
    from ..runtimes.torch import TorchRuntime
    from .devices import usable_device, usable_dtype

    where, precision = usable_device(device), usable_dtype(dtype)
    return TorchRuntime(build(checkpoint), checkpoint.config.frontend, device=where, dtype=precision, compile=compile)

"""The torch runtime: the fused form of a network and the log-mel frontend, on any device torch has."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..config import FrontendConfig
from ..frontend.logmel import LogMel
from .fused import fuse
from .protocol import SCORES

ACCELERATOR_BATCH = 64
_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def _mind_fork() -> None:
    """Keep a forked child to one thread: OpenMP's others do not survive the fork, and waiting for them never ends."""
    global _forked
    if _forked:
        torch.set_num_threads(1)
        _forked = False


class TorchRuntime:
    """Runs a network in torch; see `audiotag.runtimes.protocol.Runtime`.

    Parameters
    ----------
    network : DyMN or MN
        In evaluation mode; it is read and left as it is.
    frontend : FrontendConfig
    device : torch.device
    dtype : torch.dtype
        float32, bfloat16 or float16, of the network; the frontend stays float32.
    compile : bool
        Run the network through ``torch.compile``.
    """

    name = "torch"

    def __init__(
        self,
        network: nn.Module,
        frontend: FrontendConfig,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        compile: bool = False,
    ) -> None:
        self._device, self._dtype = device, dtype
        self._frontend = LogMel(frontend).to(device)
        self._network = fuse(network, dtype=dtype, compile=compile).to(device)
        self.device, self.dtype = str(device), str(dtype).removeprefix("torch.")
        self.default_batch = 1 if device.type == "cpu" else ACCELERATOR_BATCH

    @torch.inference_mode()
    def log_mel(self, waveforms: np.ndarray) -> Tensor:
        _mind_fork()
        return self._frontend(torch.from_numpy(waveforms).to(self._device, torch.float32))

    @torch.inference_mode()
    def concatenate(self, parts: Sequence[Tensor], axis: int) -> Tensor:
        return torch.cat(list(parts), axis)

    @torch.inference_mode()
    def run(self, logmel: Tensor, outputs: Sequence[str]) -> dict[str, np.ndarray]:
        _mind_fork()
        taps = tuple(name for name in outputs if name not in (SCORES, "logmel"))
        found = self._network(logmel.to(self._dtype), taps=taps)
        tensors: dict[str, Tensor] = {name: found.taps[name] for name in taps}
        if SCORES in outputs:
            tensors[SCORES] = found.logits.float().sigmoid()
        if "logmel" in outputs:
            tensors["logmel"] = logmel.mean((1, 3))
        return {name: tensor.float().cpu().numpy() for name, tensor in tensors.items()}

"""Augmentation behind the waveform: a filterbank that moves, and mixup of spectrograms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..config import FrontendConfig
from ..frontend.logmel import LogMel

LOWEST_JITTER_HZ = 10.0


def jittered_frontend(config: FrontendConfig, rng: np.random.Generator, jitter_hz: float) -> LogMel:
    """Return a frontend whose filterbank begins up to 10 Hz higher and ends up to `jitter_hz` lower or higher."""
    low = config.fmin_hz + rng.uniform(0, LOWEST_JITTER_HZ)
    high = config.fmax_hz + rng.uniform(-jitter_hz, jitter_hz)
    return LogMel(replace(config, fmin_hz=low, fmax_hz=min(high, config.sample_rate_hz / 2)))


def mixup(rng: np.random.Generator, alpha: float, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Mix every row of each (B, ...) tensor with another row, the same ones in all ("mixup", arXiv 1710.09412).

    A row keeps at least half of itself: its share is max(b, 1 - b), b ~ Beta(alpha, alpha).
    """
    batch = len(tensors[0])
    share = rng.beta(alpha, alpha, batch).astype(np.float32)
    keep, other = torch.from_numpy(np.maximum(share, 1 - share)), torch.from_numpy(rng.permutation(batch))

    def mixed(t: Tensor) -> Tensor:
        k = keep.to(t.device).reshape(-1, *(1,) * (t.ndim - 1))
        return t * k + t[other.to(t.device)] * (1 - k)

    return tuple(mixed(t) for t in tensors)

"""From windows to the log-mel that a run of the network takes; windows that overlap share their frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from ..config import CheckpointConfig
from ..frontend.sliding import SlidingLogMel
from ..frontend.windows import Window, tile
from ..runtimes.protocol import Array, Runtime

# What `Frames` makes of one window: its samples (whole,), or, where frames are shared, log-mel (1, 1, mels, frames).
Shown: TypeAlias = Any


class Frames:
    """Log-mel of windows of one length and step, for any number of recordings.

    Windows of the checkpoint's length that overlap share their frames; shorter ones are tiled to it. Windows that share
    nothing wait as samples, so that an accelerator gets a batch of them at once.

    Parameters
    ----------
    runtime : Runtime
    config : CheckpointConfig
    window, hop : int
        In samples at the checkpoint's rate.
    """

    def __init__(self, runtime: Runtime, config: CheckpointConfig, window: int, hop: int) -> None:
        self._runtime, self._config = runtime, config
        self._window, self._hop = window, hop
        self._shares = hop < window == config.window_samples

    def recording(self) -> Callable[[Window], Shown]:
        """Make the function that prepares one recording's windows; it is called with each in turn."""
        if self._shares:
            return SlidingLogMel(self._runtime, self._config.frontend, self._window, self._hop).log_mel
        return lambda window: tile(window.samples, self._config.window_samples)

    def join(self, shown: Sequence[Shown]) -> Array:
        """Compute log-mel (B, 1, mels, frames) of B prepared windows."""
        return self._runtime.concatenate(shown, 0) if self._shares else self._runtime.log_mel(np.stack(shown))

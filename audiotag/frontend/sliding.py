"""Log-mel of overlapping windows, each frame computed once.

A window's frames are those of the recording except where the frontend mirrors the waveform at the window's ends: one
or two frames on either side. So the frames between are kept from window to window and only the new ones and the
edges are computed, each from a short piece of waveform given to the frontend itself. Which samples go into which call
depends on the windows alone, never on how the audio arrives, so the results do not either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from ..config import FrontendConfig
from ..errors import InvalidInputError
from .mel import min_samples, n_frames
from .windows import Window


class Frontend(Protocol):
    """Something that computes log-mel and keeps it where it likes, as a `audiotag.runtimes.protocol.Runtime` does."""

    def log_mel(self, waveforms: np.ndarray) -> Any:
        """Compute log-mel (B, 1, mels, frames) of waveforms (B, samples), float32."""

    def concatenate(self, parts: Sequence[Any], axis: int) -> Any:
        """Join such arrays along an axis."""


class SlidingLogMel:
    """Log-mel of successive windows of one recording, as the frontend gives it for each alone (within 1e-5).

    Holds the frames of one window. Where the step between windows is no multiple of the frontend's, or windows hardly
    overlap, no frame can be kept and every window is computed whole; so is the first window, and the last one where
    it was moved back.

    Parameters
    ----------
    frontend : Frontend
    config : FrontendConfig
        Its constants.
    window, hop : int
        Length of the windows and step between them in samples, ``1 <= hop <= window``.

    Raises
    ------
    InvalidInputError
        Lengths out of range.
    """

    def __init__(self, frontend: Frontend, config: FrontendConfig, window: int, hop: int) -> None:
        shortest = min_samples(config)
        if window < shortest:
            raise InvalidInputError(f"a window must have at least {shortest} samples, got {window!r}")
        if not 1 <= hop <= window:
            raise InvalidInputError(f"hop must be in [1, {window}] samples, got {hop!r}")
        self._frontend = frontend
        self._step, self._hop = config.hop_samples, hop
        reach = config.n_fft // 2  # a frame sees this far to either side of its centre
        self._n_left = -(-reach // self._step)  # frames that see the window's mirrored start
        inner_stop = (window - 1 - reach) // self._step + 1  # the first frame that sees its mirrored end
        self._n_inner = inner_stop - self._n_left
        self._n_right = n_frames(window, config) - inner_stop
        self._n_new, rest = divmod(hop, self._step)
        self._slides = rest == 0 and self._n_new < self._n_inner
        # Both edges come from pieces of one length, each long enough for the far, mirrored end to be out of sight;
        # the right one starts on a frame of the window.
        self._edge_samples = window - min(self._n_inner, (window - shortest) // self._step) * self._step
        self._new_samples = (self._n_left + self._n_new - 1) * self._step + reach + 1
        self.reset()

    def reset(self) -> None:
        """Forget everything; the next window is the first of a new recording."""
        self._next_start = -1  # of the window that follows the latest one
        self._inner: Any = None  # (1, 1, mels, inner frames) of the latest window

    def log_mel(self, window: Window) -> Any:
        """Compute a window's log-mel (1, 1, mels, frames).

        Parameters
        ----------
        window : Window
            Whole (not tiled) windows that follow each other share frames; any other is computed by itself.
        """
        samples, follows = window.samples, window.start == self._next_start
        self._next_start = window.start + self._hop
        if not (follows and self._slides):
            logmel = self._frontend.log_mel(samples[np.newaxis])
            self._inner = logmel[..., self._n_left : self._n_left + self._n_inner]
            return logmel
        new_start = (self._n_inner - self._n_new) * self._step  # _n_left frames ahead of the first new one
        new = self._frontend.log_mel(samples[np.newaxis, new_start : new_start + self._new_samples])
        edges = self._frontend.log_mel(np.stack([samples[: self._edge_samples], samples[-self._edge_samples :]]))
        new = new[..., self._n_left : self._n_left + self._n_new]
        self._inner = self._frontend.concatenate([self._inner[..., self._n_new :], new], 3)
        right = edges[1:, ..., edges.shape[3] - self._n_right :]
        return self._frontend.concatenate([edges[:1, ..., : self._n_left], self._inner, right], 3)

"""Resampling with soxr: the published scores were computed with it, and its streaming form gives the whole-file samples
whatever the blocks."""

from __future__ import annotations

import numpy as np
import soxr

QUALITY = "HQ"


class Resampler:
    """Stateful mono resampling; concatenated outputs equal ``soxr.resample`` of the concatenated inputs.

    Parameters
    ----------
    source_rate_hz, target_rate_hz
        Rates in Hz; equal ones pass blocks through untouched.
    """

    def __init__(self, source_rate_hz: int, target_rate_hz: int) -> None:
        self._stream = None
        if source_rate_hz != target_rate_hz:
            self._stream = soxr.ResampleStream(source_rate_hz, target_rate_hz, 1, dtype="float32", quality=QUALITY)

    def push(self, block: np.ndarray) -> np.ndarray:
        """Take ``block``, float32 (samples,); returns the output that it makes available, which may be empty."""
        return block if self._stream is None else self._stream.resample_chunk(block)

    def finish(self) -> np.ndarray:
        """Return what remains after the last block; the object is spent afterwards."""
        nothing = np.zeros(0, np.float32)
        return nothing if self._stream is None else self._stream.resample_chunk(nothing, last=True)

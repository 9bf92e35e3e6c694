"""Resampling: soxr, whose streaming form gives the whole-file samples whatever the blocks (and which the published
scores were computed with); torchaudio only for a tensor that should stay on its own device."""

from __future__ import annotations

import importlib
import logging
import math
import warnings
from typing import Any

import numpy as np
import soxr

QUALITY = "HQ"

# torchaudio's kernel holds one row per output phase; coprime rates would need hundreds of MB of it
_LARGEST_KERNEL = 8_000_000

_log = logging.getLogger(__name__)


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
        """Output that ``block``, float32 (samples,), makes available; may be empty."""
        return block if self._stream is None else self._stream.resample_chunk(block)

    def finish(self) -> np.ndarray:
        """What remains after the last block; the object is spent afterwards."""
        nothing = np.zeros(0, np.float32)
        return nothing if self._stream is None else self._stream.resample_chunk(nothing, last=True)


def resample_tensor(waveform: Any, source_rate_hz: int, target_rate_hz: int) -> Any | None:
    """Resample a float32 tensor (samples,) on its own device, or None where torchaudio cannot serve.

    The filter is torchaudio's Kaiser window with the parameters its documentation gives as equal to librosa's
    ``kaiser_best``: flat to 0.9476 of the lower Nyquist frequency, 64 zero crossings, beta 14.77.
    """
    common = math.gcd(source_rate_hz, target_rate_hz)
    orig, new = source_rate_hz // common, target_rate_hz // common
    zero_crossings = 64
    if new * (orig + 2 * zero_crossings * max(orig / new, 1)) > _LARGEST_KERNEL:
        return None
    functional = torchaudio_functional()
    if functional is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return functional.resample(
                waveform,
                source_rate_hz,
                target_rate_hz,
                lowpass_filter_width=zero_crossings,
                rolloff=0.9475937167399596,
                resampling_method="sinc_interp_kaiser",
                beta=14.769656459379492,
            )
    except Exception as error:
        _log.debug("torchaudio could not resample (%s); soxr serves", error)
        return None


def torchaudio_functional() -> Any | None:
    """The module ``torchaudio.functional``, or None where it does not import for whatever reason."""
    # A torchaudio wheel beside another torch raises OSError, RuntimeError or anything else while importing.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("torchaudio.functional")
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        _log.debug("torchaudio does not import (%s: %s); soxr serves", type(error).__name__, error)
        return None

"""Audio that is already in memory: numpy arrays of any real type and torch tensors, checked and mixed to mono."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import AudioError, InvalidInputError

MAX_CHANNELS = 128
BLOCK_SAMPLES = 1 << 18
# Values this large are another number format misread as floating point, and overflow in the power spectrum.
LARGEST_SAMPLE = 1e10


class ArrayReader:
    """Reader of an array, as mono float32 blocks; the array is neither copied as a whole nor changed.

    Parameters
    ----------
    array
        (samples,) or (channels, samples), at most MAX_CHANNELS channels. Floating-point values are taken as they are.
        Integers are scaled by their full range: int16 by 1/32768, uint8 as (x - 128) / 128. 64-bit ones are refused:
        no audio has that many bits, so their range says nothing about their scale.
    rate_hz
        Sample rate.
    name
        For messages.

    Raises
    ------
    InvalidInputError
        Neither floating-point nor integer of up to 32 bits, partly masked, not 1-D or 2-D, or shaped like
        (samples, channels).
    AudioError
        No samples.
    """

    def __init__(self, array: np.ndarray, rate_hz: int, name: str) -> None:
        self.warnings: list[str] = []
        check_values(array, name)
        check_shape(array.shape, name)
        self._array = array if array.ndim == 2 else array[np.newaxis]
        self.rate_hz = rate_hz
        self.channels, self.frames = self._array.shape

    def blocks(self, start: int, stop: int | None) -> Iterator[np.ndarray]:
        """Yield mono blocks, float32 (n,), of the samples from ``start`` to ``stop`` (None: the end)."""
        stop = self.frames if stop is None else min(stop, self.frames)
        step = max(1024, BLOCK_SAMPLES // self.channels)
        for begin in range(start, stop, step):
            yield mix(to_float(self._array[:, begin : min(begin + step, stop)]))

    def close(self) -> None:
        """Do nothing: an array holds no file."""


def check_shape(shape: tuple[int, ...], name: str) -> None:
    """Refuse what is not (samples,) or (channels, samples).

    Raises
    ------
    InvalidInputError
        Wrong number of dimensions, or more channels than samples or than MAX_CHANNELS.
    AudioError
        No samples.
    """
    if len(shape) not in (1, 2):
        hint = "; pass a list of recordings to get several results" if len(shape) == 3 else ""
        raise InvalidInputError(
            f"{name}: audio must be 1-D (samples,) or 2-D (channels, samples), got shape {tuple(shape)}{hint}"
        )
    if 0 in shape:
        raise AudioError(f"{name}: no samples in an array of shape {tuple(shape)}; at least 1 sample is needed")
    if len(shape) == 2 and (shape[0] > MAX_CHANNELS or shape[0] > shape[1]):
        raise InvalidInputError(
            f"{name}: 2-D audio must be (channels, samples) with at most {MAX_CHANNELS} channels, "
            f"got shape {tuple(shape)}; if it is (samples, channels), pass its transpose (array.T)"
        )


def mix(samples: np.ndarray) -> np.ndarray:
    """Average the channels: float32 (channels, n) -> (n,), a new array unless there is one channel."""
    channels = len(samples)
    if channels == 1:
        return np.ascontiguousarray(samples[0])
    # one pass per channel: numpy's mean along an axis this short takes eight times as long
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused later, with its place
        total = samples[0] + samples[1]
        for channel in samples[2:]:
            total += channel
    total /= np.float32(channels)
    return total


def check_samples(block: np.ndarray, position: int, rate_hz: int, name: str) -> float:
    """Return the highest magnitude of mono `block` (n,), which begins at sample ``position``.

    Raises
    ------
    AudioError
        A sample is NaN, infinite or absurdly large; the first such is named.
    """
    peak = max(float(block.max()), -float(block.min())) if len(block) else 0.0
    # Comparisons with NaN are false, so one look at the extremes finds every kind of bad value.
    if peak <= LARGEST_SAMPLE:
        return peak
    with np.errstate(invalid="ignore"):
        where = int(np.argmax(~(np.abs(block) <= LARGEST_SAMPLE)))
    found = "NaN" if np.isnan(block[where]) else "infinite" if np.isinf(block[where]) else f"{block[where]:g}"
    raise AudioError(
        f"{name}: sample {position + where} (at {(position + where) / rate_hz:.3f} s) is {found}; samples must be "
        f"finite, at most {LARGEST_SAMPLE:g} and usually within [-1, 1]; repair the recording or replace such values, "
        "for example with numpy.nan_to_num"
    )


def check_values(array: np.ndarray, name: str) -> None:
    """Refuse what does not say how loud each sample is.

    Raises
    ------
    InvalidInputError
        Neither floating-point nor integer of up to 32 bits, or partly masked.
    """
    dtype = array.dtype
    if np.ma.is_masked(array):
        raise InvalidInputError(f"{name}: some samples are masked; say what they are, for example with array.filled(0)")
    if dtype.kind not in "fiu":
        raise InvalidInputError(
            f"{name}: samples must be floating-point or integer numbers, got dtype {dtype}; convert first"
        )
    if dtype.kind in "iu" and dtype.itemsize > 4:
        raise InvalidInputError(
            f"{name}: samples of dtype {dtype} leave their scale open; convert to int16 or to floats in [-1, 1] first"
        )


def to_float(samples: np.ndarray) -> np.ndarray:
    """Convert to float32 of the same shape: floating-point values as they are, integers scaled by their full range."""
    kind, bits = samples.dtype.kind, 8 * samples.dtype.itemsize
    if kind == "f":
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused as such
            return samples.astype(np.float32, copy=False)
    half = 2.0 ** (bits - 1)
    # float32 holds every 8- and 16-bit value exactly; wider ones are scaled in double precision
    wide = samples.astype(np.float32 if bits <= 16 else np.float64)
    if kind == "u":
        wide -= half
    wide *= 1 / half
    return wide.astype(np.float32, copy=False)


def tensor_to_array(tensor: Any, name: str) -> np.ndarray:
    """Return a tensor's samples as a numpy array on the CPU.

    Raises
    ------
    InvalidInputError
        Complex, boolean, quantised, sparse, nested, without data, or of a type that numpy has nothing for.
    """
    import torch

    if tensor.is_quantized or tensor.is_nested or tensor.layout != torch.strided or tensor.device.type == "meta":
        raise InvalidInputError(
            f"{name}: the tensor must be dense, with data, and neither quantised nor nested, got {tensor.layout}"
        )
    if tensor.dtype == torch.bool or tensor.is_complex():
        raise InvalidInputError(
            f"{name}: samples must be floating-point or integer numbers, got dtype {tensor.dtype}; convert first"
        )
    tensor = tensor.detach()
    try:
        if tensor.is_floating_point() and tensor.dtype not in (torch.float32, torch.float64):
            tensor = tensor.float()  # numpy knows neither bfloat16 nor the 8-bit kinds
        return tensor.cpu().resolve_neg().numpy()
    except (TypeError, RuntimeError) as error:
        raise InvalidInputError(
            f"{name}: samples of {tensor.dtype} cannot be read; convert the tensor to float32 or int16 first"
        ) from error

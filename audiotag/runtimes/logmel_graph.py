"""The frontend as nodes of an ONNX graph, for files that take a waveform; any number of samples, no torch.

ONNX's own STFT is many times slower than matrix products, and runtimes for phones and browsers often lack it. So the
Fourier transform of a frame is two products. With N = N1 N2, samples n = N2 n1 + n2 and bins k = k1 + N1 k2,

    X[k] = sum_n2  e^(-2 pi i n2 k2 / N2)  sum_n1  w[n] x[n] e^(-2 pi i n k1 / N)

The inner sum is one product for each n2, with the window and the twiddle factors in its matrix; the outer one is the
same product for every k1. Input is real, so k1 up to N1 / 2 give every bin, some as their mirror image N - k. Frames
are the last axis throughout: nothing is transposed but the waveform itself.
"""

from __future__ import annotations

import math

import numpy as np

from ..config import FrontendConfig
from ..frontend.mel import LOG_FLOOR, LOG_SCALE, LOG_SHIFT, PREEMPHASIS, hann_window, mel_filterbank
from .graph import Graph


def dft_factors(config: FrontendConfig) -> tuple[int, int]:
    """Find N1 and N2, with N1 N2 = n_fft, for which the two products take the fewest multiplications."""

    def cost(n2: int) -> int:
        kept = config.n_fft // n2 // 2 + 1
        return n2 * kept * 2 * -(-config.window_samples // n2) + kept * 4 * n2 * n2

    n2 = min((n for n in range(1, config.n_fft + 1) if config.n_fft % n == 0), key=cost)
    return config.n_fft // n2, n2


def add_log_mel(g: Graph, waveform: str, config: FrontendConfig) -> str:
    """Add the frontend; `waveform` names float32 (samples,). The name of its log-mel, (1, 1, mels, frames)."""
    n1, n2 = dft_factors(config)
    kept = n1 // 2 + 1  # of the n1 values of k1
    rows = -(-config.window_samples // n2)  # values of n1 that the window covers

    # Sample m of frame f, (rows n2, frames).
    frames = _frames(g, waveform, config, rows * n2)
    x = g.op("Transpose", g.op("Reshape", frames, g.shape(rows, n2, -1)), perm=[1, 0, 2])  # (n2, n1, frames)
    y = g.op("MatMul", g.constant(_inner(config, n1, n2, kept, rows)), x)  # (2, n2, k1, frames)
    y = g.op("Reshape", y, g.shape(2 * n2, -1))
    z = g.op("MatMul", g.constant(_outer(n2)), y)  # (2 k2, k1 frames): real parts, then imaginary ones
    z = g.op("Reshape", g.op("Mul", z, z), g.shape(2, n2 * kept, -1))
    power = g.op("Add", *(g.op("Gather", z, g.constant(part, np.int64), axis=0) for part in (0, 1)))  # (k2 k1, frames)
    mel = g.op("MatMul", g.constant(_filters(config, n1, n2, kept)), power)  # (mels, frames)
    floored = g.op("Add", mel, g.constant(LOG_FLOOR * math.exp(LOG_SHIFT)))
    logmel = g.op("Mul", g.op("Log", floored), g.constant(1 / LOG_SCALE))
    return g.op("Unsqueeze", logmel, g.shape(0, 1))


def _frames(g: Graph, waveform: str, config: FrontendConfig, length: int) -> str:
    """Add pre-emphasis, reflection and cutting into frames of `length` samples from the window's start on.

    The waveform is cut into pieces of one hop, which are the columns of a matrix; a frame is a column, the next one
    below it, and so on.
    """
    hop, reach = config.hop_samples, config.n_fft // 2
    emphasised = g.op("Sub", g.slice(waveform, 0, 1), g.op("Mul", g.slice(waveform, 0, 0, -1), g.constant(PREEMPHASIS)))
    x = g.op("Pad", emphasised, g.shape(reach, reach), mode="reflect")
    x = g.slice(x, 0, (config.n_fft - config.window_samples) // 2)
    pieces = -(-length // hop)  # that a frame touches
    x = g.op("Pad", x, g.shape(0, pieces * hop), mode="constant")  # enough whatever the number of samples
    # Frames are 1 + (samples - 1) // hop.
    count = g.op("Div", g.op("Sub", g.op("Shape", waveform), g.shape(1)), g.shape(hop))
    stop = g.op("Mul", g.op("Add", count, g.shape(pieces)), g.shape(hop))
    x = g.op("Slice", x, g.shape(0), stop, g.shape(0))
    columns = g.op("Transpose", g.op("Reshape", x, g.shape(-1, hop)), perm=[1, 0])  # (hop, frames + pieces - 1)
    parts = []
    for i in range(pieces):
        part = g.slice(columns, 1, i, i - pieces + 1 or None)
        left = length - i * hop
        parts.append(part if left >= hop else g.slice(part, 0, 0, left))
    return g.op("Concat", *parts, axis=0)


def _inner(config: FrontendConfig, n1: int, n2: int, kept: int, rows: int) -> np.ndarray:
    """Compute the inner sums' matrices, (2, n2, k1, n1)."""
    window = np.zeros(rows * n2)
    window[: config.window_samples] = hann_window(config)
    n = np.arange(rows * n2)
    angle = 2 * np.pi * (np.outer(np.arange(kept), n) % config.n_fft) / config.n_fft
    parts = np.stack([window * np.cos(angle), -window * np.sin(angle)])  # (2, k1, n)
    return parts.reshape(2, kept, rows, n2).transpose(0, 3, 1, 2)


def _outer(n2: int) -> np.ndarray:
    """Compute the outer sum's matrix, (2 k2, 2 n2): real parts, then imaginary ones."""
    angle = 2 * np.pi * (np.outer(np.arange(n2), np.arange(n2)) % n2) / n2
    return np.block([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def _filters(config: FrontendConfig, n1: int, n2: int, kept: int) -> np.ndarray:
    """Compute the filterbank times e^shift with its columns where the products leave the bins, (mels, k2 k1)."""
    filters = mel_filterbank(config).astype(np.float64) * math.exp(LOG_SHIFT)
    k = np.arange(filters.shape[1])
    k = np.where(k % n1 < kept, k, config.n_fft - k)
    placed = np.zeros((config.n_mels, n2 * kept))
    placed[:, k // n1 % n2 * kept + k % n1] = filters
    return placed

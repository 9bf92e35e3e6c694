"""The frontend without torch: waveform to log-mel in numpy, on a few threads.

numpy's real FFT of chunks that fit the caches is about as fast as a mixed-radix transform made of BLAS products, and
far simpler. numpy >= 2 transforms float32 in float32 if a scale is asked for, and in float64, half as fast, if none is;
the filters take the scale back. Older ones always transform in float64. numpy lets go of the interpreter's lock in it,
so threads share the chunks. A chunk holds the same frames whatever the number of threads: so does the result.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ..config import FrontendConfig
from ..errors import InvalidInputError
from .mel import LOG_FLOOR, LOG_SCALE, LOG_SHIFT, PREEMPHASIS, hann_window, mel_groups, min_samples, n_frames

CHUNK_FRAMES = 64
INTO_GIVEN = np.lib.NumpyVersion(np.__version__) >= "2.0.0"  # whether the FFT writes where it is told
MAX_THREADS = 4  # beyond that, handing out the work costs more than it saves

_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    """Forget the threads, which do not survive a fork."""
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def _shared_pool() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(MAX_THREADS - 1, thread_name_prefix="audiotag-logmel")
    return _pool


class NumpyLogMel:
    """Waveforms (B, samples), float32 in [-1, 1], to log-mel spectrograms (B, 1, mels, frames).

    The same numbers as `audiotag.frontend.logmel.LogMel` gives, within 1e-5 on audio, by the same rewritings.

    Parameters
    ----------
    config : FrontendConfig
    threads : int
        At most `MAX_THREADS` are of use.
    """

    def __init__(self, config: FrontendConfig = FrontendConfig(), threads: int = 1) -> None:
        self.config = config
        self.threads = max(1, min(threads, MAX_THREADS))
        self._window = hann_window(config).astype(np.float32)
        self._groups = [  # bands, bins, filters (bins, bands)
            (group.bands, group.bins, np.ascontiguousarray(group.weights.T) * np.float32(config.n_fft) ** 2)
            for group in mel_groups(config)
        ]

    def __call__(self, waveforms: np.ndarray) -> np.ndarray:
        """Compute the log-mel of each waveform in the batch.

        Raises
        ------
        InvalidInputError
            If `waveforms` is not (B, samples) or too short for one reflected frame.
        """
        config = self.config
        shortest = min_samples(config)
        if waveforms.ndim != 2 or waveforms.shape[1] < shortest:
            raise InvalidInputError(f"waveform must be (batch, samples >= {shortest}), got {waveforms.shape}")
        batch, samples = waveforms.shape
        count = n_frames(samples, config)
        logmel = np.empty((batch, 1, config.n_mels, count), np.float32)
        frames = self._frames(np.asarray(waveforms, np.float32), count)
        chunks = [(i, first) for i in range(batch) for first in range(0, count, CHUNK_FRAMES)]

        def work(some: list[tuple[int, int]]) -> None:
            buffers = (
                np.zeros((CHUNK_FRAMES, config.n_fft), np.float32),
                np.empty((CHUNK_FRAMES, config.n_fft // 2 + 1), np.complex64),
                np.empty((CHUNK_FRAMES, config.n_fft // 2 + 1), np.float32),
                np.empty((CHUNK_FRAMES, config.n_mels), np.float32),
            )
            for i, first in some:
                stop = min(first + CHUNK_FRAMES, count)
                self._log_mel(frames[i, first:stop], logmel[i, 0, :, first:stop], *buffers)

        threads = min(self.threads, len(chunks))
        others = [_shared_pool().submit(work, chunks[i::threads]) for i in range(1, threads)]
        work(chunks[0::threads])
        for other in others:
            other.result()
        return logmel

    def _frames(self, waveforms: np.ndarray, count: int) -> np.ndarray:
        """Return the windows' samples of every frame after pre-emphasis and reflection, a view (B, frames, window)."""
        config = self.config
        reach = config.n_fft // 2  # a frame reaches this far to both sides of its centre
        x = np.empty((waveforms.shape[0], waveforms.shape[1] - 1 + 2 * reach), np.float32)
        inner = x[:, reach:-reach]
        np.multiply(waveforms[:, :-1], np.float32(-PREEMPHASIS), out=inner)
        inner += waveforms[:, 1:]
        x[:, :reach] = x[:, reach + 1 : 2 * reach + 1][:, ::-1]
        x[:, -reach:] = x[:, -2 * reach - 1 : -reach - 1][:, ::-1]
        unwindowed = (config.n_fft - config.window_samples) // 2  # samples of a frame before its window
        windows = np.lib.stride_tricks.sliding_window_view(x[:, unwindowed:], config.window_samples, axis=1)
        return windows[:, :: config.hop_samples][:, :count]

    def _log_mel(self, frames: np.ndarray, out: np.ndarray, *buffers: np.ndarray) -> None:
        """Compute log-mel of `frames` (frames, window) into `out` (mels, frames).

        `buffers` hold as many frames or more: padded ones, which end in zeros, spectrum, power and mel.
        """
        padded, spectrum, power, mel = (buffer[: len(frames)] for buffer in buffers)
        np.multiply(frames, self._window, out=padded[:, : self.config.window_samples])
        if INTO_GIVEN:
            np.fft.rfft(padded, axis=1, norm="forward", out=spectrum)
        else:
            spectrum[:] = np.fft.rfft(padded, axis=1, norm="forward")
        squares = spectrum.view(np.float32)  # (frames, 2 bins): real and imaginary parts
        np.multiply(squares, squares, out=squares)
        np.add(squares[:, ::2], squares[:, 1::2], out=power)
        for bands, bins, filters in self._groups:
            np.matmul(power[:, bins], filters, out=mel[:, bands])
        mel += np.float32(LOG_FLOOR * math.exp(LOG_SHIFT))
        np.log(mel, out=mel)
        np.multiply(mel.T, np.float32(1 / LOG_SCALE), out=out)

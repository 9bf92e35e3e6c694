"""Log-mel of overlapping windows, each frame computed once.

A window's frames are those of the recording except where the frontend mirrors the waveform at the window's ends: one
or two frames on either side. So the frames between are kept from window to window and only the new ones and the
edges are computed, each from a short piece of waveform given to `LogMel` itself. Which samples go into which call
depends on the windows alone, never on how the audio arrives, so the results do not either.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import InvalidInputError
from .logmel import LogMel, min_samples, n_frames
from .windows import tile


class LogMelWindow(NamedTuple):
    """A stretch of a recording and its log-mel.

    start, stop: samples in the recording. logmel: float32 (1, mels, frames) on the frontend's device.
    """

    start: int
    stop: int
    logmel: Tensor


class SlidingLogMel:
    """Log-mel of every window of a stream of samples, as `LogMel` gives it for that window alone (within 1e-5).

    Holds two windows of samples and one of frames, however long the stream. Where the hop between windows is no
    multiple of the frontend's, or windows hardly overlap, no frame can be kept and every window is computed whole.

    Parameters
    ----------
    frontend : LogMel
        On whatever device; the log-mel is left there.
    window_samples, hop_samples : int
        Length of the windows and step between them, ``1 <= hop_samples <= window_samples``.

    Raises
    ------
    InvalidInputError
        Lengths out of range.
    """

    def __init__(self, frontend: LogMel, *, window_samples: int, hop_samples: int) -> None:
        config = frontend.config
        shortest = min_samples(config)
        if window_samples < shortest:
            raise InvalidInputError(f"window_samples must be at least {shortest}, got {window_samples!r}")
        if not 1 <= hop_samples <= window_samples:
            raise InvalidInputError(f"hop_samples must be in [1, {window_samples}], got {hop_samples!r}")
        self.frontend = frontend
        self.window_samples, self.hop_samples = window_samples, hop_samples
        self._device = next(frontend.buffers()).device

        step = config.hop_samples
        reach = config.n_fft // 2  # a frame sees this far to either side of its centre
        self._n_left = -(-reach // step)  # frames that see the window's mirrored start
        inner_stop = (window_samples - 1 - reach) // step + 1  # the first frame that sees its mirrored end
        self._n_inner = inner_stop - self._n_left
        self._n_right = n_frames(window_samples, config) - inner_stop
        self._n_new, rest = divmod(hop_samples, step)
        self._slides = rest == 0 and self._n_new < self._n_inner
        # Both edges come from pieces of one length, each long enough for the far, mirrored end to be out of sight;
        # the right one starts on a frame of the window.
        self._edge_samples = window_samples - min(self._n_inner, (window_samples - shortest) // step) * step
        self._new_samples = (self._n_left + self._n_new - 1) * step + reach + 1

        self._buffer = np.empty(2 * window_samples, np.float32)
        self.reset()

    def reset(self) -> None:
        """Forget everything; the next sample is the first of a new recording."""
        self._buffer_start = 0  # position in the recording of the buffer's first sample
        self._n_buffered = 0
        self._stop = 0  # where the latest window ended
        self._next_stop = self.window_samples
        self._inner: Tensor | None = None  # (1, mels, inner frames) of the latest whole window

    @property
    def n_samples(self) -> int:
        """Samples pushed since the start."""
        return self._buffer_start + self._n_buffered

    def push(self, samples: np.ndarray) -> Iterator[LogMelWindow]:
        """Take samples, float32 (n,), n of any size; the windows they complete, in order.

        Samples are taken as the iterator is consumed, so run it to its end.
        """
        while len(samples):
            # Never past the next window's end, so that no more than a window has to be kept.
            taken = samples[: self._next_stop - self.n_samples]
            samples = samples[len(taken) :]
            self._append(taken)
            if self.n_samples == self._next_stop:
                self._stop = self._next_stop
                self._next_stop += self.hop_samples
                yield self._whole()

    def finish(self) -> LogMelWindow | None:
        """The window over the samples that no window has covered yet: moved back to end with the recording, or
        tiled if the recording is shorter than one; None if nothing is left. Changes no state.
        """
        if self._stop == self.n_samples:
            return None
        start = max(0, self.n_samples - self.window_samples)
        samples = tile(self._samples(start, self.n_samples - start), self.window_samples)
        return LogMelWindow(start, self.n_samples, self._logmel(samples)[0])

    def _append(self, samples: np.ndarray) -> None:
        if self._n_buffered + len(samples) > len(self._buffer):
            # Keep what the next window needs and, for a last one moved back, a whole window up to the end.
            keep_from = min(self._next_stop - self.window_samples, self.n_samples + len(samples) - self.window_samples)
            dropped = keep_from - self._buffer_start
            self._n_buffered -= dropped
            self._buffer[: self._n_buffered] = self._buffer[dropped : dropped + self._n_buffered].copy()
            self._buffer_start = keep_from
        self._buffer[self._n_buffered : self._n_buffered + len(samples)] = samples
        self._n_buffered += len(samples)

    def _samples(self, start: int, count: int) -> np.ndarray:
        offset = start - self._buffer_start
        return self._buffer[offset : offset + count]

    def _logmel(self, *waveforms: np.ndarray) -> Tensor:
        """(B, 1, mels, frames) of waveforms of one length."""
        with torch.inference_mode():
            return self.frontend(torch.from_numpy(np.stack(waveforms)).to(self._device))

    def _whole(self) -> LogMelWindow:
        window, start = self.window_samples, self._stop - self.window_samples
        if self._inner is None or not self._slides:
            logmel = self._logmel(self._samples(start, window))[0]
            self._inner = logmel[..., self._n_left : self._n_left + self._n_inner]
            return LogMelWindow(start, self._stop, logmel)
        step = self.frontend.config.hop_samples
        new_start = start + (self._n_inner - self._n_new) * step  # _n_left frames ahead of the first new one
        new = self._logmel(self._samples(new_start, self._new_samples))[0]
        left, right = self._logmel(
            self._samples(start, self._edge_samples),
            self._samples(start + window - self._edge_samples, self._edge_samples),
        )
        with torch.inference_mode():
            new = new[..., self._n_left : self._n_left + self._n_new]
            self._inner = torch.cat([self._inner[..., self._n_new :], new], 2)
            logmel = torch.cat(
                [left[..., : self._n_left], self._inner, right[..., right.shape[2] - self._n_right :]], 2
            )
        return LogMelWindow(start, self._stop, logmel)


def logmel_windows(
    blocks: Iterable[np.ndarray], frontend: LogMel, *, window_samples: int, hop_samples: int
) -> Iterator[LogMelWindow]:
    """Log-mel of a recording's windows, each frame computed once.

    The windows are those of `windows.window_starts`: the last one moved back to end with the recording, a recording
    shorter than a window tiled.

    Parameters
    ----------
    blocks : iterable of ndarray
        The recording: float32 (samples,), any lengths, at least one sample in all.
    frontend, window_samples, hop_samples
        As in `SlidingLogMel`.

    Raises
    ------
    InvalidInputError
        No samples at all, or lengths out of range.
    """
    sliding = SlidingLogMel(frontend, window_samples=window_samples, hop_samples=hop_samples)
    for block in blocks:
        yield from sliding.push(block)
    if not sliding.n_samples:
        raise InvalidInputError("blocks: no samples at all")
    last = sliding.finish()
    if last is not None:
        yield last

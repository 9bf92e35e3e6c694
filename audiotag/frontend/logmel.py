"""The frontend: waveform to log-mel, in torch, on whatever device the waveform is.

Reference: the published models' preprocessing (arXiv 2310.15648, section IV; arXiv 2211.04772), whose mel
filterbank follows Kaldi's ``get_mel_banks``. The filterbank is a few lines of our own because torchaudio, which
has it, often does not import.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..config import FrontendConfig
from ..errors import InvalidInputError

PREEMPHASIS = 0.97
LOG_FLOOR = 1e-5  # added to the mel power before the logarithm
LOG_SHIFT, LOG_SCALE = 4.5, 5.0  # published normalisation: (x + 4.5) / 5
MEL_GROUPS, CHUNK_FRAMES = 8, 1000
MEL_BREAK_HZ, MEL_FACTOR = 700.0, 1127.0  # HTK mel scale


def hz_to_mel(hz: float) -> float:
    """HTK mel: 1127 ln(1 + f / 700)."""
    return MEL_FACTOR * math.log1p(hz / MEL_BREAK_HZ)


def mel_filterbank(config: FrontendConfig) -> Tensor:
    """Triangular filters, linear in mel, as Kaldi builds them.

    Returns
    -------
    Tensor
        (n_mels, n_fft // 2 + 1), float32, weights in [0, 1]; the column of the Nyquist frequency is zero.
    """
    low, high = hz_to_mel(config.fmin_hz), hz_to_mel(config.fmax_hz)
    edges = torch.linspace(low, high, config.n_mels + 2, dtype=torch.float64)
    bins_hz = torch.arange(config.n_fft // 2 + 1, dtype=torch.float64) * config.sample_rate_hz / config.n_fft
    bins = MEL_FACTOR * torch.log1p(bins_hz / MEL_BREAK_HZ)
    left, centre, right = (e[:, None] for e in (edges[:-2], edges[1:-1], edges[2:]))
    filters = torch.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clamp(min=0)
    filters[:, -1] = 0
    return filters.float()


def n_frames(n_samples: int, config: FrontendConfig) -> int:
    """Frames of log-mel that `n_samples` of waveform give: 1,000 for 320,000 at a hop of 320."""
    return 1 + (n_samples - 1) // config.hop_samples


def min_samples(config: FrontendConfig) -> int:
    """Shortest waveform the centred, reflected STFT is defined for."""
    return config.n_fft // 2 + 2


class LogMel(nn.Module):
    """Waveforms (B, samples), float32 in [-1, 1], to log-mel spectrograms (B, 1, mels, frames).

    What the formulas say, with less work:

    - A frame is only as long as the window. The transform is given the window's samples at the frame's start and zeros
      after, instead of in the middle of n_fft: a shift in time, which the power does not see.
    - Real and imaginary parts are squared where they lie and added by the mel product itself, whose filters have
      every column twice.
    - A triangle covers few bins, so the product is done for `MEL_GROUPS` groups of neighbouring bands, each over its
      own bins: a seventh of the multiplications.
    - ln(m + floor) + shift = ln(e^shift m + e^shift floor), and e^shift goes into the filters.
    - On a CPU, `CHUNK_FRAMES` frames at a time, so that what lies between waveform and log-mel stays small.
    """

    window: Tensor

    def __init__(self, config: FrontendConfig = FrontendConfig()) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("window", torch.hann_window(config.window_samples, periodic=False), persistent=False)
        filters = mel_filterbank(config).double() * math.exp(LOG_SHIFT)
        self._groups: list[tuple[slice, slice]] = []  # bands, and columns of the squared parts
        for i, bands in enumerate(torch.arange(config.n_mels).tensor_split(MEL_GROUPS)):
            if not len(bands):
                continue
            rows = slice(int(bands[0]), int(bands[-1]) + 1)
            used = filters[rows].any(0).nonzero().flatten().tolist() or [0]
            columns = slice(used[0], used[-1] + 1)
            self._groups.append((rows, slice(2 * columns.start, 2 * columns.stop)))
            group = filters[rows, columns].float().repeat_interleave(2, 1).t().contiguous()
            self.register_buffer(f"filters{i}", group, persistent=False)

    @torch.no_grad()
    def forward(self, waveform: Tensor) -> Tensor:
        """Log-mel of each waveform in the batch.

        Raises
        ------
        InvalidInputError
            If `waveform` is not (B, samples) or too short for one reflected frame.
        """
        config = self.config
        shortest = min_samples(config)
        if waveform.ndim != 2 or waveform.shape[1] < shortest:
            raise InvalidInputError(f"waveform must be (batch, samples >= {shortest}), got {tuple(waveform.shape)}")
        batch, samples = waveform.shape
        reach = config.n_fft // 2  # a frame reaches this far to both sides of its centre
        x = waveform.new_empty(batch, samples - 1 + 2 * reach)
        torch.sub(waveform[:, 1:], waveform[:, :-1], alpha=PREEMPHASIS, out=x[:, reach:-reach])
        x[:, :reach] = x[:, reach + 1 : 2 * reach + 1].flip(1)
        x[:, -reach:] = x[:, -2 * reach - 1 : -reach - 1].flip(1)
        unwindowed = (config.n_fft - config.window_samples) // 2  # samples of a frame before its window
        frames = x[:, unwindowed:].unfold(1, config.window_samples, config.hop_samples)  # a view: (B, frames', window)
        count = n_frames(samples, config)
        logmel = waveform.new_empty(batch, 1, config.n_mels, count)
        step = CHUNK_FRAMES if waveform.device.type == "cpu" else count
        for one, out in zip(frames, logmel[:, 0], strict=True):
            for first in range(0, count, step):
                self._log_mel(one[first : min(first + step, count)], out[:, first : first + step])
        return logmel

    def _log_mel(self, frames: Tensor, out: Tensor) -> None:
        """Log-mel of `frames` (frames, window) into `out` (mels, frames)."""
        padded = frames.new_empty(len(frames), self.config.n_fft)
        padded[:, self.config.window_samples :] = 0
        torch.mul(frames, self.window, out=padded[:, : self.config.window_samples])
        squares = torch.view_as_real(torch.fft.rfft(padded)).square_().flatten(1)  # (frames, 2 bins)
        del padded  # its memory, still in the caches, is free for what follows
        mel = frames.new_empty(len(frames), self.config.n_mels)  # frames first: half the time of bands first
        filters: Any = self._buffers
        for i, (bands, columns) in enumerate(self._groups):
            torch.mm(squares[:, columns], filters[f"filters{i}"], out=mel[:, bands])
        torch.div(mel.add_(LOG_FLOOR * math.exp(LOG_SHIFT)).log_().t(), LOG_SCALE, out=out)

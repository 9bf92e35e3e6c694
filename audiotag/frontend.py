"""The frontend: waveform to log-mel, in torch, on whatever device the waveform is.

Reference: the published models' preprocessing (arXiv 2310.15648, section IV; arXiv 2211.04772), whose mel
filterbank follows Kaldi's ``get_mel_banks``. The filterbank is a few lines of our own because torchaudio, which
has it, often does not import.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .config import FrontendConfig
from .errors import InvalidInputError

PREEMPHASIS = 0.97
LOG_FLOOR = 1e-5  # added to the mel power before the logarithm
LOG_SHIFT, LOG_SCALE = 4.5, 5.0  # published normalisation: (x + 4.5) / 5
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
    """Waveforms (B, samples), float32 in [-1, 1], to log-mel spectrograms (B, 1, mels, frames)."""

    window: Tensor
    filters: Tensor

    def __init__(self, config: FrontendConfig = FrontendConfig()) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("window", torch.hann_window(config.window_samples, periodic=False), persistent=False)
        self.register_buffer("filters", mel_filterbank(config), persistent=False)

    @torch.no_grad()
    def forward(self, waveform: Tensor) -> Tensor:
        """Log-mel of each waveform in the batch.

        Raises
        ------
        InvalidInputError
            If `waveform` is not (B, samples) or too short for one reflected frame.
        """
        shortest = min_samples(self.config)
        if waveform.ndim != 2 or waveform.shape[1] < shortest:
            raise InvalidInputError(f"waveform must be (batch, samples >= {shortest}), got {tuple(waveform.shape)}")
        x = waveform[:, 1:] - PREEMPHASIS * waveform[:, :-1]  # (B, samples - 1)
        spectrum = torch.stft(
            x,
            self.config.n_fft,
            self.config.hop_samples,
            self.config.window_samples,
            self.window,
            center=True,
            pad_mode="reflect",
            return_complex=True,
        )
        power = spectrum.real.square() + spectrum.imag.square()  # (B, bins, frames)
        mel = self.filters @ power  # (B, mels, frames)
        return ((mel + LOG_FLOOR).log() + LOG_SHIFT).div(LOG_SCALE)[:, None]

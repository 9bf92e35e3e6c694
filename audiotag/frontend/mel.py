"""The frontend's constants, mel filterbank and frame counts, which every form of the log-mel shares; no torch.

Reference: the published models' preprocessing (arXiv 2310.15648, section IV; arXiv 2211.04772), whose mel
filterbank follows Kaldi's ``get_mel_banks``. The filterbank is a few lines of our own because torchaudio, which
has it, often does not import.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..config import FrontendConfig

PREEMPHASIS = 0.97
LOG_FLOOR = 1e-5  # added to the mel power before the logarithm
LOG_SHIFT, LOG_SCALE = 4.5, 5.0  # published normalisation: (x + 4.5) / 5
MEL_BREAK_HZ, MEL_FACTOR = 700.0, 1127.0  # HTK mel scale
MEL_GROUPS = 8


def hz_to_mel(hz: float) -> float:
    """Convert Hz to HTK mel: 1127 ln(1 + f / 700)."""
    return MEL_FACTOR * math.log1p(hz / MEL_BREAK_HZ)


def mel_filterbank(config: FrontendConfig) -> np.ndarray:
    """Compute triangular filters, linear in mel, as Kaldi builds them.

    Returns
    -------
    ndarray
        (n_mels, n_fft // 2 + 1), float32, weights in [0, 1]; the column of the Nyquist frequency is zero.
    """
    edges = np.linspace(hz_to_mel(config.fmin_hz), hz_to_mel(config.fmax_hz), config.n_mels + 2)
    bins_hz = np.arange(config.n_fft // 2 + 1) * config.sample_rate_hz / config.n_fft
    bins = MEL_FACTOR * np.log1p(bins_hz / MEL_BREAK_HZ)
    left, centre, right = (e[:, None] for e in (edges[:-2], edges[1:-1], edges[2:]))
    filters = np.maximum(0, np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)))
    filters[:, -1] = 0
    return filters.astype(np.float32)


class MelGroup(NamedTuple):
    """Neighbouring mel bands and the bins that they cover.

    bands, bins: slices of the filterbank's rows and columns. weights: float32 (bands, bins), times e^`LOG_SHIFT`, since
    ln(m + floor) + shift = ln(e^shift m + e^shift floor).
    """

    bands: slice
    bins: slice
    weights: np.ndarray


def mel_groups(config: FrontendConfig) -> list[MelGroup]:
    """Cut the filterbank into `MEL_GROUPS` groups: a triangle covers few bins, so this is a seventh of the products."""
    filters = mel_filterbank(config).astype(np.float64) * math.exp(LOG_SHIFT)
    groups = []
    for members in np.array_split(np.arange(config.n_mels), MEL_GROUPS):
        if not len(members):
            continue
        bands = slice(int(members[0]), int(members[-1]) + 1)
        used = np.flatnonzero(filters[bands].any(0))
        bins = slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 1)
        groups.append(MelGroup(bands, bins, filters[bands, bins].astype(np.float32)))
    return groups


def hann_window(config: FrontendConfig) -> np.ndarray:
    """Compute the symmetric Hann window, float64 (window_samples,)."""
    return np.hanning(config.window_samples) if config.window_samples > 1 else np.ones(1)


def n_frames(n_samples: int, config: FrontendConfig) -> int:
    """Count the frames of log-mel that `n_samples` of waveform give: 1,000 for 320,000 at a hop of 320."""
    return 1 + (n_samples - 1) // config.hop_samples


def min_samples(config: FrontendConfig) -> int:
    """Return the length of the shortest waveform the centred, reflected STFT is defined for."""
    return config.n_fft // 2 + 2

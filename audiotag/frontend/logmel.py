"""The frontend in torch: waveform to log-mel, on whatever device the waveform is. `mel` has its definition."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..config import FrontendConfig
from ..errors import InvalidInputError
from .mel import LOG_FLOOR, LOG_SCALE, LOG_SHIFT, PREEMPHASIS, hann_window, mel_groups, min_samples, n_frames

CHUNK_FRAMES = 1000


class LogMel(nn.Module):
    """Waveforms (B, samples), float32 in [-1, 1], to log-mel spectrograms (B, 1, mels, frames).

    What the formulas say, with less work:

    - A frame is only as long as the window. The transform is given the window's samples at the frame's start and zeros
      after, instead of in the middle of n_fft: a shift in time, which the power does not see.
    - Real and imaginary parts are squared where they lie and added by the mel product itself, whose filters have
      every column twice.
    - A triangle covers few bins, so the product is done for groups of neighbouring bands, each over its own bins.
    - ln(m + floor) + shift = ln(e^shift m + e^shift floor), and e^shift goes into the filters.
    - On a CPU, `CHUNK_FRAMES` frames at a time, so that what lies between waveform and log-mel stays small.
    """

    window: Tensor

    def __init__(self, config: FrontendConfig = FrontendConfig()) -> None:
        super().__init__()
        self.config = config
        window = torch.from_numpy(hann_window(config)).float()
        self.register_buffer("window", window, persistent=False)
        self._groups: list[tuple[slice, slice]] = []  # bands, and columns of the squared parts
        for i, group in enumerate(mel_groups(config)):
            self._groups.append((group.bands, slice(2 * group.bins.start, 2 * group.bins.stop)))
            filters = torch.from_numpy(group.weights).repeat_interleave(2, 1).t().contiguous()
            self.register_buffer(f"filters{i}", filters, persistent=False)

    @torch.no_grad()
    def forward(self, waveform: Tensor) -> Tensor:
        """Compute log-mel of each waveform in the batch.

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
        """Compute log-mel of `frames` (frames, window) into `out` (mels, frames)."""
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

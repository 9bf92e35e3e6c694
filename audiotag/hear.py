"""HEAR's common API: scene and timestamp embeddings of any checkpoint, for its benchmark and tools made for it.

Reference: the HEAR 2021 API, https://hearbenchmark.com/hear-api.html. Windows and hops as the networks' authors used
them there, and the layers that did best: mid-network blocks and the log-mel ("Low-Complexity Audio Embedding
Extractors", arXiv 2303.01879).

>>> from audiotag import hear                                                       # doctest: +SKIP
>>> model = hear.load_model("mn10_as")                                              # doctest: +SKIP
>>> embeddings, timestamps = hear.get_timestamp_embeddings(audio, model)            # doctest: +SKIP
"""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checkpoints.load import Checkpoint, build, load_checkpoint
from .errors import InvalidInputError
from .frontend.logmel import LogMel
from .frontend.windows import window_starts
from .networks.table import tap_channels
from .results.embeddings import MID_LAYERS
from .runtimes.fused import fuse

SCENE_HOP_S = 2.5
TIMESTAMP_HOP_S = 0.05
TIMESTAMP_WINDOW_S = 0.16
CONTEXT_FRAMES = 4  # at the ends of a stretch, where the STFT reaches beyond it
STRETCH = 400  # timestamps whose log-mel is computed at once
BATCH = 32


class HearModel(nn.Module):
    """A checkpoint for HEAR; made by `load_model`. It can be moved (``.to(device)``) like any module.

    Attributes
    ----------
    sample_rate : int
        Of the audio, in Hz.
    scene_embedding_size, timestamp_embedding_size : int
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        config = checkpoint.config
        self.config = config
        self.sample_rate: int = config.frontend.sample_rate_hz
        sizes = {"logmel": config.frontend.n_mels, **tap_channels(config.network)}
        self.scene_embedding_size: int = sum(sizes[name] for name in MID_LAYERS)
        self.timestamp_embedding_size: int = self.scene_embedding_size
        self.frontend = LogMel(config.frontend)
        self.network = fuse(build(checkpoint))
        self.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return next(self.buffers()).device

    def features(self, logmel: Tensor) -> Tensor:
        """Feature vectors (B, size), float32, of log-mel (B, 1, mels, frames)."""
        taps = self.network(logmel, taps=tuple(name for name in MID_LAYERS if name != "logmel")).taps
        return torch.cat([logmel.mean((1, 3)) if name == "logmel" else taps[name] for name in MID_LAYERS], 1).float()


def load_model(model_file_path: str | os.PathLike[str] = "") -> HearModel:
    """Load a checkpoint for HEAR.

    Parameters
    ----------
    model_file_path : str or path
        A file or folder, a name of the manifest, or a Hub repository, as for `Tagger.from_pretrained`; empty for the
        checkpoint inside the package.

    Raises
    ------
    InvalidInputError, CheckpointError
        As `Tagger.from_pretrained`.
    """
    return HearModel(load_checkpoint(model_file_path or None))


@torch.no_grad()
def get_scene_embeddings(audio: Tensor, model: HearModel) -> Tensor:
    """Embed each sound as a whole: the mean over windows of 10 s every 2.5 s; a shorter one is repeated to fill one.

    Parameters
    ----------
    audio : Tensor
        (n_sounds, n_samples), in [-1, 1], at the model's rate.
    model : HearModel

    Returns
    -------
    Tensor
        (n_sounds, `scene_embedding_size`), float32, on the model's device.

    Raises
    ------
    InvalidInputError
        `audio` is no such tensor.
    """
    audio = _checked(audio, model)
    window = model.config.window_samples
    hop = min(window, round(SCENE_HOP_S * model.sample_rate))
    starts = window_starts(audio.shape[1], window, hop)
    embedded = []
    for sound in audio:
        sums = torch.zeros(model.scene_embedding_size, dtype=torch.float64, device=model.device)
        for start in starts:
            samples = sound[start : start + window]
            samples = samples.repeat(-(-window // len(samples)))[:window]
            sums += model.features(model.frontend(samples[None]))[0].double()
        embedded.append((sums / len(starts)).float())
    return torch.stack(embedded) if embedded else audio.new_zeros((0, model.scene_embedding_size))


@torch.no_grad()
def get_timestamp_embeddings(audio: Tensor, model: HearModel) -> tuple[Tensor, Tensor]:
    """Embed each sound every 50 ms, by the 160 ms around each timestamp; beyond its ends a sound is mirrored.

    Parameters
    ----------
    audio : Tensor
        (n_sounds, n_samples), in [-1, 1], at the model's rate.
    model : HearModel

    Returns
    -------
    embeddings : Tensor
        (n_sounds, n_timestamps, `timestamp_embedding_size`), float32, on the model's device.
    timestamps : Tensor
        (n_sounds, n_timestamps), float32, in milliseconds from 0, ascending: the middles of the embeddings' windows.

    Raises
    ------
    InvalidInputError
        `audio` is no such tensor.
    """
    audio = _checked(audio, model)
    hop = model.config.frontend.hop_samples
    step = max(1, int(TIMESTAMP_HOP_S * model.sample_rate / hop + 1e-9))  # frames from timestamp to timestamp
    half = max(1, round(TIMESTAMP_WINDOW_S * model.sample_rate / hop / 2))  # frames on either side of the middle
    count = -(-audio.shape[1] // (step * hop))
    times = torch.arange(count, dtype=torch.float64, device=model.device) * (1000 * step * hop / model.sample_rate)
    before = (half + CONTEXT_FRAMES) * hop
    behind = before + model.config.frontend.n_fft + step * hop
    embedded = []
    for sound in audio:
        padded = _mirrored(sound, before, behind)  # frame f of it lies at (f - half - CONTEXT_FRAMES) hops
        rows = []
        for first in range(0, count, STRETCH):
            last = min(count, first + STRETCH)
            samples = padded[first * step * hop : ((last - 1) * step + 2 * (half + CONTEXT_FRAMES)) * hop + 2]
            logmel = model.frontend(samples[None])[..., CONTEXT_FRAMES:]  # (1, 1, mels, frames)
            windows = logmel[0, 0].unfold(1, 2 * half + 1, step)[:, : last - first]  # (mels, windows, frames)
            windows = windows.transpose(0, 1)[:, None].contiguous()
            rows += [model.features(some) for some in windows.split(BATCH)]
        embedded.append(torch.cat(rows))
    if not embedded:
        return audio.new_zeros((0, count, model.timestamp_embedding_size)), times.float().expand(0, count)
    return torch.stack(embedded), times.float().repeat(len(audio), 1)


def _checked(audio: Tensor, model: HearModel) -> Tensor:
    """The audio as float32 on the model's device."""
    if not isinstance(audio, Tensor) or audio.ndim != 2 or not audio.shape[1] or not audio.is_floating_point():
        shape = tuple(audio.shape) if isinstance(audio, Tensor) else type(audio).__name__
        raise InvalidInputError(f"audio must be a float tensor (n_sounds, n_samples >= 1), got {shape}")
    if not torch.isfinite(audio).all():
        raise InvalidInputError("audio must be finite; it holds NaN or infinite samples")
    return audio.to(model.device, torch.float32)


def _mirrored(sound: Tensor, before: int, behind: int) -> Tensor:
    """A sound (n,) with its mirror image on both sides, mirrored again where it is short."""
    while before or behind:
        if len(sound) < 2:
            return F.pad(sound[None], (before, behind), mode="replicate")[0]
        left, right = min(before, len(sound) - 1), min(behind, len(sound) - 1)
        sound = F.pad(sound[None], (left, right), mode="reflect")[0]
        before, behind = before - left, behind - right
    return sound

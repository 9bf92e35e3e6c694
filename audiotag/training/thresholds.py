"""Thresholds for a checkpoint's labels: where its scores part what a teacher hears from what it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ..checkpoints.load import build, load_checkpoint, save_weights
from ..frontend.logmel import LogMel
from .metrics import Thresholds, best_f1_thresholds
from .mixing import MixConfig, split_mixer

CLIPS_AT_ONCE = 8
DECIMALS = 4


@torch.inference_mode()
def add_thresholds(
    banks: Sequence[str | Path],
    checkpoint: str,
    out: str | Path,
    *,
    teacher: str,
    split: str = "val",
    clips: int = 4_000,
    present: float = 0.3,
    min_positives: int = 5,
    mix: MixConfig = MixConfig(),
    seed: int = 0,
) -> Thresholds:
    """Write a checkpoint again, as float16, with thresholds of best F1; the command ``audiotag train thresholds``.

    Parameters
    ----------
    banks : list of paths
        Made by `audiotag.training.prepare`; the mixtures are made of the pieces of `split`, the rarer their labels by
        the stored logits the oftener.
    clips : int
        Mixtures scored by both.
    present : float
        A label counts as there from this score of the teacher on, in (0, 1).
    min_positives : int
        Labels with fewer mixtures get no threshold.

    Returns
    -------
    Thresholds
        For the checkpoint's labels, as written, with the number of mixtures each rests on.
    """
    loaded, reference = load_checkpoint(checkpoint), load_checkpoint(teacher)
    config = loaded.config
    mixer = split_mixer(banks, split, mix, sample_rate_hz=config.frontend.sample_rate_hz)
    networks = [(build(one), LogMel(one.config.frontend)) for one in (reference, loaded)]
    found: list[list[np.ndarray]] = [[], []]
    for first in range(0, clips, CLIPS_AT_ONCE):
        rng = np.random.default_rng([seed, first])
        waveform = torch.from_numpy(mixer.clips(rng, min(CLIPS_AT_ONCE, clips - first), config.window_samples))
        for kept, (network, logmel) in zip(found, networks, strict=True):
            kept.append(network(logmel(waveform)).logits.sigmoid().numpy())
    theirs, ours = (np.concatenate(kept) for kept in found)
    made = best_f1_thresholds(theirs >= present, ours, min_positives=min_positives)
    made = replace(made, score=tuple(None if t is None else round(t, DECIMALS) for t in made.score))
    config = replace(config, thresholds=made.score, threshold_support=made.support)
    halved = {name: a.astype(np.float16) if a.dtype == np.float32 else a for name, a in loaded.state.items()}
    save_weights(out, halved, config, loaded.card)
    return made

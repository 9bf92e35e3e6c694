"""Batches for training: each a function of seed, process and step alone, so that a run can stop and go on anywhere."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ..errors import InvalidInputError
from .bank import LOGITS_FILE, PieceBank
from .mixing import Mixer, rarity_weights
from .recipes import Phase, Recipe


class Batches(IterableDataset):
    """Endless batches from a step on: waveform (B, samples), and where known labels and scores, both (B, labels).

    Parameters
    ----------
    bank : PieceBank
        Of the pieces to train on.
    logits, labels : ndarray or None
        (pieces, labels): a teacher's logits and the labels of those pieces. One of them balances the sampling; with
        neither, all pieces are drawn alike. Batches carry them only where the recipe is offline, since a mixture of
        pieces has no scores but the ones an online teacher gives it.
    """

    def __init__(
        self,
        bank: PieceBank,
        recipe: Recipe,
        *,
        logits: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        seed: int = 0,
        process: int = 0,
        sample_rate_hz: int = 32_000,
    ) -> None:
        if recipe.offline and logits is None:
            raise InvalidInputError(
                f"recipe {recipe.name} needs the teacher's logits of every piece in {LOGITS_FILE}: "
                "give `audiotag train prepare` the teacher"
            )
        if recipe.label_share and labels is None:
            raise InvalidInputError(f"recipe {recipe.name} needs labels: give `audiotag train prepare` a table of them")
        self.recipe, self.seed, self.process, self.sample_rate_hz = recipe, seed, process, sample_rate_hz
        self.bank, self.logits, self.labels = bank, logits, labels
        presence = (
            labels if labels is not None else None if logits is None else 1 / (1 + np.exp(-logits.astype(np.float32)))
        )
        weights = rarity_weights(presence) if presence is not None else np.full(len(bank), 1 / len(bank))
        self.weights = np.where(bank.length > 0, weights, 0.0)
        self.mixer = Mixer(bank, self.weights, recipe.mix, sample_rate_hz=sample_rate_hz)
        self.first_step = 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = get_worker_info()
        step, stride = self.first_step, 1
        if worker is not None:  # workers take turns, so batches still come in the order of their steps
            step, stride = step + worker.id, worker.num_workers
        while True:
            yield self.batch(step)
            step += stride

    def clips(self, step: int, phase: Phase) -> Tensor:
        """Return the new clips of a step of a phase, (clips, samples)."""
        rng = np.random.default_rng([self.seed, self.process, step])
        clips = self.mixer.clips(rng, phase.new_clips, round(phase.clip_s * self.sample_rate_hz))
        return torch.from_numpy(clips)

    def batch(self, step: int) -> dict[str, Tensor]:
        """Return the batch of a step: of a phase with a pool, its new clips."""
        phase, _ = self.recipe.at(step)
        if not self.recipe.offline:
            return {"waveform": self.clips(step, phase)}
        rng = np.random.default_rng([self.seed, self.process, step])
        samples = round(phase.clip_s * self.sample_rate_hz)
        picks = rng.choice(len(self.bank), phase.batch_size, p=self.weights / self.weights.sum())
        waveforms = np.stack([self._whole(rng, int(pick), samples) for pick in picks])
        batch = {"waveform": torch.from_numpy(waveforms)}
        assert self.logits is not None
        batch["logits"] = torch.from_numpy(self.logits[picks].astype(np.float32))
        if self.labels is not None:
            batch["labels"] = torch.from_numpy(self.labels[picks].astype(np.float32))
        return batch

    def _whole(self, rng: np.random.Generator, pick: int, samples: int) -> np.ndarray:
        """Tile a piece to the clip's length, turned and scaled: its scores, computed beforehand, still hold."""
        turned = np.roll(np.resize(self.bank[pick], samples), int(rng.integers(0, samples)))
        gain = 10 ** (rng.uniform(*self.recipe.mix.gain_db) / 20)
        return np.clip(turned * gain, -1, 1).astype(np.float32)

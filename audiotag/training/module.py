"""The Lightning module: recipe, student and teachers together; all it computes is in plain functions beside it."""

from __future__ import annotations

from typing import Any, cast

import lightning
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..config import FrontendConfig
from ..errors import InvalidInputError
from ..frontend.logmel import LogMel
from ..networks.build import build_network
from ..networks.dymn import DyMN
from ..networks.mobilenet import MN
from .augment import jittered_frontend, mixup
from .batches import Batches
from .feature_maps import TeacherMaps, map_variances, teacher_maps
from .objectives import check_teacher, ensemble_scores, feature_objective, score_objective
from .recipes import Recipe
from .schedule import rate_factor, temperature_at

SCALE_BATCHES = 20  # from which the teacher's variances are taken
SCALE_SEED = 5


def learning_rate(recipe: Recipe, step: int) -> float:
    """The learning rate of a step of the run."""
    phase, within = recipe.at(step)
    factor = rate_factor(
        within,
        warmup=phase.warmup_steps,
        rampdown_start=phase.rampdown_start or phase.warmup_steps,
        rampdown=phase.rampdown_steps,
        last=phase.last_rate,
    )
    return phase.learning_rate * factor


class Distillation(lightning.LightningModule):
    """Trains a student on a recipe; its state is student, optimiser, averaged weights and step, never a teacher.

    Parameters
    ----------
    recipe : Recipe
    teachers : list of Module
        Networks to learn from, averaged; only the first where features are compared; empty for an offline recipe.
    batches : Batches
        What to train on; also gives the audio for the teacher's variances.
    """

    def __init__(
        self,
        recipe: Recipe,
        teachers: list[nn.Module],
        batches: Batches,
        *,
        frontend: FrontendConfig = FrontendConfig(),
    ) -> None:
        super().__init__()
        self.recipe, self.batches, self.frontend = recipe, batches, frontend
        self.student = build_network(recipe.network)
        self.logmel = LogMel(frontend)
        for module in self.student.modules():
            if isinstance(module, nn.Dropout):
                module.p = recipe.dropout
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = recipe.norm_momentum
        self.average = (
            AveragedModel(self.student, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay), use_buffers=True)
            if recipe.ema_decay
            else None
        )
        if self.average is not None:
            self.average.requires_grad_(False)
        self._teachers = [teacher.eval().requires_grad_(False) for teacher in teachers]  # a list, so not in the state
        self._scale: TeacherMaps | None = None
        if not recipe.offline and not teachers:
            raise InvalidInputError(f"recipe {recipe.name} needs a teacher to score its mixtures")
        if any(phase.objective != "scores" for phase in recipe.phases):
            check_teacher(self._teachers[0], self.student)

    def configure_optimizers(self) -> Any:
        """Adam at rate 1, scaled by the recipe's rate of each step."""
        optimiser = torch.optim.Adam(
            self.student.parameters(), lr=1.0, betas=self.recipe.betas, weight_decay=self.recipe.weight_decay
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: learning_rate(self.recipe, step))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        self._teachers = [teacher.to(self.device) for teacher in self._teachers]
        if any(phase.objective in ("halves", "whole") for phase in self.recipe.phases):
            self._scale = self._variances()

    @torch.no_grad()
    def _variances(self) -> TeacherMaps:
        rng = np.random.default_rng(SCALE_SEED)
        samples = round(self.recipe.phases[0].clip_s * self.frontend.sample_rate_hz)
        teacher = cast(MN, self._teachers[0])
        draws = (torch.from_numpy(self.batches.mixer.clips(rng, 8, samples)) for _ in range(SCALE_BATCHES))
        return map_variances(teacher_maps(teacher, self.logmel(draw.to(self.device))) for draw in draws)

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        """One step; `batch_index` starts anew where a run resumes, so the step of the run decides everything."""
        step = self.global_step
        phase, _ = self.recipe.at(step)
        rng = np.random.default_rng([self.batches.seed, self.batches.process, step, 1])
        torch.manual_seed(int(rng.integers(2**62)))  # dropout, too, is a function of the step
        if isinstance(self.student, DyMN):
            self.student.set_temperature(
                temperature_at(
                    step,
                    start=self.recipe.temperature_start,
                    end=self.recipe.network.temperature,
                    steps=self.recipe.temperature_steps,
                )
            )
        for module in self.student.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train(not phase.frozen_norms)
        if phase.objective == "scores":
            loss, parts = self._score_step(batch, rng)
        else:
            x = self.logmel(batch["waveform"])
            loss, parts = feature_objective(phase, self.student, self._teachers[0], x, rng, self._scale)  # type: ignore[arg-type]
        self.log_dict(
            {
                "loss": loss.detach(),
                "rate": learning_rate(self.recipe, step),
                **{f"part_{k}": v for k, v in parts.items()},
            }
        )
        return loss

    def _score_step(self, batch: dict[str, Tensor], rng: np.random.Generator) -> tuple[Tensor, Any]:
        waveform, labels = batch["waveform"], batch.get("labels")
        scores = (
            batch["logits"].sigmoid() if self.recipe.offline else ensemble_scores(self._teachers, self.logmel(waveform))
        )
        logmel = self.logmel
        if self.recipe.jitter_hz:
            logmel = jittered_frontend(self.frontend, rng, self.recipe.jitter_hz).to(self.device)
        x = logmel(waveform)
        if self.recipe.mixup_alpha:
            if labels is None:
                x, scores = mixup(rng, self.recipe.mixup_alpha, x, scores)
            else:
                x, scores, labels = mixup(rng, self.recipe.mixup_alpha, x, scores, labels)
        return score_objective(self.student, x, scores, labels, label_share=self.recipe.label_share)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then average: before any callback saves the state, so that a saved average misses no step."""
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self.average.update_parameters(self.student)

    def trained(self) -> nn.Module:
        """The network to export: averaged weights where the recipe averages, in eval mode, at its final temperature."""
        network = self.student if self.average is None else self.average.module
        if isinstance(network, DyMN):
            network.set_temperature(self.recipe.network.temperature)
        return network.eval()

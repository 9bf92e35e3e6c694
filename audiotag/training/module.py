"""The Lightning module: recipe, student and teachers together; all it computes is in plain functions beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
from .feature_maps import Maps, Variances, map_variances, student_stage, teacher_maps, teacher_stage
from .inherit import exact_blocks, inherit
from .objectives import (
    Losses,
    check_teacher,
    ensemble_scores,
    gates_objective,
    score_objective,
    set_trainable,
    whole_objective,
)
from .pool import MapPool
from .recipes import Phase, Recipe
from .schedule import rate_factor, temperature_at

SCALE_BATCHES, SCALE_CLIPS = 16, 8  # from which the teacher's variances are taken
SCALE_SEED = 5
FIRST_FILL = 3  # of a pool, its share (1 in 3) that is made before a phase's first step
FILL_STEP = 2**40  # steps that no run reaches: the batches that fill a pool at first


def learning_rate(recipe: Recipe, step: int) -> float:
    """Return the learning rate of a step of the run."""
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
    begin : mapping, optional
        State dict that the student begins with, before it inherits anything.
    """

    def __init__(
        self,
        recipe: Recipe,
        teachers: list[nn.Module],
        batches: Batches,
        *,
        begin: Mapping[str, Tensor] | None = None,
        frontend: FrontendConfig = FrontendConfig(),
    ) -> None:
        super().__init__()
        self.recipe, self.batches, self.frontend = recipe, batches, frontend
        self.student = build_network(recipe.network)
        if begin is not None:
            self.student.load_state_dict(begin)
        self.logmel = LogMel(frontend)
        for module in self.student.modules():
            if isinstance(module, nn.Dropout):
                module.p = recipe.dropout
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = recipe.norm_momentum
        self._teachers = [teacher.eval().requires_grad_(False) for teacher in teachers]  # a list, so not in the state
        if not recipe.offline and not teachers:
            raise InvalidInputError(f"recipe {recipe.name} needs a teacher to score its mixtures")
        self._features = any(phase.objective != "scores" for phase in recipe.phases)
        if self._features or recipe.inherit:
            check_teacher(self._teachers[0], self.student)
        if recipe.inherit:
            sample = self.logmel(self._sample(np.random.default_rng(SCALE_SEED), 3 * SCALE_CLIPS))
            inherit(cast(DyMN, self.student.eval()), cast(MN, self._teachers[0]), sample)
        self.average = (
            AveragedModel(self.student, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay), use_buffers=True)
            if recipe.ema_decay
            else None
        )
        if self.average is not None:
            self.average.requires_grad_(False)
        self._scale: Variances | None = None
        self._phase: Phase | None = None
        self._pool: MapPool | None = None

    def configure_optimizers(self) -> Any:
        """Make Adam at rate 1, scaled by the recipe's rate of each step."""
        optimiser = torch.optim.Adam(
            self.student.parameters(), lr=1.0, betas=self.recipe.betas, weight_decay=self.recipe.weight_decay
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: learning_rate(self.recipe, step))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        self._teachers = [teacher.to(self.device) for teacher in self._teachers]
        if self._features:
            rng, teacher = np.random.default_rng(SCALE_SEED), cast(MN, self._teachers[0])
            draws = (self._sample(rng, SCALE_CLIPS).to(self.device) for _ in range(SCALE_BATCHES))
            self._scale = map_variances(teacher_maps(teacher, self.logmel(draw)) for draw in draws)

    def _sample(self, rng: np.random.Generator, count: int) -> Tensor:
        samples = round(self.recipe.phases[0].clip_s * self.frontend.sample_rate_hz)
        return torch.from_numpy(self.batches.mixer.clips(rng, count, samples))

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        """Run one step; `batch_index` starts anew where a run resumes, so the step of the run decides everything."""
        step = self.global_step
        phase, within = self.recipe.at(step)
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
                module.train(not self.recipe.inherit)
        if phase is not self._phase:
            self._begin_phase(phase, within)
        if phase.objective == "scores":
            loss, parts = self._score_step(batch, rng)
        else:
            loss, parts = self._feature_step(phase, batch, rng)
        self.log_dict(
            {
                "loss": loss.detach(),
                "rate": learning_rate(self.recipe, step),
                **{f"part_{k}": v for k, v in parts.items()},
            }
        )
        return loss

    def _begin_phase(self, phase: Phase, within: int) -> None:
        """Say what is trained, forget the optimiser's moments, fill the pool with what it holds at this step."""
        self._phase = phase
        set_trainable(phase, self.student)
        if not within:
            cast(Any, self.optimizers()).optimizer.state.clear()
        self._pool = MapPool(phase.pool) if phase.pool else None
        if self._pool is None:
            return
        size = math.ceil(phase.pool / phase.new_clips)  # in steps
        filling = range(FILL_STEP, FILL_STEP + math.ceil(size / FIRST_FILL))
        steps = [*filling, *range(self.global_step - within, self.global_step)]
        for number, step in [*enumerate(steps)][-size:]:
            waveform = self.batches.clips(step, phase).to(self.device)
            self._pool.put(self._front(phase, waveform), number * phase.new_clips)

    @torch.no_grad()
    def _front(self, phase: Phase, waveform: Tensor) -> list[Tensor]:
        """Compute maps before the phase's first block: the teacher's and, where it is needed, the student's."""
        student, teacher = cast(DyMN, self.student), cast(MN, self._teachers[0])
        x = self.logmel(waveform)
        theirs = teacher.features[0](x)
        alike = exact_blocks(teacher) if self.recipe.inherit else 0
        ours = theirs if alike else student.in_c(x)
        for number in range(phase.first_block):
            theirs = teacher_stage(cast(Any, teacher.features[number + 1]), theirs).out
            if number < alike:
                ours = theirs
            elif phase.objective == "whole":
                ours = student_stage(cast(Any, student.layers[number]), ours).out
        return [theirs] if phase.objective == "gates" or ours is theirs else [theirs, ours]

    def _feature_step(self, phase: Phase, batch: dict[str, Tensor], rng: np.random.Generator) -> Losses:
        maps = self._front(phase, batch["waveform"])
        if self._pool is not None:
            self._pool.put(maps, self._pool.made)
            maps = self._pool.draw(rng, phase.batch_size, phase.new_clips)
        student, scale = cast(DyMN, self.student), cast(Variances, self._scale)
        taught: Maps = teacher_maps(cast(MN, self._teachers[0]), maps[0], first=phase.first_block)
        if phase.objective == "gates":
            return gates_objective(phase, student, taught, scale)
        return whole_objective(phase, student, maps[-1], taught, scale)

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
        """Make the step, then average: before any callback saves the state, so that a saved average misses no step."""
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self.average.update_parameters(self.student)

    def trained(self) -> nn.Module:
        """The network to export: averaged weights where the recipe averages, in eval mode, at its final temperature."""
        network = self.student if self.average is None else self.average.module
        if isinstance(network, DyMN):
            network.set_temperature(self.recipe.network.temperature)
        return network.eval()

"""Fits on scored clips: what is dynamic in one block, the head, or blocks and head together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import InvalidInputError
from ...files import whole_file
from ...networks.dymn import DyMN, DynamicBlock
from ..feature_maps import (
    Variances,
    channel_error,
    context,
    context_of_means,
    dynamic_conv,
    first_half,
    gated,
    head_maps,
    position_means,
    student_stage,
)
from ..objectives import GATE_MODULES, logit_loss
from .clips import ScoredClips, at_places
from .plan import Fit

CLIPS_AT_ONCE = 16
STATE_STEPS = 100  # between states that a fit goes on from


class StudentMaps:
    """The student's own maps of scored clips before a block: run on as far as they are asked for, and kept there.

    Parameters
    ----------
    student : DyMN
    clips : ScoredClips
    first : int
        The block that `clips` begin with.
    """

    def __init__(self, student: DyMN, clips: ScoredClips, first: int) -> None:
        self.student, self.clips, self.first = student, clips, first
        self._block, self._maps = first, clips.before

    @torch.no_grad()
    def before(self, block: int) -> list[Tensor]:
        """Return the map before a block of each clip, float16 (C, F, T); the block behind the last is the head."""
        self.changed(block)
        while self._block < block:
            layer = cast(DynamicBlock, self.student.layers[self._block])
            maps = list(self._maps)
            self._maps = []  # each is let go once its next is there: two of every clip may not fit into memory
            for first in range(0, len(maps), CLIPS_AT_ONCE):
                x = torch.stack(maps[first : first + CLIPS_AT_ONCE]).float()
                maps[first : first + CLIPS_AT_ONCE] = student_stage(layer, x).out.half()
            self._maps, self._block = maps, self._block + 1
        return self._maps

    def changed(self, block: int) -> None:
        """Begin anew if that block, whose weights have changed, was run."""
        if block < self._block:
            self._block, self._maps = self.first, self.clips.before


@dataclass(frozen=True)
class GateInputs:
    """All that a block's gates need of a set of clips.

    means: `position_means` of the map before it, of `freq` rows. filtered, given: the map behind its depthwise
    convolution and the one before it (where it is added) at `places`. target: the teacher's output there.
    """

    means: Tensor
    freq: int
    filtered: Tensor
    given: Tensor | None
    places: Tensor
    target: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, block: DynamicBlock, maps: Sequence[Tensor], places: Tensor, target: Tensor) -> GateInputs:
        means, filtered, given = [], [], []
        for number, x in enumerate(_batches(maps)):
            where = places[number * CLIPS_AT_ONCE :][: len(x)]
            means.append(position_means(x).half())
            h, _, _ = context(block.context_gen, x)
            filtered.append(at_places(first_half(block, x, h), where).half())
            if block.residual:
                given.append(at_places(x, where).half())
        joined = torch.cat(given) if given else None
        return cls(torch.cat(means), maps[0].shape[1], torch.cat(filtered), joined, places, target)


def gates_error(block: DynamicBlock, inputs: GateInputs, picks: Tensor, variance: Tensor) -> Tensor:
    """Compute `channel_error` of a block's output at the places of the picked clips."""
    h, a_f, a_t = context_of_means(block.context_gen, inputs.means[picks].float(), inputs.freq)
    places, times = inputs.places[picks].long(), a_t.shape[3]
    # attention at the places: rows of a_f, columns of a_t, as maps of one row
    rows, columns = at_places(a_f, places // times)[:, :, None], at_places(a_t, places % times)[:, :, None]
    y = gated(block, inputs.filtered[picks].float()[:, :, None], (h, rows, columns))
    out = dynamic_conv(block.proj_conv, block.proj_norm, y, h)[:, :, 0]
    if inputs.given is not None:
        out = out + inputs.given[picks].float()
    return channel_error(out, inputs.target[picks], variance)


@torch.no_grad()
def held_out_error(block: DynamicBlock, inputs: GateInputs, variance: Tensor) -> float:
    """Compute `gates_error` over all clips."""
    return float(gates_error(block, inputs, torch.arange(len(inputs.target)), variance))


def head_losses(student: DyMN, y: Tensor, clips: ScoredClips, picks: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `logit_loss` and the mean squared difference of logits for the map behind the last block."""
    logits = head_maps(student.out_c, student.classifier, y)[2]
    target = clips.logits[picks]
    return logit_loss(logits, target), (logits - target).square().mean()


def whole_loss(
    fit: Fit, student: DyMN, maps: Sequence[Tensor], clips: ScoredClips, picks: Tensor, scale: Variances, first: int
) -> Tensor:
    """Compute the loss of objective "whole" from the maps before `fit.first_block`; `clips` begin at block `first`."""
    y = torch.stack([maps[n] for n in picks.tolist()]).float()
    features = torch.zeros(())
    for number in range(max(0, fit.first_block - first), len(clips.out)):
        y = student_stage(cast(DynamicBlock, student.layers[first + number]), y).out
        if fit.feature_weight:
            target, where = clips.out[number][picks], clips.places[number][picks]
            features = features + channel_error(at_places(y, where), target, scale.out[number])
    scores, squared = head_losses(student, y, clips, picks)
    return fit.score_weight * scores + fit.logit_weight * squared + fit.feature_weight * features


@torch.no_grad()
def held_out_losses(student: DyMN, maps: StudentMaps) -> list[float]:
    """Compute `head_losses` over all clips of `maps`."""
    count, found = len(maps.clips), []
    for first, y in zip(range(0, count, CLIPS_AT_ONCE), _batches(maps.before(len(student.layers))), strict=True):
        picks = torch.arange(first, first + len(y))
        found.append([float(loss) * len(y) for loss in head_losses(student, y, maps.clips, picks)])
    return [float(value) for value in np.sum(found, 0) / count]


def trained_parts(fit: Fit, student: DyMN, block: int) -> dict[str, nn.Parameter]:
    """Let gradients reach what a fit trains (of "blocks", in that block), and nothing else; return it by name."""

    def wanted(name: str) -> bool:
        part, *rest = name.split(".")
        if part != "layers":
            return fit.objective != "blocks" and part in ("out_c", "classifier")
        number, module = int(rest[0]), rest[1]
        if fit.objective == "blocks":
            return number == block and module in GATE_MODULES
        fixed = module in ("depth_conv", "depth_norm") and number < fit.first_kernel_block
        return fit.objective == "whole" and number >= block and not fixed

    for name, parameter in student.named_parameters():
        parameter.requires_grad_(wanted(name))
    return {name: parameter for name, parameter in student.named_parameters() if parameter.requires_grad}


def minimise(
    fit: Fit,
    parameters: dict[str, nn.Parameter],
    loss: Callable[[Tensor], Tensor],
    count: int,
    state: Path,
    *,
    seed: Sequence[int],
    check: Callable[[], list[float]],
    tell: Callable[[int, float | None, list[float]], None],
) -> None:
    """Minimise a loss over `count` clips in shuffled batches; the parameters end as the best that was checked.

    Parameters
    ----------
    loss : callable
        From the numbers of a batch's clips to their loss.
    state : path
        Where parameters, moments and step are kept every `STATE_STEPS` steps; a fit whose file is there goes on.
    check : callable
        Measures the parameters as they are on held-out clips: the sum of what it returns decides.
    tell : callable
        Given the step, the mean loss since the last check and what `check` found, at every check.

    Raises
    ------
    InvalidInputError
        If what is measured is no longer finite.
    """
    optimiser = torch.optim.Adam(parameters.values(), lr=fit.learning_rate, betas=(0.9, 0.99))
    step, seen, best, best_sum = 0, [], {}, float("inf")
    if state.exists():
        kept = torch.load(state, map_location="cpu", weights_only=True)
        step, seen, best, best_sum = kept["step"], kept["seen"], kept["best"], kept["best_sum"]
        optimiser.load_state_dict(kept["optimiser"])
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(kept["parameters"][name])

    def checked() -> None:
        nonlocal best, best_sum, seen
        found = check()
        if not np.isfinite(found).all():
            raise InvalidInputError(
                f"{fit.objective} diverged by step {step}: lower learning_rate {fit.learning_rate:g}"
            )
        tell(step, float(np.mean(seen)) if seen else None, found)
        seen = []
        if sum(found) < best_sum:
            best, best_sum = {name: p.detach().clone() for name, p in parameters.items()}, sum(found)

    if not step:
        checked()
    every = max(1, fit.steps // fit.checks)
    for picks in _shuffled(count, fit.batch_size, seed, step):
        if step == fit.steps:
            break
        for group in optimiser.param_groups:
            group["lr"] = fit.learning_rate * min(1.0, (step + 1) / fit.warmup_steps) * (1 - step / fit.steps)
        value = loss(picks)
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        if fit.gradient_clip:
            nn.utils.clip_grad_norm_(parameters.values(), fit.gradient_clip)
        optimiser.step()
        step += 1
        seen.append(float(value.detach()))
        if step % every == 0 or step == fit.steps:
            checked()
        if step % STATE_STEPS == 0:
            own = {name: p.detach() for name, p in parameters.items()}
            kept = {"step": step, "seen": seen, "best": best, "best_sum": best_sum, "parameters": own}
            with whole_file(state, binary=True) as file:
                torch.save({**kept, "optimiser": optimiser.state_dict()}, file)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(best[name])
            parameter.requires_grad_(False)


def _shuffled(count: int, size: int, seed: Sequence[int], step: int) -> Iterator[Tensor]:
    """Yield the batches of steps `step`, `step` + 1, ...: all clips in one order, then all in another, and so on."""
    size = min(size, count)
    per_pass = count // size
    while True:
        turn, place = divmod(step, per_pass)
        order = np.random.default_rng([*seed, turn]).permutation(count)
        for first in range(place * size, per_pass * size, size):
            yield torch.from_numpy(order[first : first + size])
        step = (turn + 1) * per_pass


def _batches(maps: Sequence[Tensor]) -> Iterator[Tensor]:
    for first in range(0, len(maps), CLIPS_AT_ONCE):
        yield torch.stack(list(maps[first : first + CLIPS_AT_ONCE])).float()

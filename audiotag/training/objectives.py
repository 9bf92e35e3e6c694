"""What a training step minimises: from a phase, a student, its teachers and a batch to a loss and its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InvalidInputError
from ..networks.dymn import DyMN, DynamicBlock
from ..networks.mobilenet import MN
from .feature_maps import Maps, Variances, channel_error, second_half, student_maps
from .recipes import Phase

Losses = tuple[Tensor, Mapping[str, float]]
GATE_MODULES = ("context_gen", "depth_act", "proj_conv", "proj_norm")  # what the objective "gates" trains of a block


def score_loss(
    logits: Tensor, teacher_scores: Tensor, labels: Tensor | None = None, *, label_share: float = 0.0
) -> Tensor:
    """Average binary cross-entropy over labels: (1 - share) against a teacher's scores, share against the labels.

    Parameters
    ----------
    logits, teacher_scores, labels : Tensor
        (B, labels); scores and labels in [0, 1].
    label_share : float
        The paper's lambda, in [0, 1].
    """
    loss = F.binary_cross_entropy_with_logits(logits, teacher_scores)
    if not label_share:
        return loss
    if labels is None:
        raise InvalidInputError(f"label_share {label_share!r} needs labels")
    return (1 - label_share) * loss + label_share * F.binary_cross_entropy_with_logits(logits, labels)


def logit_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum binary cross-entropy of logits (B, labels) against a teacher's scores over labels, less its minimum.

    Its least possible value, the teacher's own entropy, is taken off, so that 0 means "the same scores".
    """
    target = teacher.sigmoid()
    loss = F.binary_cross_entropy_with_logits(student, target, reduction="none")
    least = F.binary_cross_entropy_with_logits(teacher, target, reduction="none")
    return (loss - least).sum(1).mean()


def ensemble_scores(teachers: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Compute mean of the teachers' scores (B, labels) for log-mel (B, 1, mels, frames)."""
    with torch.no_grad():
        return torch.stack([teacher(x).logits.sigmoid() for teacher in teachers]).mean(0)


def check_teacher(teacher: nn.Module, student: nn.Module) -> None:
    """Check that the teacher is an MN of the student's shape, for feature objectives compare maps channel by channel.

    Raises
    ------
    InvalidInputError
        If it is not.
    """
    if not isinstance(teacher, MN) or not isinstance(student, DyMN):
        raise InvalidInputError(
            "objectives on features need a static MN as teacher and a DyMN as student; use recipe paper for others"
        )
    ours, theirs = student.config, teacher.config
    if (ours.width, ours.strides, ours.n_labels) != (theirs.width, theirs.strides, theirs.n_labels):
        raise InvalidInputError(
            f"objectives on features need a teacher of the student's width, strides and labels: the student has "
            f"{ours.width:g}, {ours.strides}, {ours.n_labels}; the teacher "
            f"{theirs.width:g}, {theirs.strides}, {theirs.n_labels}"
        )


def set_trainable(phase: Phase, student: nn.Module) -> None:
    """Let gradients reach what the phase trains, and nothing else."""
    if phase.objective == "scores":
        student.requires_grad_(True)
        return
    student.requires_grad_(False)
    network = cast(DyMN, student)
    for number, block in enumerate(network.layers):
        if number < phase.first_block:
            continue
        for name, module in block.named_children():
            if phase.objective == "gates":
                wanted = name in GATE_MODULES
            else:
                wanted = number >= phase.first_kernel_block or name not in ("depth_conv", "depth_norm")
            module.requires_grad_(wanted)
    if phase.objective == "whole":
        network.out_c.requires_grad_(True)
        network.classifier.requires_grad_(True)


def gates_objective(phase: Phase, student: DyMN, taught: Maps, scale: Variances) -> Losses:
    """Train every block alone, from the teacher's map before it and behind its depthwise convolution to its output."""
    errors = {}
    for number, stage in enumerate(taught.stages):
        k = phase.first_block + number
        out = second_half(cast(DynamicBlock, student.layers[k]), taught.given(number), stage.filtered)
        errors[f"block{k}"] = channel_error(out, stage.out, scale.out[k])
    return torch.stack(list(errors.values())).sum(), _plain(errors)


def whole_objective(phase: Phase, student: DyMN, x: Tensor, taught: Maps, scale: Variances) -> Losses:
    """Compare scores, logits and feature maps of the student on its own features, from the map `x` on."""
    maps = student_maps(student, x, first=phase.first_block)
    errors = {
        f"block{phase.first_block + number}": channel_error(ours.out, theirs.out, scale.out[phase.first_block + number])
        for number, (ours, theirs) in enumerate(zip(maps.stages, taught.stages, strict=True))
    }
    errors["head"] = channel_error(maps.head, taught.head, scale.head)
    errors["hidden"] = channel_error(maps.hidden, taught.hidden, scale.hidden)
    features = torch.stack(list(errors.values())).sum()
    scores, squared = logit_loss(maps.logits, taught.logits), (maps.logits - taught.logits).square().mean()
    loss = phase.score_weight * scores + phase.logit_weight * squared + phase.feature_weight * features
    return loss, _plain({**errors, "scores": scores, "logits": squared})


def score_objective(
    student: nn.Module,
    x: Tensor,
    teacher_scores: Tensor,
    labels: Tensor | None,
    *,
    label_share: float,
) -> Losses:
    """Compute loss and its parts of the objective "scores"."""
    fast = isinstance(student, DyMN) and student.config.dynamic_blocks == "all" and student.config.head == "mlp"
    logits = student_maps(cast(DyMN, student), x).logits if fast else student(x).logits
    loss = score_loss(logits, teacher_scores, labels, label_share=label_share)
    return loss, {"scores": float(loss.detach())}


def _plain(parts: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(value.detach()) for name, value in parts.items()}

"""What a training step minimises: from a phase, a student, its teachers and a batch to a loss and its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InvalidInputError
from ..networks.dymn import DyMN
from ..networks.mobilenet import MN
from .blockwise import blockwise_losses
from .chained import Composed, composed_losses, logit_loss
from .feature_maps import TeacherMaps, student_maps, teacher_maps
from .recipes import Phase

PARTS = ("stem", *(f"block{i}" for i in range(15)), "head")
JOIN = PARTS.index("block6")  # where "halves" cuts the network: the maps before it are large, the ones behind it small


def score_loss(
    logits: Tensor, teacher_scores: Tensor, labels: Tensor | None = None, *, label_share: float = 0.0
) -> Tensor:
    """Binary cross-entropy averaged over labels: (1 - share) against a teacher's scores, share against the labels.

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


def ensemble_scores(teachers: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Mean of the teachers' scores (B, labels) for log-mel (B, 1, mels, frames)."""
    with torch.no_grad():
        return torch.stack([teacher(x).logits.sigmoid() for teacher in teachers]).mean(0)


def check_teacher(teacher: nn.Module, student: nn.Module) -> None:
    """Feature objectives compare maps channel by channel, so the teacher must be an MN of the student's shape.

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


def feature_objective(
    phase: Phase, student: DyMN, teacher: MN, x: Tensor, rng: np.random.Generator, scale: TeacherMaps | None
) -> tuple[Tensor, Mapping[str, float]]:
    """Loss and its parts of the phases "blocks", "halves" and "whole", for log-mel `x` (B, 1, mels, frames)."""
    maps = teacher_maps(teacher, x)
    if phase.objective == "blocks":
        total, parts = x.new_zeros(()), {}
        for name, loss, error in blockwise_losses(student, x, maps, rng, parts=PARTS):
            total, parts[name] = total + loss, error
        return total, parts
    if phase.objective == "halves":
        chains: list[Composed] = [
            composed_losses(student, x, maps, parts=half, scale=scale) for half in (PARTS[:JOIN], PARTS[JOIN:])
        ]
    else:
        chains = [composed_losses(student, x, maps, parts=PARTS, scale=scale)]
    parts = {name: error for chain in chains for name, error in chain.errors.items()}
    logits = chains[-1].logits
    assert logits is not None  # the last chain ends in the head
    scores, squared = logit_loss(logits, maps.logits), (logits - maps.logits).square().mean()
    parts.update(scores=float(scores.detach()), logits=float(squared.detach()))
    features = torch.stack([chain.features for chain in chains]).sum()
    return phase.score_weight * scores + phase.logit_weight * squared + phase.feature_weight * features, parts


def score_objective(
    student: nn.Module,
    x: Tensor,
    teacher_scores: Tensor,
    labels: Tensor | None,
    *,
    label_share: float,
) -> tuple[Tensor, Mapping[str, float]]:
    """Loss and its parts of the phase "scores"."""
    fast = isinstance(student, DyMN) and student.config.dynamic_blocks == "all" and student.config.head == "mlp"
    logits = student_maps(cast(DyMN, student), x).logits if fast else student(x).logits
    loss = score_loss(logits, teacher_scores, labels, label_share=label_share)
    return loss, {"scores": float(loss.detach())}

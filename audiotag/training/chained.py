"""Distillation, later phases: blocks learn on the student's own features, with the teacher's features beside them."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..networks.dymn import DyMN, DynamicBlock
from .blockwise import stage_error
from .feature_maps import TeacherMaps, channel_error, head_maps, student_stage, triple


class Composed(NamedTuple):
    """Losses of a chain of parts.

    features: summed over parts. errors: of each part's output. logits: None without the head.
    """

    features: Tensor
    errors: dict[str, float]
    logits: Tensor | None


def composed_losses(
    student: DyMN,
    x: Tensor,
    teacher: TeacherMaps,
    *,
    parts: Collection[str],
    hints: bool = True,
    scale: TeacherMaps | None = None,
) -> Composed:
    """Run the chain of `parts` ("stem", "block0" .. "block14", "head"), which must follow each other, as one network.

    The chain starts from the log-mel where "stem" is among them, else from the teacher's features before its first
    block. `hints` adds the maps inside blocks; `scale` holds the teacher's variances (see `map_variances`), without
    which each batch's own serve.
    """
    total, errors = x.new_zeros(()), {}
    y = None
    if "stem" in parts:
        conv, norm, act = triple(student.in_c)
        stem = norm(conv(x))
        error = channel_error(stem, teacher.stem, scale and scale.stem, floor=0.02)
        total, errors["stem"] = total + error, float(error.detach())
        y = act(stem)
    for i, block in enumerate(student.layers):
        if f"block{i}" not in parts:
            continue
        stage = student_stage(cast(DynamicBlock, block), teacher.inputs[i] if y is None else y)
        loss, error = stage_error(stage, teacher.stages[i], scale and scale.stages[i])
        total, errors[f"block{i}"] = total + (loss if hints else error), float(error.detach())
        y = stage.out
    if "head" not in parts:
        return Composed(total, errors, None)
    head, hidden, logits = head_maps(student.out_c, student.classifier, teacher.inputs[-1] if y is None else y)
    error = channel_error(head, teacher.head, scale and scale.head)
    total = total + error + channel_error(hidden, teacher.hidden, scale and scale.hidden)
    errors["head"] = float(error.detach())
    return Composed(total, errors, logits)


def logit_loss(student: Tensor, teacher: Tensor, *, mse_weight: float = 0.0) -> Tensor:
    """Binary cross-entropy of logits (B, labels) against a teacher's scores, summed over labels, less its minimum.

    Its least possible value, the teacher's own entropy, is taken off, so that 0 means "the same scores". `mse_weight`
    adds the mean squared difference of logits, which still has a gradient where the teacher is sure a label is absent.
    """
    target = teacher.sigmoid()
    loss = F.binary_cross_entropy_with_logits(student, target, reduction="none")
    least = F.binary_cross_entropy_with_logits(teacher, target, reduction="none")
    loss = (loss - least).sum(1).mean()
    if mse_weight:
        loss = loss + mse_weight * (student - teacher).square().mean()
    return torch.as_tensor(loss)

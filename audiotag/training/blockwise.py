"""Distillation, first phase: every block of the student learns alone, between the teacher's maps around it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import cast

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ..networks.dymn import DyMN, DynamicBlock
from .feature_maps import Stage, TeacherMaps, channel_error, head_maps, student_stage, triple

CROP_FRAMES = 64  # of a block's input map: early maps are long, and a crop teaches as much per second of computing
HINT_WEIGHT = 0.5  # of the feature maps inside a block, against 1 for its output


def crop_pair(rng: np.random.Generator, before: Tensor, stage: Stage, stride: int, frames: int) -> tuple[Tensor, Stage]:
    """The same random stretch of time of a block's input and of its teacher's maps; all of it where it is short."""
    total = before.shape[3]
    if total <= frames + 8:
        return before, stage
    start = int(rng.integers(0, (total - frames) // stride + 1)) * stride
    inside, outside = slice(start, start + frames), slice(start // stride, (start + frames) // stride)
    expanded = None if stage.expanded is None else stage.expanded[..., inside]
    return before[..., inside].contiguous(), Stage(expanded, stage.filtered[..., outside], stage.out[..., outside])


def stage_error(
    student: Stage, teacher: Stage, scale: Stage | None = None, *, margin: int = 0
) -> tuple[Tensor, Tensor]:
    """Loss of one block (output and hints inside it) and its output's own error, less `margin` frames at either end."""
    inner = slice(margin, -margin or None)
    expanded, filtered, whole = scale or (None, None, None)
    out = channel_error(student.out[..., inner], teacher.out[..., inner], whole)
    loss = out + HINT_WEIGHT * channel_error(student.filtered[..., inner], teacher.filtered[..., inner], filtered)
    if student.expanded is not None and teacher.expanded is not None:
        loss = loss + HINT_WEIGHT * channel_error(student.expanded, teacher.expanded, expanded)
    return loss, out


def blockwise_losses(
    student: DyMN,
    x: Tensor,
    teacher: TeacherMaps,
    rng: np.random.Generator,
    *,
    parts: Collection[str],
    frames: int = CROP_FRAMES,
) -> Iterator[tuple[str, Tensor, float]]:
    """Yield (name, loss, reported error) part by part, so that each can run backward and free its maps before the next.

    Parameters
    ----------
    x : Tensor
        (B, 1, mels, frames), what the teacher was given.
    """
    if "stem" in parts:
        conv, norm, _ = triple(student.in_c)
        error = channel_error(norm(conv(x)), teacher.stem, floor=0.02)
        yield "stem", error, float(error.detach())
    for i, layer in enumerate(student.layers):
        if f"block{i}" not in parts:
            continue
        block = cast(DynamicBlock, layer)
        stride, kernel = block.depth_conv.stride, block.depth_conv.shape[-1]
        before, after = crop_pair(rng, teacher.inputs[i], teacher.stages[i], stride, frames)
        margin = kernel // 2 if before is not teacher.inputs[i] else 0
        loss, error = stage_error(student_stage(block, before), after, margin=margin)
        yield f"block{i}", loss, float(error.detach())
    if "head" not in parts:
        return
    head, hidden, logits = head_maps(student.out_c, student.classifier, teacher.inputs[-1])
    error = channel_error(head, teacher.head)
    hidden_error, logit_error = (channel_error(a, b) for a, b in ((hidden, teacher.hidden), (logits, teacher.logits)))
    bce = F.binary_cross_entropy_with_logits(logits, teacher.logits.sigmoid(), reduction="sum") / len(x)
    yield "head", error + hidden_error + logit_error + 0.2 * bce, float(logit_error.detach())

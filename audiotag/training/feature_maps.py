"""A DyMN's blocks run for training, in a faster form, and the feature maps a teacher MN has at the same places.

A 1x1 convolution with a kernel per sample is a batched matrix product; on a CPU that trains several times faster than
the grouped convolution of `audiotag.networks.dymn`, with the same result up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InvalidInputError
from ..networks.dymn import DyMN, DynamicBlock, DynamicConv, DynamicReLU
from ..networks.mobilenet import MN, InvertedResidual
from ..networks.table import N_SLOPES


class Stage(NamedTuple):
    """Feature maps of one block. `expanded` and `filtered`: after the batch norm of the expanding (None where there is
    none) and of the depthwise convolution, before their activations; `out`: the block's output."""

    expanded: Tensor | None
    filtered: Tensor
    out: Tensor


def dynamic_conv(conv: DynamicConv, x: Tensor, h: Tensor) -> Tensor:
    """What `conv(x, h)` gives, through a batched matrix product where the kernel is 1x1."""
    batch, channels, freq, time = x.shape
    outputs, per_group, size, _ = conv.shape
    attention = (conv.residuals(h) / conv.temperature).softmax(-1)  # (B, K)
    kernels = attention @ conv.weight[0, 0]
    if size == 1:
        y = kernels.reshape(batch, outputs, channels) @ x.reshape(batch, channels, freq * time)
        return y.reshape(batch, outputs, freq, time)
    y = F.conv2d(
        x.reshape(1, batch * channels, freq, time),
        kernels.reshape(batch * outputs, per_group, size, size),
        stride=conv.stride,
        padding=size // 2,
        groups=batch * conv.groups,
    )
    return y.reshape(batch, outputs, *y.shape[2:])


def dynamic_relu(relu: DynamicReLU, x: Tensor, h: Tensor) -> Tensor:
    """What `relu(x, h)` gives, as max(p, q) = q + max(p - q, 0), whose gradient is cheap and needs no fifth axis."""
    theta = (2 * relu.coef_net(h).sigmoid() - 1).reshape(*x.shape[:2], 1, 1, 2 * N_SLOPES) * relu.lambdas + relu.init_v
    slopes, intercepts = theta[..., :N_SLOPES].unbind(-1), theta[..., N_SLOPES:].unbind(-1)
    y = torch.addcmul(intercepts[-1], x, slopes[-1])
    for slope, intercept, next_slope, next_intercept in zip(
        slopes[:-1], intercepts[:-1], slopes[1:], intercepts[1:], strict=True
    ):
        y = y + torch.addcmul(intercept - next_intercept, x, slope - next_slope).relu_()
    return y


def student_stage(block: DynamicBlock, x: Tensor) -> Stage:
    """Run one dynamic block, keeping what a teacher's block can be compared with."""
    h, a_f, a_t = block.context_gen(x)
    expanded, y = None, x
    if block.expands:
        expanded = block.exp_norm(dynamic_conv(block.exp_conv, x, h))
        y = block.exp_act(expanded)
    filtered = block.depth_norm(dynamic_conv(block.depth_conv, y, h))
    y = dynamic_relu(block.depth_act, filtered, h) * a_f.sigmoid() * a_t.sigmoid()
    y = block.proj_norm(dynamic_conv(block.proj_conv, y, h))
    return Stage(expanded, filtered, x + y if block.residual else y)


def teacher_stage(block: InvertedResidual, x: Tensor) -> Stage:
    """Run one static block, keeping the same places as `student_stage`."""
    parts = list(block.block)
    expanded, y = None, x
    if len([part for part in parts if isinstance(part, nn.Sequential)]) == 3:
        conv, norm, act = triple(parts.pop(0))
        expanded = norm(conv(x))
        y = act(expanded)
    conv, norm, act = triple(parts.pop(0))
    filtered = norm(conv(y))
    y = act(filtered)
    for part in parts:
        y = part(y)
    return Stage(expanded, filtered, x + y if block.residual else y)


class TeacherMaps(NamedTuple):
    """A network's feature maps.

    stem: before its activation. inputs[i], stages[i]: before and at block i; the last input is the last block's output.
    head: the last convolution before its activation. hidden: the classifier's hidden layer before its activation.
    """

    stem: Tensor
    inputs: list[Tensor]
    stages: list[Stage]
    head: Tensor
    hidden: Tensor
    logits: Tensor


@torch.no_grad()
def teacher_maps(teacher: MN, x: Tensor) -> TeacherMaps:
    """Run the teacher (in eval mode) on log-mel (B, 1, mels, frames), keeping its feature maps."""
    return _maps(teacher.features[0], teacher.features[1:-1], teacher.features[-1], teacher.classifier, x)


def student_maps(student: DyMN, x: Tensor) -> TeacherMaps:
    """Run the student on its own features, keeping the same places; dropout as the student's mode says."""
    return _maps(student.in_c, student.layers, student.out_c, student.classifier, x)


def _maps(stem: nn.Module, blocks: nn.Module, last: nn.Module, classifier: nn.Module, x: Tensor) -> TeacherMaps:
    conv, norm, act = triple(stem)
    first = norm(conv(x))
    y = act(first)
    inputs, stages = [], []
    for block in blocks:  # type: ignore[attr-defined]
        inputs.append(y)
        stages.append(student_stage(block, y) if isinstance(block, DynamicBlock) else teacher_stage(block, y))
        y = stages[-1].out
    inputs.append(y)
    return TeacherMaps(first, inputs, stages, *head_maps(last, classifier, y))


def head_maps(last: nn.Module, classifier: nn.Module, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`TeacherMaps`' head, hidden and logits for the last block's output."""
    conv, norm, act = triple(last)
    head = norm(conv(y))
    *_, linear, hidden_act, dropout, output = cast(nn.Sequential, classifier)
    hidden = linear(act(head).mean((2, 3)))
    return head, hidden, output(dropout(hidden_act(hidden)))


def triple(layer: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Convolution, batch norm and activation of a `conv_norm`."""
    conv, norm, act = cast(nn.Sequential, layer)
    return conv, norm, act


def channel_error(predicted: Tensor, target: Tensor, variance: Tensor | None = None, *, floor: float = 0.1) -> Tensor:
    """Mean squared error per channel over that channel's variance, averaged over channels.

    Channels that are nearly dead in the teacher would blow this up, so a variance counts as at least `floor` times the
    layer's mean variance.

    Parameters
    ----------
    predicted, target : Tensor
        (B, C, ...), compared over all axes but 1.
    variance : Tensor, optional
        (C,), of the target over much audio (see `map_variances`); without it, over this batch.
    """
    axes = [a for a in range(target.ndim) if a != 1]
    if variance is None:
        variance = target.float().var(axes, unbiased=False)
    scale = variance + floor * variance.mean() + 1e-8
    return ((predicted.float() - target.float()).square().mean(axes) / scale).mean()


def map_variances(batches: Iterable[TeacherMaps]) -> TeacherMaps:
    """Variance of every channel (C,) at every place, averaged over batches of maps, in the maps' own structure."""
    totals: list[Tensor] = []
    shape: TeacherMaps | None = None
    count = 0
    for maps in batches:
        shape, count = maps, count + 1
        found = [tensor.float().transpose(0, 1).flatten(1).var(1) for tensor in _tensors(maps)]
        totals = [total + one for total, one in zip(totals, found, strict=True)] if totals else found
    if shape is None:
        raise InvalidInputError("map_variances needs at least one batch")
    variances = iter(total / count for total in totals)
    stem = next(variances)
    inputs = [next(variances) for _ in shape.inputs]
    stages = []
    for like in shape.stages:
        expanded = None if like.expanded is None else next(variances)
        stages.append(Stage(expanded, next(variances), next(variances)))
    return TeacherMaps(stem, inputs, stages, next(variances), next(variances), next(variances))


def _tensors(maps: TeacherMaps) -> list[Tensor]:
    stages = [t for stage in maps.stages for t in stage]
    return [t for t in (maps.stem, *maps.inputs, *stages, maps.head, maps.hidden, maps.logits) if t is not None]

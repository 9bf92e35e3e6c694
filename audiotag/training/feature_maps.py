"""A DyMN's blocks run for training, in a faster form, and the feature maps a teacher MN has at the same places.

A 1x1 convolution with a kernel per sample is a batched matrix product; on a CPU that trains several times faster than
the grouped convolution of `audiotag.networks.dymn`, with the same result up to rounding. A batch norm in eval mode is
folded into the kernels before it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InvalidInputError
from ..networks.dymn import ContextGenerator, DyMN, DynamicBlock, DynamicConv, DynamicReLU
from ..networks.mobilenet import MN, InvertedResidual
from ..networks.table import N_SLOPES


class Stage(NamedTuple):
    """Feature maps of one block: after the batch norm of the depthwise convolution, and its output."""

    filtered: Tensor
    out: Tensor


class Maps(NamedTuple):
    """A network's feature maps from one block on.

    before: what the first block was given. stages: at each block. head: the last convolution before its activation.
    hidden: the classifier's hidden layer before its activation.
    """

    before: Tensor
    stages: list[Stage]
    head: Tensor
    hidden: Tensor
    logits: Tensor

    def given(self, number: int) -> Tensor:
        """Return the map that block `number` of these was given."""
        return self.stages[number - 1].out if number else self.before


def context(generator: ContextGenerator, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute what ``generator(x)`` gives, its 1x1 convolutions as matrix products."""
    return context_of_means(generator, position_means(x), x.shape[2])


def position_means(x: Tensor) -> Tensor:
    """Average a map (B, C, F, T) over time, then over frequency: (B, C, F + T), all that a context depends on."""
    return torch.cat([x.mean(3), x.mean(2)], 2)


def context_of_means(generator: ContextGenerator, means: Tensor, freq: int) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `context` of a map of `freq` rows from its `position_means`."""
    g = (generator.joint_conv.weight[:, :, 0, 0] @ means)[..., None]
    g = F.hardswish(generator.joint_norm(g))[..., 0]  # (B, H, F + T)
    g_f, g_t = g[:, :, :freq], g[:, :, freq:]
    if generator.stride > 1:
        g_f, g_t = (F.avg_pool1d(part, 3, generator.stride, 1) for part in (g_f, g_t))
    a_f, a_t = (
        conv.weight[:, :, 0, 0] @ part + cast(Tensor, conv.bias)[:, None]
        for conv, part in ((generator.conv_f, g_f), (generator.conv_t, g_t))
    )
    return g.mean(2), a_f[..., None], a_t[:, :, None]


def dynamic_conv(conv: DynamicConv, norm: nn.BatchNorm2d, x: Tensor, h: Tensor) -> Tensor:
    """What ``norm(conv(x, h))`` gives. Kernels that are all alike and hold still make it an ordinary convolution."""
    batch, channels, freq, time = x.shape
    outputs, per_group, size, _ = conv.shape
    scale, shift = torch.ones_like(norm.bias), torch.zeros_like(norm.bias)
    if not norm.training:
        scale = norm.weight * (cast(Tensor, norm.running_var) + norm.eps).rsqrt()
        shift = norm.bias - cast(Tensor, norm.running_mean) * scale
    if size > 1 and not conv.weight.requires_grad and bool((conv.weight == conv.weight[:, :, :1]).all()):
        kernel = conv.weight[0, 0, 0].reshape(conv.shape) * scale[:, None, None, None]
        y = F.conv2d(x, kernel, shift, conv.stride, size // 2, groups=conv.groups)
    else:
        attention = (conv.residuals(h) / conv.temperature).softmax(-1)  # (B, K)
        kernels = (attention @ conv.weight[0, 0]).reshape(batch, outputs, -1) * scale[:, None]
        if size == 1:
            y = torch.baddbmm(shift[:, None], kernels, x.reshape(batch, channels, freq * time))
        else:
            y = F.conv2d(
                x.reshape(1, batch * channels, freq, time),
                kernels.reshape(batch * outputs, per_group, size, size),
                shift.repeat(batch),
                stride=conv.stride,
                padding=size // 2,
                groups=batch * conv.groups,
            )
            freq, time = y.shape[2:]
        y = y.reshape(batch, outputs, freq, time)
    return norm(y) if norm.training else y


def dynamic_relu(relu: DynamicReLU, x: Tensor, h: Tensor) -> Tensor:
    """Compute what ``relu(x, h)`` gives, as max(p, q) = q + max(p - q, 0): a cheap gradient, and no fifth axis."""
    theta = (2 * relu.coef_net(h).sigmoid() - 1).reshape(*x.shape[:2], 1, 1, 2 * N_SLOPES) * relu.lambdas + relu.init_v
    slopes, intercepts = theta[..., :N_SLOPES].unbind(-1), theta[..., N_SLOPES:].unbind(-1)
    y = torch.addcmul(intercepts[-1], x, slopes[-1])
    for slope, intercept, next_slope, next_intercept in zip(
        slopes[:-1], intercepts[:-1], slopes[1:], intercepts[1:], strict=True
    ):
        y = y + torch.addcmul(intercept - next_intercept, x, slope - next_slope).relu_()
    return y


def gated(block: DynamicBlock, filtered: Tensor, context_of_input: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Compute dynamic ReLU and coordinate attention of a block on the map behind its depthwise convolution."""
    h, a_f, a_t = context_of_input
    return dynamic_relu(block.depth_act, filtered, h) * a_f.sigmoid() * a_t.sigmoid()


def second_half(block: DynamicBlock, x: Tensor, filtered: Tensor) -> Tensor:
    """Compute output of a block for its input `x`, given the map behind its depthwise convolution."""
    parts = context(block.context_gen, x)
    y = dynamic_conv(block.proj_conv, block.proj_norm, gated(block, filtered, parts), parts[0])
    return x + y if block.residual else y


def student_stage(block: DynamicBlock, x: Tensor) -> Stage:
    """Run one dynamic block, keeping what a teacher's block can be compared with."""
    parts = context(block.context_gen, x)
    filtered = first_half(block, x, parts[0])
    y = dynamic_conv(block.proj_conv, block.proj_norm, gated(block, filtered, parts), parts[0])
    return Stage(filtered, x + y if block.residual else y)


def first_half(block: DynamicBlock, x: Tensor, h: Tensor) -> Tensor:
    """Compute the map behind the batch norm of a block's depthwise convolution, for its input and context vector."""
    y = block.exp_act(dynamic_conv(block.exp_conv, block.exp_norm, x, h)) if block.expands else x
    return dynamic_conv(block.depth_conv, block.depth_norm, y, h)


def teacher_stage(block: InvertedResidual, x: Tensor) -> Stage:
    """Run one static block, keeping the same places as `student_stage`."""
    *expand, depth, squeeze, project = block_parts(block)
    y = x
    for part in expand:
        y = part(y)
    conv, norm, act = triple(depth)
    filtered = norm(conv(y))
    y = project(squeeze(act(filtered)))
    return Stage(filtered, x + y if block.residual else y)


def block_parts(block: InvertedResidual) -> list[nn.Module]:
    """A static block's expansion (where it has one), depthwise part, squeeze-and-excitation or identity, projection."""
    *parts, project = block.block
    if isinstance(parts[-1], nn.Sequential):
        parts.append(nn.Identity())
    return [*parts, project]


def student_maps(student: DyMN, x: Tensor, *, first: int | None = None) -> Maps:
    """Run the student on its own features; dropout as the student's mode says.

    Parameters
    ----------
    x : Tensor
        Log-mel (B, 1, mels, frames), or with `first` the map before block `first`.
    """
    y = student.in_c(x) if first is None else x
    stages = [Stage(y, y)]
    for block in student.layers[first or 0 :]:
        stages.append(student_stage(cast(DynamicBlock, block), stages[-1].out))
    return Maps(y, stages[1:], *head_maps(student.out_c, student.classifier, stages[-1].out))


@torch.no_grad()
def teacher_maps(teacher: MN, x: Tensor, *, first: int | None = None) -> Maps:
    """Run the teacher (in eval mode) like `student_maps`, without gradients."""
    y = teacher.features[0](x) if first is None else x
    stages = [Stage(y, y)]
    for block in list(teacher.features)[1 + (first or 0) : -1]:
        stages.append(teacher_stage(cast(InvertedResidual, block), stages[-1].out))
    return Maps(y, stages[1:], *head_maps(teacher.features[-1], teacher.classifier, stages[-1].out))


def head_maps(last: nn.Module, classifier: nn.Module, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `Maps`' head, hidden and logits for the last block's output."""
    conv, norm, act = triple(last)
    head = norm(conv(y))
    *_, linear, hidden_act, dropout, output = cast(nn.Sequential, classifier)
    hidden = linear(act(head).mean((2, 3)))
    return head, hidden, output(dropout(hidden_act(hidden)))


def triple(layer: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Return convolution, batch norm and activation of a `conv_norm`."""
    conv, norm, act = cast(nn.Sequential, layer)
    return conv, norm, act


def channel_error(predicted: Tensor, target: Tensor, variance: Tensor, *, floor: float = 0.1) -> Tensor:
    """Compute mean squared error per channel over that channel's variance, averaged over channels.

    Channels that are nearly dead in the teacher would blow this up, so a variance counts as at least `floor` times the
    layer's mean variance.

    Parameters
    ----------
    predicted, target : Tensor
        (B, C, ...), compared over all axes but 1.
    variance : Tensor
        (C,), of the target over much audio; see `map_variances`.
    """
    axes = [a for a in range(target.ndim) if a != 1]
    scale = variance + floor * variance.mean() + 1e-8
    return ((predicted.float() - target.float()).square().mean(axes) / scale).mean()


class Variances(NamedTuple):
    """Variance of every channel, (C,), over much audio: of each block's output, of head and hidden layer."""

    out: list[Tensor]
    head: Tensor
    hidden: Tensor


def map_variances(batches: Iterable[Maps]) -> Variances:
    """Compute a teacher's variances, averaged over batches of its maps."""
    totals: list[Tensor] = []
    count = 0
    for maps in batches:
        count += 1
        tensors = [*(stage.out for stage in maps.stages), maps.head, maps.hidden]
        found = [tensor.float().transpose(0, 1).flatten(1).var(1) for tensor in tensors]
        totals = [total + one for total, one in zip(totals, found, strict=True)] if totals else found
    if not count:
        raise InvalidInputError("map_variances needs at least one batch")
    *out, head, hidden = (total / count for total in totals)
    return Variances(out, head, hidden)

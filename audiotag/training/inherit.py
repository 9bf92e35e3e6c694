"""A student that begins as its teacher: a DyMN with an MN's static weights, whose dynamic parts alone must learn."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ..networks.dymn import DyMN, DynamicBlock, DynamicConv
from ..networks.mobilenet import MN, InvertedResidual, SqueezeExcitation
from ..networks.table import scaled_blocks
from .feature_maps import block_parts, context, gated, teacher_maps, triple

HALF = 0.25  # of two sigmoids at 0: what attention that says nothing multiplies a map by
SWISH_INTERCEPTS = (-0.85, -1.1)  # logits of a dynamic ReLU's intercepts: x - 0.2 and -0.25, roughly a hard swish


def exact_blocks(teacher: MN) -> int:
    """Count the first blocks that a DyMN can repeat exactly: those with ReLU and no squeeze-and-excitation."""
    specs = scaled_blocks(teacher.config)
    return next(i for i, spec in enumerate(specs) if spec.squeeze or spec.activation != "relu")


@torch.no_grad()
def inherit(student: DyMN, teacher: MN, x: Tensor) -> None:
    """Give `student` the teacher's static weights, in place.

    Every kernel of a dynamic convolution becomes the teacher's one. Between the depthwise and the projecting
    convolution a student has dynamic ReLU and attention where the teacher has its activation and
    squeeze-and-excitation. In the first `exact_blocks` both are made the same; behind them each channel's projecting
    weights take the least-squares ratio of the two, and the rest is to be learned.

    Parameters
    ----------
    x : Tensor
        Log-mel (B, 1, mels, frames) over which the ratios are taken.
    """
    student.in_c.load_state_dict(teacher.features[0].state_dict())
    student.out_c.load_state_dict(teacher.features[-1].state_dict())
    student.classifier.load_state_dict(teacher.classifier.state_dict())
    maps, exact = teacher_maps(teacher, x), exact_blocks(teacher)
    for i, (layer, twin) in enumerate(zip(student.layers, list(teacher.features)[1:-1], strict=True)):
        block = cast(DynamicBlock, layer)
        *expand, depth, squeeze, project = block_parts(cast(InvertedResidual, twin))
        if i < exact:
            _quieten(block, 0.0, (0.0, 0.0))
        elif not isinstance(squeeze, SqueezeExcitation):
            _quieten(block, 0.1, SWISH_INTERCEPTS)
        for part in expand:
            conv, norm, _ = triple(part)
            _fill(block.exp_conv, cast(Tensor, conv.weight))
            block.exp_norm.load_state_dict(norm.state_dict())
        conv, norm, act = triple(depth)
        _fill(block.depth_conv, cast(Tensor, conv.weight))
        block.depth_norm.load_state_dict(norm.state_dict())
        filtered = maps.stages[i].filtered
        theirs, ours = squeeze(act(filtered)), gated(block, filtered, context(block.context_gen, maps.given(i)))
        ratio = (ours * theirs).sum((0, 2, 3)) / (ours.square().sum((0, 2, 3)) + 1e-6 * len(x))
        if i < exact:
            ratio = torch.full_like(ratio, 1 / HALF)
        conv, norm = cast(nn.Sequential, project)
        _fill(block.proj_conv, cast(Tensor, conv.weight) * ratio[:, None, None])
        block.proj_norm.load_state_dict(norm.state_dict())


def _fill(conv: DynamicConv, weight: Tensor) -> None:
    conv.weight.copy_(weight.reshape(1, 1, 1, -1).expand_as(conv.weight))


def _quieten(block: DynamicBlock, share: float, intercepts: tuple[float, float]) -> None:
    """Scale a block's attention and its dynamic ReLU's dependence on the input to a `share`, with slopes of 1 and 0."""
    linear = cast(nn.Linear, block.depth_act.coef_net[0])
    linear.weight.mul_(share)
    linear.bias.copy_(torch.tensor([0.0, 0.0, *intercepts]).repeat(len(linear.bias) // 4))
    for conv in (block.context_gen.conv_f, block.context_gen.conv_t):
        conv.weight.mul_(share)
        nn.init.zeros_(cast(Tensor, conv.bias))

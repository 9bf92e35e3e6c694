"""Convolutions of feature maps that lie as rows, (B, F, T, C) in memory: the steps of `audiotag.runtimes.fused`.

A 1x1 convolution of such a map is one matrix product; a depthwise convolution takes the same memory as a channels-last
image.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ONEDNN_MIN_PRODUCTS, ONEDNN_MIN_ROWS = 1_400_000, 16  # multiply-adds and rows below which a plain product is quicker


def folded(norm: Any) -> tuple[Tensor, Tensor]:
    """Return scale and shift that a batch norm applies per channel in inference."""
    scale = norm.weight.float() / (norm.running_var.float() + norm.eps).sqrt()
    return scale, norm.bias.float() - norm.running_mean.float() * scale


def columns(weight: Tensor) -> Tensor:
    """Return a linear layer's weight as (inputs, outputs), contiguous."""
    return weight.t().contiguous()


def activate(x: Tensor, act: str) -> Tensor:
    """Activate `x` in place and return it."""
    if act == "relu":
        return x.relu_()
    if act == "sigmoid":
        return x.sigmoid_()
    return F.hardswish(x, inplace=True) if act == "hswish" else x


def product(x: Tensor, weight: Tensor, bias: Tensor, act: str = "") -> Tensor:
    """Compute x W + b of contiguous rows (..., C) and contiguous W (C, E), then the activation.

    oneDNN's product takes half the time of the plain one and activates on the way, but starts slowly.
    """
    rows = x.numel() // x.shape[-1]
    if rows * weight.numel() > ONEDNN_MIN_PRODUCTS and rows > ONEDNN_MIN_ROWS and _uses_onednn(x):
        return _onednn_linear(x, weight, bias, act)
    return activate(F.linear(x, weight.t(), bias), act)


def depthwise(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """Convolve (B, F, T, E or 1) by one kernel per channel, contiguous (E, 1, k, k), giving (B, F', T', E)."""
    channels, _, k, _ = weight.shape
    # Strides that say channels-last: torch takes a kernel with one input channel for NCHW, and then transposes the map.
    weight = weight.view(channels, k, k, 1).permute(0, 3, 1, 2)
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride, k // 2, groups=x.shape[3])
    return y.permute(0, 2, 3, 1)


def _uses_onednn(x: Tensor) -> bool:
    return x.is_cpu and not torch.compiler.is_compiling() and _has_onednn(x.dtype)


_ONEDNN_NAMES = {"": "none", "relu": "relu", "hswish": "hardswish", "sigmoid": "sigmoid"}


def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor, act: str) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(x, weight.t(), bias, _ONEDNN_NAMES[act], [], "")  # noqa: SLF001


# What `_has_onednn` tries: an activation, rows, inputs and outputs. Few rows, odd numbers, many inputs, many rows.
_TRIED = (("hswish", 2, 32, 2), ("relu", 17, 40, 123), ("", 63, 672, 160), ("sigmoid", 1000, 24, 72))


@functools.cache
def _has_onednn(dtype: torch.dtype) -> bool:
    """Whether this torch, on this CPU, has oneDNN's matrix product with every activation, and it is right.

    The operation is a private one of torch's: another release may change what it does.
    """
    with torch.autocast("cpu", enabled=False):  # whatever surrounds the first call
        for act, rows, inputs, outputs in _TRIED:
            x = torch.linspace(-1, 1, rows * inputs, device="cpu").sin().reshape(rows, inputs).to(dtype)
            weight = torch.linspace(-9, 9, inputs * outputs, device="cpu").cos().reshape(inputs, outputs).to(dtype)
            bias = weight[0]
            try:
                y = _onednn_linear(x, weight, bias, act)
            except (AttributeError, RuntimeError, NotImplementedError):
                return False
            expected = activate(F.linear(x.float(), weight.float().t(), bias.float()), act)
            if not torch.allclose(y.float(), expected, rtol=0.02, atol=0.02):
                return False
    return True

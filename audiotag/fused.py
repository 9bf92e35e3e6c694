"""The inference-only form of a network: the same scores as the textbook modules, several times faster.

`fuse` turns a `DyMN` or an `MN` into a `FusedNetwork`. Five rewritings, all exact up to rounding:

1. *Positions as rows.* Feature maps are (B, F, T, C) in memory, so a 1x1 convolution is one matrix product with
   F T rows, and everything that depends on the channel runs along contiguous memory. Depthwise convolutions take
   the same memory as a channels-last image.
2. *Batch norm folded.* In inference it is y = s x + t per output channel. A dynamic kernel sum_k p_k W_k is linear
   in the bank, so s (sum_k p_k W_k) = sum_k p_k (s W_k): scale the bank once. t becomes the bias.
3. *One linear layer per block.* The attention over the kernels of all three convolutions and the dynamic ReLU's
   coefficients are linear in the same context vector h; their weights are stacked. 2 sigmoid(z) - 1 = tanh(z / 2).
4. *Half of the dynamic ReLU folded.* Of the lines l_1, l_2 (slope and intercept) let l_a be the one with the steeper slope.
   l_a(x) goes into the depthwise kernel, whose output is then u = l_a(x), and l_b(x) = r u + (i_b - r i_a) with
   r = s_b / s_a, |r| <= 1, so nothing is amplified. max(l_a, l_b) = max(u, r u + d) is two passes over the map.
5. *The batch is a loop.* Kernels differ per sample, and one sample's map fits the cache where a batch's does not.

Depends on nothing but torch. The textbook form, `audiotag.dymn` and `audiotag.mobilenet`, is the oracle in the tests.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dymn import N_KERNELS, N_SLOPES, DyMN, DynamicBlock
from .errors import InvalidInputError
from .mobilenet import MN, InvertedResidual, Output, SqueezeExcitation

TINY_SLOPE = 1e-12  # both slopes this small: the lines are constants, and any ratio will do


def _folded(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift that a batch norm applies per channel in inference, in float64."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - norm.running_mean.double() * scale


def _activate(x: Tensor, act: str) -> Tensor:
    """`x` itself, activated in place."""
    if act == "relu":
        return x.relu_()
    return F.hardswish(x, inplace=True) if act == "hswish" else x


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor, act: str = "") -> Tensor:
    """1x1 convolution of rows (..., C) by `weight` (E, C), then the activation."""
    return _activate(F.linear(x, weight, bias), act)


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """Depthwise convolution of (F, T, E) by `weight` (E, k * k), giving (F', T', E)."""
    channels = weight.shape[0]
    kernel = round(weight.shape[1] ** 0.5)
    image = x.permute(2, 0, 1)[None]  # (1, E, F, T), channels last in memory
    weight = weight.view(channels, kernel, kernel, 1).permute(0, 3, 1, 2)
    y = F.conv2d(image, weight, bias, stride, kernel // 2, groups=channels)
    return y[0].permute(1, 2, 0)


class _Part(nn.Module):
    """A module whose tensors are buffers made from float64 arithmetic and stored in one dtype."""

    def __init__(self, **tensors: Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.detach().float().contiguous())

    __call__: Any  # buffers' and forwards' types vary by part
    __getattr__: Any


class _Stem(_Part):
    """3x3 convolution with stride 2 on the spectrogram, batch norm, hard-swish: (B, 1, F, T) to (B, F', T', C)."""

    def __init__(self, layers: nn.Sequential) -> None:
        scale, shift = _folded(layers[1])
        super().__init__(weight=layers[0].weight * scale[:, None, None, None], bias=shift)

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.weight.contiguous(memory_format=torch.channels_last), self.bias, 2, 1)
        return _activate(y.permute(0, 2, 3, 1).contiguous(), "hswish")


class _Pointwise(_Part):
    """1x1 convolution and batch norm on rows, with an activation."""

    def __init__(self, layers: nn.Sequential, act: str) -> None:
        scale, shift = _folded(layers[1])
        super().__init__(weight=layers[0].weight.flatten(1) * scale[:, None], bias=shift)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return _pointwise(x, self.weight, self.bias, self.act)


class _Depthwise(_Part):
    """Depthwise convolution and batch norm, with an activation, for each sample."""

    def __init__(self, layers: nn.Sequential, act: str) -> None:
        scale, shift = _folded(layers[1])
        super().__init__(weight=layers[0].weight.flatten(1) * scale[:, None], bias=shift)
        self.act, self.stride = act, layers[0].stride[0]

    def forward(self, x: Tensor) -> Tensor:
        return _activate(torch.stack([_depthwise(one, self.weight, self.bias, self.stride) for one in x]), self.act)


class _Gates(_Part):
    """Squeeze-and-excitation: the rows' mean through two linear layers."""

    def __init__(self, module: SqueezeExcitation) -> None:
        gate = module.conc_se_layers[0]
        super().__init__(w1=gate.fc1.weight, b1=gate.fc1.bias, w2=gate.fc2.weight, b2=gate.fc2.bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.linear(x.mean((1, 2)), self.w1, self.b1).relu_()
        return x.mul_(F.linear(hidden, self.w2, self.b2).sigmoid_()[:, None, None])


class _StaticBlock(nn.Module):
    """An `InvertedResidual` on (B, F, T, C)."""

    def __init__(self, block: InvertedResidual) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for layers in block.block:
            if isinstance(layers, SqueezeExcitation):
                parts.append(_Gates(layers))
                continue
            act = "" if len(layers) == 2 else "relu" if isinstance(layers[2], nn.ReLU) else "hswish"
            parts.append(_Depthwise(layers, act) if layers[0].groups > 1 else _Pointwise(layers, act))
        self.parts = nn.Sequential(*parts)
        self.residual = block.residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.parts(x)
        return y.add_(x) if self.residual else y


class _DynamicBlock(_Part):
    """A `DynamicBlock` on (B, F, T, C)."""

    def __init__(self, block: DynamicBlock) -> None:
        context = block.context_gen
        convs = ([(block.exp_conv, block.exp_norm)] if block.expands else []) + [
            (block.depth_conv, block.depth_norm),
            (block.proj_conv, block.proj_norm),
        ]
        # Rows of the stacked linear layer: K attention logits for each convolution, then slopes and intercepts as
        # 2M rows of E channels (the released layout has the 2M coefficients of one channel next to each other).
        coef = block.depth_act.coef_net[0]
        expanded = coef.out_features // (2 * N_SLOPES)
        by_kind = coef.weight.reshape(expanded, 2 * N_SLOPES, -1).transpose(0, 1).flatten(0, 1) / 2
        weights = [conv.residuals[0].weight / conv.temperature for conv, _ in convs] + [by_kind]
        biases = [conv.residuals[0].bias / conv.temperature for conv, _ in convs]
        biases.append(coef.bias.reshape(expanded, 2 * N_SLOPES).t().flatten() / 2)
        scale, shift = _folded(context.joint_norm)
        tensors = {
            "context_weight": context.joint_conv.weight.flatten(1) * scale[:, None],
            "context_bias": shift,
            "heads_weight": torch.cat(weights),
            "heads_bias": torch.cat(biases),
            "gate_f_weight": context.conv_f.weight.flatten(1),
            "gate_f_bias": context.conv_f.bias,
            "gate_t_weight": context.conv_t.weight.flatten(1),
            "gate_t_bias": context.conv_t.bias,
            "lambdas": block.depth_act.lambdas[:, None],
            "initial": block.depth_act.init_v[:, None],
        }
        for name, (conv, norm) in zip(("expand", "depth", "project")[-len(convs) :], convs, strict=True):
            scale, shift = _folded(norm)
            bank = conv.weight[0, 0].reshape(N_KERNELS, conv.shape[0], -1) * scale.float()[:, None]
            tensors[f"{name}_bank"], tensors[f"{name}_bias"] = bank.flatten(1), shift
        super().__init__(**tensors)
        self.expands, self.residual, self.stride = block.expands, block.residual, context.stride
        self.expanded = expanded
        self.act = "" if not block.expands else "relu" if isinstance(block.exp_act, nn.ReLU) else "hswish"

    def forward(self, x: Tensor) -> Tensor:
        freq = x.shape[1]
        positions = torch.cat([x.mean(2), x.mean(1)], 1)  # (B, F + T, C)
        g = _pointwise(positions, self.context_weight, self.context_bias, "hswish")  # (B, F + T, H)
        heads = F.linear(g.mean(1), self.heads_weight, self.heads_bias)  # (B, (2 or 3) K + 2M E)
        gate_f = self._gate(g[:, :freq], self.gate_f_weight, self.gate_f_bias)  # (B, F', E)
        gate_t = self._gate(g[:, freq:], self.gate_t_weight, self.gate_t_bias)  # (B, T', E)
        samples = zip(x, heads, gate_f, gate_t, strict=True)
        return torch.stack([self._map(*sample) for sample in samples])

    def _gate(self, g: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if self.stride > 1:
            g = F.avg_pool1d(g.transpose(1, 2), 3, self.stride, 1).transpose(1, 2)
        return F.linear(g, weight, bias).sigmoid_()

    def _map(self, x: Tensor, heads: Tensor, gate_f: Tensor, gate_t: Tensor) -> Tensor:
        """One sample's feature map (F, T, C) to (F', T', C')."""
        n_convs = 3 if self.expands else 2
        attention = heads[: n_convs * N_KERNELS].view(n_convs, N_KERNELS).softmax(1)
        coefficients = heads[n_convs * N_KERNELS :].tanh().view(2 * N_SLOPES, self.expanded) * self.lambdas + self.initial
        slopes, intercepts = coefficients[:N_SLOPES], coefficients[N_SLOPES:]
        steep, ratio, offset, intercept = _steeper(slopes, intercepts)

        y = x
        if self.expands:
            kernel = (attention[:1] @ self.expand_bank).view(self.expanded, -1)
            y = _pointwise(x, kernel, self.expand_bias, self.act)
        kernel = (attention[-2:-1] @ self.depth_bank).view(self.expanded, -1) * steep[:, None]
        y = _depthwise(y, kernel, torch.addcmul(intercept, self.depth_bias, steep), self.stride)
        y = torch.maximum(y, torch.addcmul(offset, y, ratio), out=y)
        y = y.mul_(gate_f[:, None]).mul_(gate_t)
        kernel = (attention[-1:] @ self.project_bank).view(-1, self.expanded)
        y = _pointwise(y, kernel, self.project_bias)
        return y.add_(x) if self.residual else y


def _steeper(slopes: Tensor, intercepts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The steeper of two lines per channel, and the other as a line of the first one's value.

    Parameters
    ----------
    slopes, intercepts : Tensor
        (2, E).

    Returns
    -------
    tuple of Tensor
        Slope of the steeper line, ratio r of the slopes (at most 1 in size), offset d, and the steeper line's
        intercept, each (E,): with u the steeper line's value, the other's is r u + d.
    """
    first = slopes[0].abs() >= slopes[1].abs()
    slope_a, slope_b = torch.where(first, slopes, slopes.flip(0))
    intercept_a, intercept_b = torch.where(first, intercepts, intercepts.flip(0))
    ratio = torch.where(slope_a.abs() > TINY_SLOPE, slope_b / slope_a, torch.zeros_like(slope_a))
    return slope_a, ratio, intercept_b - ratio * intercept_a, intercept_a


class FusedNetwork(nn.Module):
    """A network for inference only; made by `fuse`. Its weights are not a checkpoint's and are not for saving."""

    def __init__(self, network: DyMN | MN) -> None:
        super().__init__()
        self.config = network.config
        if isinstance(network, DyMN):
            stem, blocks, last = network.in_c, network.layers, network.out_c
        else:
            stem, blocks, last = network.features[0], network.features[1:-1], network.features[-1]
        self.stem = _Stem(stem)
        self.blocks = nn.ModuleList(_DynamicBlock(b) if isinstance(b, DynamicBlock) else _StaticBlock(b) for b in blocks)
        self.last = _Pointwise(last, "hswish")
        self.fully_convolutional = network.config.head == "fully_convolutional"
        head = network.classifier
        if self.fully_convolutional:
            # Convolution, batch norm and mean are all linear, so the mean may come first.
            self.labels = _Pointwise(head[:2], "")
        else:
            self.hidden = _Part(weight=head[2].weight, bias=head[2].bias)
            self.labels = _Part(weight=head[5].weight, bias=head[5].bias)

    @torch.no_grad()
    def forward(self, x: Tensor, taps: tuple[str, ...] = ()) -> Output:
        """Logits and features of log-mel spectrograms (B, 1, mels, frames), as float32."""
        found: dict[str, Tensor] = {}

        def tap(name: str, rows: Tensor) -> Tensor:
            if name in taps:
                found[name] = rows.mean((1, 2)).float()
            return rows

        rows = tap("stem", self.stem(x.to(self.stem.weight.dtype)))  # (B, F, T, C)
        for i, block in enumerate(self.blocks):
            rows = tap(f"block{i}", block(rows))
        embedding = self.last(rows).mean((1, 2))  # (B, 6C)
        if "embedding" in taps:
            found["embedding"] = embedding.float()
        features = embedding
        if not self.fully_convolutional:
            features = _pointwise(embedding, self.hidden.weight, self.hidden.bias, "hswish")
            if "hidden" in taps:
                found["hidden"] = features.float()
        logits = F.linear(features, self.labels.weight, self.labels.bias)
        return Output(logits.float(), embedding.float(), found)


def fuse(network: nn.Module, *, dtype: torch.dtype | None = None, compile: bool = False) -> nn.Module:
    """Make the inference-only form of a network.

    Parameters
    ----------
    network : DyMN or MN
        In any mode; it is read and left as it is. The fused form holds copies of its weights on the same device.
    dtype : torch.dtype, optional
        float32, bfloat16 or float16, of weights and feature maps. None: float32.
    compile : bool
        Pass the result through ``torch.compile``.

    Returns
    -------
    nn.Module
        Called as the network is, ``(x, taps=()) -> Output``, with float32 outputs; safe to call from several threads.

    Raises
    ------
    InvalidInputError
        If `network` is of another kind or `dtype` is not one of the three.
    """
    if not isinstance(network, (DyMN, MN)):
        raise InvalidInputError(f"network must be a DyMN or an MN, got {type(network).__name__}")
    if dtype not in (None, torch.float32, torch.bfloat16, torch.float16):
        raise InvalidInputError(f"dtype must be float32, bfloat16, float16 or None, got {dtype}")
    with torch.no_grad():
        fused = FusedNetwork(network).eval().to(dtype or torch.float32)
    return torch.compile(fused) if compile else fused  # type: ignore[return-value]

"""The inference-only form of a network: the same scores as the textbook modules, several times faster.

`fuse` turns a `DyMN` or an `MN` into a `FusedNetwork`. Five rewritings, all exact up to rounding:

1. *Positions as rows.* Feature maps are (B, F, T, C) in memory, so a 1x1 convolution is one matrix product with
   F T rows, and everything that depends on the channel runs along contiguous memory. Depthwise convolutions take
   the same memory as a channels-last image.
2. *Batch norm folded.* In inference it is y = s x + t per output channel. A dynamic kernel sum_k p_k W_k is linear
   in the bank, so s (sum_k p_k W_k) = sum_k p_k (s W_k): scale the bank once. t becomes the bias.
3. *One linear layer per block.* The attention over the kernels of all three convolutions and the dynamic ReLU's
   coefficients are linear in the same context vector h; their weights are stacked. 2 sigmoid(z) - 1 = tanh(z / 2).
4. *Attention along one axis folded.* Its gates are positive, so g max(l_1, l_2) = max(g l_1, g l_2): they scale the
   dynamic ReLU's few slopes and intercepts instead of the map. What is left is four passes: two lines, their maximum,
   and the gates along the other axis.
5. *The batch is a loop.* Kernels differ per sample, and one sample's map fits the cache where a batch's does not. On
   an accelerator it is one batched matrix product, and one depthwise convolution with the batch laid out as channels.

Depends on nothing but torch. The textbook form, `audiotag.dymn` and `audiotag.mobilenet`, is the oracle in the tests.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dymn import N_KERNELS, N_SLOPES, DyMN, DynamicBlock
from .errors import InvalidInputError
from .mobilenet import MN, Output, SqueezeExcitation

BANK_PARTS = 4  # a bank is read once per sample, at the speed of memory; in parts, several threads read it
BANK_MIN_NUMEL = 100_000  # numbers in a bank below which parts cost more than they gain
NARROW = 100  # channels below which a loop over them is short: lines that vary along time too make it longer
ONEDNN_MIN_PRODUCTS, ONEDNN_MIN_ROWS = 1_000_000, 16  # multiply-adds and rows below which a plain product is quicker


def _folded(norm: Any) -> tuple[Tensor, Tensor]:
    """Scale and shift that a batch norm applies per channel in inference."""
    scale = norm.weight.float() / (norm.running_var.float() + norm.eps).sqrt()
    return scale, norm.bias.float() - norm.running_mean.float() * scale


def _activate(x: Tensor, act: str) -> Tensor:
    """`x` itself, activated in place."""
    if act == "relu":
        return x.relu_()
    if act == "sigmoid":
        return x.sigmoid_()
    return F.hardswish(x, inplace=True) if act == "hswish" else x


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor, act: str = "") -> Tensor:
    """1x1 convolution of contiguous rows (..., C) by `weight` (C, E), then the activation.

    oneDNN's product takes half the time of the plain one and activates on the way, but starts slowly. The plain one
    reads a weight laid out as (C, E), not (E, C), several times faster where rows are few.
    """
    products = x.numel() * weight.shape[1]
    if products > ONEDNN_MIN_PRODUCTS and products > ONEDNN_MIN_ROWS * weight.numel() and _uses_onednn(x):
        return torch.ops.mkldnn._linear_pointwise.default(x, weight.t(), bias, _ONEDNN_NAMES[act], [], "")
    return _activate(F.linear(x, weight.t(), bias), act)


def _uses_onednn(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and _has_onednn(x.dtype)


_ONEDNN_NAMES = {"": "none", "relu": "relu", "hswish": "hardswish", "sigmoid": "sigmoid"}


@functools.cache
def _has_onednn(dtype: torch.dtype) -> bool:
    """Whether this torch, on this CPU, has oneDNN's matrix product with an activation."""
    x = torch.linspace(-1, 1, 64).reshape(2, 32).to(dtype)
    weight, bias = x.flip(0).t().contiguous().t(), x[:, 0].contiguous()
    try:
        y = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "hardswish", [], "")
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    expected = F.hardswish(F.linear(x.float(), weight.float(), bias.float()))
    return torch.allclose(y.float(), expected, rtol=0.02, atol=0.02)


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """Convolution of (B, F, T, E or 1) by one k x k kernel per channel, `weight` (E, k * k), giving (B, F', T', E)."""
    channels, size = weight.shape
    kernel = math.isqrt(size)
    # Strides that say channels-last; torch takes a kernel with one input channel for NCHW, and transposes the map.
    weight = weight.as_strided((channels, 1, kernel, kernel), (size, 1, kernel, 1))
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride, kernel // 2, groups=x.shape[3])
    return y.permute(0, 2, 3, 1)


def _samples_at_once(x: Tensor) -> int:
    """One on a CPU, whose caches hold one sample's map; all on an accelerator, which wants few and large steps."""
    return 1 if x.device.type == "cpu" else x.shape[0]


def _pointwise_each(x: Tensor, weight: Tensor, bias: Tensor, act: str = "") -> Tensor:
    """`_pointwise` of (B, F, T, C) with kernels (B, C, E) of their own."""
    if x.shape[0] == 1:
        return _pointwise(x, weight[0], bias, act)
    y = torch.baddbmm(bias, x.flatten(1, 2), weight)
    return _activate(y.view(*x.shape[:3], -1), act)


def _depthwise_each(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """`_depthwise` of (B, F, T, E) with kernels (B, E, k * k) of their own."""
    batch, freq, time, channels = x.shape
    if batch == 1:
        return _depthwise(x, weight[0], bias, stride)
    image = x.movedim(0, 2).reshape(1, freq, time, batch * channels)  # the batch laid out as channels
    y = _depthwise(image, weight.flatten(0, 1), bias.repeat(batch), stride)
    return y.view(*y.shape[1:3], batch, channels).movedim(2, 0).contiguous()


def _mix(attention: Tensor, bank: Tensor) -> Tensor:
    """Kernels (B, n) of attention (B, K) over a bank (parts, K, n / parts)."""
    if bank.shape[0] == 1:
        return torch.mm(attention, bank[0])
    mixed = torch.bmm(attention.expand(bank.shape[0], -1, -1), bank)  # (parts, B, n / parts)
    return mixed.transpose(0, 1).reshape(attention.shape[0], -1)


class _Part(nn.Module):
    """A module whose tensors are buffers, copies that share nothing with the network they come from."""

    def __init__(self, **tensors: Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.detach().float().clone(memory_format=torch.contiguous_format))

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


class _Pointwise(_Part):
    """1x1 convolution and batch norm on rows, with an activation."""

    def __init__(self, layers: Any, act: str) -> None:
        scale, shift = _folded(layers[1])
        super().__init__(weight=(layers[0].weight.flatten(1) * scale[:, None]).t(), bias=shift)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return _pointwise(x, self.weight, self.bias, self.act)


class _Depthwise(_Part):
    """Depthwise convolution and batch norm, with an activation, for each sample."""

    def __init__(self, layers: Any, act: str) -> None:
        scale, shift = _folded(layers[1])
        super().__init__(weight=layers[0].weight.flatten(1) * scale[:, None], bias=shift)
        self.act, self.stride = act, layers[0].stride[0]

    def forward(self, x: Tensor) -> Tensor:
        return _activate(_depthwise(x, self.weight, self.bias, self.stride), self.act)


class _Gates(_Part):
    """Squeeze-and-excitation: the rows' mean through two linear layers."""

    def __init__(self, module: Any) -> None:
        gate = module.conc_se_layers[0]
        super().__init__(w1=gate.fc1.weight.t(), b1=gate.fc1.bias, w2=gate.fc2.weight.t(), b2=gate.fc2.bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = _pointwise(x.mean((1, 2)), self.w1, self.b1, "relu")
        return x.mul_(_pointwise(hidden, self.w2, self.b2, "sigmoid")[:, None, None])


class _StaticBlock(nn.Module):
    """An `InvertedResidual` on (B, F, T, C)."""

    def __init__(self, block: Any) -> None:
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

    def __init__(self, block: Any) -> None:
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
            "context_weight": (context.joint_conv.weight.flatten(1) * scale[:, None]).t(),
            "context_bias": shift,
            "heads_weight": torch.cat(weights).t(),
            "heads_bias": torch.cat(biases),
            "gate_f_weight": context.conv_f.weight.flatten(1).t(),
            "gate_f_bias": context.conv_f.bias,
            "gate_t_weight": context.conv_t.weight.flatten(1).t(),
            "gate_t_bias": context.conv_t.bias,
            "lambdas": block.depth_act.lambdas.view(2 * N_SLOPES, 1, 1, 1),
            "initial": block.depth_act.init_v.view(2 * N_SLOPES, 1, 1, 1),
        }
        for name, (conv, norm) in zip(("expand", "depth", "project")[-len(convs) :], convs, strict=True):
            scale, shift = _folded(norm)
            bank = conv.weight[0, 0].reshape(N_KERNELS, conv.shape[0], -1) * scale[:, None]
            if conv.groups == 1:
                bank = bank.transpose(1, 2)  # (K, inputs, outputs)
            parts = BANK_PARTS if bank.numel() > BANK_MIN_NUMEL else 1
            bank = bank.reshape(N_KERNELS, parts, -1).transpose(0, 1)
            tensors[f"{name}_bank"], tensors[f"{name}_bias"] = bank, shift
        super().__init__(**tensors)
        self.expands, self.residual, self.stride = block.expands, block.residual, context.stride
        self.expanded, self.n_convs = expanded, len(convs)
        self.act = "" if not block.expands else "relu" if isinstance(block.exp_act, nn.ReLU) else "hswish"

    def forward(self, x: Tensor) -> Tensor:
        batch, freq, time, _ = x.shape
        tensors: Any = self._buffers  # an attribute of a module is slow to look up
        g = x.new_empty(batch, freq + time, x.shape[3])
        torch.mean(x, 2, out=g[:, :freq])
        torch.mean(x, 1, out=g[:, freq:])
        g = _pointwise(g, tensors["context_weight"], tensors["context_bias"], "hswish")  # (B, F + T, H)
        heads = _pointwise(g.mean(1), tensors["heads_weight"], tensors["heads_bias"])  # (B, (2 or 3) K + 2M E)
        gate_f = self._gate(g[:, :freq], tensors["gate_f_weight"], tensors["gate_f_bias"])[:, :, None]  # (B, F', 1, E)
        gate_t = self._gate(g[:, freq:], tensors["gate_t_weight"], tensors["gate_t_bias"])[:, None]  # (B, 1, T', E)

        attention, theta = heads.split((self.n_convs * N_KERNELS, 2 * N_SLOPES * self.expanded), 1)
        attention = attention.view(batch, self.n_convs, N_KERNELS).softmax(2)
        lines = theta.tanh().view(batch, 2 * N_SLOPES, 1, 1, self.expanded)
        lines = torch.addcmul(tensors["initial"], lines, tensors["lambdas"])
        folded, gate = (gate_t, gate_f) if self.expanded < NARROW else (gate_f, gate_t)
        lines = lines * folded[:, None]  # (B, 2M, F', 1, E) or (B, 2M, 1, T', E)
        size = _samples_at_once(x)
        if batch <= size:
            return self._map(x, attention, lines, gate)
        parts = (part.split(size) for part in (x, attention, lines, gate))
        return torch.cat([self._map(*part) for part in zip(*parts, strict=True)])

    def _gate(self, g: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if self.stride > 1:
            # Average of positions 2i - 1, 2i and 2i + 1, zeros outside.
            even, odd = g[:, ::2], g[:, 1::2]
            g = even.clone()
            g[:, : odd.shape[1]] += odd
            g[:, 1:] += odd[:, : g.shape[1] - 1]
            g.div_(3)
        return _pointwise(g.contiguous(), weight, bias, "sigmoid")

    def _map(self, x: Tensor, attention: Tensor, lines: Tensor, gate: Tensor) -> Tensor:
        """The feature maps (b, F, T, C) of b samples to (b, F', T', C')."""
        batch, inputs = x.shape[0], x.shape[3]
        tensors: Any = self._buffers
        y = x
        if self.expands:
            kernels = _mix(attention[:, 0], tensors["expand_bank"]).view(batch, inputs, self.expanded)
            y = _pointwise_each(y, kernels, tensors["expand_bias"], self.act)
        kernels = _mix(attention[:, -2], tensors["depth_bank"]).view(batch, self.expanded, -1)
        y = _depthwise_each(y, kernels, tensors["depth_bias"], self.stride)
        slope_1, slope_2, intercept_1, intercept_2 = lines.unbind(1)
        other = torch.addcmul(intercept_2, slope_2, y)
        y = torch.addcmul(intercept_1, slope_1, y, out=y)
        y = torch.maximum(y, other, out=y).mul_(gate)
        kernels = _mix(attention[:, -1], tensors["project_bank"]).view(batch, self.expanded, -1)
        y = _pointwise_each(y, kernels, tensors["project_bias"])
        return y.add_(x) if self.residual else y


class FusedNetwork(nn.Module):
    """A network for inference only; made by `fuse`. Its weights are not a checkpoint's and are not for saving."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.config = network.config
        self.mode: Any = torch.inference_mode  # the least work per step
        if isinstance(network, DyMN):
            stem, blocks, last = network.in_c, network.layers, network.out_c
        else:
            stem, blocks, last = network.features[0], network.features[1:-1], network.features[-1]
        self.stem = _Depthwise(stem, "hswish")
        self.blocks = nn.ModuleList(
            _DynamicBlock(b) if isinstance(b, DynamicBlock) else _StaticBlock(b) for b in blocks
        )
        self.last = _Pointwise(last, "hswish")
        self.fully_convolutional = network.config.head == "fully_convolutional"
        head = network.classifier
        if self.fully_convolutional:
            # Convolution, batch norm and mean are all linear, so the mean may come first.
            self.labels: _Part = _Pointwise(head[:2], "")
        else:
            self.hidden = _Part(weight=head[2].weight.t(), bias=head[2].bias)
            self.labels = _Part(weight=head[5].weight.t(), bias=head[5].bias)

    def forward(self, x: Tensor, taps: tuple[str, ...] = ()) -> Output:
        """Logits and features of log-mel spectrograms (B, 1, mels, frames), as float32."""
        with self.mode():
            logits, embedding, found = self._run(x, taps)
        with torch.no_grad():  # copies that may go on into training, as inference mode's tensors may not
            copies = {name: value.float().clone() for name, value in found.items()}
            return Output(logits.float().clone(), embedding.float().clone(), copies)

    def _run(self, x: Tensor, taps: tuple[str, ...]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        found: dict[str, Tensor] = {}

        def tap(name: str, rows: Tensor) -> Tensor:
            if name in taps:
                found[name] = rows.mean((1, 2))
            return rows

        image = x.to(self.stem.weight.dtype).movedim(1, 3)  # (B, mels, frames, 1)
        rows = tap("stem", self.stem(image))  # (B, F, T, C)
        for i, block in enumerate(self.blocks):
            rows = tap(f"block{i}", block(rows))
        embedding = features = self.last(rows).mean((1, 2))  # (B, 6C)
        if "embedding" in taps:
            found["embedding"] = embedding
        if not self.fully_convolutional:
            features = _pointwise(embedding, self.hidden.weight, self.hidden.bias, "hswish")
            if "hidden" in taps:
                found["hidden"] = features
        return _pointwise(features, self.labels.weight, self.labels.bias), embedding, found


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
    if compile:
        fused.mode = torch.no_grad  # the compiler cannot trace through inference mode
        return torch.compile(fused)  # type: ignore[return-value]
    return fused

"""The inference-only form of a network: the same scores as the textbook modules, several times faster.

`fuse` turns a `DyMN` or an `MN` into a `FusedNetwork` by six rewritings, all exact up to rounding:

1. *Positions as rows.* Feature maps are (B, F, T, C) in memory, so a 1x1 convolution is one matrix product with
   F T rows, and what depends on the channel is contiguous. Depthwise convolutions take the map as channels-last.
2. *Batch norm folded.* In inference it is y = s x + t per output channel. A dynamic kernel sum_k p_k W_k is linear
   in the bank, so s (sum_k p_k W_k) = sum_k p_k (s W_k): scale the bank once. t becomes the bias.
3. *One linear layer and one mixture per block.* The attention over the kernels of all three convolutions and the
   dynamic ReLU's coefficients are linear in the same context vector h; their weights are stacked. The three banks are
   one, mixed at once. 2 sigmoid(z) - 1 = tanh(z / 2).
4. *Attention along one axis folded.* Its gates are positive, so g max(l_1, l_2) = max(g l_1, g l_2): they scale the
   dynamic ReLU's few slopes and intercepts instead of the map. What is left is four passes: two lines, their maximum,
   and the gates along the other axis.
5. *The batch is a loop.* Kernels differ per sample, and one sample's map fits the cache where a batch's does not. An
   accelerator gets one batched product, and one depthwise convolution with the batch laid out as channels.
6. *Few steps.* Late maps are so small that starting an operation costs more than its arithmetic, so weights lie as it
   wants them, and one `as_strided` does the work of several views.

The textbook form, `audiotag.networks`, is the oracle in the tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InvalidInputError
from ..networks.dymn import DyMN, DynamicBlock
from ..networks.mobilenet import MN, Output, SqueezeExcitation
from ..networks.table import N_KERNELS, N_SLOPES
from .fused_steps import activate, columns, depthwise, folded, for_channels_last, for_rows, pointwise, product

PARTS = 4  # a large weight that few rows use is read at the speed of memory; in parts, several threads read it
PARTS_MIN_NUMEL = 100_000  # numbers in a weight below which parts cost more than they gain
CACHED_NUMEL = 1_000_000  # numbers in feature maps that a CPU's caches hold about
NARROW = 100  # channels below which a loop over them is short: lines that vary along time too make it longer


def _sample_by_sample(x: Tensor) -> bool:
    """Tell whether samples run one after another: on a CPU, whose caches hold one's map; a GPU wants large steps."""
    return x.is_cpu


class _Part(nn.Module):
    """A module whose tensors are buffers, copies that share nothing with the network they come from."""

    def __init__(self, **tensors: Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.detach().float().clone())

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


class _Pointwise(_Part):
    """1x1 convolution and batch norm on rows, with an activation."""

    def __init__(self, layers: Any, act: str) -> None:
        scale, shift = folded(layers[1])
        super().__init__(weight=for_rows(layers[0].weight.flatten(1) * scale[:, None]), bias=shift)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return pointwise(x, self.weight, self.bias, self.act)


class _Depthwise(_Part):
    """Depthwise convolution and batch norm, with an activation, for each sample."""

    def __init__(self, layers: Any, act: str) -> None:
        scale, shift = folded(layers[1])
        super().__init__(weight=for_channels_last(layers[0].weight * scale[:, None, None, None]), bias=shift)
        self.act, self.stride = act, layers[0].stride[0]

    def forward(self, x: Tensor) -> Tensor:
        return activate(depthwise(x, self.weight, self.bias, self.stride), self.act)


class _FewRowsLinear(_Part):
    """A linear layer for few rows, (B, C) to (B, n); a large weight is read by several threads, in parts."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        parts = PARTS if weight.numel() > PARTS_MIN_NUMEL else 1
        missing = -len(bias) % parts
        outputs, inputs = weight.shape
        if parts > 1:
            weight = F.pad(weight, (0, 0, 0, missing)).reshape(PARTS, -1, inputs).transpose(1, 2).contiguous()
            bias = F.pad(bias, (0, missing)).view(PARTS, 1, -1)
        else:
            weight = columns(weight)
        super().__init__(weight=weight, bias=bias)
        self.parts, self.missing, self.outputs = parts, missing, outputs

    def forward(self, x: Tensor) -> Tensor:
        tensors: Any = self._buffers
        if self.parts == 1:
            return torch.addmm(tensors["bias"], x, tensors["weight"])
        y = torch.baddbmm(tensors["bias"], x.expand(self.parts, -1, -1), tensors["weight"])  # (parts, B, n / parts)
        y = y.transpose(0, 1).reshape(len(x), -1)
        return y[:, : self.outputs].contiguous() if self.missing else y


class _Gates(_Part):
    """Squeeze-and-excitation: the rows' mean through two linear layers."""

    def __init__(self, module: Any) -> None:
        fc1, fc2 = module.conc_se_layers[0].fc1, module.conc_se_layers[0].fc2
        super().__init__(w1=columns(fc1.weight), b1=fc1.bias, w2=columns(fc2.weight), b2=fc2.bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = product(x.mean((1, 2)), self.w1, self.b1, "relu")
        return x.mul_(product(hidden, self.w2, self.b2, "sigmoid")[:, None, None])


class _StaticBlock(nn.Module):
    """An `InvertedResidual` on (B, F, T, C)."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        steps: list[nn.Module] = []
        for layers in block.block:
            if isinstance(layers, SqueezeExcitation):
                steps.append(_Gates(layers))
                continue
            act = "" if len(layers) == 2 else "relu" if isinstance(layers[2], nn.ReLU) else "hswish"
            steps.append(_Depthwise(layers, act) if layers[0].groups > 1 else _Pointwise(layers, act))
        self.steps = nn.Sequential(*steps)
        self.residual = block.residual
        self.widest = max(layers[0].out_channels for layers in block.block if not isinstance(layers, SqueezeExcitation))

    def forward(self, x: Tensor) -> Tensor:
        size = max(1, CACHED_NUMEL // (x[0, ..., 0].numel() * self.widest)) if _sample_by_sample(x) else len(x)
        if len(x) > size:
            return torch.cat([self(some) for some in x.split(size)])
        y = self.steps(x)
        return y.add_(x) if self.residual else y


class _DynamicBlock(_Part):
    """A `DynamicBlock` on (B, F, T, C).

    Two tensors hold what the convolutions and the dynamic ReLU take from the context:

        bank   (chunks, K, n):  depth ... | project ... | expand ..., each filled up to whole chunks
        heads  (B, chunks K + 2M E):  K logits of each chunk | slope 1 | slope 2 | intercept 1 | intercept 2, each of E
    """

    def __init__(self, block: Any) -> None:
        context, coef = block.context_gen, block.depth_act.coef_net[0]
        convs = [(block.depth_conv, block.depth_norm), (block.proj_conv, block.proj_norm)]
        if block.expands:
            convs.append((block.exp_conv, block.exp_norm))
        expanded = coef.out_features // (2 * N_SLOPES)
        banks, biases = [], []
        for conv, norm in convs:
            scale, shift = folded(norm)
            bank = conv.weight[0, 0].reshape(N_KERNELS, conv.shape[0], -1) * scale[:, None]
            if conv.groups == 1:
                bank = bank.transpose(1, 2)  # (K, inputs, outputs), which is `for_rows`
            banks.append(bank.flatten(1))
            biases.append(shift)
        # One bank of equal chunks, as many for each convolution as it needs, and an attention for every chunk.
        chunk = -(-max(bank.shape[1] for bank in banks) // PARTS)
        counts = [-(-bank.shape[1] // chunk) for bank in banks]
        filled = [F.pad(bank, (0, n * chunk - bank.shape[1])) for bank, n in zip(banks, counts, strict=True)]
        # Rows of the stacked linear layer: K attention logits for each chunk, then slopes and intercepts as 2M rows of
        # E channels (the released layout has the 2M coefficients of one channel next to each other).
        linear = [(conv.residuals[0], conv.temperature, n) for (conv, _), n in zip(convs, counts, strict=True)]
        weights = [(layer.weight / temperature).repeat(n, 1) for layer, temperature, n in linear]
        shifts = [(layer.bias / temperature).repeat(n) for layer, temperature, n in linear]
        weights.append(coef.weight.reshape(expanded, 2 * N_SLOPES, -1).transpose(0, 1).flatten(0, 1) / 2)
        shifts.append(coef.bias.reshape(expanded, 2 * N_SLOPES).t().flatten() / 2)
        scale, shift = folded(context.joint_norm)
        pooled = 3 if context.stride > 1 else 1  # positions whose mean a gate is of; `_gate` sums them
        super().__init__(
            bank=torch.cat(filled, 1).reshape(N_KERNELS, sum(counts), chunk).transpose(0, 1).contiguous(),
            depth_bias=biases[0],
            project_bias=biases[1],
            expand_bias=biases[-1],
            context_weight=columns(context.joint_conv.weight.flatten(1) * scale[:, None]),
            context_bias=shift,
            gate_f_weight=columns(context.conv_f.weight.flatten(1) / pooled),
            gate_f_bias=context.conv_f.bias,
            gate_t_weight=columns(context.conv_t.weight.flatten(1) / pooled),
            gate_t_bias=context.conv_t.bias,
            lambdas=block.depth_act.lambdas.view(2 * N_SLOPES, 1, 1, 1),
            initial=block.depth_act.init_v.view(2 * N_SLOPES, 1, 1, 1),
        )
        self.heads = _FewRowsLinear(torch.cat(weights), torch.cat(shifts))
        self.starts = [chunk * sum(counts[:i]) for i in range(len(counts))]  # of depth, project, expand in a mixture
        self.expands, self.residual, self.stride = block.expands, block.residual, context.stride
        self.expanded, self.n_chunks = expanded, sum(counts)
        self.kernel = block.depth_conv.shape[-1]
        self.act = "" if not block.expands else "relu" if isinstance(block.exp_act, nn.ReLU) else "hswish"

    def forward(self, x: Tensor) -> Tensor:
        batch, freq, time, channels = x.shape
        tensors: Any = self._buffers  # an attribute of a module is slow to look up
        g = torch.cat((x.mean(2), x.mean(1)), 1).view(-1, channels)
        g = product(g, tensors["context_weight"], tensors["context_bias"], "hswish")  # (B (F + T), H)
        if batch == 1:
            g_f, g_t, h = g[:freq], g[freq:], g.mean(0, True)
        else:
            g = g.view(batch, freq + time, -1)
            g_f, g_t, h = g[:, :freq].flatten(0, 1), g[:, freq:].flatten(0, 1), g.mean(1)
        heads = self.heads.forward(h)  # (B, chunks K + 2M E)
        gate_f = self._gate(g_f, freq, tensors["gate_f_weight"], tensors["gate_f_bias"])  # (B F', E)
        gate_t = self._gate(g_t, time, tensors["gate_t_weight"], tensors["gate_t_bias"])  # (B T', E)

        n_chunks, expanded, row = self.n_chunks, self.expanded, heads.stride(0)
        # Offsets of `as_strided` are absolute: `heads`, and kernels in `_map`, begin their storage.
        attention = heads.as_strided((n_chunks, batch, N_KERNELS), (N_KERNELS, row, 1)).softmax(2)
        kernels = torch.bmm(attention, tensors["bank"])  # (chunks, B, numbers of a chunk)
        shape, strides = (batch, 2 * N_SLOPES, 1, 1, expanded), (row, expanded, 0, 0, 1)
        theta = heads.as_strided(shape, strides, n_chunks * N_KERNELS).tanh()
        lines = torch.addcmul(tensors["initial"], theta, tensors["lambdas"])
        if expanded < NARROW:
            lines = lines * gate_t.view(batch, 1, 1, -1, expanded)
            gate = gate_f.view(batch, -1, 1, expanded)
        else:
            lines = lines * gate_f.view(batch, 1, -1, 1, expanded)
            gate = gate_t.view(batch, 1, -1, expanded)
        if batch == 1:
            return self._map(x, kernels, lines, gate)
        if not _sample_by_sample(x):
            return self._map(x, kernels.transpose(0, 1).flatten(1), lines, gate)
        samples = zip(x.split(1), kernels.unbind(1), lines.split(1), gate.split(1), strict=True)
        return torch.cat([self._map(one, mixed.contiguous(), *rest) for one, mixed, *rest in samples])

    def _gate(self, g: Tensor, length: int, weight: Tensor, bias: Tensor) -> Tensor:
        """Compute gates (B length', E) along an axis of g (B length, H)."""
        if self.stride > 1:
            # Sum of positions 2i - 1, 2i and 2i + 1, zeros outside.
            g = g.view(-1, length, g.shape[1])
            even, odd = g[:, ::2], g[:, 1::2]
            g = even.clone()
            g[:, : odd.shape[1]] += odd
            g[:, 1:] += odd[:, : g.shape[1] - 1]
            g = g.flatten(0, 1)
        return product(g, weight, bias, "sigmoid")

    def _map(self, x: Tensor, kernels: Tensor, lines: Tensor, gate: Tensor) -> Tensor:
        """Turn the feature maps (b, F, T, C) of b samples into (b, F', T', C').

        `kernels` are (b, n) or, for one sample, contiguous and of any shape.
        """
        tensors: Any = self._buffers
        y = x
        if self.expands:
            y = self._pointwise(y, kernels, self.starts[2], tensors["expand_bias"], self.act)
        y = self._depthwise(y, kernels, self.starts[0], tensors["depth_bias"])
        slope_1, slope_2, intercept_1, intercept_2 = lines.unbind(1)
        other = torch.addcmul(intercept_2, slope_2, y)
        y = torch.addcmul(intercept_1, slope_1, y, out=y)
        y = torch.maximum(y, other, out=y).mul_(gate)
        del other  # its memory, still in the caches, is free for the product's result
        y = self._pointwise(y, kernels, self.starts[1], tensors["project_bias"])
        return y.add_(x) if self.residual else y

    def _pointwise(self, x: Tensor, kernels: Tensor, start: int, bias: Tensor, act: str = "") -> Tensor:
        """Compute the 1x1 convolution of (b, F, T, C) by the b kernels (C, E) that begin at `start`."""
        inputs, outputs = x.shape[3], len(bias)
        if len(x) == 1:
            weight = kernels.as_strided((outputs, inputs), (1, outputs), start)
            return pointwise(x, weight, bias, act)
        weight = kernels[:, start : start + inputs * outputs].view(-1, inputs, outputs)
        y = torch.baddbmm(bias, x.flatten(1, 2), weight)
        return activate(y.view(*x.shape[:3], outputs), act)

    def _depthwise(self, x: Tensor, kernels: Tensor, start: int, bias: Tensor) -> Tensor:
        """Compute the convolution of (b, F, T, E) by the b kernels (E, k * k) that begin at `start`."""
        batch, freq, time, channels = x.shape
        k = self.kernel
        if batch == 1:
            shape, strides = (channels, 1, k, k), (k * k, 1, k, 1)
            weight = kernels.as_strided(shape, strides, start)
            return depthwise(x, weight, bias, self.stride)
        image = x.movedim(0, 2).reshape(1, freq, time, batch * channels)  # the batch laid out as channels
        weight = kernels[:, start : start + channels * k * k].reshape(batch * channels, 1, k, k)
        y = depthwise(image, for_channels_last(weight), bias.repeat(batch), self.stride)
        return y.view(*y.shape[1:3], batch, channels).movedim(2, 0).contiguous()


class FusedNetwork(nn.Module):
    """A network for inference only; made by `fuse`. Its weights are not a checkpoint's and are not for saving."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.config = network.config
        self.mode: Any = torch.inference_mode  # the least work per step
        self.compiled = False
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
            self.hidden = _FewRowsLinear(head[2].weight, head[2].bias)
            self.labels = _FewRowsLinear(head[5].weight, head[5].bias)

    def compile_run(self) -> None:
        """Compile what `forward` runs, as one graph: block by block the compiler gives up after eight."""
        self.compiled = True
        self._run = torch.compile(self._run)  # type: ignore[method-assign]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was compiled, which would keep running this network's weights in a copy."""
        return {key: value for key, value in self.__dict__.items() if key != "_run"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.compiled:
            self.compile_run()

    def forward(self, x: Tensor, taps: tuple[str, ...] = ()) -> Output:
        """Compute logits and features of log-mel spectrograms (B, 1, mels, frames), as float32."""
        if torch.is_autocast_enabled(x.device.type):  # a score does not depend on what surrounds the call
            with torch.autocast(x.device.type, enabled=False):
                return self.forward(x, taps)
        if torch.is_inference_mode_enabled():
            logits, embedding, found = self._run(x, taps)
            return Output(logits.float(), embedding.float(), {name: value.float() for name, value in found.items()})
        with self.mode():
            logits, embedding, found = self._run(x, taps)
        with torch.no_grad():  # copies that may go on into training, as inference mode's tensors may not
            found = {name: value.float().clone() for name, value in found.items()}
            return Output(logits.float().clone(), embedding.float().clone(), found)

    def _run(self, x: Tensor, taps: tuple[str, ...]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        found: dict[str, Tensor] = {}

        def tap(name: str, rows: Tensor) -> Tensor:
            if name in taps:
                found[name] = rows.mean((1, 2))
            return rows

        image = x.to(self.stem.weight.dtype).movedim(1, 3)  # (B, mels, frames, 1)
        rows = tap("stem", self.stem(image))  # (B, F, T, C)
        for i, block in enumerate(self.blocks):
            rows = tap(f"block{i}", block.forward(rows))
        embedding = features = self.last(rows).mean((1, 2))  # (B, 6C)
        if "embedding" in taps:
            found["embedding"] = embedding
        if not self.fully_convolutional:
            features = activate(self.hidden(embedding), "hswish")
            if "hidden" in taps:
                found["hidden"] = features
        return self.labels(features), embedding, found


def fuse(network: nn.Module, *, dtype: torch.dtype | None = None, compile: bool = False) -> nn.Module:
    """Make the inference-only form of a network.

    Parameters
    ----------
    network : DyMN or MN
        In any mode; it is read and left as it is. The fused form holds copies of its weights on the same device.
    dtype : torch.dtype, optional
        float32, bfloat16 or float16, of weights and feature maps. None: float32.
    compile : bool
        Pass the network through ``torch.compile``: a minute at the first call and at every new batch size, for little
        or nothing on a CPU.

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
        fused.compile_run()
    return fused

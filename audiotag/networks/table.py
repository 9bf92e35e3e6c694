"""The networks' sizes: MobileNetV3-Large's block table, channel counts at any width, and the state dict's shapes.

Both networks, every runtime and the check of a checkpoint's tensors read them here; no torch.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from ..config import CheckpointConfig, NetworkConfig


class BlockSpec(NamedTuple):
    """One row of MobileNetV3-Large's table, at width 1."""

    inputs: int
    kernel: int
    expanded: int
    outputs: int
    squeeze: bool  # squeeze-and-excitation in MN; a dynamic block under DyMN's "replace_se"
    activation: str
    stride: int


# fmt: off
BLOCKS = (
    #         in  k  exp  out  squeeze  act    stride
    BlockSpec(16, 3, 16, 16, False, "relu", 1),
    BlockSpec(16, 3, 64, 24, False, "relu", 2),
    BlockSpec(24, 3, 72, 24, False, "relu", 1),
    BlockSpec(24, 5, 72, 40, True, "relu", 2),
    BlockSpec(40, 5, 120, 40, True, "relu", 1),
    BlockSpec(40, 5, 120, 40, True, "relu", 1),
    BlockSpec(40, 3, 240, 80, False, "hswish", 2),
    BlockSpec(80, 3, 200, 80, False, "hswish", 1),
    BlockSpec(80, 3, 184, 80, False, "hswish", 1),
    BlockSpec(80, 3, 184, 80, False, "hswish", 1),
    BlockSpec(80, 3, 480, 112, True, "hswish", 1),
    BlockSpec(112, 3, 672, 112, True, "hswish", 1),
    BlockSpec(112, 5, 672, 160, True, "hswish", 2),
    BlockSpec(160, 5, 960, 160, True, "hswish", 1),
    BlockSpec(160, 5, 960, 160, True, "hswish", 1),
)
# fmt: on
HIDDEN_CHANNELS = 1280
NORM_EPS = 1e-3  # of every batch norm but the fully convolutional head's
HEAD_NORM_EPS = 1e-5

N_KERNELS = 4  # K, kernels mixed by a dynamic convolution
N_SLOPES = 2  # M, linear pieces of a dynamic ReLU
CONTEXT_RATIO = SQUEEZE_RATIO = 4  # expanded channels for one of the context vector; of squeeze-and-excitation
MIN_CONTEXT, MAX_CONTEXT = 32, 128  # at width 1

Shapes = Mapping[str, tuple[int, ...]]


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Round to the nearest multiple of `divisor`, at least `divisor`, never more than 10 % below `channels`."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


def scaled_blocks(config: NetworkConfig) -> list[BlockSpec]:
    """Return `BLOCKS` at the configuration's width and strides."""
    strides = iter(config.strides)
    scaled = []
    for spec in BLOCKS:
        inputs, expanded, outputs = (
            make_divisible(c * config.width) for c in (spec.inputs, spec.expanded, spec.outputs)
        )
        stride = next(strides) if spec.stride == 2 else 1
        scaled.append(spec._replace(inputs=inputs, expanded=expanded, outputs=outputs, stride=stride))
    return scaled


def context_channels(expanded: int, width: float) -> int:
    """Compute H, the size of a block's context vector."""
    low, high = make_divisible(MIN_CONTEXT * width), make_divisible(MAX_CONTEXT * width)
    return min(max(make_divisible(expanded // CONTEXT_RATIO), low), high)


def squeezed_channels(expanded: int) -> int:
    """Compute the size of squeeze-and-excitation's hidden layer."""
    return make_divisible(expanded // SQUEEZE_RATIO)


def is_dynamic(spec: BlockSpec, config: NetworkConfig) -> bool:
    """Whether a block of `config`'s network is a dynamic one; an MN has none."""
    return config.architecture == "dymn" and (config.dynamic_blocks == "all" or spec.squeeze)


def has_squeeze(spec: BlockSpec, config: NetworkConfig) -> bool:
    """Whether a block of `config`'s network has squeeze-and-excitation; a DyMN has none."""
    return config.architecture == "mn" and spec.squeeze


def tap_channels(config: NetworkConfig) -> dict[str, int]:
    """Return names and sizes of the feature vectors a network can return, from input to output.

    ``stem`` and ``block0`` .. ``block14`` are feature maps averaged over frequency and time; ``embedding`` is
    the pooled head; ``hidden`` is the classifier's hidden layer after its activation (absent from a fully
    convolutional head).
    """
    specs = scaled_blocks(config)
    sizes = {"stem": specs[0].inputs}
    sizes.update({f"block{i}": spec.outputs for i, spec in enumerate(specs)})
    sizes["embedding"] = 6 * specs[-1].outputs
    if config.head == "mlp":
        sizes["hidden"] = make_divisible(HIDDEN_CHANNELS * config.width)
    return sizes


def layer_sizes(config: CheckpointConfig) -> dict[str, int]:
    """Return names and sizes of a checkpoint's feature vectors: the log-mel's mean over time, and the network's."""
    return {"logmel": config.frontend.n_mels, **tap_channels(config.network)}


@functools.lru_cache(maxsize=64)
def state_shapes(config: NetworkConfig) -> Shapes:
    """Return names and shapes of the state dict of `config`'s network, in its order."""
    specs = scaled_blocks(config)
    last = specs[-1].outputs
    dymn = config.architecture == "dymn"
    stem, blocks, top = ("in_c", "layers.{}", "out_c") if dymn else ("features.0", "features.{}", "features.16")
    shapes = _conv_norm(stem, specs[0].inputs, 1, 3)
    for i, spec in enumerate(specs):
        prefix = blocks.format(i if dymn else i + 1)
        shapes |= (
            _dynamic_block(prefix, spec, config) if is_dynamic(spec, config) else _static_block(prefix, spec, config)
        )
    shapes |= _conv_norm(top, 6 * last, last, 1)
    if config.head == "fully_convolutional":
        shapes["classifier.0.weight"] = (config.n_labels, 6 * last, 1, 1)
        shapes |= _norm("classifier.1", config.n_labels)
    else:
        hidden = make_divisible(HIDDEN_CHANNELS * config.width)
        shapes |= _linear("classifier.2", hidden, 6 * last) | _linear("classifier.5", config.n_labels, hidden)
    return MappingProxyType(shapes)


def _linear(prefix: str, outputs: int, inputs: int, *kernel: int) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.weight": (outputs, inputs, *kernel), f"{prefix}.bias": (outputs,)}


def _norm(prefix: str, channels: int) -> dict[str, tuple[int, ...]]:
    names = ("weight", "bias", "running_mean", "running_var")
    return {f"{prefix}.{name}": (channels,) for name in names} | {f"{prefix}.num_batches_tracked": ()}


def _conv_norm(prefix: str, outputs: int, inputs: int, kernel: int) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.0.weight": (outputs, inputs, kernel, kernel)} | _norm(f"{prefix}.1", outputs)


def _static_block(prefix: str, spec: BlockSpec, config: NetworkConfig) -> dict[str, tuple[int, ...]]:
    layers = []
    if spec.expanded != spec.inputs:
        layers.append(_conv_norm("", spec.expanded, spec.inputs, 1))
    layers.append(_conv_norm("", spec.expanded, 1, spec.kernel))
    if has_squeeze(spec, config):
        squeezed = squeezed_channels(spec.expanded)
        gate = ".conc_se_layers.0"
        layers.append(_linear(f"{gate}.fc1", squeezed, spec.expanded) | _linear(f"{gate}.fc2", spec.expanded, squeezed))
    layers.append(_conv_norm("", spec.outputs, spec.expanded, 1))
    return {f"{prefix}.block.{i}{name}": shape for i, layer in enumerate(layers) for name, shape in layer.items()}


def _dynamic_block(prefix: str, spec: BlockSpec, config: NetworkConfig) -> dict[str, tuple[int, ...]]:
    context = context_channels(spec.expanded, config.width)

    def dynamic(name: str, outputs: int, numbers: int) -> dict[str, tuple[int, ...]]:
        bank = {f"{name}_conv.weight": (1, 1, N_KERNELS, outputs * numbers)}
        return bank | _linear(f"{name}_conv.residuals.0", N_KERNELS, context) | _norm(f"{name}_norm", outputs)

    shapes = dynamic("exp", spec.expanded, spec.inputs) if spec.expanded != spec.inputs else {}
    shapes |= dynamic("depth", spec.expanded, spec.kernel**2)
    shapes |= {"depth_act.lambdas": (2 * N_SLOPES,), "depth_act.init_v": (2 * N_SLOPES,)}
    shapes |= _linear("depth_act.coef_net.0", 2 * N_SLOPES * spec.expanded, context)
    shapes |= dynamic("proj", spec.outputs, spec.expanded)
    shapes |= {"context_gen.joint_conv.weight": (context, spec.inputs, 1, 1)} | _norm("context_gen.joint_norm", context)
    shapes |= _linear("context_gen.conv_f", spec.expanded, context, 1, 1)
    shapes |= _linear("context_gen.conv_t", spec.expanded, context, 1, 1)
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}

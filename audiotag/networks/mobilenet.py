"""MN: MobileNetV3-Large with squeeze-and-excitation over channels, the static baseline of the DyMN paper.

Reference: Schmid, Koutini, Widmer, "Efficient Large-scale Audio Tagging via Transformer-to-CNN Knowledge
Distillation", arXiv 2211.04772, whose released state dicts load here with ``strict=True``. The architecture
is MobileNetV3-Large (Howard et al., arXiv 1905.02244).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..config import NetworkConfig


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
STEM_CHANNELS = 16
HIDDEN_CHANNELS = 1280
EPS, MOMENTUM = 1e-3, 0.01  # of every batch norm but the fully convolutional head's


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Nearest multiple of `divisor`, at least `divisor`, and never more than 10 % below `channels`."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


def scaled_blocks(config: NetworkConfig) -> list[BlockSpec]:
    """`BLOCKS` at the configuration's width and strides."""
    strides = iter(config.strides)
    scaled = []
    for spec in BLOCKS:
        inputs, expanded, outputs = (
            make_divisible(c * config.width) for c in (spec.inputs, spec.expanded, spec.outputs)
        )
        stride = next(strides) if spec.stride == 2 else 1
        scaled.append(spec._replace(inputs=inputs, expanded=expanded, outputs=outputs, stride=stride))
    return scaled


def activation(name: str) -> nn.Module:
    return nn.ReLU() if name == "relu" else nn.Hardswish()


def conv_norm(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: str | None = None
) -> nn.Sequential:
    """Convolution without bias, batch norm and, unless None, an activation: entries 0, 1 and 2."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=EPS, momentum=MOMENTUM),
    ]
    if act is not None:
        layers.append(activation(act))
    return nn.Sequential(*layers)


def classifier(config: NetworkConfig, features: int) -> nn.Sequential:
    """The head on top of the last feature map (B, features, F, T), giving logits (B, labels)."""
    if config.head == "fully_convolutional":
        return nn.Sequential(
            nn.Conv2d(features, config.n_labels, 1, bias=False),
            nn.BatchNorm2d(config.n_labels),
            nn.AdaptiveAvgPool2d(1),
        )
    hidden = make_divisible(HIDDEN_CHANNELS * config.width)
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(features, hidden),
        nn.Hardswish(),
        nn.Dropout(0.2),
        nn.Linear(hidden, config.n_labels),
    )


def initialise(network: nn.Module) -> None:
    """The published initialisation: Kaiming by fan-out, linear layers N(0, 0.01), biases zero."""
    if next(network.parameters()).is_meta:
        return  # nothing to fill, and drawing for the meta device would import torch._dynamo: over a second
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
            nn.init.zeros_(module.bias)


class Output(NamedTuple):
    """What a network returns for (B, 1, mels, frames).

    logits: (B, labels). embedding: (B, 6 x last block's channels), the pooled last feature map. taps: the
    feature vectors asked for by name, each (B, channels).
    """

    logits: Tensor
    embedding: Tensor
    taps: dict[str, Tensor]


def tap_channels(config: NetworkConfig) -> dict[str, int]:
    """Names and sizes of the feature vectors a network can return, from input to output.

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


class SqueezeExcitation(nn.Module):
    """Channel gates from the mean over frequency and time: linear, ReLU, linear, sigmoid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = make_divisible(channels // 4)
        gate = nn.Module()
        gate.fc1, gate.fc2 = nn.Linear(channels, squeezed), nn.Linear(squeezed, channels)
        self.conc_se_layers = nn.ModuleList([gate])

    def forward(self, x: Tensor) -> Tensor:
        gate: Any = self.conc_se_layers[0]
        scale = gate.fc2(torch.relu(gate.fc1(x.mean((2, 3))))).sigmoid()  # (B, C)
        return x * scale[:, :, None, None]


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise k x k, squeeze-and-excitation, project 1x1; expansion absent where it changes nothing."""

    def __init__(self, spec: BlockSpec, squeeze: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if spec.expanded != spec.inputs:
            layers.append(conv_norm(spec.inputs, spec.expanded, act=spec.activation))
        layers.append(conv_norm(spec.expanded, spec.expanded, spec.kernel, spec.stride, spec.expanded, spec.activation))
        if squeeze:
            layers.append(SqueezeExcitation(spec.expanded))
        layers.append(conv_norm(spec.expanded, spec.outputs))
        self.block = nn.Sequential(*layers)
        self.residual = spec.stride == 1 and spec.inputs == spec.outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x) if self.residual else self.block(x)


class MN(nn.Module):
    """MobileNetV3-Large for log-mel input.

    Parameters
    ----------
    config : NetworkConfig
        With ``architecture="mn"``.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        specs = scaled_blocks(config)
        features = 6 * specs[-1].outputs
        self.features = nn.Sequential(
            conv_norm(1, specs[0].inputs, 3, 2, act="hswish"),
            *(InvertedResidual(spec, spec.squeeze) for spec in specs),
            conv_norm(specs[-1].outputs, features, act="hswish"),
        )
        self.classifier = classifier(config, features)
        initialise(self)

    def forward(self, x: Tensor, taps: tuple[str, ...] = ()) -> Output:
        """Logits and features of log-mel spectrograms (B, 1, mels, frames)."""
        return run_network(self.features[0], self.features[1:-1], self.features[-1], self.classifier, x, taps)


def run_network(stem: nn.Module, blocks: Any, last: nn.Module, head: Any, x: Tensor, taps: tuple[str, ...]) -> Output:
    """Run a network's parts in order, pooling the feature maps that `taps` names (see `tap_channels`)."""
    found: dict[str, Tensor] = {}

    def tap(name: str, feature_map: Tensor) -> Tensor:
        if name in taps:
            found[name] = feature_map.mean((2, 3))
        return feature_map

    x = tap("stem", stem(x))
    for i, block in enumerate(blocks):
        x = tap(f"block{i}", block(x))
    x = last(x)  # (B, 6C, F, T)
    embedding = x.mean((2, 3))  # (B, 6C)
    if "embedding" in taps:
        found["embedding"] = embedding
    if isinstance(head[0], nn.Conv2d):
        return Output(head(x).flatten(1), embedding, found)
    hidden = head[3](head[2](embedding))
    if "hidden" in taps:
        found["hidden"] = hidden
    return Output(head[5](head[4](hidden)), embedding, found)

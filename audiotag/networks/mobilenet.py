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
from .table import HIDDEN_CHANNELS, NORM_EPS, BlockSpec, make_divisible, scaled_blocks, squeezed_channels

MOMENTUM = 0.01  # of every batch norm but the fully convolutional head's


def activation(name: str) -> nn.Module:
    """Make an activation by its name in the table."""
    return nn.ReLU() if name == "relu" else nn.Hardswish()


def conv_norm(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: str | None = None
) -> nn.Sequential:
    """Build a convolution without bias, batch norm and, unless None, an activation: entries 0, 1 and 2."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=NORM_EPS, momentum=MOMENTUM),
    ]
    if act is not None:
        layers.append(activation(act))
    return nn.Sequential(*layers)


def classifier(config: NetworkConfig, features: int) -> nn.Sequential:
    """Build the head on top of the last feature map (B, features, F, T), giving logits (B, labels)."""
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
    """Draw weights as published: Kaiming by fan-out, linear layers N(0, 0.01), biases zero."""
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


class SqueezeExcitation(nn.Module):
    """Channel gates from the mean over frequency and time: linear, ReLU, linear, sigmoid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = squeezed_channels(channels)
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
        """Compute logits and features of log-mel spectrograms (B, 1, mels, frames)."""
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

"""One call from a configuration to an untrained network."""

from __future__ import annotations

from torch import nn

from ..config import NetworkConfig
from .dymn import DyMN
from .mobilenet import MN


def build_network(config: NetworkConfig) -> nn.Module:
    """Build a `DyMN` or `MN` with random weights, in training mode."""
    return DyMN(config) if config.architecture == "dymn" else MN(config)

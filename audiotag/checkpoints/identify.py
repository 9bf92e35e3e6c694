"""What network a foreign state dict belongs to, from its names and shapes; other constants from its file's name."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import MAX_WIDTH, N_AUDIOSET_LABELS, CheckpointConfig, FrontendConfig, NetworkConfig
from ..errors import CheckpointError, InvalidInputError
from ..networks.table import BLOCKS, HIDDEN_CHANNELS, state_shapes

log = logging.getLogger(__name__)

MIN_WIDTH = 0.05
IMAGENET_TEMPERATURE = 30.0  # DyMN files named *_im were saved before the temperature was lowered
STRIDES = {"s2221": (2, 2, 2, 1), "s2211": (2, 2, 1, 1)}


def candidate_widths(state: Mapping[str, Any], last: str, hidden: str | None) -> Iterator[float]:
    """Yield the widths that the head's sizes allow, round ones first.

    Channel counts are rounded to multiples of 8, so several widths give one count; the classifier's hidden layer,
    1280 channels at width 1, tells widths 0.01 apart, and the last block's 160 serve without it.
    """
    channels, scale = (
        (state[hidden].shape[0], HIDDEN_CHANNELS) if hidden else (state[last].shape[1], BLOCKS[-1].outputs)
    )
    low, high = (channels - 8) / scale, (channels + 8) / scale
    grid = [round(k / 100, 2) for k in range(round(100 * MIN_WIDTH), round(100 * MAX_WIDTH) + 1)]
    near = [width for width in grid if low <= width <= high]
    yield from sorted(
        near, key=lambda w: (round(w * 100) % 10 != 0, round(w * 100) % 5 != 0, abs(w - channels / scale))
    )


def infer_network(state: Mapping[str, Any], where: str) -> NetworkConfig:
    """Return the network configuration whose names and shapes a state dict has.

    Where none fits exactly the nearest one is returned, so that strict loading can name what differs.

    Raises
    ------
    CheckpointError
        If the names are of neither DyMN nor MN.
    """
    if "in_c.0.weight" in state and "layers.0.depth_conv.weight" in state:
        architecture, last, dynamic = "dymn", "out_c.0.weight", "all"
    elif "in_c.0.weight" in state and "layers.0.block.0.0.weight" in state:
        architecture, last, dynamic = "dymn", "out_c.0.weight", "replace_se"
    elif "features.0.0.weight" in state:
        architecture, last, dynamic = "mn", "features.16.0.weight", "all"
    else:
        names = ", ".join(list(state)[:3])
        raise CheckpointError(f"{where}: not the state dict of a DyMN or MN; its first names are {names}")
    fully = "classifier.0.weight" in state
    outputs = "classifier.0.weight" if fully else "classifier.5.weight"
    hidden = None if fully else "classifier.2.weight"
    for name, dimensions in ((last, 4), (outputs, 4 if fully else 2), (hidden, 2)):
        if name is not None and (name not in state or state[name].ndim != dimensions):
            fault = f"{name} is missing or not {dimensions}-dimensional"
            raise CheckpointError(f"{where}: {fault}; the file is incomplete or of another network")
    n_labels = state[outputs].shape[0]
    if n_labels < 1:
        raise CheckpointError(f"{where}: {outputs} has no rows; a network needs at least one label")
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    nearest: tuple[int, NetworkConfig] | None = None
    for width in candidate_widths(state, last, hidden):
        config = NetworkConfig(
            architecture,
            width,
            n_labels,
            head="fully_convolutional" if fully else "mlp",
            dynamic_blocks=dynamic,
        )
        differing = len(set(state_shapes(config).items()) ^ set(shapes.items()))
        if differing == 0:
            return config
        if nearest is None or differing < nearest[0]:
            nearest = (differing, config)
    if nearest is None:
        raise CheckpointError(
            f"{where}: no width from {MIN_WIDTH:g} to {MAX_WIDTH:g} gives a head of the size in this file"
        )
    return nearest[1]


def infer_config(state: Mapping[str, Any], path: Path) -> CheckpointConfig:
    """Return the configuration of a file that has none: the network from names and shapes, the rest from its file name.

    Released files are named for what their tensors do not show: ``hop_<ms>`` is the frontend's hop, ``mels_<n>`` its
    number of bands, ``_s2221`` or ``_s2211`` the strides, and ``_im`` a DyMN trained on ImageNet alone, which has
    temperature 30. A name that says none of these gives the values of most checkpoints; all of them are logged.

    Raises
    ------
    CheckpointError
        If no network has such tensors, or the name gives a number that cannot be.
    """
    network = infer_network(state, str(path))
    stem = path.stem.lower()
    frontend: dict[str, int] = {}
    if match := re.search(r"_hop_?(\d{1,9})(?!\d)", stem):
        frontend["hop_samples"] = int(match[1]) * FrontendConfig.sample_rate_hz // 1000
    if match := re.search(r"_mels_?(\d{1,9})(?!\d)", stem):
        frontend["n_mels"] = int(match[1])
    for word, strides in STRIDES.items():
        if f"_{word}" in stem:
            network = replace(network, strides=strides)
    if network.architecture == "dymn" and re.search(r"_im(_|$)", stem):
        network = replace(network, temperature=IMAGENET_TEMPERATURE)
    names = tuple(f"label {i}" for i in range(network.n_labels))
    try:
        config = CheckpointConfig(
            path.stem,
            network,
            FrontendConfig(**frontend),
            labels=None if len(names) == N_AUDIOSET_LABELS else names,
        )
    except InvalidInputError as error:
        raise CheckpointError(f"{path}: its name says what cannot be ({error}); rename it") from error
    log.info(
        "%s: %s of width %g with %d labels, from its tensors; strides %s, temperature %g, hop %d samples and %d mel "
        "bands, from its name or by default",
        path,
        "DyMN" if network.architecture == "dymn" else "MN",
        network.width,
        network.n_labels,
        network.strides,
        network.temperature,
        config.frontend.hop_samples,
        config.frontend.n_mels,
    )
    return config

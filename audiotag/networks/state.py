"""What a state dict must hold to be a configuration's network, and its head's own labels: checked entry by entry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..config import CheckpointConfig, NetworkConfig
from ..errors import CheckpointError
from .table import state_shapes, tap_channels

SHOWN = 3  # names listed in an error before "..."
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
HEAD_PREFIX = "head."  # of a head of own labels; no network has such a name
COUNTER = ".num_batches_tracked"  # the only integer entries


def check_state(state: Mapping[str, Tensor], config: CheckpointConfig, where: str) -> dict[str, Tensor]:
    """Check that a state dict is `config`'s network and head, entry by entry, and bring its floats to float32.

    Returns
    -------
    dict of str to Tensor
        The network's names in its order, and the head's; float32, and int64 for batch counters.

    Raises
    ------
    CheckpointError
        If names are missing or unknown, or a tensor has a wrong shape or type, or values that are not finite.
        The message names the first few.
    """
    return _check_network(network_state(state), config.network, where) | _check_head(state, config, where)


def network_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the network, without those of a head."""
    return {name: tensor for name, tensor in state.items() if not name.startswith(HEAD_PREFIX)}


def _check_network(state: Mapping[str, Tensor], config: NetworkConfig, where: str) -> dict[str, Tensor]:
    expected = state_shapes(config)
    faults = []
    if missing := [name for name in expected if name not in state]:
        faults.append(f"missing: {few(missing)}")
    if extra := [name for name in state if name not in expected]:
        faults.append(f"not of this network: {few(extra)}")
    shared = [name for name in expected if name in state]
    misshapen = [n for n in shared if tuple(state[n].shape) != expected[n]]
    if misshapen:
        faults.append("wrong shape: " + few(f"{n} {tuple(state[n].shape)} instead of {expected[n]}" for n in misshapen))
    untyped = [n for n in shared if not _right_type(n, state[n])]
    if untyped:
        faults.append("wrong type: " + few(f"{n} is {state[n].dtype} ({state[n].layout})" for n in untyped))
    if not faults:
        ready = {n: state[n].to(torch.int64 if n.endswith(COUNTER) else torch.float32) for n in expected}
        if bad := [n for n, tensor in ready.items() if not torch.isfinite(tensor).all()]:
            faults.append(f"values that are not finite: {few(bad)}")
        elif bad := [n for n, tensor in ready.items() if n.endswith("running_var") and (tensor < 0).any()]:
            faults.append(f"negative variances: {few(bad)}")
        else:
            return ready
    raise CheckpointError(
        f"{where}: does not fit {config.architecture} of width {config.width:g} with {config.n_labels} labels "
        f"({config.head} head, dynamic blocks {config.dynamic_blocks!r}): {'; '.join(faults)}"
    )


def _check_head(state: Mapping[str, Tensor], config: CheckpointConfig, where: str) -> dict[str, Tensor]:
    found = {name: tensor for name, tensor in state.items() if name.startswith(HEAD_PREFIX)}
    head = config.head
    if head is None:
        if found:
            raise CheckpointError(f"{where}: has {few(found)}, but its configuration has no head; write it again")
        return {}
    sizes = {"logmel": config.frontend.n_mels, **tap_channels(config.network)}
    if unknown := [name for name in head.inputs if name not in sizes]:
        raise CheckpointError(f"{where}: its head takes {few(unknown)}, which this network does not have")
    features = sum(sizes[name] for name in head.inputs)
    expected = {HEAD_PREFIX + "weight": (head.rows, features), HEAD_PREFIX + "bias": (head.rows,)}
    faults = []
    if set(found) != set(expected):
        faults.append(f"must be {few(expected)}, got {few(found) or 'none'}")
    for name, shape in expected.items():
        if name in found and tuple(found[name].shape) != shape:
            faults.append(f"{name} has shape {tuple(found[name].shape)} instead of {shape}")
        elif name in found and not (_right_type(name, found[name]) and torch.isfinite(found[name]).all()):
            faults.append(f"{name} must hold finite floats")
    if faults:
        raise CheckpointError(f"{where}: the head of {len(head.labels)} labels does not fit: {'; '.join(faults)}")
    return {name: found[name].to(torch.float32) for name in expected}


def _right_type(name: str, tensor: Tensor) -> bool:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        return False
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        return False  # one value shown many times: a few bytes would become gigabytes
    return not tensor.is_floating_point() if name.endswith(COUNTER) else tensor.dtype in FLOATS


def few(names: Iterable[str]) -> str:
    """List the first names of many, for a message."""
    names = list(names)
    return ", ".join(names[:SHOWN]) + (f", ... ({len(names)} in all)" if len(names) > SHOWN else "")

"""What a state dict must hold to be a configuration's network, and its head's own labels: checked entry by entry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..checks import is_tensor
from ..config import CheckpointConfig, NetworkConfig
from ..errors import CheckpointError
from .table import layer_sizes, state_shapes

SHOWN = 3  # names listed in an error before "..."
FLOATS = ("float32", "float16", "bfloat16", "float64")
HEAD_PREFIX = "head."  # of a head of own labels; no network has such a name
COUNTER = ".num_batches_tracked"  # the only integer entries


def check_state(state: Mapping[str, Any], config: CheckpointConfig, where: str) -> dict[str, np.ndarray]:
    """Check that a state dict is `config`'s network and head, entry by entry, and bring its floats to float32.

    Parameters
    ----------
    state : mapping of str to ndarray or torch.Tensor

    Returns
    -------
    dict of str to ndarray
        The network's names in its order, and the head's; float32, and int64 for batch counters.

    Raises
    ------
    CheckpointError
        If names are missing or unknown, or a tensor has a wrong shape or type, or values that are not finite.
        The message names the first few.
    """
    return _check_network(network_state(state), config.network, where) | _check_head(state, config, where)


def network_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tensors of the network, without those of a head."""
    return {name: tensor for name, tensor in state.items() if not name.startswith(HEAD_PREFIX)}


def _check_network(state: Mapping[str, Any], config: NetworkConfig, where: str) -> dict[str, np.ndarray]:
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
        faults.append("wrong type: " + few(f"{n} is {_described(state[n])}" for n in untyped))
    if not faults:
        ready = {n: _as_array(state[n], np.int64 if n.endswith(COUNTER) else np.float32) for n in expected}
        if bad := [n for n, array in ready.items() if not np.isfinite(array).all()]:
            faults.append(f"values that are not finite: {few(bad)}")
        elif bad := [n for n, array in ready.items() if n.endswith("running_var") and (array < 0).any()]:
            faults.append(f"negative variances: {few(bad)}")
        else:
            return ready
    raise CheckpointError(
        f"{where}: does not fit {config.architecture} of width {config.width:g} with {config.n_labels} labels "
        f"({config.head} head, dynamic blocks {config.dynamic_blocks!r}): {'; '.join(faults)}"
    )


def _check_head(state: Mapping[str, Any], config: CheckpointConfig, where: str) -> dict[str, np.ndarray]:
    found = {name: tensor for name, tensor in state.items() if name.startswith(HEAD_PREFIX)}
    head = config.head
    if head is None:
        if found:
            raise CheckpointError(f"{where}: has {few(found)}, but its configuration has no head; write it again")
        return {}
    sizes = layer_sizes(config)
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
        elif name in found and not (
            _right_type(name, found[name]) and np.isfinite(_as_array(found[name], np.float32)).all()
        ):
            faults.append(f"{name} must hold finite floats")
    if faults:
        raise CheckpointError(f"{where}: the head of {len(head.labels)} labels does not fit: {'; '.join(faults)}")
    return {name: _as_array(found[name], np.float32) for name in expected}


def _right_type(name: str, value: Any) -> bool:
    kind = str(value.dtype).removeprefix("torch.")
    if is_tensor(value):
        if str(value.layout) != "torch.strided" or value.is_quantized or value.device.type == "meta":
            return False
        if value.untyped_storage().nbytes() < value.numel() * value.element_size():
            return False  # one value shown many times: a few bytes would become gigabytes
        return not value.is_floating_point() if name.endswith(COUNTER) else kind in FLOATS
    return value.dtype.kind in "iub" if name.endswith(COUNTER) else kind in FLOATS


def _described(value: Any) -> str:
    layout = str(value.layout).removeprefix("torch.") if is_tensor(value) else "strided"
    return str(value.dtype).removeprefix("torch.") + ("" if layout == "strided" else f" ({layout})")


def _as_array(value: Any, dtype: Any) -> np.ndarray:
    """Return a tensor or array as an array of that type, which shares its memory where nothing changes."""
    if is_tensor(value):
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which is refused
        return np.asarray(value, dtype)


def few(names: Iterable[str]) -> str:
    """List the first names of many, for a message."""
    names = list(names)
    return ", ".join(names[:SHOWN]) + (f", ... ({len(names)} in all)" if len(names) > SHOWN else "")

"""State dicts on disk: reading safetensors and foreign ``.pt`` files, checking every tensor, writing safetensors.

safetensors is the format because it holds tensors and nothing that could run. A ``.pt`` is a pickle, so it is read
with ``weights_only=True`` and nothing else.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..config import CheckpointConfig, NetworkConfig
from ..errors import CheckpointError
from ..files import write_whole
from ..networks.table import tap_channels
from .identify import expected_shapes

ZIP_MAGIC = b"PK\x03\x04"
SHOWN = 3  # names listed in an error before "..."
NESTING = ("state_dict", "model_state_dict", "model", "network", "net")
PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.")
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
HEAD_PREFIX = "head."  # of a head of own labels; no network has such a name
COUNTER = ".num_batches_tracked"  # the only integer entries


def few(names: Iterable[str]) -> str:
    """The first names of many, for a message."""
    names = list(names)
    return ", ".join(names[:SHOWN]) + (f", ... ({len(names)} in all)" if len(names) > SHOWN else "")


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header metadata of a safetensors file.

    Raises
    ------
    CheckpointError
        If it cannot be read or is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (
        SafetensorError,
        OSError,
        ValueError,
        RuntimeError,
        KeyError,
        TypeError,
        MemoryError,
        OverflowError,
    ) as error:
        raise CheckpointError(
            f"{path}: cannot be read as safetensors ({error}); fetch or copy the file again"
        ) from error


def read_pt(path: Path) -> dict[str, Tensor]:
    """The state dict in a ``.pt`` file, without running anything in it.

    Nesting under a usual key (``state_dict``, ``model``, ...) and a usual prefix of every name (``module.``, ...) are
    taken off. Only the zip form that torch.save has written since 1.6 is opened: the older ones are bare pickles,
    and torch before 2.6 could be made to run those despite ``weights_only`` (CVE-2025-32434).

    Raises
    ------
    CheckpointError
        If it cannot be read, holds code or other objects, or no state dict.
    """
    try:
        with path.open("rb") as file:
            is_zip = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC  # what torch.load looks at, too
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not is_zip:
        raise CheckpointError(
            f"{path}: not a zip file as torch.save writes it (damaged, or a bare pickle, which could hold code and is "
            "not opened); copy the file again, or save its state dict with torch.save or safetensors"
        )
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message advises switching the protection off, so it stays in the cause.
        raise CheckpointError(
            f"{path}: holds code or objects other than tensors, or is damaged, and was refused; save only the state "
            "dict, with torch.save(network.state_dict(), ...) or as safetensors"
        ) from error
    except Exception as error:  # a damaged file makes torch raise nearly anything
        raise CheckpointError(
            f"{path}: cannot be read by torch.load ({str(error)[:200]}); copy or fetch the file again"
        ) from error
    return _state_dict(loaded, path)


def _state_dict(loaded: Any, path: Path) -> dict[str, Tensor]:
    for _ in range(SHOWN):  # nesting deeper than this is nobody's
        inner = [key for key in NESTING if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping)]
        if not inner:
            break
        loaded = loaded[inner[0]]
    if not isinstance(loaded, Mapping) or not loaded:
        raise CheckpointError(f"{path}: must hold a state dict (names to tensors), holds {_describe(loaded)}")
    strange = [
        str(name) for name, value in loaded.items() if not isinstance(name, str) or not isinstance(value, Tensor)
    ]
    if strange:
        raise CheckpointError(
            f"{path}: must hold a state dict (names to tensors), but has other entries: {few(strange)}"
        )
    state = dict(loaded)
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _describe(loaded: Any) -> str:
    return "an empty mapping" if isinstance(loaded, Mapping) else f"a {type(loaded).__name__}"


def check_state(state: Mapping[str, Tensor], config: NetworkConfig, where: str) -> dict[str, Tensor]:
    """Check that a state dict is `config`'s network, entry by entry, and bring its floats to float32.

    Returns
    -------
    dict of str to Tensor
        The network's names in its order; float32, and int64 for batch counters.

    Raises
    ------
    CheckpointError
        If names are missing or unknown, or a tensor has a wrong shape or type, or values that are not finite.
        The message names the first few.
    """
    expected = expected_shapes(config)
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


def check_head(state: Mapping[str, Tensor], config: CheckpointConfig, where: str) -> dict[str, Tensor]:
    """Check the tensors of a checkpoint's head of own labels; none where it has no head.

    Raises
    ------
    CheckpointError
        If one is missing, of the wrong shape or type, not finite, or there without a head in the configuration.
    """
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
    return not tensor.is_floating_point() if name.endswith(COUNTER) else tensor.dtype in FLOATS


def write_safetensors(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and header metadata; the file appears whole or not at all.

    Raises
    ------
    OutputError
        If the disk refuses.
    """
    dense = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_whole(path, save(dense, metadata=dict(metadata)))

"""State dicts on disk: reading safetensors and foreign ``.pt`` files, writing safetensors.

safetensors is the format because it holds tensors and nothing that could run. A ``.pt`` is a pickle, so it is read
with ``weights_only=True`` and nothing else.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import CheckpointError
from ..files import write_whole
from ..networks.state import few

ZIP_MAGIC = b"PK\x03\x04"
NESTING = ("state_dict", "model_state_dict", "model", "network", "net")
NESTED = 3  # levels; deeper is nobody's
PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.")


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and header metadata of a safetensors file.

    Raises
    ------
    CheckpointError
        If it cannot be read or is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except Exception as error:  # a damaged file makes safetensors raise nearly anything
        raise CheckpointError(
            f"{path}: cannot be read as safetensors ({error}); fetch or copy the file again"
        ) from error


def read_pt(path: Path) -> dict[str, Tensor]:
    """Read the state dict in a ``.pt`` file, without running anything in it.

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
        _refuse_inflation(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message advises switching the protection off, so it stays in the cause.
        raise CheckpointError(
            f"{path}: holds code or objects other than tensors, or is damaged, and was refused; save only the state "
            "dict, with torch.save(network.state_dict(), ...) or as safetensors"
        ) from error
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file makes zipfile and torch do so too
        raise CheckpointError(
            f"{path}: cannot be read by torch.load ({str(error)[:200]}); copy or fetch the file again"
        ) from error
    return _state_dict(loaded, path)


def _refuse_inflation(path: Path) -> None:
    """Refuse a zip whose members are larger than it is; torch.save compresses nothing, but torch.load would inflate."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    total = sum(member.file_size for member in members)
    if total > path.stat().st_size or any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise CheckpointError(
            f"{path}: holds {total} bytes compressed, which torch.save never does, and was refused; save it again with "
            "torch.save or as safetensors"
        )


def _state_dict(loaded: Any, path: Path) -> dict[str, Tensor]:
    for _ in range(NESTED):
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


def write_safetensors(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and header metadata; the file appears whole or not at all.

    Raises
    ------
    OutputError
        If the disk refuses.
    """
    dense = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_whole(path, save(dense, metadata=dict(metadata)))

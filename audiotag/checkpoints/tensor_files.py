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

import numpy as np
from safetensors import deserialize, safe_open

from ..checks import imported
from ..errors import CheckpointError
from ..files import write_whole
from ..networks.state import few

ZIP_MAGIC = b"PK\x03\x04"
NESTING = ("state_dict", "model_state_dict", "model", "network", "net")
NESTED = 3  # levels; deeper is nobody's
PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.")


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read tensors and header metadata of a safetensors file; bfloat16, which numpy lacks, becomes float32.

    Raises
    ------
    CheckpointError
        If it cannot be read or is damaged.
    """
    try:
        with safe_open(path, framework="np") as file:
            metadata = dict(file.metadata() or {})
            names = list(file.keys())
            if not any(file.get_slice(name).get_dtype() == "BF16" for name in names):
                return {name: file.get_tensor(name) for name in names}, metadata
        return {name: _array(**stored) for name, stored in deserialize(path.read_bytes())}, metadata
    except Exception as error:  # a damaged file makes safetensors raise nearly anything
        raise CheckpointError(
            f"{path}: cannot be read as safetensors ({error}); fetch or copy the file again"
        ) from error


def _array(dtype: str, shape: list[int], data: bytes) -> np.ndarray:
    """Return a stored tensor. A bfloat16 is the upper half of a float32."""
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    kinds = {"F": "f", "I": "i", "U": "u", "B": "?"}
    kind = "?" if dtype == "BOOL" else f"<{kinds[dtype[0]]}{int(dtype[1:]) // 8}"
    return np.frombuffer(data, kind).reshape(shape)


def read_pt(path: Path) -> dict[str, Any]:
    """Read the state dict of torch tensors in a ``.pt`` file, without running anything in it.

    Nesting under a usual key (``state_dict``, ``model``, ...) and a usual prefix of every name (``module.``, ...) are
    taken off. Only the zip form that torch.save has written since 1.6 is opened: the older ones are bare pickles,
    and torch before 2.6 could be made to run those despite ``weights_only`` (CVE-2025-32434).

    Raises
    ------
    CheckpointError
        If it cannot be read, holds code or other objects, or no state dict.
    MissingDependencyError
        If torch, which reads such files, is not installed.
    """
    torch = imported(
        f"{path}: reading a .pt file needs torch: pip install torch; or, where torch is, make safetensors of it with "
        "Tagger.save_pretrained",
        "torch",
    )
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


def _state_dict(loaded: Any, path: Path) -> dict[str, Any]:
    from torch import Tensor

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


def write_safetensors(path: Path, state: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Write arrays or torch tensors, and header metadata; the file appears whole or not at all.

    Raises
    ------
    OutputError
        If the disk refuses.
    """
    content: bytes
    if all(isinstance(value, np.ndarray) for value in state.values()):
        from safetensors.numpy import save

        arrays = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in state.items()}
        content = save(arrays, metadata=dict(metadata))
    else:  # tensors, whose types may be ones that numpy lacks
        import torch
        from safetensors.torch import save as save_tensors

        tensors = {name: torch.as_tensor(tensor).detach().cpu().contiguous() for name, tensor in state.items()}
        content = save_tensors(tensors, metadata=dict(metadata))
    write_whole(path, content)

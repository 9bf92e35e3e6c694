"""Checkpoints: from a name, repository, folder or file to a verified state dict, and from that to a network."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checks import shown
from ..config import N_AUDIOSET_LABELS, CheckpointConfig
from ..errors import AudiotagError, CheckpointError, InvalidInputError
from ..labels.label_set import LabelSet, audioset_labels
from ..networks.state import check_state, network_state
from .access import Access
from .digests import digests
from .fetch import CONFIG_FILE, fetch_entry, fetch_repository, release_url
from .identify import infer_config
from .manifest import HUB_FILE, Entry, Manifest, manifest
from .tensor_files import read_pt, read_safetensors, write_safetensors

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)

FORMAT_VERSION = 1  # of config.json, which the safetensors header repeats
HEADER_KEY = "audiotag"
MAX_CONFIG_BYTES = 1 << 24
PT_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
REPOSITORY_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """One trained set of weights with everything needed to use it.

    Parameters
    ----------
    config : CheckpointConfig
    state : dict of str to ndarray
        Names and shapes of the network's state dict, and the head's; given as arrays or torch tensors, checked, and
        brought to float32 (batch counters to int64).
    origin : str
        Where it came from, in words.
    card : dict
        Facts: metrics with their source, licence, training data, parameters, multiply-accumulates; empty where unknown.

    Raises
    ------
    CheckpointError
        If the state dict does not fit the configuration.
    """

    config: CheckpointConfig
    state: dict[str, np.ndarray] = field(repr=False)
    origin: str
    card: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", check_state(self.state, self.config, self.origin))

    @property
    def labels(self) -> LabelSet:
        """The labels of its scores, in their order."""
        names, head = self.config.labels, self.config.head
        if head is not None and not head.keep_network:
            return LabelSet.from_names(head.labels)
        own = LabelSet.from_names(names) if names else audioset_labels()
        return own if head is None else own.extended(head.labels)


def load_checkpoint(name_or_path: str | os.PathLike[str] | None = None, access: Access = Access()) -> Checkpoint:
    """Find, verify, read and check a checkpoint.

    Parameters
    ----------
    name_or_path : str or path, optional
        What it is, the first that fits: nothing, for the built-in checkpoint; a name of the manifest (a file or
        folder of the same name is reached as ``./name``); an existing folder with ``config.json`` and
        ``model.safetensors``; an existing ``.safetensors`` or ``.pt`` file; a Hub repository id, ``owner/name``.
    access : Access
        Where downloads are kept, and what may be fetched.

    Raises
    ------
    InvalidInputError
        If the name is unknown or an argument does not apply.
    CheckpointError
        If the file is missing, damaged, or not of the network it should be.
    DownloadError
        If it could not be fetched.
    VerificationError
        If what was found is not what is recorded.
    """
    known = manifest()
    name = known.default if name_or_path is None else name_or_path
    if not isinstance(name, (str, os.PathLike)):
        raise InvalidInputError(f"name_or_path must be a string, a path or None, got {type(name).__name__}")
    target = os.fspath(name)
    if not isinstance(target, str) or not target or "\0" in target:
        raise InvalidInputError(f"name_or_path must be a non-empty string or path, got {shown(target)}")
    if isinstance(name, str) and target in known.entries:
        _refuse_revision(access.revision, f"the manifest pins {target!r}")
        return load_entry(known.entries[target], known, access)
    path = os.path.expanduser(target)
    if os.path.exists(path):
        _refuse_revision(access.revision, f"{shown(target)} is a local file or folder")
        return _load_folder(Path(path), path) if os.path.isdir(path) else _load_file(Path(path))
    is_file = target.endswith((".safetensors", *PT_SUFFIXES))
    if isinstance(name, str) and REPOSITORY_ID.fullmatch(target) and not is_file:
        folder, origin = fetch_repository(target, access)
        return _load_folder(folder, origin)
    if isinstance(name, os.PathLike) or os.sep in target or is_file:
        raise CheckpointError(
            f"{target[:200]}: no such file or folder; 'audiotag models' lists the checkpoints known by name"
        )
    return load_entry(known.entry(target), known, access)  # which there is not: the error names near ones


def _refuse_revision(revision: str | None, why: str) -> None:
    if revision is not None:
        raise InvalidInputError(
            f"revision {revision!r} is for Hub repositories (owner/name), but {why}; leave revision out"
        )


def load_entry(entry: Entry, known: Manifest, access: Access = Access()) -> Checkpoint:
    """Load a checkpoint of the manifest, with the manifest's configuration; thresholds are the file's."""
    got = fetch_entry(entry, known, access)
    if got.path.suffix != ".safetensors":
        return Checkpoint(entry.config, read_pt(got.path), got.origin, entry_card(entry, known))
    state, metadata = read_safetensors(got.path)
    config = entry.config
    if HEADER_KEY in metadata:
        told, _ = parse_config(metadata[HEADER_KEY], f"{got.path}, header")
        config = replace(config, thresholds=told.thresholds, threshold_support=told.threshold_support)
    return Checkpoint(config, state, got.origin, entry_card(entry, known))


def entry_card(entry: Entry, known: Manifest) -> dict[str, Any]:
    """Return the facts a checkpoint of the manifest carries, and the address of its original file if there is one."""
    addresses = [release_url(source, known.release_url) for source in entry.sources if source.kind == "release"]
    return entry.card() | ({"source": addresses[0]} if addresses else {})


def _load_folder(folder: Path, origin: str) -> Checkpoint:
    config_path, weights_path = folder / CONFIG_FILE, folder / HUB_FILE
    for path in (config_path, weights_path):
        if not path.is_file():
            raise CheckpointError(
                f"{folder}: has no {path.name}; a checkpoint folder holds {CONFIG_FILE} and {HUB_FILE}"
            )
    config, card = read_config(config_path)
    state, _ = read_safetensors(weights_path)
    return Checkpoint(config, state, origin, card)


def _load_file(path: Path) -> Checkpoint:
    if not path.is_file():
        raise CheckpointError(f"{path}: must be a regular file or a folder, for it is read more than once")
    state: dict[str, Any]
    if path.suffix == ".safetensors":
        state, metadata = read_safetensors(path)
        if HEADER_KEY in metadata:
            config, card = parse_config(metadata[HEADER_KEY], f"{path}, header")
        elif path.with_name(CONFIG_FILE).is_file():
            config, card = read_config(path.with_name(CONFIG_FILE))
        else:
            config, card = infer_config(state, path), {}
    elif path.suffix in PT_SUFFIXES:
        state = read_pt(path)
        config, card = _recognise(path) or (infer_config(state, path), {})
    else:
        raise InvalidInputError(
            f"{path}: a checkpoint file ends in .safetensors or {', '.join(PT_SUFFIXES)}, got {shown(path.suffix)}"
        )
    return Checkpoint(config, state, str(path), card)


def _recognise(path: Path) -> tuple[CheckpointConfig, dict[str, Any]] | None:
    """Find configuration and facts of a release file, known by its digest whatever it is called."""
    found = digests(path)
    known = manifest()
    for entry in known.entries.values():
        for source in entry.sources:
            if source.sha256 == found.sha256 or (source.sha256 is None and source.git_blob_sha1 == found.git_blob_sha1):
                log.info("%s: is the manifest's %s, by its digest", path, entry.name)
                return entry.config, entry_card(entry, known)
    return None


def build(checkpoint: Checkpoint) -> nn.Module:
    """Make the checkpoint's network in torch with a copy of its weights, in evaluation mode and without gradients."""
    import torch

    from ..networks.build import build_network

    state = {name: torch.tensor(array) for name, array in network_state(checkpoint.state).items()}
    with torch.device("meta"):  # no initial weights: they would cost time and draw from the caller's random numbers
        network = build_network(checkpoint.config.network)
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def read_config(path: Path) -> tuple[CheckpointConfig, dict[str, Any]]:
    """Read configuration and facts of a ``config.json``."""
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise CheckpointError(f"{path}: larger than the {MAX_CONFIG_BYTES} bytes a configuration may have")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read as text ({error}); write the folder again") from error
    return parse_config(text, str(path))


def parse_config(text: str, where: str) -> tuple[CheckpointConfig, dict[str, Any]]:
    """Read configuration and facts of a ``config.json``'s text; `config_text` reverses it.

    Raises
    ------
    CheckpointError
        If it is not JSON, of another format version, or malformed; the message names `where`.
    """
    try:
        plain = json.loads(text)
        if not isinstance(plain, dict):
            raise InvalidInputError(f"must be a JSON object, got {type(plain).__name__}")
        version = plain.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise InvalidInputError(
                f"format_version must be {FORMAT_VERSION}, got {version!r}; another model's file, or a newer audiotag's"
            )
        card = plain.pop("card", {})
        plain.pop("library_name", None)
        if not isinstance(card, dict):
            raise InvalidInputError(f"card must be a JSON object, got {type(card).__name__}")
        config = CheckpointConfig.from_dict(plain)
        if config.labels is None and config.network.n_labels != N_AUDIOSET_LABELS:
            names = f"labels null means AudioSet's {N_AUDIOSET_LABELS}"
            raise InvalidInputError(f"{names}, got n_labels {shown(config.network.n_labels)}; name them")
        return config, card
    except (ValueError, TypeError, AudiotagError, RecursionError) as error:
        raise CheckpointError(f"{where}: {error}") from error


def config_text(config: CheckpointConfig, card: Mapping[str, Any]) -> str:
    """Write the text of a ``config.json``."""
    plain = {"format_version": FORMAT_VERSION, "library_name": "audiotag", **config.to_dict(), "card": dict(card)}
    return json.dumps(plain, indent=2) + "\n"


def save_weights(
    path: str | os.PathLike[str], state: Mapping[str, Any], config: CheckpointConfig, card: Mapping[str, Any]
) -> None:
    """Write a single ``.safetensors`` file that carries its own configuration and facts; `load_checkpoint` reads it.

    Floats keep their type: float16 halves the file and is brought to float32 on loading.

    Raises
    ------
    CheckpointError
        If the state dict does not fit the configuration.
    OutputError
        If the disk refuses; nothing is left behind.
    """
    check_state(state, config, str(path))
    header = json.dumps(json.loads(config_text(config, card)))
    # One key only: safetensors writes several in no fixed order, and a checkpoint should have one digest.
    write_safetensors(Path(path), state, {HEADER_KEY: header})

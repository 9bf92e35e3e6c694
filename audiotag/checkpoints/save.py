"""From any checkpoint to a Hub-ready folder: ``model.safetensors``, ``config.json``, a model card."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import InvalidInputError, OutputError
from ..files import ADVICE, whole_folder, write_whole
from .access import Access
from .card import model_card
from .fetch import CONFIG_FILE
from .load import Checkpoint, config_text, load_checkpoint, save_weights
from .manifest import HUB_FILE

CARD_FILE = "README.md"


def convert(source: str | os.PathLike[str], folder: str | os.PathLike[str], access: Access = Access()) -> Path:
    """Write a checkpoint as a folder that can be published as it is.

    Parameters
    ----------
    source : str or path
        Anything `load_checkpoint` takes: a released ``.pt``, a name, a folder, a repository.
    folder : path
        Must be new or empty; it appears whole or not at all.
    access : Access
        As for `load_checkpoint`.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    InvalidInputError
        If the folder exists and is not empty.
    CheckpointError
        As `load_checkpoint`.
    OutputError
        If the folder cannot be written.
    """
    checkpoint = load_checkpoint(source, access)
    with whole_folder(folder) as made:
        save_checkpoint(checkpoint, made)
    return Path(folder).expanduser()


def save_checkpoint(checkpoint: Checkpoint, folder: str | os.PathLike[str]) -> Path:
    """Write a checkpoint's files into a folder, made if need be; `load_checkpoint` reads it.

    A model card that is there already is kept, since people edit them.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    InvalidInputError
        If `folder` is a file.
    CheckpointError
        If the state dict does not fit the configuration.
    OutputError
        If the disk refuses.
    """
    target = Path(folder).expanduser()
    if target.exists() and not target.is_dir():
        raise InvalidInputError(f"folder must be a folder or not exist yet, got the file {target}")
    try:
        target.mkdir(parents=True, exist_ok=True)
        # Without its configuration a folder is no checkpoint, so a half-replaced one cannot pass for a whole one.
        (target / CONFIG_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror or error}); {ADVICE}") from error
    config, card = checkpoint.config, checkpoint.card
    save_weights(target / HUB_FILE, checkpoint.state, config, card)
    if not (target / CARD_FILE).exists():
        names = checkpoint.labels.names
        write_whole(target / CARD_FILE, model_card(config, card, names).encode())
    write_whole(target / CONFIG_FILE, config_text(config, card).encode())
    return target

"""Uploading a checkpoint to anyone's Hub repository, and comparing what the Hub recorded with what was sent."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ..errors import CheckpointError, InvalidInputError, VerificationError
from .access import Token
from .digests import digests
from .fetch import CONFIG_FILE
from .load import Checkpoint, load_checkpoint
from .manifest import HUB_FILE
from .save import CARD_FILE, save_checkpoint

UPLOADED = (HUB_FILE, CONFIG_FILE, CARD_FILE)


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    token: Token = None,
    private: bool = False,
    message: str = "Add an audiotag checkpoint",
) -> str:
    """Upload a checkpoint folder to a Hub repository, which is made if need be.

    Parameters
    ----------
    folder : path
        As `convert` or `save_checkpoint` writes it. Only its model, configuration and card are uploaded.
    repo_id : str
        ``owner/name``.
    token : str or bool, optional
        As in `huggingface_hub`; None for the one ``hf auth login`` stored.
    private : bool
        Whether a repository that is made is private.

    Returns
    -------
    str
        The revision made: the commit whose files these are.

    Raises
    ------
    CheckpointError
        If the folder does not hold a checkpoint that loads, or the Hub refuses.
    VerificationError
        If what the Hub recorded is not what was uploaded.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_url

    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise InvalidInputError(f"folder must be a checkpoint folder, got {str(folder)!r}")
    load_checkpoint(folder)
    api = HfApi(token=token, library_name="audiotag")
    present = [name for name in UPLOADED if (folder / name).is_file()]
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in present]
        commit = api.create_commit(repo_id, operations, commit_message=message).oid
        stored = api.get_hf_file_metadata(url=hf_hub_url(repo_id, HUB_FILE, revision=commit), token=token)
    except Exception as error:  # the HTTP client's own errors, which differ between versions of huggingface_hub
        reason = str(error).split("\n")[0] or type(error).__name__
        step = "check the name and the connection, and log in with 'hf auth login' or pass a token that may write"
        raise CheckpointError(f"{repo_id}: the upload failed ({reason}); {step}") from error
    found = digests(folder / HUB_FILE)
    if stored.etag not in (found.sha256, found.git_blob_sha1) or stored.size != found.size:
        raise VerificationError(
            f"{repo_id} at {commit}: the Hub holds {HUB_FILE} as {stored.etag} of {stored.size} bytes (expected "
            f"{found.sha256}, {found.size}); upload it again"
        )
    return commit


def push_checkpoint(checkpoint: Checkpoint, repo_id: str, *, token: Token = None, private: bool = False) -> str:
    """Upload a loaded checkpoint; see `push_to_hub`."""
    with tempfile.TemporaryDirectory() as folder:
        return push_to_hub(save_checkpoint(checkpoint, folder), repo_id, token=token, private=private)

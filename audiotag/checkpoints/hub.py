"""Files from the Hugging Face Hub, verified against what the manifest or the Hub records for them.

`huggingface_hub` because its cache, tokens and environment variables are the ones users have. The Hub names a large
file's content by its SHA-256 and a small one's by its git blob SHA-1, and the cache keeps that name; so a cached file
can be verified offline.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import DownloadError, VerificationError
from .digests import digests, mismatch
from .manifest import Source

log = logging.getLogger(__name__)

CacheDir = str | os.PathLike[str] | None
Token = str | bool | None


def _plain(cache_dir: CacheDir) -> str | None:
    return None if cache_dir is None else os.path.expanduser(cache_dir)


def offline() -> bool:
    """Whether ``HF_HUB_OFFLINE`` forbids using the network."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def cached_file(repo_id: str, name: str, revision: str | None, cache_dir: CacheDir) -> Path | None:
    """The file in the Hub's cache, unverified; None where it is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo_id, name, cache_dir=_plain(cache_dir), revision=revision)
    return Path(found) if isinstance(found, str) and os.path.exists(found) else None


def hub_file(
    repo_id: str,
    name: str,
    *,
    expected: Source | None,
    revision: str | None,
    cache_dir: CacheDir,
    local_files_only: bool,
    token: Token,
) -> Path:
    """A verified file of a repository, from the cache or the Hub; one that fails is fetched once more.

    Parameters
    ----------
    expected : Source, optional
        What the manifest records; None for a repository that is not in it, whose files are compared with the
        digests the Hub records.

    Raises
    ------
    DownloadError
        If repository, revision or file do not exist, or the Hub cannot be reached, or the disk refuses.
    VerificationError
        If the file is not what is recorded.
    """
    local = local_files_only or offline()
    options: dict[str, Any] = {"cache_dir": _plain(cache_dir), "token": token}
    path = _download(repo_id, name, revision, local, **options)
    difference = _difference(path, repo_id, name, expected, token, local)
    if difference and not local:
        log.warning("%s: %s; fetching it again", path, difference)
        with _explained(str(path)):
            path.unlink()  # huggingface_hub would leave a file that is no link in place
        path = _download(repo_id, name, revision, local, force_download=True, **options)
        difference = _difference(path, repo_id, name, expected, token, local)
    if difference:
        step = "delete it and fetch it with a connection" if local else "report it to the repository's owner"
        raise VerificationError(f"{path}: {difference}; the file was not used; {step}")
    return path


def _difference(path: Path, repo_id: str, name: str, expected: Source | None, token: Token, local: bool) -> str | None:
    if expected is None:
        if local and not path.is_symlink():
            log.warning("%s: cannot be verified offline, because this cache has no links", path)
            return None
        expected = _hub_record(path, repo_id, name, token)
    if expected is None:
        return "the Hub records no digest of it"
    try:
        return mismatch(digests(path), expected)
    except OSError as error:
        reason = error.strerror or error
        raise DownloadError(f"{path}: cannot be read ({reason}); check its permissions or delete it") from error


def _hub_record(path: Path, repo_id: str, name: str, token: Token) -> Source | None:
    """The digest the Hub records: the name of the blob behind the cache's link, else what the Hub answers."""
    if path.is_symlink():
        etag = Path(os.readlink(path)).name
    else:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        commit = path.parent.name  # the cache lays a repository's files out as snapshots/<commit>/<name>
        with _explained(f"{repo_id}/{name} at revision {commit}"):
            etag = get_hf_file_metadata(hf_hub_url(repo_id, name, revision=commit), token=token).etag or ""
    if re.fullmatch(r"[0-9a-f]{64}", etag):
        return Source("hub", name, sha256=etag)
    return Source("hub", name, git_blob_sha1=etag) if re.fullmatch(r"[0-9a-f]{40}", etag) else None


def _download(repo_id: str, name: str, revision: str | None, local_files_only: bool, **options: Any) -> Path:
    from huggingface_hub import hf_hub_download

    with _explained(f"{repo_id}/{name}" + (f" at revision {revision}" if revision else ""), local_files_only):
        return Path(
            hf_hub_download(
                repo_id,
                name,
                revision=revision,
                local_files_only=local_files_only,
                library_name="audiotag",
                **options,
            )
        )


@contextmanager
def _explained(where: str, local: bool = False) -> Iterator[None]:
    """Turn whatever `huggingface_hub` raises into a `DownloadError` that says what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        step = "accept its terms on the Hub, then log in with 'hf auth login' or pass token"
        raise DownloadError(f"{where}: the repository is gated; {step}") from error
    except errors.RepositoryNotFoundError as error:
        step = "check the name; if it is private, log in with 'hf auth login' or pass token"
        raise DownloadError(f"{where}: the Hub has no such repository, or hides it; {step}") from error
    except errors.RevisionNotFoundError as error:
        raise DownloadError(f"{where}: the repository has no such revision; check the commit, tag or branch") from error
    except errors.LocalEntryNotFoundError as error:
        step = "check the connection"
        if local:
            step = "fetch it once with a connection, or unset HF_HUB_OFFLINE and local_files_only"
        raise DownloadError(f"{where}: not in the cache, and the Hub was not reached; {step}") from error
    except errors.EntryNotFoundError as error:
        raise DownloadError(f"{where}: the repository has no such file; it is not an audiotag checkpoint") from error
    except Exception as error:  # the disk's errors, and the HTTP client's, which huggingface_hub has exchanged once
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0] or type(error).__name__
        step = "check the connection, the disk's space, and that the cache is writable"
        raise DownloadError(f"{where}: {reason}; {step}") from error

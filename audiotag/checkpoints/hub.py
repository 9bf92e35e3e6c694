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

from ..errors import DownloadError, InvalidInputError, VerificationError
from .access import Access, Token
from .digests import difference
from .manifest import Source

log = logging.getLogger(__name__)


def cached_file(repo_id: str, name: str, revision: str | None, access: Access) -> Path | None:
    """Find a file in the Hub's cache, unverified; None where it is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo_id, name, cache_dir=access.hub_dir, revision=revision)
    return Path(found) if isinstance(found, str) and os.path.exists(found) else None


def hub_file(
    repo_id: str, name: str, access: Access, *, expected: Source | None = None, revision: str | None = None
) -> Path:
    """Find or fetch a verified file of a repository; one in the cache that fails is fetched once more.

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
    path = _download(repo_id, name, revision, access)
    wrong = _difference(path, repo_id, name, expected, access)
    if wrong and not access.offline:
        log.warning("%s: %s; fetching it again", path, wrong)
        with _explained(str(path)):
            path.unlink()  # huggingface_hub would leave a file that is no link in place
        path = _download(repo_id, name, revision, access, again=True)
        wrong = _difference(path, repo_id, name, expected, access)
    if wrong:
        step = "delete it and fetch it with a connection" if access.offline else "report it to the repository's owner"
        raise VerificationError(f"{path}: {wrong}; the file was not used; {step}")
    return path


def _difference(path: Path, repo_id: str, name: str, expected: Source | None, access: Access) -> str | None:
    if expected is None:
        if access.offline and not path.is_symlink():
            log.warning("%s: cannot be verified offline, because this cache has no links", path)
            return None
        expected = _hub_record(path, repo_id, name, access.token)
    return "the Hub records no digest of it" if expected is None else difference(path, expected)


def _hub_record(path: Path, repo_id: str, name: str, token: Token) -> Source | None:
    """Look up the digest the Hub records: the name of the blob behind the cache's link, else what the Hub answers."""
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


def _download(repo_id: str, name: str, revision: str | None, access: Access, *, again: bool = False) -> Path:
    from huggingface_hub import hf_hub_download

    with _explained(f"{repo_id}/{name}" + (f" at revision {revision}" if revision else ""), access.offline):
        return Path(
            hf_hub_download(
                repo_id,
                name,
                revision=revision,
                cache_dir=access.hub_dir,
                token=access.token,
                library_name="audiotag",
                local_files_only=access.offline,
                force_download=again,
            )
        )


@contextmanager
def _explained(where: str, local: bool = False) -> Iterator[None]:
    """Turn whatever `huggingface_hub` raises into a `DownloadError` that says what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError as error:
        raise InvalidInputError(f"{where}: a Hub repository is called owner/name ({error})") from error
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

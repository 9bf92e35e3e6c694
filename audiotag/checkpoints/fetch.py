"""Fetching checkpoints: which source of an entry serves, what is cached and where. No torch.

Release files are kept in ``$HF_HOME/audiotag``, Hub files in the Hub's own cache; ``cache_dir`` replaces both. The
environment variable ``AUDIOTAG_RELEASE_URL`` replaces the release's address, for a mirror: files are verified against
the manifest wherever they come from.
"""

from __future__ import annotations

import logging
import os
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CheckpointError, DownloadError, VerificationError
from . import hub, release
from .digests import verify
from .manifest import HUB_FILE, Entry, Manifest, Source, manifest

log = logging.getLogger(__name__)

RELEASE_URL_VARIABLE = "AUDIOTAG_RELEASE_URL"
CONFIG_FILE = "config.json"  # beside HUB_FILE in every Hub repository and checkpoint folder


class Fetched(NamedTuple):
    """A verified file and where it came from, in words."""

    path: Path
    origin: str


def release_url(source: Source, known: Manifest, base: str | None = None) -> str:
    """Address of a release file, under `base` instead of the manifest's address if given."""
    return f"{(base or known.release_url).rstrip('/')}/{source.file}"


def release_path(source: Source, cache_dir: hub.CacheDir = None) -> Path:
    """Where a release file is cached."""
    from huggingface_hub import constants

    return Path(cache_dir or constants.HF_HOME).expanduser() / "audiotag" / source.file


def package_path(source: Source) -> Path:
    """Where a file of the package lies."""
    return Path(str(files("audiotag").joinpath(source.file)))


def locate(entry: Entry, source: Source, known: Manifest, cache_dir: hub.CacheDir = None) -> Path | None:
    """Where a source's file lies on this machine, unverified; None where it does not."""
    if source.kind == "hub":
        repo_id = known.hub_repository(entry.name)
        return None if repo_id is None else hub.cached_file(repo_id, source.file, source.revision, cache_dir)
    path = package_path(source) if source.kind == "package" else release_path(source, cache_dir)
    return path if path.is_file() else None


def is_cached(entry: Entry, cache_dir: hub.CacheDir = None) -> Path | None:
    """The entry's file on this machine, from whichever source and not yet verified; None where it has to be fetched."""
    known = manifest()
    paths = (locate(entry, source, known, cache_dir) for source in known.usable_sources(entry))
    return next((path for path in paths if path is not None), None)


def status(name: str, *, cache_dir: hub.CacheDir = None) -> dict[str, Any]:
    """What ``audiotag models`` shows of an entry.

    Returns
    -------
    dict
        The entry's facts; ``size`` in bytes (of the source that would serve, None if unknown); ``from``, where it would
        come from, in words; ``verifiable``, whether a digest is known; ``cached``, its path on this machine or None.
    """
    known = manifest()
    entry = known.entry(name)
    source = known.usable_sources(entry)[0]
    cached = is_cached(entry, cache_dir)
    places = {"package": "package", "hub": f"Hub {known.hub_repository(name)}", "release": "authors' release"}
    return {
        "name": name,
        "architecture": entry.config.network.architecture,
        "width": entry.config.network.width,
        **entry.card(),
        "size": source.size,
        "from": places[source.kind],
        "verifiable": source.verifiable,
        "cached": None if cached is None else str(cached),
    }


def fetch(
    name: str,
    *,
    revision: str | None = None,
    cache_dir: hub.CacheDir = None,
    local_files_only: bool = False,
    token: hub.Token = None,
    allow_unverified: bool = False,
) -> Path:
    """Fetch and verify a checkpoint of the manifest, or a Hub repository's, for later use; see `load_checkpoint`.

    Returns
    -------
    Path
        The weights' file.
    """
    options: dict[str, Any] = {"cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
    known = manifest()
    if name not in known.entries and "/" in name:
        return fetch_repository(name, revision=revision, **options)[0] / HUB_FILE
    return fetch_entry(known.entry(name), known, allow_unverified=allow_unverified, **options).path


def fetch_entry(
    entry: Entry,
    known: Manifest,
    *,
    cache_dir: hub.CacheDir = None,
    local_files_only: bool = False,
    token: hub.Token = None,
    allow_unverified: bool = False,
) -> Fetched:
    """The verified file of an entry: one that is cached, else from the first of its sources that can serve.

    Raises
    ------
    CheckpointError
        If the wheel's own file is missing.
    DownloadError
        If no source can be reached, or the file cannot be stored.
    VerificationError
        If what was found is not what is recorded, or nothing is recorded and `allow_unverified` is not given.
    """
    sources = known.usable_sources(entry)
    local = local_files_only or hub.offline()
    # A cached file of a later source is better than a download from an earlier one.
    ordered = sorted(sources, key=lambda source: locate(entry, source, known, cache_dir) is None)
    failures: list[CheckpointError] = []
    for source in ordered:
        try:
            if source.kind == "package":
                return _from_package(entry, source)
            if source.kind == "hub":
                return _from_hub(entry, source, known, cache_dir, local, token)
            return _from_release(entry, source, known, cache_dir, local, allow_unverified)
        except (DownloadError, VerificationError) as error:
            log.info("%s: source %r failed: %s", entry.name, source.kind, error)
            failures.append(error)
    kind = VerificationError if any(isinstance(f, VerificationError) for f in failures) else DownloadError
    raise kind(f"{entry.name}: " + "; ".join(str(failure) for failure in failures)) from failures[0]


def _from_package(entry: Entry, source: Source) -> Fetched:
    path = package_path(source)
    if not path.is_file():
        raise CheckpointError(f"{path}: missing from this installation; reinstall audiotag-dymn")
    verify(path, source, "reinstall audiotag-dymn")
    return Fetched(path, f"{entry.name}, inside the package")


def _from_hub(
    entry: Entry, source: Source, known: Manifest, cache_dir: hub.CacheDir, local: bool, token: hub.Token
) -> Fetched:
    repo_id = known.hub_repository(entry.name)
    assert repo_id is not None
    options: dict[str, Any] = {"cache_dir": cache_dir, "local_files_only": local, "token": token}
    path = hub.hub_file(repo_id, source.file, expected=source, revision=source.revision, **options)
    return Fetched(path, f"Hub repository {repo_id} at {source.revision}")


def _from_release(
    entry: Entry, source: Source, known: Manifest, cache_dir: hub.CacheDir, local: bool, allow_unverified: bool
) -> Fetched:
    url, path = release_url(source, known, os.environ.get(RELEASE_URL_VARIABLE)), release_path(source, cache_dir)
    fetched = Fetched(path, url)
    if path.is_file():
        difference = release.check_cached(path, source)
        if difference is None:
            return fetched
        if local:
            raise VerificationError(
                f"{path}: {difference}; the file was not used; delete it and run 'audiotag fetch {entry.name}' with a "
                "connection"
            )
        log.warning("%s: %s; fetching it again", path, difference)
    elif local:
        raise DownloadError(
            f"{path} is not there, and the network is not to be used; run 'audiotag fetch {entry.name}' with a "
            "connection, or unset HF_HUB_OFFLINE and local_files_only"
        )
    if not source.verifiable and not allow_unverified:
        raise VerificationError(
            f"{url} is not fetched: no digest of it is known, so it cannot be verified; if you trust the address, say "
            f"so with 'audiotag fetch {entry.name} --allow-unverified' or allow_unverified=True, which print the digest"
        )
    release.fetch_file(url, source, path)
    return fetched


def fetch_repository(
    repo_id: str,
    *,
    revision: str | None = None,
    cache_dir: hub.CacheDir = None,
    local_files_only: bool = False,
    token: hub.Token = None,
) -> tuple[Path, str]:
    """Configuration and weights of any Hub repository, both of one commit, compared with the digests the Hub records.

    Returns
    -------
    folder : Path
        Where ``config.json`` and ``model.safetensors`` lie.
    origin : str
        Repository and commit, in words.
    """
    options: dict[str, Any] = {"cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
    folder = hub.hub_file(repo_id, CONFIG_FILE, expected=None, revision=revision, **options).parent
    hub.hub_file(repo_id, HUB_FILE, expected=None, revision=folder.name, **options)
    return folder, f"Hub repository {repo_id} at {folder.name}"

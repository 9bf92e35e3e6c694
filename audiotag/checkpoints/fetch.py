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
from . import hub
from .access import Access
from .digests import difference
from .manifest import HUB_FILE, Entry, Manifest, Source, manifest

log = logging.getLogger(__name__)

RELEASE_URL_VARIABLE = "AUDIOTAG_RELEASE_URL"
CONFIG_FILE = "config.json"  # beside HUB_FILE in every Hub repository and checkpoint folder


class Fetched(NamedTuple):
    """A verified file and where it came from, in words."""

    path: Path
    origin: str


def release_url(source: Source, base: str) -> str:
    """Return the address of a release file under the release's address."""
    return f"{base.rstrip('/')}/{source.file}"


def package_path(source: Source) -> Path:
    """Return where a file of the package lies."""
    return Path(str(files("audiotag").joinpath(source.file)))


def locate(entry: Entry, source: Source, known: Manifest, access: Access) -> Path | None:
    """Find a source's file on this machine, unverified; None where it is not there."""
    if source.kind == "hub":
        repo_id = known.hub_repository(entry.name)
        return None if repo_id is None else hub.cached_file(repo_id, source.file, source.revision, access)
    path = package_path(source) if source.kind == "package" else access.release_dir / source.file
    return path if path.is_file() else None


def is_cached(entry: Entry, access: Access = Access()) -> Path | None:
    """Find an entry's file on this machine, of whichever source and unverified; None where it has to be fetched."""
    known = manifest()
    paths = (locate(entry, source, known, access) for source in known.usable_sources(entry))
    return next((path for path in paths if path is not None), None)


def status(name: str, access: Access = Access()) -> dict[str, Any]:
    """Collect what ``audiotag models`` shows of an entry.

    Returns
    -------
    dict
        The entry's facts; ``size`` in bytes (of the source that would serve, None if unknown); ``from``, where it would
        come from, in words; ``verifiable``, whether a digest is known; ``cached``, its path on this machine or None.
    """
    known = manifest()
    entry = known.entry(name)
    source = known.usable_sources(entry)[0]
    cached = is_cached(entry, access)
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


def fetch(name: str, access: Access = Access()) -> Path:
    """Fetch and verify a checkpoint of the manifest, or a Hub repository's, for later use.

    Returns
    -------
    Path
        The weights' file.
    """
    known = manifest()
    if name not in known.entries and "/" in name:
        return fetch_repository(name, access)[0] / HUB_FILE
    return fetch_entry(known.entry(name), known, access).path


def fetch_entry(entry: Entry, known: Manifest, access: Access = Access()) -> Fetched:
    """Find or fetch the verified file of an entry: one that is cached, else from the first source that can serve.

    Raises
    ------
    CheckpointError
        If the wheel's own file is missing.
    DownloadError
        If no source can be reached, or the file cannot be stored.
    VerificationError
        If what was found is not what is recorded, or nothing is recorded and unverified files are not allowed.
    """
    # A cached file of a later source is better than a download from an earlier one.
    sources = sorted(known.usable_sources(entry), key=lambda source: locate(entry, source, known, access) is None)
    failures: list[CheckpointError] = []
    for source in sources:
        try:
            return _SERVED[source.kind](entry, source, known, access)
        except (DownloadError, VerificationError) as error:
            log.info("%s: source %r failed: %s", entry.name, source.kind, error)
            failures.append(error)
    kind = VerificationError if any(isinstance(f, VerificationError) for f in failures) else DownloadError
    raise kind(f"{entry.name}: " + "; ".join(str(failure) for failure in failures)) from failures[0]


def _from_package(entry: Entry, source: Source, known: Manifest, access: Access) -> Fetched:
    path = package_path(source)
    if not path.is_file():
        raise CheckpointError(f"{path}: missing from this installation; reinstall audiotag-dymn")
    if wrong := difference(path, source):
        raise VerificationError(f"{path}: {wrong}; the file was not used; reinstall audiotag-dymn")
    return Fetched(path, f"{entry.name}, inside the package")


def _from_hub(entry: Entry, source: Source, known: Manifest, access: Access) -> Fetched:
    repo_id = known.hub_repository(entry.name)
    assert repo_id is not None
    path = hub.hub_file(repo_id, source.file, access, expected=source, revision=source.revision)
    return Fetched(path, f"Hub repository {repo_id} at {source.revision}")


def _from_release(entry: Entry, source: Source, known: Manifest, access: Access) -> Fetched:
    from . import release  # with urllib and ssl, a tenth of a short command's time

    url = release_url(source, os.environ.get(RELEASE_URL_VARIABLE) or known.release_url)
    path = access.release_dir / source.file
    step = f"run 'audiotag fetch {entry.name}' with a connection"
    if path.is_file():
        wrong = release.check_cached(path, source)
        if wrong is None:
            return Fetched(path, url)
        if access.offline:
            raise VerificationError(f"{path}: {wrong}; the file was not used; delete it and {step}")
        log.warning("%s: %s; fetching it again", path, wrong)
    elif access.offline:
        raise DownloadError(
            f"{path} is not there, and the network is not to be used; {step}, or unset HF_HUB_OFFLINE and "
            "local_files_only"
        )
    if not source.verifiable and not access.allow_unverified:
        raise VerificationError(
            f"{url} is not fetched: no digest of it is known, so it cannot be verified; if you trust the address, say "
            f"so with 'audiotag fetch {entry.name} --allow-unverified' or allow_unverified=True, which print the digest"
        )
    release.fetch_file(url, source, path)
    return Fetched(path, url)


_SERVED = {"package": _from_package, "hub": _from_hub, "release": _from_release}


def fetch_repository(repo_id: str, access: Access = Access()) -> tuple[Path, str]:
    """Fetch configuration and weights of any Hub repository, of one commit, compared with the digests the Hub records.

    Returns
    -------
    folder : Path
        Where ``config.json`` and ``model.safetensors`` lie.
    origin : str
        Repository and commit, in words.
    """
    folder = hub.hub_file(repo_id, CONFIG_FILE, access, revision=access.revision).parent
    hub.hub_file(repo_id, HUB_FILE, access, revision=folder.name)
    return folder, f"Hub repository {repo_id} at {folder.name}"

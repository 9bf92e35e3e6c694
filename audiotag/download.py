"""Fetching checkpoints: the wheel's own file, the Hub, the authors' release files; the only module that uses the network."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from .errors import CheckpointError, DownloadError
from .manifest import Entry, Manifest
from .verify import verify


class Fetched(NamedTuple):
    """A verified file and where it came from, in words."""

    path: Path
    origin: str


def package_path(file: str) -> Path:
    """Where a file of the package lies."""
    return Path(str(files("audiotag").joinpath(file)))


def fetch_entry(
    entry: Entry,
    known: Manifest,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    allow_unverified: bool = False,
) -> Fetched:
    """The verified file of an entry, from the first of its sources that has it."""
    for source in known.usable_sources(entry):
        if source.kind == "package":
            path = package_path(source.file)
            if not path.is_file():
                raise CheckpointError(
                    f"{path}: the built-in checkpoint is not in this installation; reinstall audiotag-dymn"
                )
            verify(path, source, "reinstall audiotag-dymn")
            return Fetched(path, f"{entry.name}, inside the package")
    raise DownloadError(f"{entry.name}: nothing can be fetched yet")


def fetch_repository(
    repo_id: str,
    names: tuple[str, ...],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> tuple[Path, str]:
    raise DownloadError(f"{repo_id}: nothing can be fetched yet")

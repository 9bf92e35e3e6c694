"""Digests: files are compared with what is recorded for them before anything reads them. No torch, no network."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import NamedTuple

from ..errors import DownloadError
from .manifest import Source

CHUNK_BYTES = 1 << 20
KINDS = {"sha256": "SHA-256", "git_blob_sha1": "git blob SHA-1"}


class Digests(NamedTuple):
    """Size in bytes of a file, and its SHA-256 and git blob SHA-1 in lower-case hexadecimal; None: not computed."""

    size: int
    sha256: str | None = None
    git_blob_sha1: str | None = None


def digests(path: str | os.PathLike[str], kinds: Sequence[str] = tuple(KINDS)) -> Digests:
    """Compute digests of a file in one pass.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        # git hashes a header with the size, then the content; SHA-1 here is git's name for the file.
        begun = {
            "sha256": hashlib.sha256(),
            "git_blob_sha1": hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False),
        }
        while chunk := file.read(CHUNK_BYTES):
            for kind in kinds:
                begun[kind].update(chunk)
    return Digests(size, **{kind: begun[kind].hexdigest() for kind in kinds})


def difference(path: str | os.PathLike[str], expected: Source) -> str | None:
    """Compare a file with its recorded digests: what differs, as "size 3 (expected 4)", or None where all agrees.

    Raises
    ------
    DownloadError
        If it cannot be read.
    """
    kinds = [kind for kind in KINDS if getattr(expected, kind) is not None]
    if not kinds:
        return "no digest of it is recorded"
    try:
        size = os.path.getsize(path)
        if expected.size not in (None, size):
            return f"size {size} (expected {expected.size})"
        found = digests(path, kinds)
    except OSError as error:
        reason = error.strerror or error
        raise DownloadError(f"{path}: cannot be read ({reason}); check its permissions or delete it") from error
    pairs = [(KINDS[kind], getattr(found, kind), getattr(expected, kind)) for kind in kinds]
    return ", ".join(f"{label} {got} (expected {want})" for label, got, want in pairs if got != want) or None

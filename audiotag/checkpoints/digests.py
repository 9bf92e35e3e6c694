"""Digests: files are compared with what is recorded for them before anything reads them. No torch, no network."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import Any, NamedTuple

from ..errors import DownloadError
from .manifest import Source

CHUNK_BYTES = 1 << 20


class Digests(NamedTuple):
    """Size in bytes, SHA-256 and git blob SHA-1 of a file, in lower-case hexadecimal."""

    size: int
    sha256: str
    git_blob_sha1: str


def digests(path: str | os.PathLike[str]) -> Digests:
    """Compute all of a file's digests in one pass.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    return Digests(os.path.getsize(path), *_hashed(path, _sha256, _git_blob))


def difference(path: str | os.PathLike[str], expected: Source) -> str | None:
    """Compare a file with its recorded digests: what differs, as "size 3 (expected 4)", or None where all agrees.

    Raises
    ------
    DownloadError
        If it cannot be read.
    """
    recorded = [
        (label, algorithm, want)
        for label, algorithm, want in (
            ("SHA-256", _sha256, expected.sha256),
            ("git blob SHA-1", _git_blob, expected.git_blob_sha1),
        )
        if want is not None
    ]
    if not recorded:
        return "no digest of it is recorded"
    try:
        size = os.path.getsize(path)
        if expected.size not in (None, size):
            return f"size {size} (expected {expected.size})"
        found = _hashed(path, *(algorithm for _, algorithm, _ in recorded))
    except OSError as error:
        reason = error.strerror or error
        raise DownloadError(f"{path}: cannot be read ({reason}); check its permissions or delete it") from error
    pairs = [(label, got, want) for (label, _, want), got in zip(recorded, found, strict=True) if got != want]
    return ", ".join(f"{label} {got} (expected {want})" for label, got, want in pairs) or None


def _sha256(size: int) -> Any:
    return hashlib.sha256()


def _git_blob(size: int) -> Any:
    # git hashes a header with the size, then the content; SHA-1 here is git's name for the file.
    return hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)


def _hashed(path: str | os.PathLike[str], *algorithms: Callable[[int], Any]) -> list[str]:
    with open(path, "rb", buffering=0) as file:
        hashes = [algorithm(os.fstat(file.fileno()).st_size) for algorithm in algorithms]
        while chunk := file.read(CHUNK_BYTES):
            for each in hashes:
                each.update(chunk)
    return [each.hexdigest() for each in hashes]

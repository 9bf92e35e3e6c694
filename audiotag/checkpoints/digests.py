"""Digests: files are compared with what is recorded for them before anything reads them. No torch, no network."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from ..errors import VerificationError
from .manifest import Source

CHUNK_BYTES = 1 << 20


class Digests(NamedTuple):
    """Size in bytes, SHA-256 and git blob SHA-1 of a file, in lower-case hexadecimal."""

    size: int
    sha256: str
    git_blob_sha1: str


def digests(path: str | os.PathLike[str]) -> Digests:
    """Compute all of a file's digests in one pass, a chunk at a time.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        sha256 = hashlib.sha256()
        # git hashes a header with the size, then the content; SHA-1 here is git's name for the file.
        blob = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
        while chunk := file.read(CHUNK_BYTES):
            sha256.update(chunk)
            blob.update(chunk)
    return Digests(size, sha256.hexdigest(), blob.hexdigest())


def mismatch(found: Digests, expected: Source) -> str | None:
    """What differs from the recorded digests, as "size 3 (expected 4)"; None where all that is recorded agrees."""
    differing = []
    for name, label in (("size", "size"), ("sha256", "SHA-256"), ("git_blob_sha1", "git blob SHA-1")):
        want, got = getattr(expected, name), getattr(found, name)
        if want is not None and want != got:
            differing.append(f"{label} {got} (expected {want})")
    return ", ".join(differing) or None


def verify(path: str | os.PathLike[str], expected: Source, next_step: str) -> Digests:
    """Compare a file with every digest recorded in `expected`.

    Parameters
    ----------
    next_step : str
        What the user should do if it differs; ends the message.

    Raises
    ------
    VerificationError
        If the size or a digest differs, or none is recorded. The message names path, found and expected.
    """
    if not expected.verifiable:
        raise VerificationError(f"{path}: no digest of {expected.file} is known, so it cannot be verified; {next_step}")
    found = digests(path)
    if difference := mismatch(found, expected):
        raise VerificationError(f"{Path(path)}: {difference}; the file was not used; {next_step}")
    return found

"""Compiled networks kept on disk, so that the next start need not compile.

They lie in ``$HF_HOME/audiotag/compiled`` (without HF_HOME: ``$XDG_CACHE_HOME/huggingface`` or
``~/.cache/huggingface``), one file for each combination of weights, configuration, shape, options, CPU and library
version: whatever differs has another file. A file begins with the digest of its key and of its content; one that is
damaged or not ours is not read and is written anew. The folder may be deleted at any time. A disk that refuses to be
written to only costs the time.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..errors import AudiotagError
from ..files import write_whole

log = logging.getLogger(__name__)

MAGIC = b"audiotag compiled network 1\n"
KEPT_BYTES = 500_000_000  # beyond that the files used longest ago go
_DIGEST = hashlib.sha256().digest_size


def cache_folder() -> Path:
    """Return where compiled networks are kept."""
    home = os.environ.get("HF_HOME")
    base = Path(home) if home else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return base.expanduser() / "audiotag" / "compiled"


def state_digest(state: Mapping[str, np.ndarray]) -> str:
    """Digest a state dict: names, shapes, types and values."""
    digest = hashlib.sha256()
    for name, array in sorted(state.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


class CompiledFiles:
    """The kept networks of one runtime, by a key in words.

    Parameters
    ----------
    runtime : str
        Its name, the ending of the files.
    """

    def __init__(self, runtime: str) -> None:
        self._runtime = runtime

    def _path(self, key: str) -> Path:
        return cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.{self._runtime}"

    def read(self, key: str) -> bytes | None:
        """Return the content written under a key; None where there is none that is whole."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        head = MAGIC + hashlib.sha256(key.encode()).digest()
        body = memoryview(content)[len(head) + _DIGEST :]
        if not content.startswith(head) or hashlib.sha256(body).digest() != content[len(head) : len(head) + _DIGEST]:
            log.info("%s: damaged or of another program; compiled anew", path)
            self.forget(key)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return bytes(body)

    def write(self, key: str, content: bytes) -> None:
        """Keep content under a key, whole or not at all."""
        path = self._path(key)
        head = MAGIC + hashlib.sha256(key.encode()).digest() + hashlib.sha256(content).digest()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, head + bytes(content))
            self._tidy(path)
        except (OSError, AudiotagError) as error:
            log.info("%s: compiled network not kept (%s)", path, error)

    def _tidy(self, newest: Path) -> None:
        """Remove the files used longest ago, so that all together do not grow without end."""
        files = [(file.stat(), file) for file in newest.parent.glob(f"*.{self._runtime}") if file != newest]
        held = newest.stat().st_size
        for status, file in sorted(files, key=lambda entry: entry[0].st_mtime, reverse=True):
            held += status.st_size
            if held > KEPT_BYTES:
                file.unlink(missing_ok=True)

    def forget(self, key: str) -> None:
        """Remove what a key has."""
        with contextlib.suppress(OSError):
            self._path(key).unlink()

"""Corpora bigger than one machine: any number of recordings, local or in object storage, on Ray or on plain processes.

>>> from audiotag import corpus                                                       # doctest: +SKIP
>>> corpus.run(["s3://bucket/audio/"], "s3://bucket/tags/", model="dymn10_as")        # doctest: +SKIP

Importing this imports neither Ray nor pyarrow nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .driver import run
    from .summary import Summary

__all__ = ["Summary", "run"]

_HOME = {"run": "driver", "Summary": "summary"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'audiotag.corpus' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)

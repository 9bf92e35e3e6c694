"""How checkpoints are found and fetched: those options of `Tagger.from_pretrained`, as one value."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checks import shown
from ..errors import InvalidInputError

CacheDir = str | os.PathLike[str] | None
Token = str | bool | None


@dataclass(frozen=True)
class Access:
    """Where downloads are kept, and what may be fetched.

    Attributes
    ----------
    cache_dir : path, optional
        Where downloads are kept, instead of under ``HF_HOME``.
    local_files_only : bool
        Use what is cached and do not touch the network, as ``HF_HUB_OFFLINE=1`` does.
    token : str or bool, optional
        Of the Hub, as in `huggingface_hub`.
    revision : str, optional
        Commit, tag or branch of a Hub repository; only for those.
    allow_unverified : bool
        Fetch files whose digest is not known; the digest found is logged and holds from then on.

    Raises
    ------
    InvalidInputError
        One is of a type that it cannot be.
    """

    cache_dir: CacheDir = None
    local_files_only: bool = False
    token: Token = field(default=None, repr=False)
    revision: str | None = None
    allow_unverified: bool = False

    def __post_init__(self) -> None:
        for name, kinds, what in (
            ("cache_dir", (str, os.PathLike), "a path"),
            ("token", (str, bool), "a string or a bool"),
            ("revision", (str,), "a commit, tag or branch"),
        ):
            value: Any = getattr(self, name)
            if value is not None and (not isinstance(value, kinds) or value == ""):
                got = type(value).__name__ if name == "token" else shown(value)
                raise InvalidInputError(f"{name} must be {what} or None, got {got}")

    @property
    def offline(self) -> bool:
        """Whether the network is not to be used, by `local_files_only` or ``HF_HUB_OFFLINE``."""
        from huggingface_hub import constants

        return self.local_files_only or bool(constants.HF_HUB_OFFLINE)

    @property
    def hub_dir(self) -> str | None:
        """The folder in place of the Hub's cache; None for the Hub's own."""
        return None if self.cache_dir is None else os.path.expanduser(self.cache_dir)

    @property
    def release_dir(self) -> Path:
        """The folder in which release files are kept."""
        from huggingface_hub import constants

        return Path(self.hub_dir or constants.HF_HOME) / "audiotag"

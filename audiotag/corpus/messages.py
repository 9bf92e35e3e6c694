"""Messages between a worker and its child."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .items import Entry
from .options import Options


@dataclass(frozen=True)
class Setup:
    """What the child needs before it can work.

    model: a folder as `Tagger.save_pretrained` writes it. analysis: the digest of model and options that goes into
    ids.
    """

    model: str
    analysis: str
    options: Options
    runtime: str = "auto"
    device: str | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class Job:
    """Entries to work on: only the items of these ids, or, if None, all but those to skip.

    again: this is not the first time, so files may have changed.
    """

    entries: list[Entry]
    again: bool = False
    skip: frozenset[str] = frozenset()
    only: frozenset[str] | None = None

    def wanted(self, id_: str) -> bool:
        """Whether an item of this id is part of the job."""
        return id_ not in self.skip if self.only is None else id_ in self.only


class Ready:
    """The first answer: the model is loaded."""


@dataclass(frozen=True)
class Begun:
    """An item is being opened; `failure` is its row, but for the error, if nothing more is heard of it."""

    place: int
    failure: dict[str, Any]


@dataclass(frozen=True)
class Beat:
    """The item that was begun goes on."""


@dataclass(frozen=True)
class Done:
    """An item's row, and its place among the part's items."""

    place: int
    row: dict[str, Any]


class Finished:
    """The job is done."""

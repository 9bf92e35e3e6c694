"""Clips, what is known of each, and all of them together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from .problems import Problems


@dataclass(frozen=True)
class Clip:
    """One thing to learn from or test on: a recording, or a stretch of one, and what is known of it.

    Attributes
    ----------
    path : str
    onset_s, offset_s : float or None
        The stretch; None for the whole recording.
    present, absent, unknown : frozenset of str
        Labels; one that is named nowhere is absent.
    where : str
        The file, or the table's line, that says so.
    fold, split, group : str
        As given; empty where not.
    columns : mapping
        Further columns of a table.
    digest : str
        SHA-256 of the file's bytes.
    duration_s : float
        Of the clip, as far as the header tells; nan where it does not.
    """

    path: str
    onset_s: float | None = None
    offset_s: float | None = None
    present: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()
    unknown: frozenset[str] = frozenset()
    where: str = ""
    fold: str = ""
    split: str = ""
    group: str = ""
    columns: dict[str, str] = field(default_factory=dict, hash=False, compare=False)
    digest: str = ""
    duration_s: float = float("nan")

    @property
    def name(self) -> str:
        """For people: the path, with the stretch where it is one."""
        return self.path if self.onset_s is None else f"{self.path} [{self.onset_s:g} to {self.offset_s:g} s]"


@dataclass(frozen=True)
class Dataset:
    """Clips, the labels they carry in alphabetical order, and what was found on the way.

    Attributes
    ----------
    clips : tuple of Clip
    labels : tuple of str
    task : {"single", "multi"}
    problems : Problems
        Warnings only.
    unreadable : dict
        Path to reason, of recordings that were left out.
    root : str
        Folder that paths are shown from.
    """

    clips: tuple[Clip, ...]
    labels: tuple[str, ...]
    task: str
    problems: Problems
    unreadable: dict[str, str]
    root: str

    @cached_property
    def targets(self) -> np.ndarray:
        """float32 (clips, labels): 1 present, 0 absent, nan unknown; read-only."""
        targets = clip_targets(self.clips, self.labels)
        targets.flags.writeable = False
        return targets

    def shown(self, clip: Clip) -> str:
        """A clip's name from `root`."""
        inside = os.path.relpath(clip.path, self.root)
        return replace(clip, path=clip.path if inside.startswith("..") else inside).name


def clip_targets(clips: Sequence[Clip], labels: Sequence[str]) -> np.ndarray:
    """float32 (clips, labels): 1 present, 0 absent, nan unknown."""
    index = {name: i for i, name in enumerate(labels)}
    targets = np.zeros((len(clips), len(labels)), np.float32)
    for row, clip in zip(targets, clips, strict=True):
        row[[index[name] for name in clip.unknown if name in index]] = np.nan
        row[[index[name] for name in clip.present if name in index]] = 1.0
    return targets

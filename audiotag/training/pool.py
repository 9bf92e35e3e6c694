"""Feature maps of the last clips, kept in memory: a clip is mixed once and learned from several times."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class MapPool:
    """The last `size` clips as float16 maps; clip n lies in place n modulo `size`.

    Parameters
    ----------
    size : int
        Clips it holds.
    """

    def __init__(self, size: int) -> None:
        self.size, self.made = size, 0
        self._maps: list[Tensor] = []

    def put(self, maps: Sequence[Tensor], first: int) -> None:
        """Add clips `first`, `first` + 1, ...; every one of `maps` is (clips, ...) and describes the same clips."""
        if not self._maps:
            self._maps = [m.new_empty((self.size, *m.shape[1:]), dtype=torch.float16) for m in maps]
        places = torch.arange(first, first + len(maps[0])) % self.size
        for kept, new in zip(self._maps, maps, strict=True):
            kept[places] = new.half()
        self.made = first + len(maps[0])

    def draw(self, rng: np.random.Generator, count: int, newest: int) -> list[Tensor]:
        """Return maps of `count` clips, float32: the `newest` last ones, and others drawn from all that are held."""
        new = (self.made - 1 - np.arange(newest)) % self.size
        old = rng.choice(min(self.made, self.size), count - newest, replace=self.made < count)
        return [kept[torch.from_numpy(np.concatenate([new, old]))].float() for kept in self._maps]

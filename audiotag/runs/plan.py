"""The inputs of a run in a file, so that their number costs no memory, and what became of each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError
from ..files import sync
from .inputs import Input


@dataclass(frozen=True)
class Entry:
    """One input done: the record that goes into the output, and what the summary needs."""

    source: str
    record: dict[str, Any]
    duration_s: float = 0.0
    failed: bool = False


class Plan:
    """The inputs of a run. Made once, read any number of times.

    Attributes
    ----------
    inputs, size_bytes : int
        How many there are, and the sum of their weights.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.inputs = self.size_bytes = 0

    def write(self, inputs: Iterable[Input]) -> None:
        """Store the inputs; what was stored before is gone."""
        self.inputs = self.size_bytes = 0
        with open(self.path, "w", encoding="ascii") as file:
            for item in inputs:
                file.write(json.dumps(asdict(item)) + "\n")
                self._count(item)
            sync(file)

    def load(self, count: int | None) -> None:
        """Weigh the `count` inputs that `write` of an earlier run stored.

        Raises
        ------
        InvalidInputError
            The file is missing or damaged, or holds another number of them.
        """
        self.inputs = self.size_bytes = 0
        try:
            for item in self:
                self._count(item)
            if self.inputs != count:
                raise ValueError(f"it holds {self.inputs} inputs, the run began with {count}")
        except (OSError, ValueError, TypeError) as error:
            raise InvalidInputError(
                f"--resume: {self.path}: the list of inputs is missing or damaged ({error}), so the run cannot be gone "
                "on with; leave out --resume to start anew"
            ) from error

    def _count(self, item: Input) -> None:
        self.inputs += 1
        self.size_bytes += weight(item)

    def __iter__(self) -> Iterator[Input]:
        with open(self.path, encoding="ascii") as file:
            for line in file:
                yield Input(**json.loads(line))


def weight(item: Input) -> int:
    """Return how much of the work an input is, as far as can be told before opening it."""
    return max(item.size_bytes, 1)

"""The graph of nodes above a set of labels, and the names that lead into it. Standard library only."""

from __future__ import annotations

import graphlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import InvalidInputError

MAX_SUGGESTIONS = 5


@dataclass(frozen=True)
class Node:
    """One node of the ontology: a label, or a category that only holds labels.

    Attributes
    ----------
    mid : str
        Machine identifier; empty where the labels have none.
    name : str
        Name for people.
    index : int or None
        The label's index, None for a node that is no label.
    """

    mid: str
    name: str
    index: int | None


class Ontology:
    """A directed graph without cycles; nodes are known by their position in ``nodes``.

    Parameters
    ----------
    pairs : iterable of (Node, parent mids)
        In any order.

    Attributes
    ----------
    nodes : tuple of Node
    parents, children : tuple of tuple of int
        Positions directly above and below each node.
    under : tuple of tuple of int
        For every node, the indices of the labels at or under it, ascending.

    Raises
    ------
    InvalidInputError
        An unknown parent, or a cycle.
    """

    def __init__(self, pairs: Iterable[tuple[Node, Sequence[str]]]) -> None:
        pairs = list(pairs)
        self.nodes = tuple(node for node, _ in pairs)
        self._by_mid = {node.mid: position for position, node in enumerate(self.nodes) if node.mid}
        try:
            self.parents = tuple(tuple(self._by_mid[mid] for mid in mids) for _, mids in pairs)
        except KeyError as error:
            raise InvalidInputError(f"nodes name the parent {error.args[0]!r}, which is not among them") from None
        children: list[list[int]] = [[] for _ in self.nodes]
        for position, parents in enumerate(self.parents):
            for parent in parents:
                children[parent].append(position)
        self.children = tuple(map(tuple, children))
        self.under = self._labels_under()
        self._by_exact_name = {node.name: position for position, node in enumerate(self.nodes)}
        self._by_name = _unambiguous((node.name, position) for position, node in enumerate(self.nodes))
        self._by_synonym = _unambiguous(
            (part, position) for position, node in enumerate(self.nodes) for part in node.name.split(",")
        )

    def lookup(self, name: str) -> int | None:
        """Find the position of the one node with this name (in any case), mid or synonym; None if there is none."""
        key = canonical(name).casefold()
        for table, wanted in (
            (self._by_exact_name, name),
            (self._by_mid, name.strip()),
            (self._by_name, key),
            (self._by_synonym, key),
        ):
            if wanted in table:
                return table[wanted]
        return None

    def above(self, position: int) -> list[int]:
        """Return the positions of all nodes above, nearest first, each once."""
        seen: dict[int, None] = {}
        level = list(self.parents[position])
        while level:
            seen |= dict.fromkeys(level)
            level = [p for q in level for p in self.parents[q] if p not in seen]
        return list(seen)

    def near(self, name: str) -> list[str]:
        """Find the names of nodes that someone who wrote ``name`` may have meant, best first."""
        import difflib

        wanted = name.casefold().strip()
        pool = {node.name.casefold(): node.name for node in self.nodes}
        pool |= {key: self.nodes[position].name for key, position in self._by_synonym.items()}
        alike = [pool[key] for key in difflib.get_close_matches(wanted, pool, n=MAX_SUGGESTIONS)]
        inside = [node.name for node in self.nodes if wanted and wanted in node.name.casefold()]
        shared = [name for name in inside if wanted in canonical(name).casefold().split(", ")]
        return list(dict.fromkeys(shared + alike + inside))[:MAX_SUGGESTIONS]

    def _labels_under(self) -> tuple[tuple[int, ...], ...]:
        under: dict[int, set[int]] = {}
        try:
            # Children come first in this order, since here they are what a node depends on.
            for position in graphlib.TopologicalSorter(dict(enumerate(self.children))).static_order():
                index = self.nodes[position].index
                under[position] = {index} if index is not None else set()
                under[position].update(*(under[child] for child in self.children[position]))
        except graphlib.CycleError as error:
            circle = " > ".join(self.nodes[position].name for position in error.args[1])
            raise InvalidInputError(f"nodes go in a circle: {circle}") from None
        return tuple(tuple(sorted(under[position])) for position in range(len(self.nodes)))


def canonical(name: str) -> str:
    """Write a name with one space between words, and a comma and one space between parts."""
    return ", ".join(" ".join(part.split()) for part in name.split(","))


def _unambiguous(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Map case-folded names to positions, without the names that several nodes share."""
    table: dict[str, int] = {}
    shared = set()
    for name, position in pairs:
        key = canonical(name).casefold()
        if table.setdefault(key, position) != position:
            shared.add(key)
    return {key: position for key, position in table.items() if key and key not in shared}

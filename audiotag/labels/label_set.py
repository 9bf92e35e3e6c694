"""Labels: index <-> mid <-> name, and filters that know the ontology above them.

AudioSet's ontology is a graph rather than a tree: *Howl* is under *Dog* and under *Canidae, dogs, wolves*, and 105
of its 632 nodes, such as *Human sounds*, are no labels themselves.
Standard library only (numpy where an array is made), so that ``audiotag labels`` starts at once.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import importlib.resources
import io
import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from ..errors import InvalidInputError
from .ontology import MAX_SUGGESTIONS, Node, Ontology, canonical

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Label:
    """One output of a network.

    Attributes
    ----------
    index : int
        Position in the network's output.
    mid : str
        Google's machine identifier, e.g. ``/m/09x0r``; empty for labels that have none.
    display_name : str
        Name for people. AudioSet's may hold commas: ``Male speech, man speaking``.
    """

    index: int
    mid: str
    display_name: str


# Sets up to this size are listed whole where a name is unknown.
MAX_HINTED_LABELS = 20

# What names a label or a node: a name in any case, one of the synonyms that AudioSet joins by commas, a mid,
# an index (also as digits), or the object itself.
LabelLike: TypeAlias = "str | int | Label | Node"


class LabelSet(Sequence[Label]):
    """The labels of one network in the order of its outputs, with the ontology above them.

    Iteration, ``len`` and ``[i]`` give `Label` objects.

    Parameters
    ----------
    labels : iterable of Label
        In order; ``labels[i].index == i``. Names differ from each other.
    nodes : iterable of (Node, parent mids), optional
        The ontology; parents precede or follow their children in any order. Without it every label stands alone.

    Raises
    ------
    InvalidInputError
        Indices out of order, an empty or repeated name, an unknown parent, a cycle.
    """

    def __init__(self, labels: Iterable[Label], nodes: Iterable[tuple[Node, Sequence[str]]] = ()) -> None:
        self._labels = tuple(labels)
        _check_labels(self._labels)
        pairs = list(nodes) or [(Node(label.mid, label.display_name, label.index), ()) for label in self._labels]
        self._ontology = Ontology(pairs)
        by_index = {node.index: position for position, node in enumerate(self.nodes) if node.index is not None}
        if sorted(by_index) != list(range(len(self._labels))):
            raise InvalidInputError("nodes must hold every label exactly once")
        self._position_of_label = tuple(by_index[i] for i in range(len(self._labels)))

    @classmethod
    def from_names(cls, names: Iterable[str]) -> LabelSet:
        """Make the labels of a fine-tuned head: names in output order, no mids, no ontology.

        Raises
        ------
        InvalidInputError
            ``names`` is one string, or holds an empty, repeated or non-string name.
        """
        if isinstance(names, str):
            raise InvalidInputError(f"names must be a list of names, got the single string {names!r}")
        return cls(Label(index, "", name) for index, name in enumerate(names))

    def extended(self, names: Iterable[str]) -> LabelSet:
        """Return these labels and, after them, others of one's own, without mids and alone in the ontology.

        Raises
        ------
        InvalidInputError
            A name is empty, repeated or one of these.
        """
        own = [Label(index, "", name) for index, name in enumerate(names, start=len(self))]
        pairs = [(Node("", label.display_name, label.index), ()) for label in own]
        return LabelSet([*self, *own], [*self._pairs(), *pairs])

    # -- a sequence of labels ------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._labels)

    def __iter__(self) -> Iterator[Label]:
        return iter(self._labels)

    @overload
    def __getitem__(self, index: int) -> Label: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Label, ...]: ...
    def __getitem__(self, index: int | slice) -> Label | tuple[Label, ...]:
        return self._labels[index]

    def __contains__(self, label: object) -> bool:
        try:
            self.resolve(label)  # type: ignore[arg-type]  # whatever is no label is not contained
        except InvalidInputError:
            return False
        return True

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LabelSet):
            return NotImplemented
        return self._labels == other._labels and self._pairs() == other._pairs()

    def __hash__(self) -> int:
        return hash(self._labels)

    def __reduce__(self) -> tuple[Any, ...]:
        # AudioSet's labels pickle as a name, so that a pickled prediction carries no ontology.
        if self is audioset_labels():
            return audioset_labels, ()
        return LabelSet, (self._labels, self._pairs())

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self.names[:3])) + (", ..." if len(self) > 3 else "")
        return f"LabelSet({len(self)} labels: {shown})"

    @property
    def names(self) -> tuple[str, ...]:
        """Display names in output order."""
        return tuple(label.display_name for label in self._labels)

    @property
    def mids(self) -> tuple[str, ...]:
        """Machine identifiers in output order; empty strings where there are none."""
        return tuple(label.mid for label in self._labels)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Every node of the ontology, labels and categories, in the order of the published file."""
        return self._ontology.nodes

    # -- names -> labels and nodes -------------------------------------------------------------------------

    def resolve(self, label: LabelLike) -> Label:
        """Find the one label that a name, synonym, mid or index means.

        Raises
        ------
        InvalidInputError
            Nothing is called so (the message lists near names), or only a category is (it lists its labels).
        """
        node = self.node(label)
        if node.index is None:
            held = [self._labels[i].display_name for i in self._ontology.under[self._position(node)]]
            examples = ", ".join(map(repr, held[:MAX_SUGGESTIONS])) or "none"
            raise InvalidInputError(
                f"{node.name!r} is a category of the ontology and no label; labels under it: {examples}"
                + (f" and {len(held) - MAX_SUGGESTIONS} more" if len(held) > MAX_SUGGESTIONS else "")
            )
        return self._labels[node.index]

    def node(self, label: LabelLike) -> Node:
        """Find the one node of the ontology, label or category, that a name, synonym, mid or index means.

        Raises
        ------
        InvalidInputError
            Nothing is called so; the message lists near names.
        """
        return self.nodes[self._position(label)]

    def find(self, words: str) -> list[Label]:
        """Find the labels in whose name, or in that of a category or label above them, all words occur.

        Case does not matter. In a label's own name a word may be part of a longer one, above it the beginning of one.
        Labels with every word in their own name come first, the others follow; each group in output order. A mid or
        an index finds its label.
        """
        wanted = words.casefold().split()
        own, above = [], []
        for label in self._labels:
            name = label.display_name.casefold()
            missing = [word for word in wanted if word not in name and word not in (label.mid, str(label.index))]
            if not missing:
                own.append(label)
                continue
            nodes = self._ontology.above(self._position_of_label[label.index])
            heard = [part for p in nodes for part in re.findall(r"\w+", self.nodes[p].name.casefold())]
            if all(any(part.startswith(word) for part in heard) for word in missing):
                above.append(label)
        return own + above

    def split(self, text: str) -> list[str]:
        """Split a comma-separated text into names, where a name may hold commas itself.

        At each place the longest run of parts that is a name counts: ``"Male speech, man speaking, Dog"`` is two
        names. Parts that are no name are left as they are, for `select` to complain about.
        """
        parts = [part for part in canonical(text).split(", ") if part]
        names: list[str] = []
        while parts:
            for count in range(len(parts), 0, -1):
                name = ", ".join(parts[:count])
                if count == 1 or self._ontology.lookup(name) is not None:
                    names.append(name)
                    del parts[:count]
                    break
        return names

    def select(
        self,
        include: LabelLike | Iterable[LabelLike] | None = None,
        exclude: LabelLike | Iterable[LabelLike] | None = None,
    ) -> np.ndarray:
        """Return the indices of the labels that a filter keeps.

        A name or mid means its node and everything under it, so ``"Animal"`` keeps every animal and
        ``"Human sounds"``, which is no label, everything people do. An index, `Label` or `Node` object with an
        index means that one label alone. A text may hold several names separated by commas.

        Parameters
        ----------
        include, exclude : str, int, Label, Node or several of them, optional
            What to keep (everything if None) and what to drop of that.

        Returns
        -------
        numpy.ndarray of int64, ascending, at least one.

        Raises
        ------
        InvalidInputError
            An unknown name, a category without labels, or nothing left.
        """
        import numpy as np

        if include is None and exclude is None:
            return np.arange(len(self), dtype=np.int64)
        kept = set(range(len(self))) if include is None else self._indices(include, "include")
        if exclude is not None:
            kept -= self._indices(exclude, "exclude")
        if not kept:
            raise InvalidInputError(f"include={include!r} and exclude={exclude!r} leave no label; name less to exclude")
        return np.array(sorted(kept), dtype=np.int64)

    # -- the ontology --------------------------------------------------------------------------------------

    def parents(self, label: LabelLike) -> list[Node]:
        """Return the nodes directly above; several for some labels, none for the seven at the top."""
        return [self.nodes[p] for p in self._ontology.parents[self._position(label)]]

    def children(self, label: LabelLike) -> list[Node]:
        """Return the nodes directly below."""
        return [self.nodes[p] for p in self._ontology.children[self._position(label)]]

    def ancestors(self, label: LabelLike) -> list[Node]:
        """Return all nodes above, nearest first, each once."""
        return [self.nodes[p] for p in self._ontology.above(self._position(label))]

    def descendants(self, label: LabelLike) -> list[Label]:
        """Return all labels strictly under a label or category, in output order."""
        position = self._position(label)
        return [self._labels[i] for i in self._ontology.under[position] if i != self.nodes[position].index]

    def describe(self, label: Label) -> dict[str, Any]:
        """Return what a label is called and what of the ontology is above it; plain, JSON-ready."""
        above = self.ancestors(label)
        return {
            "index": label.index,
            "mid": label.mid,
            "name": label.display_name,
            "parents": [node.name for node in self.parents(label)],
            "ancestors": [node.name for node in above],
            "category": next((node.name for node in above if not self.parents(node)), label.display_name),
        }

    def roll_up(self, scores: np.ndarray) -> np.ndarray:
        """Give every label at least the best score of the labels under it.

        A label with several parents raises all of them: *Hiss* raises *Cat*, *Snake* and *Steam* alike.

        Parameters
        ----------
        scores : numpy.ndarray, shape (..., labels)

        Returns
        -------
        numpy.ndarray, same shape and type; a new array.

        Raises
        ------
        InvalidInputError
            The last axis is not one score per label.
        """
        import numpy as np

        given = np.asarray(scores)
        if given.ndim == 0 or given.shape[-1] != len(self):
            raise InvalidInputError(f"scores must have shape (..., {len(self)}), got {given.shape}")
        rolled = given.copy()
        for index, position in enumerate(self._position_of_label):
            under = self._ontology.under[position]
            if len(under) > 1:
                rolled[..., index] = given[..., list(under)].max(axis=-1)
        return rolled

    # -- within --------------------------------------------------------------------------------------------

    def _pairs(self) -> list[tuple[Node, tuple[str, ...]]]:
        parents = self._ontology.parents
        return [
            (node, tuple(self.nodes[p].mid for p in above)) for node, above in zip(self.nodes, parents, strict=True)
        ]

    def _position(self, label: LabelLike) -> int:
        if isinstance(label, str):
            position = self._ontology.lookup(label)
            if position is not None:
                return position
            if not label.strip().isdecimal():
                raise InvalidInputError(f"no label is called {label!r}{self._hint(label)}")
            label = int(label)
        if isinstance(label, Node):
            if label in self.nodes:
                return self.nodes.index(label)
            raise InvalidInputError(f"{label!r} belongs to another set of labels")
        if isinstance(label, Label):
            if label in self._labels[label.index : label.index + 1]:
                return self._position_of_label[label.index]
            raise InvalidInputError(f"{label!r} belongs to another set of labels")
        try:
            if isinstance(label, bool):
                raise TypeError
            index = operator.index(label)
        except TypeError:
            raise InvalidInputError(
                f"a label is given by name, mid, index or Label, got {label!r} of type {type(label).__name__}"
            ) from None
        if not 0 <= index < len(self):
            raise InvalidInputError(f"label index must be 0 to {len(self) - 1}, got {index}")
        return self._position_of_label[index]

    def _indices(self, wanted: LabelLike | Iterable[LabelLike], argument: str) -> set[int]:
        items: list[Any] = [wanted]
        with contextlib.suppress(TypeError):  # what is no iterable, though it may look like one
            items = [wanted] if isinstance(wanted, str | Label | Node) else list(wanted)  # type: ignore[arg-type]
        indices: set[int] = set()
        for item in items:
            for one in self.split(item) if isinstance(item, str) else [item]:
                try:
                    position = self._position(one)
                except InvalidInputError as error:
                    raise InvalidInputError(f"{argument}: {error}") from None
                node = self.nodes[position]
                alone = not isinstance(one, str) or self._ontology.lookup(one) is None
                found = {node.index} if alone and node.index is not None else set(self._ontology.under[position])
                if not found:
                    raise InvalidInputError(f"{argument}: {node.name!r} is in the ontology, but no label is under it")
                indices |= found
        if not indices:
            raise InvalidInputError(f"{argument} is empty; leave it out (None) to take every label")
        return indices

    def _hint(self, name: str) -> str:
        near = self._ontology.near(name)
        if near:
            return f"; near names: {', '.join(map(repr, near))}"
        if len(self) <= MAX_HINTED_LABELS:
            return f"; there are: {', '.join(map(repr, self.names))}"
        return "; `audiotag labels WORDS` searches the names"


@functools.lru_cache(maxsize=1)
def audioset_labels() -> LabelSet:
    """Return AudioSet's 527 labels with its ontology above them.

    Names, indices and mids: Google's ``class_labels_indices.csv`` (CC BY 4.0). Hierarchy: the AudioSet ontology
    (CC BY-SA 4.0), Gemmeke et al., "Audio Set: an ontology and human-labeled dataset for audio events", 2017.
    """
    labels = [Label(int(row["index"]), row["mid"], row["display_name"]) for row in _rows("class_labels_indices.csv")]
    nodes = [
        (Node(row["mid"], row["name"], int(row["label_index"]) if row["label_index"] else None), row["parents"].split())
        for row in _rows("ontology.csv")
    ]
    return LabelSet(labels, nodes)


def _rows(file_name: str) -> Iterator[Mapping[str, str]]:
    text = (importlib.resources.files("audiotag") / "data" / file_name).read_text(encoding="utf-8")
    return csv.DictReader(io.StringIO(text, newline=""))


def _check_labels(labels: tuple[Label, ...]) -> None:
    if not labels:
        raise InvalidInputError("a set of labels must hold at least one")
    seen: set[str] = set()
    for position, label in enumerate(labels):
        name = label.display_name
        if label.index != position:
            raise InvalidInputError(f"labels must be in order: {label!r} is at position {position}")
        if not isinstance(name, str) or not name.strip():
            raise InvalidInputError(f"label {position} must have a name, got {name!r}")
        if name in seen:
            raise InvalidInputError(f"label names must differ, got {name!r} twice")
        seen.add(name)

"""Every format that results are written in: its names, endings and limits, as data that cost nothing to import."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ..errors import InvalidInputError

TABLES = ("tags", "events")
VECTORS = ("embeddings",)
KINDS = (*TABLES, *VECTORS)


@dataclass(frozen=True)
class Format:
    """A format of results, as named after ``--format``.

    Attributes
    ----------
    kinds : tuple of str
        Which of `KINDS` it can hold.
    suffix : str
        Ending of files of one recording, in folders that mirror the input.
    writer : str
        Module in this package and class in it, ``"writers.CsvWriter"``: a `audiotag.outputs.writers.Writer`.
    one_recording : bool
        Whether a file holds one recording only.
    binary : bool
        Whether it needs a binary file.
    """

    name: str
    kinds: tuple[str, ...]
    suffix: str
    writer: str
    one_recording: bool = False
    binary: bool = False

    def make(self, file: Any, about: About) -> Any:
        """Make a writer to an open file."""
        module, name = self.writer.split(".")
        return getattr(import_module(f".{module}", __package__), name)(file, about)


@dataclass(frozen=True)
class About:
    """Facts that hold for every record of a file; its writer has them before the first one.

    A fact of the whole run that a format can hold, such as what ran the network, belongs here; a fact of one recording
    belongs into its record.

    Attributes
    ----------
    kind : str
        One of `KINDS`.
    fmax_hz : float
        Highest frequency that the checkpoint's log-mel holds.
    features : int
        Numbers in a vector; of embeddings only.
    per : {"clip", "window"}
        Whether a recording has one vector or one for each window; of embeddings only.
    """

    kind: str
    fmax_hz: float
    features: int = 0
    per: str = "clip"


FORMATS = {
    form.name: form
    for form in (
        Format("text", TABLES, ".txt", "writers.TextWriter"),
        Format("json", TABLES, ".json", "writers.JsonWriter"),
        Format("jsonl", KINDS, ".jsonl", "writers.JsonLinesWriter"),
        Format("csv", TABLES, ".csv", "writers.CsvWriter"),
        Format("parquet", KINDS, ".parquet", "writers.ParquetWriter", binary=True),
        Format("audacity", ("events",), ".labels.txt", "annotations.AudacityWriter", one_recording=True),
        Format("raven", ("events",), ".selections.txt", "annotations.RavenWriter", one_recording=True),
        Format("webvtt", ("events",), ".vtt", "annotations.WebVttWriter", one_recording=True),
        Format("npz", VECTORS, ".npz", "embedding_files.NpzWriter", binary=True),
        Format("npy", VECTORS, ".npy", "embedding_files.NpyWriter", binary=True),
    )
}


def formats_for(kind: str) -> tuple[str, ...]:
    """Return the names of the formats that can hold ``tags``, ``events`` or ``embeddings``."""
    return tuple(name for name, form in FORMATS.items() if kind in form.kinds)


def find_format(kind: str, name: str | None = None, path: str | os.PathLike[str] | None = None) -> Format:
    """Return the format with this name; where there is none, the one that a file name's ending says.

    With neither, tags and events are text, for people.

    Raises
    ------
    InvalidInputError
        No such format, or it cannot hold the kind.
    """
    names = formats_for(kind)
    if name is not None:
        if name not in names:
            raise InvalidInputError(f"format must be one of {', '.join(names)} for {kind}, got {name!r}")
        return FORMATS[name]
    if path is None and kind in TABLES:
        return FORMATS["text"]
    forms = [FORMATS[name] for name in names]
    ending = os.fspath(path).lower() if path is not None else ""
    fitting = [form for form in forms if ending.endswith(form.suffix)]
    if not fitting:
        raise InvalidInputError(
            f"{'standard output' if path is None else os.fspath(path)}: {kind} go to a file ending in "
            f"{', '.join(form.suffix for form in forms)}; or say which with --format"
        )
    return max(fitting, key=lambda form: len(form.suffix))

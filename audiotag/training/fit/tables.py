"""Annotation files as rows: CSV and TSV tables, Audacity label tracks, Raven selection tables.

The inverse of `audiotag.outputs`; the standard library's csv reads them, so that no table needs pandas.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .problems import Problems

# Columns by the names that common data sets give them.
COLUMNS = {
    "file": ("file", "filename", "file_name", "path", "filepath", "begin path", "begin file"),
    "label": ("label", "labels", "category", "class", "annotation", "species"),
    "onset": ("onset", "onset_s", "start", "start_s", "begin time (s)"),
    "offset": ("offset", "offset_s", "end", "end_s", "end time (s)"),
    "fold": ("fold",),
    "split": ("split",),
    "group": ("group",),
}
TABLE_SUFFIXES = (".csv", ".tsv")
BACKGROUND = frozenset(("background", "noise", "none", "silence", "_background_noise_"))  # clips with no label
ABSENT, UNKNOWN = "-", "?"


@dataclass(frozen=True)
class Row:
    """One annotation.

    Attributes
    ----------
    where : str
        File and line it stands in.
    file : str
        As it is written there.
    present, absent, unknown : tuple of str
        Labels that are there, verified absent, and not known; a row without any is a clip with no label.
    onset_s, offset_s : float or None
        Both or neither.
    columns : mapping
        Every other cell, by the column's name.
    """

    where: str
    file: str
    present: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    onset_s: float | None = None
    offset_s: float | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


def read_table(path: Path, problems: Problems) -> list[Row]:
    """Rows of a CSV or TSV with the columns ``file`` and ``label``, and any of the others of `COLUMNS`.

    The separator is the tab where the header has one, else the semicolon where it has no comma, else the comma.
    """
    text = _text(path, problems)
    if text is None:
        return []
    header = text.split("\n", 1)[0]
    separator = "\t" if "\t" in header else ";" if ";" in header and "," not in header else ","
    reader = csv.DictReader(text.splitlines(keepends=True), delimiter=separator)
    named = {(name or "").strip().casefold(): name for name in reader.fieldnames or ()}
    found = {column: next((named[n] for n in names if n in named), None) for column, names in COLUMNS.items()}
    missing = [column for column in ("file", "label") if found[column] is None]
    if missing:
        problems.error(
            f"{path}:1",
            f"no column {' and no column '.join(missing)} (there are {', '.join(reader.fieldnames or ()) or 'none'})",
            "name one row's file and label in columns file and label",
        )
        return []
    rows = []
    try:
        for cells in reader:
            where = f"{path}:{reader.line_num}"
            if None in cells or not (cells[found["file"]] or "").strip():
                problems.error(where, "has no file, or more cells than the header", "correct the row")
                continue
            rows.append(table_row(where, cells, found, problems))
    except csv.Error as error:
        problems.error(f"{path}:{reader.line_num}", f"cannot be read as a table ({error})", "save it as CSV in UTF-8")
    return [row for row in rows if row is not None]


def table_row(where: str, cells: Mapping[Any, Any], found: Mapping[str, Any], problems: Problems) -> Row | None:
    """A row from its cells; None, and a problem told, where its times are no numbers."""
    times: list[float | None] = []
    for column in ("onset", "offset"):
        text = _cell(cells, found[column])
        try:
            value = float(text) if text else None
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError
        except ValueError:
            problems.error(where, f"{column} {text!r} is no number of seconds", "write it like 12.5")
            return None
        times.append(value)
    if (times[0] is None) != (times[1] is None):
        problems.error(where, "has an onset or an offset, not both", "give both, or neither for the whole file")
        return None
    known = {name for name in found.values() if name is not None}
    columns = {str(name): _cell(cells, name) for name in cells if name is not None and name not in known}
    columns |= {column: _cell(cells, found[column]) for column in ("fold", "split", "group") if found[column]}
    present, absent, unknown = split_labels(str(cells[found["label"]] or ""))
    return Row(where, str(cells[found["file"]]).strip(), present, absent, unknown, times[0], times[1], columns)


def split_labels(text: str) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Labels that are there, absent and unknown in ``a;-b;?c``; a word for background is no label.

    Spaces around a name are kept, so that ``"dog"`` and ``"Dog "`` can be told as one name written twice.
    """
    present: list[str] = []
    absent: list[str] = []
    unknown: list[str] = []
    for part in text.split(";"):
        name, mark = part.strip(), part.strip()[:1]
        if not name or name.casefold() in BACKGROUND:
            continue
        if mark in (ABSENT, UNKNOWN) and name[1:].strip():
            (absent if mark == ABSENT else unknown).append(name[1:].strip())
        else:
            present.append(part)
    return tuple(present), tuple(absent), tuple(unknown)


def read_audacity(path: Path, recording: str, problems: Problems) -> list[Row]:
    """Rows of an Audacity label track of one recording; lines with frequencies belong to the one before."""
    return [
        Row(where, recording, *split_labels(label), onset, offset)
        for where, onset, offset, label in _audacity_lines(path, problems)
    ]


def _audacity_lines(path: Path, problems: Problems) -> Iterator[tuple[str, float, float, str]]:
    text = _text(path, problems)
    for number, line in enumerate((text or "").splitlines(), start=1):
        if not line.strip() or line.startswith("\\"):
            continue
        cells = line.split("\t", 2)
        try:
            onset, offset = float(cells[0]), float(cells[1])
            if not (math.isfinite(onset) and math.isfinite(offset) and onset >= 0):
                raise ValueError
        except (ValueError, IndexError):
            problems.error(
                f"{path}:{number}",
                f"{line[:60]!r} is no label of Audacity",
                "write onset, offset and label, separated by tabs",
            )
            continue
        yield f"{path}:{number}", onset, offset, cells[2] if len(cells) > 2 else ""


def read_raven(path: Path, recording: str, problems: Problems) -> list[Row]:
    """Rows of a Raven selection table of one recording; a selection in two views counts once."""
    text = _text(path, problems)
    if text is None:
        return []
    reader = csv.DictReader(text.splitlines(keepends=True), delimiter="\t", quoting=csv.QUOTE_NONE)
    named = {(name or "").strip().casefold(): name for name in reader.fieldnames or ()}
    found = {column: next((named[n] for n in names if n in named), None) for column, names in COLUMNS.items()}
    if found["onset"] is None or found["offset"] is None or found["label"] is None:
        problems.error(
            f"{path}:1", "has no columns Begin Time (s), End Time (s) and Annotation", "export it with these from Raven"
        )
        return []
    rows, seen = [], set()
    for cells in reader:
        selection = (cells.get("Selection"), cells[found["label"]])
        if cells.get("Selection") and selection in seen:
            continue
        seen.add(selection)
        given = {**cells, "file": recording}
        row = table_row(f"{path}:{reader.line_num}", given, {**found, "file": "file"}, problems)
        if row is not None:
            rows.append(row)
    return rows


def annotation_of(recording: str, names: set[str]) -> tuple[str, str] | None:
    """Kind and name of the annotation file that lies beside a recording, out of the names in its folder."""
    whole, stem = os.path.basename(recording), os.path.splitext(os.path.basename(recording))[0]
    for base in (whole, stem):
        for ending in (".selections.txt", ".Table.1.selections.txt", ".selection.table.txt"):
            if base + ending in names:
                return "raven", base + ending
        for ending in (".labels.txt", ".txt"):
            if base + ending in names:
                return "audacity", base + ending
    return None


def _cell(cells: Mapping[Any, Any], name: Any) -> str:
    value = cells.get(name) if name is not None else None
    return "" if value is None else str(value).strip()


def _text(path: Path, problems: Problems) -> str | None:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        problems.error(str(path), "is not UTF-8", "save it as UTF-8")
    except OSError as error:
        problems.error(str(path), f"cannot be read ({error.strerror or error})", "check its name and permissions")
    return None

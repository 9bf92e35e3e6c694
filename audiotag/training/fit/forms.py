"""The forms that labelled data comes in, as rows with paths that exist: folders, tables, DataFrames, lists."""

from __future__ import annotations

import io
import os
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...audio.formats import AUDIO_EXTENSIONS
from ...errors import InvalidInputError
from .problems import Problems
from .tables import TABLE_SUFFIXES, Row, annotation_of, read_audacity, read_raven, read_table, split_labels

SPLIT_FOLDERS = {
    "train": "train", "training": "train", "test": "test", "eval": "test", "evaluation": "test",
    "val": "train", "valid": "train", "validation": "train", "dev": "train",
}  # fmt: skip
FOLD_FOLDER = re.compile(r"fold[ _-]?\d+", re.IGNORECASE)


def read_rows(data: Any, labels: Any, problems: Problems, *, above: bool) -> tuple[list[Row], str]:
    """Rows of any form of data, with paths that exist, and the folder that paths are shown from."""
    if labels is not None:
        return _listed(data, labels, problems), os.getcwd()
    if hasattr(data, "to_dict") and hasattr(data, "columns"):
        return _frame(data, problems), os.getcwd()
    if not isinstance(data, (str, os.PathLike)):
        raise InvalidInputError(
            f"data must be a folder, a table, a DataFrame, or recordings with labels, got {type(data).__name__}"
        )
    path = Path(data).expanduser()
    if path.is_dir():
        return _folder(path, problems, above=above), str(path)
    if not path.exists():
        problems.error(str(path), "no such file or folder", "check the path")
        return [], str(path)
    if path.suffix.lower() not in (*TABLE_SUFFIXES, ".txt"):
        problems.error(str(path), "is neither a folder nor a table", "name a folder, or a table ending in .csv or .tsv")
        return [], str(path)
    return _resolved(read_table(path, problems), path.parent, problems), str(path.parent)


def _listed(files: Any, labels: Any, problems: Problems) -> list[Row]:
    files, labels = list(files), list(labels)
    if len(files) != len(labels):
        raise InvalidInputError(f"labels must be one for each recording, got {len(labels)} for {len(files)}")
    rows = []
    for i, (file, given) in enumerate(zip(files, labels, strict=True)):
        names = [given] if isinstance(given, str) else list(given or ())
        rows.append(Row(f"files[{i}]", os.fspath(file), *split_labels(";".join(names))))
    return _resolved(rows, Path.cwd(), problems)


def _frame(frame: Any, problems: Problems) -> list[Row]:
    """Rows of a DataFrame, by way of the same text that a CSV of it would have."""
    text = io.StringIO()
    frame.to_csv(text, index=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.csv"
        path.write_text(text.getvalue(), encoding="utf-8")
        rows = read_table(path, problems)

    def renamed(where: str) -> str:
        return where.replace(str(path), "DataFrame row")

    problems.errors[:] = [replace(p, where=renamed(p.where)) for p in problems.errors]
    return _resolved([replace(row, where=renamed(row.where)) for row in rows], Path.cwd(), problems)


def _resolved(rows: list[Row], base: Path, problems: Problems) -> list[Row]:
    """Rows whose files exist: beside the table, in a folder audio there, or the same a folder up."""
    bases = (base, base / "audio", base.parent, base.parent / "audio")
    known: dict[str, str | None] = {}
    for file in {row.file for row in rows}:
        places = [Path(file).expanduser()] if os.path.isabs(file) else [place / file for place in bases]
        known[file] = next((str(place) for place in places if place.is_file()), None)
    found = []
    for row in rows:
        path = known[row.file]
        if path is None:
            problems.error(row.where, f"no file {row.file!r} in {base} or beside it", "correct the row or add the file")
        else:
            found.append(replace(row, file=path))
    return found


def recordings(folder: Path, problems: Problems) -> list[str]:
    """Audio files in a folder and below, by name; links to folders are followed, hidden ones left out."""
    found: list[str] = []

    def refused(error: OSError) -> None:
        problems.error(str(error.filename), f"cannot be read ({error.strerror})", "check its permissions")

    seen: set[str] = set()
    for place, folders, names in os.walk(folder, onerror=refused, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # links can go in circles
            folders[:] = []
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in AUDIO_EXTENSIONS:
                found.append(os.path.join(place, name))
    return found


def _folder(folder: Path, problems: Problems, *, above: bool) -> list[Row]:
    """Rows of a folder: labels from the annotation file beside a recording, else from the folder that holds it.

    The topmost folder that holds recordings itself names the label, so what lies in folders inside it belongs to it.
    With `above`, recordings lie in a folder for their group, and the one around that names the label. Folders of splits
    (train, test) or folds (fold1) around all labels say just that.
    """
    files = recordings(folder, problems)
    inside = {file: Path(os.path.relpath(file, folder)).parts[:-1] for file in files}
    tops = {parts[0].casefold() if parts else "" for parts in inside.values()}
    outer = bool(tops) and all(top in SPLIT_FOLDERS or FOLD_FOLDER.fullmatch(top) for top in tops)
    names = {place: set(os.listdir(place)) for place in {os.path.dirname(file) for file in files}}
    holding = {parts for parts in inside.values() if parts}
    rows = []
    for file in files:
        parts, columns = inside[file], {}
        if outer:
            top = parts[0].casefold()
            columns = {"split": SPLIT_FOLDERS[top]} if top in SPLIT_FOLDERS else {"fold": top}
        annotation = annotation_of(file, names[os.path.dirname(file)])
        if annotation is not None:
            kind, name = annotation
            read = read_raven if kind == "raven" else read_audacity
            found = read(Path(file).with_name(name), file, problems)
            rows += [replace(row, columns={**row.columns, **columns}) for row in found] or [
                Row(str(Path(file).with_name(name)), file, columns=columns)
            ]
            continue
        start = 1 if outer else 0
        depth = next((n for n in range(start + 1, len(parts) + 1) if parts[:n] in holding), len(parts))
        named = parts[start : len(parts) - 1] if above and len(parts) - start > 1 else parts[start:depth]
        if not named:
            problems.error(file, "lies in no folder that names its label", "move it into one, or give a table")
            continue
        rows.append(Row(file, file, *split_labels(named[-1]), columns=columns))
    _stray_annotations(folder, {os.path.basename(f) for f in files}, names, problems)
    return rows


def _stray_annotations(folder: Path, files: set[str], names: dict[str, set[str]], problems: Problems) -> None:
    """Label tracks and selection tables that belong to no recording."""
    for place, present in names.items():
        used = {found[1] for file in files if (found := annotation_of(file, present)) is not None}
        for name in sorted(present):
            if name.endswith((".labels.txt", ".selections.txt")) and name not in used:
                problems.error(os.path.join(place, name), "no recording of this name beside it", "rename or remove it")

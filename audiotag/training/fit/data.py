"""Labelled data in any of its forms as one list of clips, checked whole before anything is computed."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...audio.formats import AUDIO_EXTENSIONS
from ...errors import AudiotagError, InvalidInputError
from .problems import Problems
from .tables import BACKGROUND, TABLE_SUFFIXES, Row, annotation_of, read_audacity, read_raven, read_table, split_labels

TASKS = ("auto", "single", "multi")
SPLIT_FOLDERS = {
    "train": "train", "training": "train", "test": "test", "eval": "test", "evaluation": "test",
    "val": "train", "valid": "train", "validation": "train", "dev": "train",
}  # fmt: skip
FOLD_FOLDER = re.compile(r"fold[ _-]?\d+", re.IGNORECASE)
MAX_UNREADABLE = 0.05  # share of recordings
MIN_GROUPS = 2  # of a label: one to train on, one to test on
SHORTEST_S = 1.0  # an event's excerpt is widened to this, where the recording has it
LEAST_OVERLAP = 0.5  # of the event or of the excerpt, from which a label is taken to be in an excerpt
READERS = 2  # threads that read files for their digests


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

    @property
    def targets(self) -> np.ndarray:
        """float32 (clips, labels): 1 present, 0 absent, nan unknown."""
        return clip_targets(self.clips, self.labels)

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


def read_data(
    data: Any,
    labels: Sequence[Any] | None = None,
    *,
    negatives: str | os.PathLike[str] | None = None,
    test: Any = None,
    task: str = "auto",
    group: str | None = None,
    folds: int | str | None = None,
    window_s: float = 10.0,
    known: Sequence[str] | None = None,
) -> Dataset:
    """Read labelled data and find everything that is wrong with it.

    Parameters
    ----------
    data : path, DataFrame, or sequence of paths
        A folder of folders named by label, or of recordings with annotation files beside them; a CSV or TSV; a pandas
        DataFrame with the same columns; recordings, with `labels`.
    labels : sequence of str or of sequences of str, optional
        One for each recording; empty for no label.
    negatives : path, optional
        Folder of recordings with no label.
    test : optional
        Data, as `data`, that is tested on and never trained on.
    task : {"auto", "single", "multi"}
        Whether a clip has at most one label. Auto: single unless some clip says otherwise.
    group : str, optional
        ``file``, ``parent`` (the folder a recording lies in), a column, or a regular expression whose first group (or
        whole match) in the path is the group's name. What shares a group is never on both sides of a split. None: the
        column ``group`` where there is one, else ``file``.
    folds : int or str, optional
        A column that says each clip's fold; a number does not matter here.
    window_s : float
        Longest clip that timed labels are cut into.
    known : sequence of str, optional
        The labels there may be, when testing a checkpoint.

    Raises
    ------
    InvalidInputError
        With every problem: where, what, and a remedy.
    """
    if task not in TASKS:
        raise InvalidInputError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    problems = Problems()
    rows, root = _rows(data, labels, problems, above=group == "parent")
    clips = [_clip(row) for row in rows]
    if test is not None:
        more, _ = _rows(test, None, problems, above=group == "parent")
        clips += [replace(_clip(row), split="test") for row in more]
    if negatives is not None:
        found = _recordings(Path(negatives).expanduser(), problems)
        if not found:
            problems.error(str(negatives), "holds no recording", "name a folder with recordings that have no label")
        clips += [Clip(path, where=path) for path in found]
    clips = _merged(clips, problems)
    clips = [replace(clip, present=frozenset(name.strip() for name in clip.present)) for clip in _near(clips, problems)]
    names = sorted({name for clip in clips for name in clip.present | clip.absent | clip.unknown})
    if known is not None:
        unknown = [name for name in names if name not in known]
        for name in unknown:
            example = next(c for c in clips if name in c.present | c.absent | c.unknown)
            problems.error(example.where, f"label {name!r} is not one of the checkpoint", "rename it or leave it out")
        names = list(known)
    elif not names and not problems.errors:
        problems.error(root, "no label at all", "name folders by label, or fill the column label")
    clips = _grouped(clips, group, root, problems)
    clips = _folded(clips, folds, problems)
    found_task = _task(clips, task, problems)
    clips, unreadable = _opened(clips, problems)
    clips = _cut(clips, window_s)
    if known is None:
        _check_labels(clips, names, found_task, problems)
    problems.stop()
    return Dataset(tuple(clips), tuple(names), found_task, problems, unreadable, root)


# -- the forms of data ---------------------------------------------------------------------------------------------


def _rows(data: Any, labels: Any, problems: Problems, *, above: bool) -> tuple[list[Row], str]:
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
    import io
    import tempfile

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


def _recordings(folder: Path, problems: Problems) -> list[str]:
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
    files = _recordings(folder, problems)
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


# -- from rows to clips --------------------------------------------------------------------------------------------


def _clip(row: Row) -> Clip:
    columns = dict(row.columns)
    split = columns.get("split", "").casefold()
    return Clip(
        row.file,
        row.onset_s,
        row.offset_s,
        frozenset(row.present),
        frozenset(row.absent),
        frozenset(row.unknown),
        row.where,
        columns.get("fold", ""),
        SPLIT_FOLDERS.get(split, split),
        columns.get("group", ""),
        columns,
    )


def _merged(clips: list[Clip], problems: Problems) -> list[Clip]:
    """Several rows of one stretch are one clip with all their labels."""
    merged: dict[tuple[str, float | None, float | None], Clip] = {}
    for clip in clips:
        key = (os.path.realpath(clip.path), clip.onset_s, clip.offset_s)
        first = merged.get(key)
        if first is None:
            merged[key] = clip
            continue
        present, absent = first.present | clip.present, first.absent | clip.absent
        if clash := sorted(present & absent):
            problems.error(clip.where, f"{clash[0]!r} is present and absent in one clip", f"see {first.where}")
        if (clip.split, clip.fold) != (first.split, first.fold):
            problems.error(clip.where, "one clip in two splits or folds", f"see {first.where}, and keep one")
        merged[key] = replace(first, present=present, absent=absent, unknown=first.unknown | clip.unknown - present)
    return list(merged.values())


def _near(clips: list[Clip], problems: Problems) -> list[Clip]:
    """Report names that differ in case, spaces or punctuation alone."""
    spelled: dict[str, dict[str, str]] = defaultdict(dict)
    for clip in clips:
        for name in clip.present | clip.absent | clip.unknown:
            spelled[re.sub(r"[\W_]+", " ", name).strip().casefold() or name].setdefault(name, clip.where)
    for names in spelled.values():
        if len(names) > 1:
            first, second, *_ = sorted(names, key=lambda n: names[n])
            problems.error(
                names[second], f"label {second!r} and {first!r} ({names[first]}) are nearly equal", "write them alike"
            )
    return clips


def _task(clips: list[Clip], task: str, problems: Problems) -> str:
    several = [clip for clip in clips if len(clip.present) > 1 or clip.absent or clip.unknown]
    timed = any(clip.onset_s is not None for clip in clips)
    if task == "single" and (several or timed):
        where = several[0].where if several else next(c.where for c in clips if c.onset_s is not None)
        problems.error(where, "has several labels, unknown ones or times, which is no single task", "use --task multi")
    if task != "auto":
        return task
    return "multi" if several or timed or len({name for clip in clips for name in clip.present}) == 1 else "single"


def _grouped(clips: list[Clip], group: str | None, root: str, problems: Problems) -> list[Clip]:
    column = {name for clip in clips for name in clip.columns}
    if group is None:
        group = "group" if any(clip.group for clip in clips) else "file"
    if group == "file":
        return [replace(clip, group=clip.path) for clip in clips]
    if group == "parent":
        return [replace(clip, group=os.path.dirname(os.path.abspath(clip.path))) for clip in clips]
    if group in column:
        empty = [clip for clip in clips if group in clip.columns and not clip.columns[group]]
        for clip in empty:
            problems.error(clip.where, f"column {group} is empty", "name the recording's group")
        return [replace(clip, group=clip.columns.get(group) or clip.path) for clip in clips]
    try:
        pattern = re.compile(group)
    except re.error as error:
        problems.error("--group", f"{group!r} is no column and no regular expression ({error})", "correct it")
        return clips
    grouped = []
    for clip in clips:
        inside = os.path.relpath(clip.path, root)
        match = pattern.search(inside)
        if match is None:
            problems.error(clip.where, f"--group {group!r} matches nothing in {inside!r}", "correct the expression")
            continue
        grouped.append(replace(clip, group=match[1] if pattern.groups and match[1] is not None else match[0]))
    return grouped


def _folded(clips: list[Clip], folds: int | str | None, problems: Problems) -> list[Clip]:
    if isinstance(folds, int):
        return [replace(clip, fold="") for clip in clips]
    if folds is not None and folds not in {name for clip in clips for name in clip.columns}:
        have = ", ".join(sorted({name for clip in clips for name in clip.columns})) or "none"
        problems.error("--folds", f"{folds!r} is neither a number nor a column (there are {have})", "name one of them")
        return clips
    if folds is not None:
        clips = [replace(clip, fold=clip.columns.get(folds, "")) for clip in clips]
    given = [clip for clip in clips if clip.split != "test"]
    missing = [clip for clip in given if not clip.fold and (clip.present or clip.columns)]
    if any(clip.fold for clip in given) and missing:
        for clip in missing[:10]:
            problems.error(clip.where, "has no fold, though others have one", "give it one, or use --folds 5")
    return clips


def _opened(clips: list[Clip], problems: Problems) -> tuple[list[Clip], dict[str, str]]:
    """Clips with digest and length; recordings that cannot be opened are left out and told."""
    paths = list(dict.fromkeys(clip.path for clip in clips))
    with ThreadPoolExecutor(READERS) as pool:
        facts = dict(zip(paths, pool.map(_facts, paths), strict=True))
    unreadable = {path: fact for path, fact in facts.items() if isinstance(fact, str)}
    for path, reason in unreadable.items():
        problems.warn(path, reason, "it is left out")
    check_unreadable(unreadable, len(paths), problems)
    opened: list[Clip] = []
    for clip in clips:
        told = facts[clip.path]
        if isinstance(told, str):
            continue
        digest, length = told
        if clip.onset_s is None:
            opened.append(replace(clip, digest=digest, duration_s=length))
            continue
        assert clip.offset_s is not None
        if clip.onset_s >= length:
            problems.error(
                clip.where,
                f"onset {clip.onset_s:g} s is past the end at {length:.2f} s",
                "correct the time or the file",
            )
        elif clip.offset_s <= clip.onset_s:
            problems.error(clip.where, f"offset {clip.offset_s:g} s is not after the onset", "correct the times")
        else:
            opened.append(replace(clip, digest=digest, duration_s=length))
    return opened, unreadable


def check_unreadable(unreadable: dict[str, str], n_recordings: int, problems: Problems) -> None:
    """An error where more than `MAX_UNREADABLE` of the recordings cannot be read."""
    if len(unreadable) > MAX_UNREADABLE * n_recordings:
        share = f"{len(unreadable)} of {n_recordings} recordings cannot be read"
        for path, told in list(unreadable.items()):
            problems.error(path, told, "replace or remove it")
        problems.error("the data", f"{share}, more than {MAX_UNREADABLE:.0%}", "replace or remove them")


def _facts(path: str) -> tuple[str, float] | str:
    """Digest and length in seconds of a file, or why it cannot be read."""
    from ...audio.recording import open_audio

    try:
        with open(path, "rb") as file:
            digest = (
                hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(file)
            )
        with open_audio(path, target_rate_hz=32_000) as stream:
            length = stream.duration_s
            if length is None:  # only decoding tells
                length = sum(len(block) for block in stream.blocks()) / stream.target_rate_hz
        return digest, length
    except AudiotagError as error:
        return str(error).removeprefix(f"{path}: ")
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"


def _sha256(file: Any) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


# -- timed labels --------------------------------------------------------------------------------------------------


def _cut(clips: list[Clip], window_s: float) -> list[Clip]:
    """Recordings with timed labels as short clips: an excerpt for each event, and the stretches in between.

    An excerpt is the event, widened to `SHORTEST_S` and cut into equal parts where it is longer than a window. It has
    the labels of the events that overlap half of it, or lie in it by half; those that overlap less are unknown in it. A
    recording that has timed labels is taken to be annotated whole: what lies between events is background.
    """
    whole = [clip for clip in clips if clip.onset_s is None]
    timed: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        if clip.onset_s is not None:
            timed[clip.path].append(clip)
    cut = list(whole)
    for events in timed.values():
        length = events[0].duration_s
        seen: set[tuple[float, float]] = set()
        for event in events:
            if not (event.present or event.absent or event.unknown):
                continue
            for start, stop in _excerpts(event, length, window_s):
                if (start, stop) not in seen:
                    seen.add((start, stop))
                    cut.append(_excerpt(event, events, start, stop))
        cut += _between(events, length, window_s)
    return cut


def _excerpts(event: Clip, length: float, window_s: float) -> Iterator[tuple[float, float]]:
    assert event.onset_s is not None and event.offset_s is not None
    start, stop = event.onset_s, min(event.offset_s, length)
    if stop - start < SHORTEST_S:
        start = max(0.0, min((start + stop - SHORTEST_S) / 2, length - SHORTEST_S))
        stop = min(length, start + SHORTEST_S)
    parts = max(1, int(np.ceil((stop - start) / window_s - 1e-9)))
    edges = np.linspace(start, stop, parts + 1)
    yield from zip(np.round(edges[:-1], 6).tolist(), np.round(edges[1:], 6).tolist(), strict=True)


def _excerpt(event: Clip, events: Iterable[Clip], start: float, stop: float) -> Clip:
    present, unknown, absent = set(event.present), set(event.unknown), set(event.absent)
    for other in events:
        assert other.onset_s is not None and other.offset_s is not None
        shared = min(stop, other.offset_s) - max(start, other.onset_s)
        if shared <= 0:
            continue
        enough = shared >= LEAST_OVERLAP * min(stop - start, other.offset_s - other.onset_s)
        (present if enough else unknown).update(other.present)
        unknown.update(other.unknown)
    return replace(
        event,
        onset_s=start,
        offset_s=stop,
        duration_s=stop - start,
        present=frozenset(present),
        unknown=frozenset(unknown - present),
        absent=frozenset(absent - present - unknown),
    )


def _between(events: list[Clip], length: float, window_s: float) -> Iterator[Clip]:
    """What lies between events, in windows of at least `SHORTEST_S`; at most ten windows an event."""
    busy = sorted((c.onset_s or 0.0, c.offset_s or 0.0) for c in events if c.present or c.unknown)
    free, at = [], 0.0
    for onset, offset in [*busy, (length, length)]:
        start = at
        while onset - start >= SHORTEST_S:
            free.append((start, min(start + window_s, onset)))
            start += window_s
        at = max(at, offset)
    free = [(start, stop) for start, stop in free if stop - start >= SHORTEST_S]
    most = 10 * max(1, len(busy))
    kept = [free[i] for i in np.linspace(0, len(free) - 1, most).astype(int)] if len(free) > most else free
    for start, stop in kept:
        start, stop = round(start, 6), round(stop, 6)
        nothing: frozenset[str] = frozenset()
        yield replace(
            events[0],
            onset_s=start,
            offset_s=stop,
            duration_s=stop - start,
            present=nothing,
            absent=nothing,
            unknown=nothing,
        )


def _check_labels(clips: list[Clip], names: Sequence[str], task: str, problems: Problems) -> None:
    """Every label needs clips in two groups, and clips without it."""
    training = [clip for clip in clips if clip.split != "test"]
    groups: dict[str, set[str]] = defaultdict(set)
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for clip in training:
        for name in clip.present:
            groups[name].add(clip.group)
            groups[name].add(clip.group)
            counts[name] += 1
            examples.setdefault(name, clip.where)
    digests: dict[str, set[str]] = defaultdict(set)
    for clip in training:
        for name in clip.present:
            digests[name].add(clip.digest)
    for name in names:
        where = examples.get(name) or next(
            (c.where for c in clips if name in c.present | c.absent | c.unknown), "the data"
        )
        if len(groups[name]) < MIN_GROUPS or len(digests[name]) < MIN_GROUPS:
            n = min(len(groups[name]), len(digests[name]))
            problems.error(
                where,
                f"label {name!r} is in {n} group{'s' if n != 1 else ''} of recordings, and at least {MIN_GROUPS} are "
                "needed, to train on one and test on another",
                "add recordings, group them otherwise (--group), or leave the label out",
            )
        negatives = sum(1 for clip in training if name not in clip.present | clip.unknown)
        if not negatives and counts[name]:
            problems.error(
                where, f"label {name!r} has no negatives: every clip has it", "add others, or --negatives DIR"
            )


def is_background(name: str) -> bool:
    """Whether a folder or label of this name means "no label"."""
    return name.casefold() in BACKGROUND

"""Labelled data in any of its forms as one list of clips, checked whole before anything is computed."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import AudiotagError, InvalidInputError
from .clips import Clip, Dataset
from .forms import SPLIT_FOLDERS, read_rows, recordings
from .problems import Problems
from .tables import Row
from .timed import cut_timed

TASKS = ("auto", "single", "multi")
MAX_UNREADABLE = 0.05  # share of recordings
PAST_END_S = 0.1  # from which an offset beyond the end of its recording is told
MIN_GROUPS = 2  # of a label: one to train on, one to test on
READERS = 2  # threads that read files for their digests


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
    problems: Problems | None = None,
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
    problems : Problems, optional
        What is wrong already, to be told with the rest.

    Raises
    ------
    InvalidDataError
        With every problem: where, what, and a remedy.
    InvalidInputError
        `task`, `data` or `labels` is of no known kind.
    """
    if task not in TASKS:
        raise InvalidInputError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    problems = Problems() if problems is None else problems
    rows, root = read_rows(data, labels, problems, above=group == "parent")
    clips = [_clip(row) for row in rows]
    if test is not None:
        more, _ = read_rows(test, None, problems, above=group == "parent")
        clips += [replace(_clip(row), split="test") for row in more]
    empty = [] if negatives is None else _negatives(Path(negatives).expanduser(), problems)
    clips += empty
    clips = _merged(clips, problems)
    clips = _near(clips, problems)
    names = sorted({name for clip in clips for name in clip.present | clip.absent | clip.unknown})
    if known is not None:
        unknown = [name for name in names if name not in known]
        for name in unknown:
            example = next(c for c in clips if name in c.present | c.absent | c.unknown)
            problems.error(example.where, f"label {name!r} is not one of the checkpoint", "rename it or leave it out")
        names = list(known)
    elif not names and not problems.errors:
        problems.error(root, "no label at all", "name folders by label, or fill the column label")
    clips = _grouped(clips, group, root, {clip.path for clip in empty}, problems)
    clips = _folded(clips, folds, problems)
    found_task = _task(clips, task, problems)
    clips, unreadable = _opened(clips, problems)
    clips = cut_timed(clips, window_s)
    if known is None:
        _check_labels(clips, names, found_task, problems)
    problems.stop()
    return Dataset(tuple(clips), tuple(names), found_task, problems, unreadable, root)


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


def _negatives(folder: Path, problems: Problems) -> list[Clip]:
    if not folder.is_dir():
        problems.error(str(folder), "no such folder", "check the path")
        return []
    found = recordings(folder, problems)
    if not found:
        problems.error(str(folder), "holds no recording", "name a folder with recordings that have no label")
    return [Clip(path, where=path) for path in found]


def _merged(clips: list[Clip], problems: Problems) -> list[Clip]:
    """Several rows of one stretch are one clip with all their labels."""
    merged: dict[tuple[str, float | None, float | None], Clip] = {}
    for clip in clips:
        if clash := sorted(clip.present & clip.absent):
            problems.error(clip.where, f"{clash[0]!r} is present and absent in one row", "keep one of the two")
        key = (os.path.realpath(clip.path), clip.onset_s, clip.offset_s)
        first = merged.get(key)
        if first is None:
            merged[key] = clip
            continue
        present, absent = first.present | clip.present, first.absent | clip.absent
        if clash := sorted(present & absent):
            told = f"{clash[0]!r} is present and absent in one clip (see {first.where})"
            problems.error(clip.where, told, "keep one of the two")
        if (clip.split, clip.fold) != (first.split, first.fold):
            problems.error(clip.where, f"one clip in two splits or folds (see {first.where})", "keep one of the two")
        merged[key] = replace(first, present=present, absent=absent, unknown=first.unknown | clip.unknown - present)
    return list(merged.values())


def _near(clips: list[Clip], problems: Problems) -> list[Clip]:
    """Report names that differ in case, spaces or punctuation alone; the clips with one spelling of each."""
    spelled: dict[str, dict[str, str]] = defaultdict(dict)
    for clip in clips:
        for name in clip.present | clip.absent | clip.unknown:
            spelled[re.sub(r"[\W_]+", " ", name).strip().casefold() or name].setdefault(name, clip.where)
    one: dict[str, str] = {}
    for names in spelled.values():
        first, *others = names
        one |= dict.fromkeys(names, first.strip())
        for other in others:
            problems.error(
                names[other], f"label {other!r} and {first!r} ({names[first]}) are nearly equal", "write them alike"
            )

    def spelt(names: frozenset[str]) -> frozenset[str]:
        return frozenset(one[name] for name in names)

    return [
        replace(clip, present=spelt(clip.present), absent=spelt(clip.absent), unknown=spelt(clip.unknown))
        for clip in clips
    ]


def _task(clips: list[Clip], task: str, problems: Problems) -> str:
    several = [clip for clip in clips if len(clip.present) > 1 or clip.absent or clip.unknown]
    timed = any(clip.onset_s is not None for clip in clips)
    if task == "single" and (several or timed):
        where = several[0].where if several else next(c.where for c in clips if c.onset_s is not None)
        problems.error(where, "has several labels, unknown ones or times, which is no single task", "use --task multi")
    if task != "auto":
        return task
    return "multi" if several or timed or len({name for clip in clips for name in clip.present}) == 1 else "single"


def _grouped(clips: list[Clip], group: str | None, root: str, alone: set[str], problems: Problems) -> list[Clip]:
    """Clips with their groups; the paths `alone` may lack what makes one, and are a group each then."""
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
    by_file = [replace(clip, group=clip.path) for clip in clips]
    have = f"columns: {', '.join(sorted(column)) or 'none'}"
    try:
        pattern = re.compile(group)
    except re.error as error:
        problems.error("--group", f"{group!r} is no column and no expression ({error}; {have})", "correct it")
        return by_file
    found = [(clip, pattern.search(os.path.relpath(clip.path, root))) for clip in clips]
    missed = [clip for clip, match in found if match is None and clip.path not in alone]
    if missed and not any(match for _, match in found):
        path = os.path.relpath(clips[0].path, root)
        told = f"{group!r} is no column, and as an expression it finds nothing in any path, such as {path!r} ({have})"
        problems.error("--group", told, "correct it")
        return by_file
    for clip in missed:
        told = f"--group {group!r} finds nothing in {os.path.relpath(clip.path, root)!r}"
        problems.error(clip.where, told, "correct the expression")
    return [replace(clip, group=_group_name(match) if match else clip.path) for clip, match in found]


def _group_name(match: re.Match[str]) -> str:
    """What the expression's first group found, else all that it found."""
    return match[1] if match.re.groups and match[1] is not None else match[0]


def _folded(clips: list[Clip], folds: int | str | None, problems: Problems) -> list[Clip]:
    if isinstance(folds, int):
        return [replace(clip, fold="") for clip in clips]
    if folds is not None and folds not in {name for clip in clips for name in clip.columns}:
        have = ", ".join(sorted({name for clip in clips for name in clip.columns})) or "none"
        problems.error("--folds", f"{folds!r} is neither a number nor a column (columns: {have})", "name one of them")
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
            if clip.offset_s > length + PAST_END_S:
                told = f"offset {clip.offset_s:g} s is past the end at {length:.2f} s"
                problems.warn(clip.where, told, "the clip ends with the recording")
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


def _check_labels(clips: list[Clip], names: Sequence[str], task: str, problems: Problems) -> None:
    """Every label needs clips in two groups that share nothing with the test split, and clips without it."""
    tested = {told for clip in clips if clip.split == "test" for told in (clip.digest, clip.group)}
    training = [clip for clip in clips if clip.split != "test" and not {clip.digest, clip.group} & tested]
    groups: dict[str, set[str]] = defaultdict(set)
    digests: dict[str, set[str]] = defaultdict(set)
    examples: dict[str, str] = {}
    for clip in training:
        for name in clip.present:
            groups[name].add(clip.group)
            digests[name].add(clip.digest)
            examples.setdefault(name, clip.where)
    for name in names:
        where = examples.get(name) or next(
            (c.where for c in clips if name in c.present | c.absent | c.unknown), "the data"
        )
        count = min(len(groups[name]), len(digests[name]))
        if count < MIN_GROUPS:
            problems.error(
                where,
                f"label {name!r} is in {count} group{'s' if count != 1 else ''} of recordings"
                f"{' that share nothing with the test split' if tested else ''}, and at least {MIN_GROUPS} are needed, "
                "to train on one and test on another",
                "add recordings, group them otherwise (--group), or leave the label out",
            )
        if count and not any(name not in clip.present | clip.unknown for clip in training):
            problems.error(
                where, f"label {name!r} has no negatives: every clip has it", "add others, or --negatives DIR"
            )

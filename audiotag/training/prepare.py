"""Decode folders and tars of audio once into a bank of pieces, with a table that says where each came from."""

from __future__ import annotations

import csv
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from ..audio.recording import load_audio
from ..errors import AudioError, InvalidInputError, MissingDependencyError
from ..labels.label_set import audioset_labels
from .bank import LABELS_FILE, LOGITS_FILE, PCM_FILE, PCM_SCALE, PCM_TYPE, PLACES_FILE, PieceBank

SUFFIXES = frozenset([".wav", ".flac", ".ogg", ".opus", ".oga", ".mp3", ".aiff", ".aif", ".m4a"])
INDEX_FILE = "index.csv"
INDEX_COLUMNS = ("id", "split", "source", "path", "start_s", "duration_s", "licence")


def audio_files(source: str | Path) -> Iterator[tuple[str, bytes]]:
    """Yield path inside `source` and content of every audio file in a folder or tar, in a fixed order.

    Raises
    ------
    InvalidInputError
        If `source` is neither.
    """
    path = Path(source)
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file() and file.suffix.lower() in SUFFIXES:
                yield file.relative_to(path).as_posix(), file.read_bytes()
    elif path.is_file() and tarfile.is_tarfile(path):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.isfile() and PurePosixPath(member.name).suffix.lower() in SUFFIXES:
                    content = tar.extractfile(member)
                    assert content is not None
                    yield member.name, content.read()
    else:
        raise InvalidInputError(f"source must be a folder or a tar of audio files, got {source}")


def prepare_bank(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    index: str | Path | None = None,
    labels: str | Path | None = None,
    teacher: str | None = None,
    max_s: float = 10.0,
    sample_rate_hz: int = 32_000,
) -> int:
    """Make a bank; the command ``audiotag train prepare``.

    Files that cannot be decoded are left out, and the index says so. What is longer than `max_s` is cut into pieces of
    that length, the last of which may be shorter.

    Parameters
    ----------
    index : path, optional
        CSV with ``id`` (file name without suffix) and any of ``split``, ``source``, ``licence``; files it does not name
        are of split "train".
    labels : path, optional
        CSV with ``id`` and ``label``, a name or mid, one row per label present in the recording.
    teacher : str, optional
        Checkpoint whose logits of every piece, tiled to its window, are kept beside them: they balance the drawing of
        pieces, and recipes that do not mix learn from them.

    Returns
    -------
    int
        The number of pieces.

    Raises
    ------
    InvalidInputError
        If `out` already holds a bank, nothing can be decoded, or a label is unknown.
    """
    folder = Path(out)
    if (folder / PLACES_FILE).exists():
        raise InvalidInputError(f"{folder} already holds a bank; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    known = {row["id"]: row for row in _rows(index)} if index else {}
    present: dict[str, list[int]] = {}
    names = audioset_labels()
    for row in _rows(labels) if labels else ():
        present.setdefault(row["id"], []).append(names.resolve(row["label"]).index)
    longest = round(max_s * sample_rate_hz)
    rows, places, offset = [], [], 0
    with open(folder / f"{PCM_FILE}.part", "wb") as pcm, open(folder / "left_out.txt", "w") as left_out:
        for source in sources:
            for path, content in audio_files(source):
                try:
                    samples = load_audio(content, target_rate_hz=sample_rate_hz)
                except (AudioError, MissingDependencyError) as error:  # the second: formats that need PyAV
                    left_out.write(f"{source}/{path}: {error}\n")
                    continue
                name = PurePosixPath(path).stem
                told = known.get(name, {})
                for start in range(0, len(samples), longest):
                    piece = samples[start : start + longest]
                    pcm.write(np.clip(np.round(piece * PCM_SCALE), -32_768, 32_767).astype(PCM_TYPE).tobytes())
                    places.append((offset, len(piece)))
                    offset += len(piece)
                    seconds = (start / sample_rate_hz, len(piece) / sample_rate_hz)
                    values = (
                        name,
                        told.get("split", "train"),
                        told.get("source", str(source)),
                        told.get("path", path),
                        *seconds,
                    )
                    rows.append((*values, told.get("licence", "")))
        pcm.flush()
        os.fsync(pcm.fileno())
    if not rows:
        raise InvalidInputError(
            f"no audio in {', '.join(map(str, sources))} could be decoded; see {folder / 'left_out.txt'}"
        )
    if labels:
        table = np.zeros((len(rows), len(names)), dtype=np.uint8)
        for number, (name, *_) in enumerate(rows):
            table[number, present.get(name, [])] = 1
        np.save(folder / LABELS_FILE, table)
    with open(folder / INDEX_FILE, "w", newline="") as file:
        csv.writer(file).writerows([INDEX_COLUMNS, *rows])
    os.replace(folder / f"{PCM_FILE}.part", folder / PCM_FILE)
    start, length = np.array(places, dtype=np.int64).T
    if teacher is not None:
        np.save(folder / LOGITS_FILE, _logits(teacher, folder / PCM_FILE, start, length))
    part = folder / f"part-{PLACES_FILE}"
    np.savez(part, start=start, length=length, split=np.array([row[1] for row in rows]))
    os.replace(part, folder / PLACES_FILE)  # last: without it the folder is no bank
    return len(rows)


def _logits(teacher: str, pcm: Path, start: np.ndarray, length: np.ndarray) -> np.ndarray:
    from ..checkpoints.load import build, load_checkpoint
    from .evaluate import logits_of

    loaded = load_checkpoint(teacher)
    pieces = PieceBank((np.memmap(pcm, dtype=PCM_TYPE, mode="r"),), np.zeros_like(start), start, length)
    return logits_of(build(loaded), loaded.config, pieces).astype(np.float16)


def _rows(path: str | Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))

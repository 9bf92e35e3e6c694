"""Audio to learn from: pieces decoded once to a memory map, tables of labels and of a teacher's logits beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InvalidInputError

PCM_FILE, PLACES_FILE = "pcm.i16", "pieces.npz"
PCM_TYPE, PCM_SCALE = "<i2", 32_768.0
SHORTEST_SAMPLES = 800  # a shorter piece is a click; it is never drawn


LABELS_FILE, LOGITS_FILE = "labels.npy", "teacher_logits.npy"


@dataclass(frozen=True)
class PieceBank:
    """Mono pieces of audio, one after the other in files of 16-bit integers.

    Parameters
    ----------
    pcm : tuple of ndarray
        (samples,), int16, usually memory maps: one for each folder.
    file, start, length : ndarray
        (pieces,), int64: which of `pcm` holds each piece, and where, in samples.
    """

    pcm: tuple[np.ndarray, ...]
    file: np.ndarray
    start: np.ndarray
    length: np.ndarray

    @classmethod
    def open(cls, *folders: str | Path) -> PieceBank:
        """Open the banks in `folders`, as `audiotag.training.prepare` makes them, as one.

        Raises
        ------
        InvalidInputError
            If a folder holds none.
        """
        pcm, starts, lengths = [], [], []
        for folder in folders:
            places, samples = Path(folder) / PLACES_FILE, Path(folder) / PCM_FILE
            if not places.is_file() or not samples.is_file():
                raise InvalidInputError(
                    f"{folder}: no bank of pieces (no {PLACES_FILE} and {PCM_FILE}); "
                    "make one with `audiotag train prepare`"
                )
            pcm.append(np.memmap(samples, dtype=PCM_TYPE, mode="r"))
            with np.load(places) as place:
                starts.append(place["start"])
                lengths.append(place["length"])
        file = np.repeat(np.arange(len(pcm)), [len(start) for start in starts])
        return cls(tuple(pcm), file, np.concatenate(starts), np.concatenate(lengths))

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, index: int) -> np.ndarray:
        """Return piece `index` as float32 in [-1, 1)."""
        begin = int(self.start[index])
        return self.pcm[self.file[index]][begin : begin + int(self.length[index])].astype(np.float32) / PCM_SCALE

    def subset(self, indices: np.ndarray) -> PieceBank:
        """Return the pieces at `indices`, on the same audio."""
        return PieceBank(self.pcm, self.file[indices], self.start[indices], self.length[indices])


def read_split(folders: Sequence[str | Path], split: str) -> np.ndarray:
    """Return indices of the pieces of `PieceBank.open(*folders)` that belong to a split.

    Raises
    ------
    InvalidInputError
        If no piece does; the message lists the splits there are.
    """
    found = []
    for folder in folders:
        with np.load(Path(folder) / PLACES_FILE) as places:
            found.append(places["split"])
    splits = np.concatenate(found)
    picks = np.flatnonzero(splits == split)
    if not len(picks):
        raise InvalidInputError(
            f"{', '.join(map(str, folders))}: no piece of split {split!r}; "
            f"there are {', '.join(sorted(set(splits.tolist())))}"
        )
    return picks


def read_table(folders: Sequence[str | Path], name: str) -> np.ndarray | None:
    """Read ``labels.npy`` or ``teacher_logits.npy`` of all banks, (pieces, labels); None where a bank lacks it."""
    paths = [Path(folder) / name for folder in folders]
    if not all(path.is_file() for path in paths):
        return None
    return np.concatenate([np.load(path, allow_pickle=False) for path in paths])

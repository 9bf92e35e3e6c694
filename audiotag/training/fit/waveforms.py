"""Waveforms to fine-tune on: decoded once to disk, mixed and turned as each step asks.

A batch depends on the seed, the job and the step alone, so that training can stop and go on anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ...errors import AudiotagError, CheckpointError
from ...files import read_json, write_json
from .clips import Clip
from .features import clip_sources

AUDIO_FILE, PLACES_FILE = "audio.i16", "audio.json"
LONGEST_S = 60.0  # of a clip that is kept
SCALE = 32_767
ROLL_SAMPLES = 4_000
GAIN_DB = (-12, 11)  # whole decibels
MIX_CHANCE = 0.5
MIX_BETA = 2.0


class Waveforms:
    """Clips as mono int16 in one file that is read through the page cache: memory does not grow with their number.

    Parameters
    ----------
    folder : Path
        Of the run; an earlier run's file in it is used if it holds the same clips.
    clips : sequence of Clip
    rate_hz : int
    progress : callable, optional
        Called with the clips done and all of them.
    """

    def __init__(
        self, folder: Path, clips: Sequence[Clip], rate_hz: int, progress: Callable[[int, int], None] | None = None
    ) -> None:
        self.rate_hz = rate_hz
        path, places = folder / AUDIO_FILE, folder / PLACES_FILE
        keys = [[clip.digest, clip.onset_s, clip.offset_s] for clip in clips]
        told = read_json(places)
        if told is None or told.get("keys") != json.loads(json.dumps(keys)) or told.get("rate_hz") != rate_hz:
            starts, lengths = _decode(path, clips, rate_hz, progress)
            told = {"keys": keys, "rate_hz": rate_hz, "starts": starts, "lengths": lengths}
            write_json(places, told)
        self.starts, self.lengths = np.array(told["starts"], np.int64), np.array(told["lengths"], np.int64)
        self._samples = np.memmap(path, np.int16, "r")

    def piece(self, clip: int, samples: int, rng: np.random.Generator) -> np.ndarray:
        """A clip as float32 (samples,): a random stretch of a longer one, a shorter one repeated."""
        start, length = int(self.starts[clip]), int(self.lengths[clip])
        begin = int(rng.integers(0, length - samples + 1)) if length > samples else 0
        found = self._samples[start + begin : start + min(length, begin + samples)].astype(np.float32) / SCALE
        return found if len(found) == samples else np.resize(found, samples)


def _decode(
    path: Path, clips: Sequence[Clip], rate_hz: int, progress: Callable[[int, int], None] | None
) -> tuple[list[int], list[int]]:
    """Write the clips' samples, recording by recording; where each starts, and how many it has."""
    from ...audio.recording import load_audio

    starts, lengths, at = [0] * len(clips), [0] * len(clips), 0
    order = sorted(range(len(clips)), key=lambda i: (clips[i].path, clips[i].onset_s or 0.0))
    sources = clip_sources([clips[i] for i in order], rate_hz)
    with open(path, "wb") as file:
        for done, (i, source) in enumerate(zip(order, sources, strict=True), start=1):
            try:
                samples = source[0] if isinstance(source, tuple) else load_audio(source, target_rate_hz=rate_hz)
            except AudiotagError as error:  # it was read before, when it was embedded
                raise CheckpointError(f"{clips[i].name}: could not be read again ({error}); fit again") from error
            samples = samples[: round(LONGEST_S * rate_hz)]
            file.write((np.clip(samples, -1, 1) * SCALE).astype("<i2").tobytes())
            starts[i], lengths[i] = at, len(samples)
            at += len(samples)
            if progress is not None:
                progress(done, len(clips))
    return starts, lengths


def batch(
    waveforms: Waveforms,
    targets: np.ndarray,
    clips: np.ndarray,
    *,
    size: int,
    samples: int,
    key: Sequence[int],
    epoch: int,
    within: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Waveforms (size, samples), float32, of step `within` of an epoch, and targets (size, labels), nan for unknown.

    Each epoch goes through the clips once, in an order of its own. A clip is turned by up to `ROLL_SAMPLES` and scaled;
    half of them are mixed with another one, l ~ Beta(2, 2) of the one and 1 - l of the other, targets alike.
    """
    order = np.random.default_rng([*key, epoch]).permutation(clips)
    picks = np.take(order, np.arange(within * size, (within + 1) * size), mode="wrap")
    rng = np.random.default_rng([*key, epoch, 1, within])

    def one(clip: int) -> np.ndarray:
        piece = waveforms.piece(clip, samples, rng)
        piece = np.roll(piece, int(rng.integers(-ROLL_SAMPLES, ROLL_SAMPLES + 1)))
        return piece * np.float32(10 ** (int(rng.integers(GAIN_DB[0], GAIN_DB[1] + 1)) / 20))

    rows, wanted = [], []
    for clip in picks.tolist():
        row, target = one(clip), targets[clip]
        if rng.random() < MIX_CHANCE:
            other = int(rng.choice(clips))
            share = float(rng.beta(MIX_BETA, MIX_BETA))
            row, second = row - row.mean(), one(other)
            row = share * row + (1 - share) * (second - second.mean())
            target = share * target + (1 - share) * targets[other]
        rows.append(np.clip(row, -1, 1).astype(np.float32))
        wanted.append(target)
    return np.stack(rows), np.stack(wanted).astype(np.float32)

"""The log-mel of a whole recording, however long, in few columns: for pictures."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..audio.recording import open_audio
from ..config import FrontendConfig
from .mel import min_samples
from .numpy_logmel import NumpyLogMel

MAX_COLUMNS = 1500  # more than a picture has room for


def logmel_image(
    source: Any,
    *,
    duration_s: float,
    frontend: FrontendConfig = FrontendConfig(),
    sample_rate_hz: int | None = None,
    max_columns: int = MAX_COLUMNS,
) -> np.ndarray:
    """Compute the log-mel of a whole recording, frames averaged into at most ``max_columns`` columns.

    Reads the recording in blocks, so memory does not grow with its length.

    Parameters
    ----------
    source, sample_rate_hz
        As for `audiotag.audio.recording.open_audio`.
    duration_s : float
        Length in seconds, as a `Prediction` of the recording says.
    frontend : FrontendConfig
        Rate, bands and hop of the log-mel.

    Returns
    -------
    numpy.ndarray, float32, (mels, columns)
    """
    config, transform = frontend, NumpyLogMel(frontend)
    # Blocks are whole numbers of frames, with what the first frame of the next needs left over from the last. Frames
    # at the seams see reflected samples: too little to be seen in a picture.
    block = config.hop_samples * 3000
    frames = max(1, round(duration_s * config.sample_rate_hz / config.hop_samples))
    n_columns = min(frames, max_columns)
    sums, counts, seen = np.zeros((config.n_mels, n_columns)), np.zeros(n_columns), 0

    def add(samples: np.ndarray) -> None:
        nonlocal seen
        samples = np.pad(samples, (0, max(0, min_samples(config) - len(samples))))
        image = transform(samples[np.newaxis])[0, 0].astype(np.float64)
        where = np.minimum((seen + np.arange(image.shape[1])) * n_columns // frames, n_columns - 1)
        firsts = np.flatnonzero(np.diff(where, prepend=-1))
        sums[:, where[firsts]] += np.add.reduceat(image, firsts, axis=1)
        counts[where[firsts]] += np.diff(firsts, append=len(where))
        seen += image.shape[1]

    held = np.empty(0, np.float32)
    with open_audio(source, target_rate_hz=config.sample_rate_hz, sample_rate_hz=sample_rate_hz) as stream:
        for samples in stream.blocks():
            held = np.concatenate([held, samples])
            while len(held) >= block:
                add(held[:block])
                held = held[block:]
    if len(held) or not seen:
        add(held)
    return (sums / np.maximum(counts, 1)).astype(np.float32)

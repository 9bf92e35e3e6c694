"""Waveform and log-mel of a recording as columns to draw, made of the log-mel that the network is given.

Columns come in strips, each with its first column's time and a column's width: fine where the recording is short, and
twice as wide from where an unknown length has outgrown the columns a page can hold.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from ..frontend.windows import Window

MEL_COLUMNS, WAVE_COLUMNS = 8192, 16384  # at most, of one recording
FINEST_WAVE = 32  # samples a column
LOWEST, HIGHEST = -1.5, 2.5  # log-mel drawn as 0 and 255: ln(1e-5) is -1.4 after scaling, full scale about 2


class _Columns:
    """Items gathered into columns of `width`, which doubles whenever `most` columns are out."""

    def __init__(self, width: int, most: int) -> None:
        self.width, self._most = width, most
        self._out = 0  # columns since the width last changed
        self.position = 0  # items that are out
        self._held: list[np.ndarray] = []  # (..., n)
        self._n_held = 0

    def push(self, items: np.ndarray) -> tuple[int, int, np.ndarray] | None:
        """Take items (..., n); returns position and width of the columns they complete, and their items.

        The items are (..., columns, width); None where no column is complete.
        """
        self._held.append(items)
        self._n_held += items.shape[-1]
        n = self._n_held // self.width
        if n == 0:
            return None
        whole = np.concatenate(self._held, axis=-1)
        columns = whole[..., : n * self.width].reshape(*whole.shape[:-1], n, self.width)
        self._held = [whole[..., n * self.width :].copy()]
        self._n_held = self._held[0].shape[-1]
        found = (self.position, self.width, columns)
        self.position += n * self.width
        self._out += n
        if self._out >= self._most:
            self.width, self._out = 2 * self.width, self._most // 2
        return found

    def finish(self) -> tuple[int, int, np.ndarray] | None:
        """Complete the last column by repeating the last item."""
        if not self._n_held:
            return None
        last = np.concatenate(self._held, axis=-1)[..., -1:]
        return self.push(np.repeat(last, -self._n_held % self.width, axis=-1))


class Picture:
    """Strips of waveform and log-mel, JSON-ready.

    Parameters
    ----------
    rate_hz, hop_samples : int
        Of the checkpoint's frontend.
    expected_s : float or None
        The recording's length, if its header tells.
    """

    def __init__(self, rate_hz: int, hop_samples: int, expected_s: float | None) -> None:
        self._rate_hz, self._hop = rate_hz, hop_samples
        samples = 0 if expected_s is None else expected_s * rate_hz
        self._mel = _Columns(max(1, -(-int(samples / hop_samples) // MEL_COLUMNS)), MEL_COLUMNS)
        self._wave = _Columns(max(FINEST_WAVE, -(-int(samples) // WAVE_COLUMNS)), WAVE_COLUMNS)
        self._frames = 0

    def add(self, window: Window, logmel: np.ndarray, samples: np.ndarray) -> dict[str, Any]:
        """Return the strips that a window completes, by frames and samples that no window before it had.

        Parameters
        ----------
        window : Window
        logmel : float32 (1, mels, frames)
        samples : float32 (n,)
        """
        start, upto = window.start // self._hop, -(-window.stop // self._hop)
        frames = logmel[0, :, max(0, self._frames - start) : upto - start]
        self._frames = max(self._frames, upto)
        return self._strips(self._mel.push(frames), self._wave.push(samples))

    def finish(self) -> dict[str, Any]:
        """Return the strips of what is left."""
        return self._strips(self._mel.finish(), self._wave.finish())

    def _strips(self, mel: Any, wave: Any) -> dict[str, Any]:
        strips: dict[str, Any] = {}
        if mel is not None:
            position, width, columns = mel
            levels = (columns.mean(-1) - LOWEST) * (255 / (HIGHEST - LOWEST))
            strips["logmel"] = {
                "start_s": position * self._hop / self._rate_hz,
                "column_s": width * self._hop / self._rate_hz,
                "mels": columns.shape[0],
                "levels": _base64(np.clip(np.rint(levels), 0, 255).astype(np.uint8).T),  # column after column
            }
        if wave is not None:
            position, width, columns = wave
            extremes = np.stack([columns.min(-1), columns.max(-1)], axis=-1)
            strips["waveform"] = {
                "start_s": position / self._rate_hz,
                "column_s": width / self._rate_hz,
                "extremes": _base64(np.clip(np.rint(extremes * 127), -127, 127).astype(np.int8)),
            }
        return strips


def on_host(array: Any) -> np.ndarray:
    """Copy a runtime's array to numpy."""
    return np.asarray(array.cpu() if hasattr(array, "cpu") else array)


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")


def scores_base64(rows: list[np.ndarray]) -> str:
    """Encode rows of scores as base64 of little-endian float32, row after row."""
    return _base64(np.stack(rows).astype("<f4"))

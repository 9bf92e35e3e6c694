"""Window arithmetic: where windows lie in a recording, tiling short clips, cutting a stream of blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from ..errors import InvalidInputError


class Window(NamedTuple):
    """A stretch of a recording and what the network is shown of it.

    start, stop: samples in the recording. samples: float32 (window,), tiled where ``stop - start`` is shorter.
    """

    start: int
    stop: int
    samples: np.ndarray


def window_starts(n_samples: int, window: int, hop: int) -> list[int]:
    """First samples of the windows over a recording; the last window is moved back to end with it.

    >>> window_starts(25, 10, 10)
    [0, 10, 15]
    """
    if n_samples <= window:
        return [0]
    starts = list(range(0, n_samples - window + 1, hop))
    if starts[-1] + window < n_samples:
        starts.append(n_samples - window)
    return starts


def tile(samples: np.ndarray, window: int) -> np.ndarray:
    """Repeat a clip (samples,) until it fills (window,); a clip already as long is returned as it is."""
    return samples if len(samples) == window else np.resize(samples, window)


def cut_windows(blocks: Iterable[np.ndarray], window: int, hop: int) -> Iterator[Window]:
    """Windows of a recording that arrives in blocks, each as soon as its last sample is there.

    Holds at most one window and one block. The windows are those of `window_starts`, whatever the blocks' lengths.

    Parameters
    ----------
    blocks : iterable of ndarray
        float32 (samples,), any lengths, at least one sample in all.
    window, hop : int
        In samples, ``1 <= hop <= window``.
    """
    held = np.empty(0, np.float32)  # the last samples seen, at most a window of them between blocks
    held_start = next_start = 0
    emitted_stop = 0
    for block in blocks:
        held = np.concatenate([held, block]) if len(held) else block
        total = held_start + len(held)
        while next_start + window <= total:
            offset = next_start - held_start
            yield Window(next_start, next_start + window, np.ascontiguousarray(held[offset : offset + window]))
            emitted_stop = next_start + window
            next_start += hop
        # Keep what the next window needs and, for a last one moved back, a whole window up to the end.
        keep = min(next_start, max(held_start, total - window))
        held = held[keep - held_start :].copy()
        held_start = keep
    total = held_start + len(held)
    if total == 0:
        raise InvalidInputError("blocks: no samples at all")
    if total < window:
        yield Window(0, total, tile(held, window))
    elif emitted_stop < total:
        yield Window(total - window, total, held[total - window - held_start :])

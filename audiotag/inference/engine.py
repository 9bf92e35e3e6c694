"""The inference loop: windows of many sources, batched through frontend and network, sorted back to their sources."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from ..config import CheckpointConfig
from ..errors import CheckpointError
from ..frontend.windows import Window
from ..runtimes.protocol import SCORES, Array, Runtime
from .batches import Analysis, Batcher, Waiting
from .frames import Frames
from .head import Head
from .sources import Begun, Step, in_turn, prefetch, read_windows

# Called with a source that is being analysed, the seconds done, and its length in seconds if its header tells.
Progress = Callable[[Any, float, "float | None"], None]
DECODED_AHEAD = 8  # windows waiting per source for the network, if threads decode: 10 MB at most
DECODED_AT_ONCE = 8  # windows decoded before the network runs them, if it takes turns with decoding


class Engine:
    """A checkpoint's runtime and head; stateless between calls, so threads may share it.

    Parameters
    ----------
    config : CheckpointConfig
    runtime : Runtime
    head : Head, optional
        Own labels, where the checkpoint has some.
    """

    def __init__(self, config: CheckpointConfig, runtime: Runtime, head: Head | None = None) -> None:
        self.config, self.runtime, self.head = config, runtime, head

    def scores(self, logmel: Array) -> np.ndarray:
        """Compute scores (B, labels), float32 in [0, 1], of log-mel (B, 1, mels, frames)."""
        if self.head is None:
            return self.runtime.run(logmel, (SCORES,))[SCORES]
        return self.head.scores(self.runtime.run(logmel, self.head.outputs))

    def features(self, logmel: Array, layers: Sequence[str]) -> np.ndarray:
        """Compute the named features of log-mel (B, 1, mels, frames), concatenated: float32 (B, sum of their sizes)."""
        found = self.runtime.run(logmel, tuple(layers))
        return np.concatenate([found[name] for name in layers], axis=1)

    def analyse(
        self,
        sources: Iterable[Any],
        *,
        window: int,
        hop: int,
        sample_rate_hz: int | None = None,
        layers: Sequence[str] | None = None,
        batch_size: int | None = None,
        workers: int = 1,
        progress: Progress | None = None,
    ) -> Iterator[Analysis]:
        """Analyse sources, in order; one that cannot be used has its error in `Analysis.error`.

        Parameters
        ----------
        sources : iterable
            Of whatever `open_audio` takes; read lazily.
        window, hop : int
            In samples at the checkpoint's rate; a window shorter than the checkpoint's is tiled to it.
        sample_rate_hz : int, optional
            Rate of arrays that bring none; None: the checkpoint's.
        layers : sequence of str, optional
            The rows are these feature vectors; None: scores.
        batch_size : int, optional
            Windows per run. In a runtime that computes a batch at once it changes scores in the last bits; so batches
            begin anew every `batch_size` sources: a run over sources that starts at a multiple of `batch_size` repeats
            the scores of a longer one bit for bit.
        workers : int
            Background threads that read sources; 1 on a CPU: none, reading takes turns with the network.
        progress : callable, optional
        """
        rate = self.config.frontend.sample_rate_hz
        frames = Frames(self.runtime, self.config, window, hop)
        batcher = Batcher(batch_size or self.runtime.default_batch)

        def read(source: Any) -> Iterator[Step]:
            return read_windows(source, rate_hz=rate, window=window, hop=hop, sample_rate_hz=sample_rate_hz)

        if workers == 1 and self.runtime.device == "cpu":
            pieces = in_turn(sources, read, depth=DECODED_AT_ONCE)
        else:
            pieces = prefetch(sources, read, workers=workers, depth=DECODED_AHEAD)

        current: Analysis | None = None
        finished: deque[Analysis] = deque()  # sources read to their end; their last windows may wait still
        n_finished = 0
        with closing(pieces):
            for source, step in pieces:
                if current is None:
                    current, prepare = Analysis(source, rate), frames.recording()
                if isinstance(step, Begun):
                    current.begin(step)
                elif isinstance(step, Window):
                    batcher.add(Waiting(current, step, prepare(step)))
                    if batcher.full:
                        self._run(batcher, frames, layers)
                        if progress is not None:
                            progress(source, current.duration_s, current.expected_s)
                else:
                    current.ended = step
                    if step.error is not None:
                        batcher.forget(current)
                    finished.append(current)
                    current, n_finished = None, n_finished + 1
                    if n_finished % batcher.size == 0:
                        self._run(batcher, frames, layers)
                while finished and not batcher.holds(finished[0]):
                    yield finished.popleft()
        self._run(batcher, frames, layers)
        yield from finished

    def _run(self, batcher: Batcher, frames: Frames, layers: Sequence[str] | None) -> None:
        """Run the network on what waits."""
        batch = batcher.take()
        if not batch:
            return
        logmel = frames.join([one.shown for one in batch])
        rows = self.scores(logmel) if layers is None else self.features(logmel, layers)
        for one, row in zip(batch, rows, strict=True):
            one.analysis.add(one.window, row)
            one.analysis.failed = one.analysis.failed or self.overflow(row)

    def overflow(self, row: np.ndarray) -> CheckpointError | None:
        """Return the error of a row that is not finite: log-mel always is, so it is the network's doing."""
        if np.isfinite(row).all():
            return None
        return CheckpointError(
            f"{self.config.name}: this checkpoint's weights overflow in {self.runtime.dtype}, so its outputs are not "
            "finite; use dtype float32 or another checkpoint"
        )

"""The inference loop: windows of many sources, batched through frontend and network, sorted back to their sources."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from ..audio.recording import open_audio
from ..config import CheckpointConfig
from ..errors import AudiotagError
from ..frontend.logmel import LogMel
from ..frontend.sliding import LogMelWindow, logmel_windows
from ..frontend.windows import Window, cut_windows, tile
from .head import Head
from .sources import in_turn, prefetch

# Called with a source that is being analysed, the seconds done, and its length in seconds if its header tells.
Progress = Callable[[Any, float, "float | None"], None]
DECODED_AHEAD = 8  # windows waiting per source for the network, if threads decode: 10 MB at most
DECODED_AT_ONCE = 8  # windows decoded before the network runs them, if it takes turns with decoding


@dataclass
class Analysis:
    """What the network said of one source: one row per window, in order."""

    source: str = ""
    duration_s: float = 0.0
    warnings: tuple[str, ...] = ()
    start_s: list[float] = field(default_factory=list)
    end_s: list[float] = field(default_factory=list)
    rows: list[np.ndarray] = field(default_factory=list)

    def stacked(self) -> np.ndarray:
        """The rows as (windows, ...), read-only so that nobody copies it; once, for there may be hours of them."""
        stacked = np.stack(self.rows)
        self.rows.clear()
        stacked.flags.writeable = False
        return stacked


@dataclass(frozen=True)
class _Opened:
    name: str
    duration_s: float | None


@dataclass(frozen=True)
class _Closed:
    warnings: tuple[str, ...]


class Engine:
    """A frontend and a network on one device; stateless between calls, so threads may share it."""

    def __init__(
        self,
        config: CheckpointConfig,
        network: nn.Module,
        device: torch.device,
        dtype: torch.dtype,
        head: Head | None = None,
    ) -> None:
        self.config, self.head = config, head
        self.device, self.dtype = device, dtype
        self.frontend = LogMel(config.frontend).to(device)
        self.network = network.to(device)
        self.default_batch = 64 if device.type == "cuda" else 1

    @torch.inference_mode()
    def logmel(self, waveforms: np.ndarray) -> torch.Tensor:
        """Log-mel (B, 1, mels, frames) float32 of windows (B, samples)."""
        return self.frontend(torch.from_numpy(waveforms).to(self.device, torch.float32))

    @torch.inference_mode()
    def scores(self, logmel: torch.Tensor) -> np.ndarray:
        """Scores (B, labels) float32 in [0, 1] of log-mel (B, 1, mels, frames)."""
        layers = self.head.outputs if self.head is not None else ()
        output = self.network(logmel.to(self.dtype), taps=layers)
        if self.head is None:
            return output.logits.float().sigmoid().cpu().numpy()
        found = {name: tap.float().cpu().numpy() for name, tap in output.taps.items()}
        found |= {"logmel": logmel.mean((1, 3)).cpu().numpy(), "scores": output.logits.float().sigmoid().cpu().numpy()}
        return self.head.scores(found)

    @torch.inference_mode()
    def features(self, logmel: torch.Tensor, layers: tuple[str, ...]) -> np.ndarray:
        """The named feature vectors, concatenated: (B, sum of their sizes) float32."""
        taps = self.network(logmel.to(self.dtype), taps=layers).taps
        parts = [logmel.mean((1, 3)) if name == "logmel" else taps[name].float() for name in layers]
        return torch.cat(parts, 1).cpu().numpy()

    def analyse(
        self,
        sources: Iterable[Any],
        *,
        sample_rate: int | None,
        window: int,
        hop: int,
        layers: tuple[str, ...] | None = None,
        batch_size: int | None = None,
        workers: int = 1,
        progress: Progress | None = None,
    ) -> Iterator[tuple[Any, Analysis | AudiotagError]]:
        """Each source with its analysis, in order; an unusable source with the error that says why.

        `window` and `hop` are in samples; a window shorter than the checkpoint's is tiled to it. `layers` None gives
        score rows, otherwise feature rows. A batch changes scores in the last bits, so batches
        begin anew every `batch_size` sources: what one holds depends on these alone, and a run over sources that
        starts at a multiple of `batch_size` repeats the scores of a longer one bit for bit.
        """
        rate = self.config.frontend.sample_rate_hz
        whole = self.config.window_samples
        shares = hop < window == whole  # frames that windows share are computed once, where sources are read
        batch_size = batch_size or self.default_batch

        def produce(source: Any) -> Iterator[Any]:
            with open_audio(source, target_rate_hz=rate, sample_rate_hz=sample_rate) as stream:
                yield _Opened(stream.name, stream.duration_s)
                if shares:
                    yield from logmel_windows(stream.blocks(), self.frontend, window_samples=window, hop_samples=hop)
                else:
                    yield from cut_windows(stream.blocks(), window, hop)
                yield _Closed(tuple(stream.warnings))

        waiting: list[tuple[Analysis, int, int, Any]] = []  # whose, start, stop, samples or log-mel

        def run() -> None:
            if not waiting:
                return
            inputs = [entry[3] for entry in waiting]
            logmel = torch.stack(inputs) if shares else self.logmel(np.stack(inputs))
            rows = self.scores(logmel) if layers is None else self.features(logmel, layers)
            for (analysis, start, stop, _), row in zip(waiting, rows, strict=True):
                analysis.start_s.append(start / rate)
                analysis.end_s.append(stop / rate)
                analysis.rows.append(row)
                analysis.duration_s = max(analysis.duration_s, stop / rate)
            waiting.clear()

        finished: deque[tuple[Any, Analysis | AudiotagError]] = deque()
        current, expected_s = Analysis(), None
        ended = 0
        if workers == 1 and self.device.type == "cpu":
            pieces = in_turn(sources, produce, depth=DECODED_AT_ONCE)
        else:
            pieces = prefetch(sources, produce, workers=workers, depth=DECODED_AHEAD)
        with closing(pieces):
            for source, value, last in pieces:
                if isinstance(value, _Opened):
                    current, expected_s = Analysis(value.name), value.duration_s
                elif isinstance(value, (Window, LogMelWindow)):
                    shown = value.logmel if isinstance(value, LogMelWindow) else tile(value.samples, whole)
                    waiting.append((current, value.start, value.stop, shown))
                    if len(waiting) >= batch_size:
                        run()
                        if progress is not None:
                            progress(source, current.duration_s, expected_s)
                elif isinstance(value, _Closed):
                    current.warnings = value.warnings
                if last:
                    failed = isinstance(value, AudiotagError)
                    finished.append((source, value if failed else current))
                    if failed:
                        waiting[:] = [entry for entry in waiting if entry[0] is not current]
                    current = Analysis()  # a source that cannot be opened has none of its own
                    ended += 1
                    if ended % batch_size == 0:
                        run()
                while finished and not (waiting and waiting[0][0] is finished[0][1]):
                    yield finished.popleft()
        run()
        yield from finished

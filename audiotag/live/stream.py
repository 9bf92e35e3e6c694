"""Live audio: chunks of any size in, scores of the last window and events out, every hop."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..audio.arrays import MAX_CHANNELS, check_samples, check_values, mix, tensor_to_array, to_float
from ..audio.resample import Resampler
from ..checks import check_rate, is_tensor
from ..errors import InvalidInputError
from ..frontend.windows import Window, WindowCutter, tile
from ..inference.engine import Engine
from ..inference.frames import Frames
from ..labels.label_set import LabelLike, LabelSet
from ..results.events import ON, Event
from ..results.tags import Tag, top_tags
from ..results.thresholds import label_thresholds, stored
from ..runtimes.protocol import Array
from .tracker import MAX_GAP_S, EventTracker, Onset

BLOCK_SAMPLES = 1 << 16  # bounds the copies made of a long chunk
S16LE = np.dtype("<i2")


@dataclass(frozen=True, eq=False)
class StreamWindow:
    """Scores of one hop of a stream, and the events that started and ended with it.

    Attributes
    ----------
    start_s, end_s : float
        The stretch of the stream that was scored, in seconds.
    scores : numpy.ndarray, float32, (labels,)
        In [0, 1], read-only.
    started : tuple of Onset
        Events that started with this window, highest score first.
    ended : tuple of Event
        Events that ended with it, earliest onset first.
    labels : LabelSet
    """

    start_s: float
    end_s: float
    scores: np.ndarray = field(repr=False)
    started: tuple[Onset, ...]
    ended: tuple[Event, ...]
    labels: LabelSet = field(repr=False)

    def top(
        self,
        k: int | None = 10,
        *,
        threshold: float | None = None,
        include: LabelLike | Iterable[LabelLike] | None = None,
        exclude: LabelLike | Iterable[LabelLike] | None = None,
    ) -> list[Tag]:
        """Return the window's best labels, highest score first; arguments as for `Prediction.top`."""
        return top_tags(self.scores, self.labels, k=k, threshold=threshold, include=include, exclude=exclude)


class Stream:
    """Scores and events of audio that arrives in chunks; made by `Tagger.stream`.

    Every hop gives one window: the last 10 s (the checkpoint's window), and until so much has come all there is,
    tiled, as `Tagger.predict` does with a short recording. Windows lie where ``predict(hop_s=...)`` puts them and
    score the same within 1e-4, not depending on how the audio was cut. Memory and the cost of a hop stay the same
    however long the stream; time is counted in samples, so it does not drift. A window is out as soon as the resampler
    lets go of its last sample, at once at the checkpoint's own rate.

    Threads may share a stream: chunks are taken one after the other.

    Parameters
    ----------
    engine : Engine
    labels : LabelSet
        Of the engine's scores.
    sample_rate : int, optional
        Of the chunks, in Hz; None: the checkpoint's.
    channels : int
        Of the chunks; they are averaged.
    window_s : float, optional
        Length of the windows in seconds; None: the checkpoint's. Shorter ones are tiled to it.
    hop_s : float, optional
        Seconds from window to window, in (0, window]; None: one window.
    on : float or "auto", optional
        Score at which an event starts; "auto", each label's threshold stored with the checkpoint, 0.3 where it has
        none. None: "auto" for a checkpoint of own labels, else 0.3.
    off, min_duration_s, max_gap_s, include, exclude
        When events start and end, see `EventTracker`. `include` and `exclude` concern events only; ``scores`` holds
        every label.
    watch : callable, optional
        Called with each window that is scored and its log-mel, a runtime's (1, 1, mels, frames).

    Raises
    ------
    InvalidInputError
        An argument is out of range.

    Examples
    --------
    >>> stream = tagger.stream(sample_rate=16_000)              # doctest: +SKIP
    >>> for chunk in microphone:                                # doctest: +SKIP
    ...     for window in stream.push(chunk):
    ...         print(window.end_s, window.top(3), window.started, window.ended)
    """

    def __init__(
        self,
        engine: Engine,
        labels: LabelSet,
        *,
        sample_rate: int | None = None,
        channels: int = 1,
        window_s: float | None = None,
        hop_s: float | None = 1.0,
        on: float | str | None = None,
        off: float | None = None,
        min_duration_s: float = 0.0,
        max_gap_s: float = MAX_GAP_S,
        include: LabelLike | Iterable[LabelLike] | None = None,
        exclude: LabelLike | Iterable[LabelLike] | None = None,
        watch: Callable[[Window, Array], None] | None = None,
    ) -> None:
        self._rate_hz = engine.config.frontend.sample_rate_hz
        self.sample_rate = self._rate_hz if sample_rate is None else check_rate(sample_rate)
        if isinstance(channels, bool) or not isinstance(channels, int) or not 1 <= channels <= MAX_CHANNELS:
            raise InvalidInputError(f"channels must be a whole number from 1 to {MAX_CHANNELS}, got {channels!r}")
        self.channels = channels
        window, hop = engine.config.window_and_hop(window_s, hop_s)
        self.window_s, self.hop_s = window / self._rate_hz, hop / self._rate_hz
        self._engine, self._labels, self._watch = engine, labels, watch
        self._cutter = WindowCutter(window, hop)
        self._frames = Frames(engine.runtime, engine.config, window, hop)
        self._lock, self._process = threading.RLock(), os.getpid()
        starts = label_thresholds(on, stored(engine.config.thresholds), labels, default=ON, argument="on")
        assert starts is not None
        self._tracker = EventTracker(
            labels,
            self._rate_hz,
            on=starts,
            off=off,
            min_duration_s=min_duration_s,
            max_gap_s=max_gap_s,
            include=include,
            exclude=exclude,
        )
        self.reset()

    def __repr__(self) -> str:
        return (
            f"Stream({self.sample_rate} Hz, {self.channels} channel{'s' * (self.channels > 1)}, "
            f"hop {self.hop_s:g} s, at {self.position_s:g} s{', flushed' if self._flushed else ''})"
        )

    @property
    def position_s(self) -> float:
        """Seconds of audio taken so far."""
        return self._n_taken / self.sample_rate

    def reset(self) -> None:
        """Forget all audio and open events; the next chunk starts a new recording at 0 s."""
        with self._alone():
            self._resampler = Resampler(self.sample_rate, self._rate_hz)
            self._cutter.reset()
            self._prepare = self._frames.recording()
            self._tracker.reset()
            window, hop = self._cutter.window, self._cutter.hop
            self._head = np.empty(self._source_samples(window), np.float32)
            self._next_start_stop = hop + window % hop  # so that the stops of later windows follow on
            self._n_taken = 0
            self._stop = 0  # where the latest window ended
            self._latest: StreamWindow | None = None
            self._flushed = False

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other threads waiting.

        Raises
        ------
        InvalidInputError
            In a forked child, where a thread of the parent, which is not in the child, would be waited for.
        """
        if os.getpid() != self._process:
            if not self._lock.acquire(blocking=False):
                raise InvalidInputError(
                    "this process was forked while a thread was using the stream; open another one in the child"
                )
            self._process = os.getpid()
            self._lock.release()
        with self._lock:
            yield

    def push(self, chunk: Any) -> list[StreamWindow]:
        """Take the next chunk and return the windows that it completes, in order: mostly none.

        Parameters
        ----------
        chunk : ndarray, tensor, bytes, or (ndarray or tensor, rate)
            Float in [-1, 1] or integers of up to 32 bits, any number of samples: (samples,) for one channel, otherwise
            (channels, samples). Bytes are signed 16-bit little-endian PCM, channels interleaved.

        Raises
        ------
        AudioError
            NaN, infinite or absurdly large samples. As with every error here, nothing of the chunk was taken.
        InvalidInputError
            Another type, rate or number of channels than the stream's, or the stream was flushed.
        """
        samples = self._samples(chunk)
        with self._alone():
            if self._flushed:
                raise InvalidInputError("this stream was flushed; call reset() to begin a new one")
            position = self._n_taken
            for block in _mono_blocks(samples):
                check_samples(block, position, self.sample_rate, "<stream>")
                position += len(block)
            return [window for block in _mono_blocks(samples) for window in self._take(block)]

    def flush(self) -> list[StreamWindow]:
        """End the stream: what is left of the audio is scored and open events end.

        Audio that no window has covered gives a last one, moved back to end with the stream. If none is left but events
        are open, a window of no length at the stream's end, with the latest scores, carries their ends. Harmless to
        repeat.
        """
        with self._alone():
            if self._flushed or not self._n_taken:
                return []
            self._flushed = True
            windows = list(self._advance(self._resampler.finish()))
            last = self._cutter.finish()
            if last is not None and last.stop > self._stop:
                windows.append(self._score(last))
            ended = self._tracker.close()
            if windows:
                windows[-1] = replace(windows[-1], ended=windows[-1].ended + ended)
            elif ended:
                assert self._latest is not None
                windows.append(replace(self._latest, start_s=self._latest.end_s, started=(), ended=ended))
            return windows

    def _take(self, block: np.ndarray) -> Iterator[StreamWindow]:
        """Take mono samples; yields the windows that they complete."""
        while len(block) and self._next_start_stop < self._cutter.window:
            upto = self._source_samples(self._next_start_stop)
            part = block[: upto - self._n_taken]
            block = block[len(part) :]
            self._head[self._n_taken : self._n_taken + len(part)] = part
            self._n_taken += len(part)
            yield from self._advance(self._resampler.push(part))
            if self._n_taken == upto:
                yield self._score(self._start_window())
        self._n_taken += len(block)
        yield from self._advance(self._resampler.push(block))

    def _source_samples(self, n_samples: int) -> int:
        """Count the samples of the source that `n_samples` at the checkpoint's rate take."""
        return -(-n_samples * self.sample_rate // self._rate_hz)

    def _start_window(self) -> Window:
        """Tile all audio so far; resampled by itself, so that it is what `predict` makes of a recording this long."""
        stop = self._next_start_stop
        self._next_start_stop += self._cutter.hop
        resampler = Resampler(self.sample_rate, self._rate_hz)
        samples = np.concatenate([resampler.push(self._head[: self._n_taken]), resampler.finish()])[:stop]
        return Window(0, stop, tile(samples, self._cutter.window))

    def _advance(self, samples: np.ndarray) -> Iterator[StreamWindow]:
        return map(self._score, self._cutter.push(samples))

    def _score(self, window: Window) -> StreamWindow:
        # One window at a time, also where a long chunk has several: so its scores do not depend on its company.
        logmel = self._frames.join([self._prepare(window)])
        if self._watch is not None:
            self._watch(window, logmel)
        scores = self._engine.scores(logmel)[0]
        if (overflow := self._engine.overflow(scores)) is not None:
            raise overflow
        scores.flags.writeable = False
        started, ended = self._tracker.update(window.start, window.stop, scores)
        self._stop = window.stop
        self._latest = StreamWindow(
            window.start / self._rate_hz, window.stop / self._rate_hz, scores, started, ended, self._labels
        )
        return self._latest

    def _samples(self, chunk: Any) -> np.ndarray:
        """Return the chunk as an array (channels, samples) of whatever number type, not copied."""
        if isinstance(chunk, tuple):
            if len(chunk) != 2:
                raise InvalidInputError(f"a tuple must be (array, sample_rate), got {len(chunk)} things")
            chunk, rate = chunk
            if check_rate(rate, what="the chunk's rate") != self.sample_rate:
                raise InvalidInputError(
                    f"the stream was opened for {self.sample_rate} Hz and the chunk is at {rate} Hz; "
                    "open another stream for it"
                )
        if isinstance(chunk, (bytes, bytearray, memoryview)):
            return self._from_bytes(chunk)
        if is_tensor(chunk):
            chunk = tensor_to_array(chunk, "chunk")
        if not isinstance(chunk, np.ndarray):
            raise InvalidInputError(
                "a chunk must be a numpy array, a torch tensor, bytes of 16-bit PCM or (array, rate), "
                f"got {type(chunk).__name__}"
            )
        shape = chunk.shape
        if not (len(shape) == 1 and self.channels == 1) and not (len(shape) == 2 and shape[0] == self.channels):
            wanted = "(samples,) or (1, samples)" if self.channels == 1 else f"({self.channels}, samples)"
            transposed = len(shape) == 2 and shape[1] == self.channels
            raise InvalidInputError(
                f"the stream was opened for {self.channels} channel(s), so chunks must have shape {wanted}, "
                f"got {shape}" + ("; pass the transpose (chunk.T)" if transposed else "")
            )
        if 0 in shape:
            return np.zeros((self.channels, 0), np.float32)
        check_values(chunk, "chunk")
        return chunk.reshape(-1, shape[-1])

    def _from_bytes(self, chunk: bytes | bytearray | memoryview) -> np.ndarray:
        frame = S16LE.itemsize * self.channels
        n_bytes = memoryview(chunk).nbytes
        if n_bytes % frame:
            raise InvalidInputError(
                f"bytes must hold whole frames of {frame} bytes ({self.channels} x 16 bit), got {n_bytes}; "
                "keep the rest for the next chunk"
            )
        return np.frombuffer(chunk, S16LE).reshape(-1, self.channels).T


def _mono_blocks(samples: np.ndarray) -> Iterator[np.ndarray]:
    """Yield (channels, samples) as float32 (n,) blocks, mixed to mono."""
    for start in range(0, samples.shape[1], BLOCK_SAMPLES):
        yield mix(to_float(samples[:, start : start + BLOCK_SAMPLES]))

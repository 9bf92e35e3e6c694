"""Live audio: chunks of any size in, scores of the last window and events out, every hop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..audio.arrays import MAX_CHANNELS, check_dtype, check_samples, is_tensor, mix, tensor_to_array, to_float
from ..audio.resample import Resampler
from ..checks import check_rate, span_samples
from ..errors import InvalidInputError
from ..frontend.sliding import LogMelWindow, SlidingLogMel
from ..frontend.windows import tile
from ..labels.label_set import LabelLike, LabelSet
from ..results.events import ON, Event
from ..results.tags import Tag, top_tags
from .tracker import MAX_GAP_S, EventTracker, Onset

if TYPE_CHECKING:
    from ..tagger import Tagger

BLOCK_SAMPLES = 1 << 16  # bounds the copies made of a long chunk
S16LE = np.dtype("<i2")


@dataclass(frozen=True, eq=False)
class StreamWindow:
    """What one hop of a stream gave.

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
        """The window's best labels, highest score first; arguments as for `Prediction.top`."""
        return top_tags(self.scores, self.labels, k=k, threshold=threshold, include=include, exclude=exclude)


class Stream:
    """Scores and events of audio that arrives in chunks; made by `Tagger.stream`.

    Every hop gives one window: the last 10 s (the checkpoint's window), and until so much has come all there is,
    tiled, as `Tagger.predict` does with a short recording. Windows lie where ``predict(hop_s=...)`` puts them and
    score the same within 1e-4, not depending on how the audio was cut. Memory and the cost of a hop stay the same
    however long the stream; time is counted in samples, so it does not drift.

    A window is out as soon as the resampler lets go of its last sample: 20 ms after the sample came at 44.1 kHz,
    60 ms at 16 kHz, 0.12 s at 8 kHz, at once at the checkpoint's own rate. Scoring it takes 25 ms with a DyMN of width
    1 and 9 ms with an MN of width 0.4, so a stream with a hop of 1 s costs 2.5 % and 1.0 % of a core (one thread of an
    AMD EPYC, torch 2.13, 16 kHz in chunks of 0.1 s, resampling included; the median of 60 hops).

    A stream is not for several threads.

    Parameters
    ----------
    tagger : Tagger
    sample_rate : int
        Of the chunks, in Hz.
    channels : int
        Of the chunks; they are averaged.
    hop_s : float
        Seconds from window to window, in (0, window].
    on, off, min_duration_s, max_gap_s, include, exclude
        When events start and end, see `EventTracker`. `include` and `exclude` concern events only; ``scores`` holds
        every label.

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
        tagger: Tagger,
        *,
        sample_rate: int = 16_000,
        channels: int = 1,
        hop_s: float = 1.0,
        on: float = ON,
        off: float | None = None,
        min_duration_s: float = 0.0,
        max_gap_s: float = MAX_GAP_S,
        include: LabelLike | Iterable[LabelLike] | None = None,
        exclude: LabelLike | Iterable[LabelLike] | None = None,
    ) -> None:
        self.sample_rate = check_rate(sample_rate, what="sample_rate")
        if isinstance(channels, bool) or not isinstance(channels, int) or not 1 <= channels <= MAX_CHANNELS:
            raise InvalidInputError(f"channels must be a whole number from 1 to {MAX_CHANNELS}, got {channels!r}")
        self.channels = channels
        self._engine = tagger._engine
        self._rate_hz = tagger.config.frontend.sample_rate_hz
        window = tagger.config.window_samples
        hop = span_samples(hop_s, window, self._rate_hz, "hop_s")
        self.hop_s = hop / self._rate_hz
        self._labels = tagger.labels
        self._sliding = SlidingLogMel(self._engine.frontend, window_samples=window, hop_samples=hop)
        self._tracker = EventTracker(
            tagger.labels,
            self._rate_hz,
            on=on,
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
        self._resampler = Resampler(self.sample_rate, self._rate_hz)
        self._sliding.reset()
        self._tracker.reset()
        window, hop = self._sliding.window_samples, self._sliding.hop_samples
        self._head = np.empty(self._source_samples(window), np.float32)
        self._next_start_stop = hop + window % hop  # so that the stops of later windows follow on
        self._n_taken = 0
        self._stop = 0  # where the latest window ended
        self._latest: StreamWindow | None = None
        self._flushed = False

    def push(self, chunk: Any) -> list[StreamWindow]:
        """Take the next chunk; the windows it completes, in order, mostly none.

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
        if self._flushed:
            raise InvalidInputError("this stream was flushed; call reset() to begin a new one")
        samples = self._samples(chunk)
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
        if self._flushed or not self._n_taken:
            return []
        self._flushed = True
        windows = list(self._advance(self._resampler.finish()))
        last = self._sliding.finish()
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
        """Windows that mono samples complete."""
        while len(block) and self._next_start_stop < self._sliding.window_samples:
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
        """Samples of the source that `n_samples` at the checkpoint's rate take."""
        return -(-n_samples * self.sample_rate // self._rate_hz)

    def _start_window(self) -> LogMelWindow:
        """All audio so far, tiled; resampled by itself, so that it is what `predict` makes of a recording this long."""
        stop = self._next_start_stop
        self._next_start_stop += self._sliding.hop_samples
        resampler = Resampler(self.sample_rate, self._rate_hz)
        samples = np.concatenate([resampler.push(self._head[: self._n_taken]), resampler.finish()])[:stop]
        tiled = tile(samples, self._sliding.window_samples)
        return LogMelWindow(0, stop, self._engine.logmel(tiled[np.newaxis])[0])

    def _advance(self, samples: np.ndarray) -> Iterator[StreamWindow]:
        return map(self._score, self._sliding.push(samples))

    def _score(self, window: LogMelWindow) -> StreamWindow:
        # One window at a time, also where a long chunk has several: so its scores do not depend on its company.
        scores = self._engine.scores(window.logmel[None])[0]
        scores.flags.writeable = False
        started, ended = self._tracker.update(window.start, window.stop, scores)
        self._stop = window.stop
        self._latest = StreamWindow(
            window.start / self._rate_hz, window.stop / self._rate_hz, scores, started, ended, self._labels
        )
        return self._latest

    def _samples(self, chunk: Any) -> np.ndarray:
        """The chunk as an array (channels, samples) of whatever number type, not copied."""
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
            if 0 in chunk.shape:
                chunk = chunk.new_zeros(chunk.shape, device="cpu").numpy()
            else:
                chunk, _ = tensor_to_array(chunk, self.sample_rate, self.sample_rate, "chunk")
        if not isinstance(chunk, np.ndarray):
            raise InvalidInputError(
                "a chunk must be a numpy array, a torch tensor, bytes of 16-bit PCM or (array, rate), "
                f"got {type(chunk).__name__}"
            )
        check_dtype(chunk.dtype, "chunk")
        if chunk.ndim == 1 and self.channels == 1:
            return chunk[np.newaxis]
        if chunk.ndim != 2 or chunk.shape[0] != self.channels:
            wanted = "(samples,) or (1, samples)" if self.channels == 1 else f"({self.channels}, samples)"
            transposed = chunk.ndim == 2 and chunk.shape[1] == self.channels
            raise InvalidInputError(
                f"the stream was opened for {self.channels} channel(s), so chunks must have shape {wanted}, "
                f"got {chunk.shape}" + ("; pass the transpose (chunk.T)" if transposed else "")
            )
        return chunk

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
    """Float32 (n,) blocks of (channels, samples), mixed to mono."""
    for start in range(0, samples.shape[1], BLOCK_SAMPLES):
        yield mix(to_float(samples[:, start : start + BLOCK_SAMPLES]))

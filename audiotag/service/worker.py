"""The thread that runs the network: windows of all recordings in turn, live streams before them.

One thread, since a network uses all cores by itself. Recordings are decoded by other threads, a few milliseconds at a
time and in turn with the network where both would want the same cores. A batch holds what is waiting at that moment:
nothing waits for others to come.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from ..errors import AudiotagError
from ..frontend.windows import Window
from ..inference.frames import Frames, Shown
from .limits import Limits
from .picture import on_host
from .problems import Problem
from .turns import Turns
from .work import AHEAD, CancelledWork, Feed, Prepared, Recording

if TYPE_CHECKING:
    from ..tagger import Tagger

DECODERS = 8  # threads; as many clips as this can come into one batch, and one that hangs leaves the others
BATCH_S = 0.01  # how long a run may take that is for one recording alone
TURN_S = 0.05  # how long the network waits for a decoder's turn to end
FIRST_SPEED = 50.0  # seconds of audio a second, until it is measured
_log = logging.getLogger(__name__)


class Worker:
    """Runs a tagger's network for recordings and streams, fairly.

    Parameters
    ----------
    load : callable
        Makes the tagger, on the worker's thread.
    limits : Limits
    count : callable, optional
        Called after each run with its windows, the seconds of audio new in them, and the seconds it took.
    """

    def __init__(
        self, load: Callable[[], Tagger], limits: Limits, count: Callable[[int, float, float], None] | None = None
    ) -> None:
        self.tagger: Tagger | None = None
        self.failure: BaseException | None = None
        self.limits = limits
        self._load, self._count = load, count
        self._changed = threading.Condition()
        self._recordings: deque[Recording] = deque()
        self._feeds: deque[Feed] = deque()
        self._stopping = False
        self._turns: Turns | None = None
        self._busy_since: float | None = None
        self._speed = FIRST_SPEED
        self._window_s = BATCH_S
        self._streams_turn = False
        self._decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="audiotag-decode")
        self._thread = threading.Thread(target=self._main, name="audiotag-network", daemon=True)

    # -- for other threads -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the network's thread, which loads the tagger first."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; work that is left is cancelled."""
        with self._changed:
            self._stopping = True
            for recording in self._recordings:
                recording.cancelled = True
            self._changed.notify_all()
        self._thread.join(timeout=5)
        self._decoders.shutdown(wait=False, cancel_futures=True)

    @property
    def loaded(self) -> bool:
        """Whether the tagger is loaded."""
        return self.tagger is not None

    @property
    def stuck(self) -> bool:
        """Whether the network's thread has died or has been in one run for too long."""
        since = self._busy_since
        hangs = since is not None and time.monotonic() - since > self.limits.stuck_s
        return self.loaded and (hangs or not self._thread.is_alive())

    @property
    def waiting_s(self) -> float:
        """Seconds of audio taken in and not yet worked on."""
        with self._changed:
            return self._waiting_s()

    def _waiting_s(self) -> float:
        return sum(r.left_s for r in self._recordings) + sum(feed.pending_s for feed in self._feeds)

    @property
    def n_recordings(self) -> int:
        return len(self._recordings)

    def submit(self, recording: Recording) -> None:
        """Take a recording; its `done` gets the analysis, or the error that says why there is none.

        Raises
        ------
        Problem
            429: too much is waiting already.
        """
        with self._changed:
            waiting_s = self._waiting_s()
            if waiting_s and waiting_s + recording.left_s > self.limits.max_waiting_s:
                raise Problem(
                    429,
                    f"{waiting_s:.0f} s of audio are waiting already, of at most {self.limits.max_waiting_s:.0f} s; "
                    "come again later",
                    retry_after_s=min(600.0, waiting_s / self._speed),
                )
            self._recordings.append(recording)
            self._feed_decoder(recording)

    def cancel(self, recording: Recording) -> None:
        """Forget a recording nobody waits for any more."""
        with self._changed:
            recording.cancelled = True
            recording.waiting.clear()
            self._changed.notify_all()

    def add_feed(self, feed: Feed) -> None:
        """Take a stream, whose audio `push` brings."""
        with self._changed:
            self._feeds.append(feed)

    def remove_feed(self, feed: Feed) -> None:
        """Forget a stream and the audio of it that waits."""
        with self._changed:
            feed.pending.clear()
            feed.pending_s = 0.0
            if feed in self._feeds:
                self._feeds.remove(feed)

    def push(self, feed: Feed, samples: np.ndarray | None) -> float:
        """Take a stream's next samples (channels, n), or None for its end; returns the seconds now waiting."""
        now = time.monotonic()
        with self._changed:
            if samples is None:
                feed.pending.append((None, now))
            else:
                for start in range(0, samples.shape[1], feed.piece_samples):
                    feed.pending.append((samples[:, start : start + feed.piece_samples], now))
                feed.pending_s += feed.seconds(samples)
            self._changed.notify_all()
            return feed.pending_s

    # -- decoding ----------------------------------------------------------------------------------------------

    def _feed_decoder(self, recording: Recording) -> None:
        """Have a recording decoded further if few of its windows wait; under the lock."""
        ahead = max(1, AHEAD // max(1, len(self._recordings)))
        if recording.decoding or recording.ended or len(recording.waiting) >= ahead or self._stopping:
            return
        recording.decoding = True
        self._decoders.submit(self._decode, recording)

    def _decode(self, recording: Recording) -> None:
        turns = self._turns
        mine = turns is not None and turns.acquire(TURN_S)
        try:
            recording.prepare = recording.prepare or self._preparer(recording)
            found, ended = recording.step()
        except BaseException as error:  # nothing of it may be lost in a pool's future
            _log.exception("decoding failed")
            found, ended, recording.error = [], True, recording.error or _wrapped(error)
        finally:
            if turns is not None and mine:
                turns.release()
        with self._changed:
            recording.decoding = False
            recording.ended = recording.ended or ended
            if recording.error is not None:
                recording.waiting.clear()
            elif not recording.cancelled:
                recording.waiting.extend(found)
            self._changed.notify_all()

    def _preparer(self, recording: Recording) -> Callable[[Window], Shown]:
        """What a decoder makes of a recording's windows; on a CPU log-mel, in the turn in which they were decoded."""
        frames = Frames(self._engine.runtime, self._engine.config, recording.window, recording.hop)
        prepare = frames.recording()
        if self._turns is None:  # an accelerator gets a batch at once
            return prepare
        return lambda window: frames.join([prepare(window)])

    # -- the network's thread ----------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            tagger = self._load()
            self._engine = tagger.engine
            # So that the first client does not wait for what a first call sets up.
            silence = np.zeros((1, self._engine.config.window_samples), np.float32)
            self._engine.scores(self._engine.runtime.log_mel(silence))
        except BaseException as error:
            self.failure = error
            return
        if tagger.device == "cpu":
            self._turns = Turns()
        self.tagger = tagger
        while self._wait():
            # Behind the decoders that wait already, so that what they find can be in the batch; live audio at once.
            mine = self._turns is not None and self._turns.acquire(TURN_S, first=self._hears())
            self._busy_since = time.monotonic()
            try:
                with self._changed:
                    found = self._next()
                if isinstance(found, Feed):
                    self._run_feed(found)
                elif found is not None:
                    self._run_batch(found)
            finally:
                self._busy_since = None
                if mine:
                    assert self._turns is not None
                    self._turns.release()

    def _wait(self) -> bool:
        """Wait until there is something to do; false: the end."""
        with self._changed:
            while not self._stopping:
                # What is through is told before the turn is waited for, which decoders that wait already have first:
                # answering it, and taking what its client sends next, goes well beside them.
                self._recordings = deque(one for one in self._recordings if not self._settle(one))
                if any(feed.pending for feed in self._feeds) or any(one.wants_worker for one in self._recordings):
                    return True
                self._changed.wait()
            for recording in self._recordings:
                recording.done.set_exception(CancelledWork())
            self._recordings.clear()
            return False

    def _hears(self) -> bool:
        """Whether live audio waits."""
        with self._changed:
            return any(feed.pending and feed.is_live for feed in self._feeds)

    def _next(self) -> Feed | list[tuple[Recording, Prepared]] | None:
        """A live stream's audio, else the next window of each recording in turn; under the lock."""
        for _ in range(len(self._feeds)):
            feed = self._feeds[0]
            self._feeds.rotate(-1)
            if feed.pending and feed.is_live:
                return feed
        # Streams that run ahead of the clock take turns with the recordings.
        ahead = next((feed for feed in self._feeds if feed.pending), None)
        if ahead is not None and self._streams_turn:
            self._streams_turn = False
            self._feeds.remove(ahead)
            self._feeds.append(ahead)
            return ahead
        self._streams_turn = True
        return self._next_batch() or ahead

    def _next_batch(self) -> list[tuple[Recording, Prepared]]:
        """Windows that wait, of each recording in turn, that one run of the network can take."""
        batch: list[tuple[Recording, Prepared]] = []
        size = self._engine.runtime.default_batch
        rounds = 1
        if len(self._recordings) == 1:  # several of its windows, but not for so long that somebody new would wait
            size = min(size, max(1, round(BATCH_S / self._window_s)))
            rounds = size
        for _ in range(rounds):
            passed, served = [], []  # who gave no window comes first next time
            while self._recordings and len(batch) < size:
                recording = self._recordings.popleft()
                if all(recording is not one for one, _ in batch) and self._settle(recording):
                    continue
                if recording.waiting and (not batch or self._alike(recording, batch[0][0])):
                    batch.append((recording, recording.waiting.popleft()))
                    served.append(recording)
                else:
                    passed.append(recording)
            self._recordings.extendleft(reversed(passed))
            self._recordings.extend(served)
            for recording in (*passed, *served):
                self._feed_decoder(recording)
        return batch

    @staticmethod
    def _alike(one: Recording, other: Recording) -> bool:
        return (one.layers, one.window, one.hop) == (other.layers, other.window, other.hop)

    def _settle(self, recording: Recording) -> bool:
        """Give a recording that is through its outcome, and return whether it is."""
        if recording.cancelled and not recording.decoding:
            recording.close()
            recording.done.set_exception(CancelledWork())
            return True
        if recording.cancelled or recording.decoding or not recording.ended or recording.waiting:
            return False
        error = recording.error or recording.analysis.failed
        if error is not None:
            recording.done.set_exception(error)
        else:
            recording.done.set_result(recording.analysis)
        return True

    def _run_batch(self, batch: list[tuple[Recording, Prepared]]) -> None:
        since = time.perf_counter()
        first = batch[0][0]
        seconds = 0.0
        try:
            shown = [prepared.shown for _, prepared in batch]
            if self._turns is None:
                frames = Frames(self._engine.runtime, self._engine.config, first.window, first.hop)
                logmel = frames.join(shown)
            else:
                logmel = self._engine.runtime.concatenate(shown, 0)
            layers = first.layers
            rows = self._engine.scores(logmel) if layers is None else self._engine.features(logmel, layers)
            for i, (recording, prepared) in enumerate(batch):
                recording.analysis.failed = recording.analysis.failed or self._engine.overflow(rows[i])
                seconds -= recording.analysis.duration_s
                recording.add(prepared.window, rows[i], on_host(logmel[i]) if recording.keep else None)
                seconds += recording.analysis.duration_s
        except Exception as error:  # a failure of the network is the request's, not the service's
            _log.exception("the network failed")
            with self._changed:
                for recording, _ in batch:
                    recording.error = recording.error or _wrapped(error)
                    recording.waiting.clear()
                    recording.ended = True
                    if not recording.decoding:
                        recording.close()
            return
        self._note(len(batch), seconds, time.perf_counter() - since)

    def _run_feed(self, feed: Feed) -> None:
        with self._changed:
            if not feed.pending:
                return
            samples, _ = feed.pending.popleft()
            feed.pending_s = max(0.0, feed.pending_s - feed.seconds(samples))
        since = time.perf_counter()
        try:
            windows = feed.stream.flush() if samples is None else feed.stream.push(samples)
        except Exception as error:
            feed.give(error, True)
            return
        if windows or samples is None:
            feed.give(windows, samples is None)
        if windows:
            self._note(len(windows), len(windows) * feed.stream.hop_s, time.perf_counter() - since)

    def _note(self, n_windows: int, seconds: float, took_s: float) -> None:
        self._window_s += 0.1 * (took_s / n_windows - self._window_s)
        if seconds > 0 and took_s > 0:
            self._speed += 0.05 * (seconds / took_s - self._speed)
        if self._count is not None:
            self._count(n_windows, seconds, took_s)


def _wrapped(error: BaseException) -> AudiotagError:
    return AudiotagError(f"unexpected {type(error).__name__} in the service: {error}")

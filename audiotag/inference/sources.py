"""Reading sources: each as a beginning, its windows and an end, in the caller's thread or in background threads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from queue import Empty, Full, Queue
from typing import Any, NamedTuple, TypeAlias

from ..audio.recording import open_audio
from ..errors import AudioError, AudiotagError
from ..frontend.windows import Window, cut_windows

POLL_S = 0.1  # how soon a waiting thread notices that the caller has gone


@dataclass(frozen=True)
class Begun:
    """The beginning of a source. name: what it is called. duration_s: its length, if its header tells."""

    name: str
    duration_s: float | None


@dataclass(frozen=True)
class Ended:
    """The end of a source. warnings: what was not as it should be. error: why it cannot be used, if it cannot."""

    warnings: tuple[str, ...] = ()
    error: AudiotagError | None = None


Step: TypeAlias = "Begun | Window | Ended"


class Piece(NamedTuple):
    """One step of reading one source; the last of a source is its `Ended`."""

    source: Any
    step: Step


def read_windows(
    source: Any, *, rate_hz: int, window: int, hop: int, sample_rate_hz: int | None = None
) -> Iterator[Step]:
    """Read one source: its beginning, its windows, its end; raises what `open_audio` and its blocks raise.

    Parameters
    ----------
    source
        Whatever `open_audio` takes.
    rate_hz : int
        The checkpoint's rate.
    window, hop : int
        In samples at that rate.
    sample_rate_hz : int, optional
        Rate of an array that brings none.
    """
    with open_audio(source, target_rate_hz=rate_hz, sample_rate_hz=sample_rate_hz) as stream:
        yield Begun(stream.name, stream.duration_s)
        yield from cut_windows(stream.blocks(), window, hop)
        yield Ended(tuple(stream.warnings))


Read: TypeAlias = Callable[[Any], Iterator[Step]]


def in_turn(sources: Iterable[Any], read: Read, *, depth: int = 4) -> Generator[Piece, None, None]:
    """Read sources in the caller's own thread, `depth` steps of a source at a time; yields what `prefetch` does.

    On a CPU whose cores the network already fills this is faster: a thread that decodes beside it takes one of them,
    and at every step of the network the other cores wait for that one. Several steps at a time, for then the network
    finds its weights in the caches.
    """
    for source in sources:
        with closing(_pieces(source, read)) as pieces:
            while some := list(islice(pieces, depth)):
                yield from some


def prefetch(sources: Iterable[Any], read: Read, *, workers: int = 1, depth: int = 4) -> Generator[Piece, None, None]:
    """Read sources in background threads and hand on their steps in order.

    Every source ends with one `Ended`, which holds the error if reading failed; the sources after it go on. `sources`
    is read lazily, at most ``workers + 1`` ahead, and each holds at most `depth` steps, so memory does not grow with
    their number. The threads end with the generator, and do not keep a program from ending.
    """
    stop = threading.Event()
    jobs: Queue = Queue()
    pending: deque[Queue] = deque()
    feed = iter(sources)

    def refill() -> None:
        for source in islice(feed, workers + 1 - len(pending)):
            steps: Queue = Queue(maxsize=depth)
            jobs.put((source, steps))
            pending.append(steps)

    def work() -> None:
        while not stop.is_set():
            try:
                source, steps = jobs.get(timeout=POLL_S)
            except Empty:
                continue
            with closing(_pieces(source, read)) as pieces:
                for piece in pieces:
                    if not _put(steps, piece, stop):
                        return

    threads = [threading.Thread(target=work, name=f"audiotag-decode-{i}", daemon=True) for i in range(workers)]
    for thread in threads:
        thread.start()
    try:
        refill()
        while pending:
            try:
                piece = pending[0].get(timeout=POLL_S)  # a timeout lets Ctrl-C through on every platform
            except Empty:
                continue
            if isinstance(piece.step, Ended):
                pending.popleft()
                refill()
            yield piece
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _put(steps: Queue, piece: Piece, stop: threading.Event) -> bool:
    """Hand on a piece as soon as there is room; false if nobody wants it any more."""
    while not stop.is_set():
        try:
            steps.put(piece, timeout=POLL_S)
            return True
        except Full:
            continue
    return False


def _pieces(source: Any, read: Read) -> Generator[Piece, None, None]:
    """Yield the steps of reading a source, the last an `Ended` whatever happens."""
    try:
        for step in read(source):
            yield Piece(source, step)
    except AudiotagError as error:
        yield Piece(source, Ended(error=error))
    except Exception as error:  # a decoder's own failure must not end a run over many files
        wrapped = AudioError(f"{source!r:.200}: unexpected {type(error).__name__} while reading: {error}")
        wrapped.__cause__ = error
        yield Piece(source, Ended(error=wrapped))

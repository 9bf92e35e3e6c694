"""Reading sources: in the caller's thread, or in background threads while the caller's runs the network."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from queue import Empty, Full, Queue
from typing import Any, NamedTuple

from ..errors import AudioError, AudiotagError

POLL_S = 0.1  # how soon a waiting thread notices that the caller has gone


class Piece(NamedTuple):
    """One thing a source gave: a value, or, as the last of its source, None or the error that ended it."""

    source: Any
    value: Any
    last: bool


def in_turn(
    sources: Iterable[Any], produce: Callable[[Any], Iterator[Any]], *, depth: int = 4
) -> Generator[Piece, None, None]:
    """What `prefetch` gives, by the caller's own thread, which takes `depth` values of a source at a time.

    On a CPU whose cores the network already fills this is faster: a thread that decodes beside it takes one of them,
    and at every step of the network the other cores wait for that one. Several values at a time, for then the network
    finds its weights in the caches.
    """
    for source in sources:
        with closing(_pieces(source, produce)) as pieces:
            while some := list(islice(pieces, depth)):
                yield from some


def _pieces(source: Any, produce: Callable[[Any], Iterator[Any]]) -> Generator[Piece, None, None]:
    try:
        for value in produce(source):
            yield Piece(source, value, False)
    except AudiotagError as error:
        yield Piece(source, error, True)
    except Exception as error:  # a decoder's own failure must not end a run over many files
        wrapped = AudioError(f"{source!r:.200}: unexpected {type(error).__name__} while reading: {error}")
        wrapped.__cause__ = error
        yield Piece(source, wrapped, True)
    else:
        yield Piece(source, None, True)


def prefetch(
    sources: Iterable[Any], produce: Callable[[Any], Iterator[Any]], *, workers: int = 1, depth: int = 4
) -> Generator[Piece, None, None]:
    """Run `produce` on each source in background threads and hand on what it yields, in order.

    Every source ends with one `Piece` whose ``last`` is true and whose value is None, or an `AudiotagError` if
    `produce` failed; the sources after it go on. `sources` is read lazily, at most ``workers + 1`` ahead, and each
    holds at most `depth` values, so memory does not grow with their number.
    """
    stop = threading.Event()

    def work(source: Any, queue: Queue) -> None:
        with closing(_pieces(source, produce)) as pieces:
            for piece in pieces:
                while not stop.is_set():
                    try:
                        queue.put(piece, timeout=POLL_S)
                        break
                    except Full:
                        continue
                else:
                    return

    feed = iter(sources)
    pending: deque[Queue] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="audiotag-decode") as pool:

        def refill() -> None:
            while len(pending) < workers + 1:
                try:
                    source = next(feed)
                except StopIteration:
                    return
                queue: Queue = Queue(maxsize=depth)
                pool.submit(work, source, queue)
                pending.append(queue)

        try:
            refill()
            while pending:
                queue = pending[0]
                try:
                    piece = queue.get(timeout=POLL_S)  # a timeout lets Ctrl-C through on every platform
                except Empty:
                    continue
                if piece.last:
                    pending.popleft()
                    refill()
                yield piece
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)

"""Decoding in the background: threads read and cut sources while the caller's thread runs the network."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, Full, Queue
from typing import Any, NamedTuple

from .errors import AudioError, AudiotagError

POLL_S = 0.1  # how soon a waiting thread notices that the caller has gone


class Piece(NamedTuple):
    """One thing a source gave: a value, or, as the last of its source, None or the error that ended it."""

    source: Any
    value: Any
    last: bool


class _Stopped(Exception):
    pass


def prefetch(
    sources: Iterable[Any], produce: Callable[[Any], Iterator[Any]], *, workers: int = 1, depth: int = 4
) -> Iterator[Piece]:
    """Run `produce` on each source in background threads and hand on what it yields, in order.

    Every source ends with one `Piece` whose ``last`` is true and whose value is None, or an `AudiotagError` if
    `produce` failed; the sources after it go on. `sources` is read lazily, at most ``workers + 1`` ahead, and each
    holds at most `depth` values, so memory does not grow with their number.
    """
    stop = threading.Event()

    def work(source: Any, queue: Queue) -> None:
        def put(value: Any, last: bool = False) -> None:
            while not stop.is_set():
                try:
                    return queue.put(Piece(source, value, last), timeout=POLL_S)
                except Full:
                    continue
            raise _Stopped

        try:
            try:
                for value in produce(source):
                    put(value)
                put(None, last=True)
            except AudiotagError as error:
                put(error, last=True)
            except _Stopped:
                raise
            except Exception as error:  # a decoder's own failure must not end a run over many files
                wrapped = AudioError(f"{source!r:.200}: unexpected {type(error).__name__} while reading: {error}")
                wrapped.__cause__ = error
                put(wrapped, last=True)
        except _Stopped:
            pass

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

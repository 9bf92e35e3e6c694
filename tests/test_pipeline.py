"""Reading in turn and in the background: order, isolated failures, laziness, and an end that leaves no thread."""

import threading
import time

import pytest

from audiotag.errors import AudioError
from audiotag.inference.sources import Ended, in_turn, prefetch


def produce(source):
    for i in range(source):
        if source == 13 and i == 5:
            raise AudioError("13: broken in the middle")
        if source == 17:
            raise ZeroDivisionError("a bug in a decoder")
        yield (source, i)
    yield Ended()


def decode_threads():
    return [t for t in threading.enumerate() if t.name.startswith("audiotag-decode")]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_everything_arrives_in_order_and_one_failure_stops_nothing(workers):
    sources = [3, 13, 0, 17, 20, 1]
    pieces = list(
        prefetch(sources, produce, workers=workers, depth=2) if workers else in_turn(sources, produce, depth=2)
    )
    values = [p.step for p in pieces if not isinstance(p.step, Ended)]
    assert values == [(s, i) for s in sources for i in range({13: 5, 17: 0}.get(s, s))]
    ends = {p.source: p.step.error for p in pieces if isinstance(p.step, Ended)}
    assert [p.source for p in pieces if isinstance(p.step, Ended)] == sources
    assert ends[3] is ends[0] is ends[20] is ends[1] is None
    assert isinstance(ends[13], AudioError) and "broken in the middle" in str(ends[13])
    assert isinstance(ends[17], AudioError) and "ZeroDivisionError" in str(ends[17]) and "17" in str(ends[17])


def test_sources_are_read_lazily():
    taken = []

    def endless():
        n = 0
        while True:
            taken.append(n)
            yield 2
            n += 1

    pieces = prefetch(endless(), produce, workers=2, depth=1)
    for _ in range(9):
        next(pieces)
    pieces.close()
    assert len(taken) <= 9 // 3 + 3


def test_leaving_early_ends_the_threads():
    pieces = prefetch([1_000_000] * 4, produce, workers=2, depth=1)
    next(pieces)
    assert decode_threads()
    pieces.close()
    deadline = time.monotonic() + 5
    while decode_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not decode_threads()


def test_in_turn_reads_nothing_ahead_and_closes_what_it_left():
    taken, closed = [], []

    def sources():
        for n in range(5):
            taken.append(n)
            yield n

    def one(source):
        try:
            yield source
            yield source
            yield Ended()
        finally:
            closed.append(source)

    pieces = in_turn(sources(), one, depth=1)
    assert [next(pieces).step for _ in range(4)] == [0, 0, Ended(), 1]
    assert taken == [0, 1] and closed == [0] and not decode_threads()
    pieces.close()
    assert closed == [0, 1]

"""The one worker: turns, fairness, live audio first, bounds, and what a failing network or decoder does to it."""

import io
import threading
import time

import numpy as np
import pytest
import soundfile

from audiotag import AudioError, CheckpointError, Tagger

from .tiny import RATE, sound, tiny_checkpoint

pytest.importorskip("starlette", reason="the extra serve is not installed")

from audiotag.service.limits import Limits
from audiotag.service.problems import Problem
from audiotag.service.turns import Turns
from audiotag.service.work import CancelledWork, Feed, Recording
from audiotag.service.worker import Worker


def wav(seconds, seed=0):
    file = io.BytesIO()
    soundfile.write(file, sound(seconds, seed), RATE, format="WAV")
    return file.getvalue()


class Slow:
    """A tagger whose network takes its time, and notes whose windows it ran."""

    def __init__(self, checkpoint, seconds=0.03, batch=1):
        self.tagger = Tagger(checkpoint, device="cpu", runtime="torch")
        self.sizes, self.times = [], []
        engine = self.tagger.engine
        run = engine.scores

        def scores(logmel):
            time.sleep(seconds)
            self.sizes.append(len(logmel))
            self.times.append(time.monotonic())
            return run(logmel)

        engine.scores = scores
        engine.runtime.default_batch = batch


@pytest.fixture(scope="module")
def checkpoint():
    return tiny_checkpoint()


@pytest.fixture
def started():
    workers = []

    def start(slow, **limits):
        worker = Worker(lambda: slow.tagger, Limits(**limits))
        worker.start()
        workers.append(worker)
        for _ in range(200):
            if worker.loaded:
                return worker
            time.sleep(0.02)
        raise AssertionError(worker.failure)

    yield start
    for worker in workers:
        worker.stop()


def recording(data, limits, name="x", hop_s=10.0, **options):
    sizes = {"rate_hz": RATE, "window": 10 * RATE, "hop": round(hop_s * RATE)}
    return Recording(io.BytesIO(data), name, n_bytes=len(data), limits=limits, **sizes, **options)


# -- turns ---------------------------------------------------------------------------------------------------


def test_turns_are_had_in_the_order_of_asking():
    turns, had = Turns(), []
    assert turns.acquire()

    def ask(i):
        assert turns.acquire()
        had.append(i)
        turns.release()

    threads = []
    for i in range(5):
        threads.append(threading.Thread(target=ask, args=(i,)))
        threads[-1].start()
        while len(turns._waiting) <= i:
            time.sleep(0.001)
    turns.release()
    for thread in threads:
        thread.join()
    assert had == list(range(5))


def test_a_turn_that_does_not_come_is_given_up_and_not_lost():
    turns = Turns()
    assert turns.acquire() and not turns.acquire(0.01)
    turns.release()
    assert turns.acquire(0.01)


def test_turns_under_contention_are_one_at_a_time():
    turns, inside, most, stop = Turns(), [0], [0], time.monotonic() + 0.5

    def hammer():
        while time.monotonic() < stop:
            if turns.acquire(0.0005):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1
                turns.release()

    threads = [threading.Thread(target=hammer) for _ in range(6)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert most[0] == 1 and turns.acquire(0.1)


def test_an_outcome_is_told_before_the_next_turn_is_waited_for(checkpoint, started, monkeypatch):
    monkeypatch.setattr("audiotag.service.worker.TURN_S", 5.0)
    monkeypatch.setattr("audiotag.service.work.STEP_S", 60.0)  # decoded in one turn, however slow the machine
    slow = Slow(checkpoint)
    worker = started(slow)
    had, let_go = threading.Event(), threading.Event()

    def decoder():
        assert worker._turns.acquire()
        had.set()
        let_go.wait(10)
        worker._turns.release()

    other = threading.Thread(target=decoder)
    run = slow.tagger.engine.scores

    def scores(logmel):  # the network has the turn, and somebody waits for it
        other.start()
        while not worker._turns._waiting:
            time.sleep(0.001)
        return run(logmel)

    slow.tagger.engine.scores = scores
    one = recording(wav(3), worker.limits)
    worker.submit(one)
    try:
        assert had.wait(3)
        one.done.result(timeout=3)
    finally:
        let_go.set()
        other.join()


@pytest.mark.parametrize(("seconds", "windows"), [(3, 1), (10, 1), (25, 3)])
def test_where_a_recording_ends_is_found_in_the_step_of_its_last_window(monkeypatch, seconds, windows):
    """No step of its own, which each clip of a busy service would wait for."""
    monkeypatch.setattr("audiotag.service.work.STEP_S", 0.0)
    one = recording(wav(seconds), Limits())
    one.prepare = lambda window: window.samples
    steps = [one.step() for _ in range(windows)]
    assert [len(found) for found, _ in steps] == [1] * windows
    assert [ended for _, ended in steps] == [False] * (windows - 1) + [True]


def test_an_error_behind_the_last_window_is_not_lost(monkeypatch):
    monkeypatch.setattr("audiotag.service.work.STEP_S", 0.0)
    one = recording(wav(10), Limits())
    one.prepare = lambda window: window.samples
    windows = one._windows

    def failing():
        yield next(windows)
        raise AudioError("its end cannot be read")

    one._windows = failing()
    found, ended = one.step()
    assert len(found) == 1 and ended and str(one.error) == "its end cannot be read"


# -- fairness ------------------------------------------------------------------------------------------------


def test_a_short_clip_does_not_wait_for_a_long_recording(checkpoint, started):
    slow = Slow(checkpoint)
    worker = started(slow)
    long = recording(wav(200), worker.limits, "long")
    worker.submit(long)
    while not long.analysis.rows:
        time.sleep(0.005)
    short = recording(wav(3), worker.limits, "short")
    before = len(slow.sizes)
    worker.submit(short)
    short.done.result(10)
    assert len(slow.sizes) - before <= 5 and not long.done.done()
    assert len(long.done.result(20).rows) == 20


def test_a_short_clip_with_other_options_does_not_wait_either(checkpoint, started):
    """Windows of other lengths and steps cannot share a batch, and must not be passed over for ever."""
    slow = Slow(checkpoint, batch=8)
    worker = started(slow)
    long = recording(wav(60), worker.limits, "long", hop_s=1.0)
    worker.submit(long)
    while not long.analysis.rows:
        time.sleep(0.005)
    before = len(slow.sizes)
    shorts = [recording(wav(3, i), worker.limits, "short", hop_s=10.0 - i) for i in range(3)]
    for short in shorts:
        worker.submit(short)
    for short in shorts:
        short.done.result(10)
    assert len(slow.sizes) - before <= 12 and not long.done.done()
    assert len(long.done.result(20).rows) == 51


def test_recordings_take_turns_window_by_window(checkpoint, started):
    slow, order = Slow(checkpoint), []
    worker = started(slow)
    data = wav(100)
    recordings = [recording(data, worker.limits, str(i), watch=lambda _, i=i: order.append(i)) for i in range(3)]
    for one in recordings:
        worker.submit(one)
    rows = [one.done.result(20).stacked() for one in recordings]
    middle = order[6:-6]
    assert all(set(middle[i : i + 4]) >= {0, 1, 2} for i in range(0, len(middle) - 4))
    assert np.array_equal(rows[0], rows[1]) and np.array_equal(rows[0], rows[2])
    np.testing.assert_allclose(rows[0], slow.tagger.predict(data).window_scores, atol=1e-6)


def test_a_batch_takes_what_waits_and_waits_for_nothing(checkpoint, started):
    slow = Slow(checkpoint, seconds=0.1, batch=4)
    worker = started(slow)
    slow.sizes.clear()
    one = recording(wav(3), worker.limits)
    since = time.monotonic()
    worker.submit(one)
    one.done.result(5)
    assert time.monotonic() - since < 2 and slow.sizes == [1]
    many = [recording(wav(3, i), worker.limits) for i in range(9)]
    for one in many:
        worker.submit(one)
    for i, one in enumerate(many):
        np.testing.assert_allclose(one.done.result(10).stacked()[0], slow.tagger.scores(wav(3, i)), atol=1e-5)
    assert max(slow.sizes[1:10]) <= 4 and len(slow.sizes) < 20


def test_a_recording_alone_gives_batches_that_do_not_take_long(checkpoint, started, monkeypatch):
    monkeypatch.setattr("audiotag.service.work.STEP_S", 60.0)  # all its windows wait, however slow the machine
    quick, slow = Slow(checkpoint, seconds=0, batch=4), Slow(checkpoint, seconds=0.05, batch=4)
    sizes = []
    for one in (quick, slow):
        worker = started(one)
        worker._window_s = 0.001 if one is quick else 0.05  # as measured after a while
        long = recording(wav(75), worker.limits)
        one.sizes.clear()
        worker.submit(long)
        assert len(long.done.result(10).rows) == 8
        sizes.append(max(one.sizes))
    assert 1 < sizes[0] <= 4 and sizes[1] == 1


def test_live_audio_goes_first_and_one_that_runs_ahead_does_not(checkpoint, started):
    slow = Slow(checkpoint, seconds=0.05)
    worker = started(slow)
    long = recording(wav(300), worker.limits)
    worker.submit(long)
    given = []
    live = Feed(slow.tagger.stream(sample_rate=RATE, hop_s=1.0), lambda windows, last: given.extend(windows))
    worker.add_feed(live)
    waits = []
    for second in range(3):
        since = time.monotonic()
        worker.push(live, sound(1, second)[None])
        while len(given) <= second:
            time.sleep(0.002)
        waits.append(time.monotonic() - since)
        time.sleep(0.2)
    assert max(waits) < 1.0
    worker.remove_feed(live)
    flood = Feed(slow.tagger.stream(sample_rate=RATE, hop_s=1.0), lambda windows, last: None)
    worker.add_feed(flood)
    worker.push(flood, sound(60)[None])
    time.sleep(0.3)
    before = len(long.analysis.rows)
    time.sleep(0.8)
    assert len(long.analysis.rows) > before and not long.done.done()
    worker.cancel(long)


# -- bounds and failures -------------------------------------------------------------------------------------


def test_the_queue_is_bounded_in_seconds_of_audio(checkpoint, started):
    slow = Slow(checkpoint, seconds=0.2)
    worker = started(slow, max_seconds=100, max_waiting_s=150)
    first, second = recording(wav(90), worker.limits), recording(wav(90), worker.limits)
    worker.submit(first)
    while not first.begun:
        time.sleep(0.005)
    with pytest.raises(Problem) as refused:
        worker.submit(second)
    assert refused.value.status == 429 and int(refused.value.headers["Retry-After"]) >= 1
    short = recording(wav(2), worker.limits)
    worker.submit(short)
    short.done.result(5)
    worker.cancel(first)
    with pytest.raises(CancelledWork):
        first.done.result(5)
    worker.submit(second)  # there is room again
    worker.cancel(second)
    assert worker.waiting_s < 150


def test_a_cancelled_recording_closes_its_file_and_is_run_no_further(checkpoint, started):
    slow = Slow(checkpoint)
    worker = started(slow)
    one = recording(wav(100), worker.limits)
    worker.submit(one)
    while not one.analysis.rows:
        time.sleep(0.005)
    worker.cancel(one)
    with pytest.raises(CancelledWork):
        one.done.result(5)
    rows = len(one.analysis.rows)
    time.sleep(0.2)
    assert one.source.closed and len(one.analysis.rows) == rows < 10
    assert worker.waiting_s == 0 and worker.n_recordings == 0


def test_a_network_that_fails_fails_the_request_alone(checkpoint, started, caplog):
    slow = Slow(checkpoint)
    worker = started(slow)
    scores = slow.tagger.engine.scores
    slow.tagger.engine.scores = lambda logmel: 1 / 0
    one = recording(wav(25), worker.limits)
    worker.submit(one)
    with pytest.raises(Exception, match="ZeroDivisionError"):
        one.done.result(5)
    slow.tagger.engine.scores = scores
    two = recording(wav(25), worker.limits)
    worker.submit(two)
    assert len(two.done.result(5).rows) == 3 and not worker.stuck


def test_a_decoder_that_fails_or_hangs_leaves_the_others(checkpoint, started, monkeypatch):
    slow = Slow(checkpoint, seconds=0)
    worker = started(slow)
    hang = threading.Event()

    class Strange(io.BytesIO):
        def read(self, *_):
            hang.wait(10)
            raise RuntimeError("strange")

        readinto = read

    strange = Recording(
        Strange(wav(1)), "strange", n_bytes=1, rate_hz=RATE, window=RATE, hop=RATE, limits=worker.limits
    )
    worker.submit(strange)
    good = recording(wav(25), worker.limits)
    worker.submit(good)
    assert len(good.done.result(5).rows) == 3
    hang.set()
    with pytest.raises(AudioError):
        strange.done.result(5)


def test_weights_that_overflow_are_the_recordings_error(checkpoint, started):
    slow = Slow(checkpoint, seconds=0)
    run = slow.tagger.engine.scores
    slow.tagger.engine.scores = lambda logmel: run(logmel) * np.float32("nan")
    worker = started(slow)
    one = recording(wav(3), worker.limits)
    worker.submit(one)
    with pytest.raises(CheckpointError, match="overflow"):
        one.done.result(10)


def test_a_run_that_takes_for_ever_is_seen(checkpoint, started):
    slow = Slow(checkpoint, seconds=0.5)
    worker = started(slow, stuck_s=0.1)
    one = recording(wav(3), worker.limits)
    worker.submit(one)
    time.sleep(0.35)
    assert worker.stuck
    one.done.result(5)
    time.sleep(0.05)
    assert not worker.stuck

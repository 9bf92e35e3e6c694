"""Windows: arithmetic against a slow obvious version, whatever the blocks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiotag.checks import span_samples
from audiotag.errors import InvalidInputError
from audiotag.frontend.windows import cut_windows, tile, window_starts


def slow_starts(n: int, window: int, hop: int) -> list[int]:
    starts = [s for s in range(n) if s % hop == 0 and s + window <= n]
    if not starts:
        return [0]
    return starts if starts[-1] == n - window else [*starts, n - window]


@given(st.integers(1, 200), st.integers(1, 40), st.data())
def test_windows_cover_everything_and_do_not_depend_on_blocks(n, window, data):
    hop = data.draw(st.integers(1, window))
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=12)))
    samples = np.arange(n, dtype=np.float32)
    found = list(cut_windows(np.split(samples, cuts), window, hop))

    assert [w.start for w in found] == slow_starts(n, window, hop) == window_starts(n, window, hop)
    assert {i for w in found for i in range(w.start, w.stop)} == set(range(n))
    for w in found:
        repeated = [samples[w.start + i % (w.stop - w.start)] for i in range(window)]
        assert w.samples.tolist() == repeated


def test_memory_is_one_window_and_one_block():
    def blocks():
        for _ in range(2000):
            yield np.zeros(1000, np.float32)

    for window in cut_windows(blocks(), 10_000, 5_000):
        base = window.samples.base
        assert base is None or base.nbytes <= 4 * 12_000


def test_windows_handed_out_do_not_change_later():
    source = (np.full(7, i, np.float32) for i in range(50))
    found = list(cut_windows(source, 20, 5))
    truth = np.repeat(np.arange(50, dtype=np.float32), 7)
    for w in found:
        np.testing.assert_array_equal(w.samples, truth[w.start : w.stop])


def test_tile_repeats():
    np.testing.assert_array_equal(tile(np.array([1, 2, 3], np.float32), 8), [1, 2, 3, 1, 2, 3, 1, 2])


def test_no_samples_is_an_error():
    with pytest.raises(InvalidInputError, match="no samples"):
        list(cut_windows([np.empty(0, np.float32)], 10, 5))


@pytest.mark.parametrize("hop", [0, -1, 10.001, float("nan"), float("inf"), "x", None, 1e-9])
def test_hop_out_of_range_names_argument_and_range(hop):
    with pytest.raises(InvalidInputError, match=r"hop_s must be .* \(0, 10\]"):
        span_samples(hop, 320_000, 32_000, "hop_s")

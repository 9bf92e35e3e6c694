"""Sliding log-mel against `LogMel` of each window alone: the windows, the bits, the work and the memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audiotag.config import FrontendConfig
from audiotag.errors import InvalidInputError
from audiotag.frontend.logmel import LogMel
from audiotag.frontend.sliding import SlidingLogMel
from audiotag.frontend.windows import WindowCutter, cut_windows

SMALL = FrontendConfig(sample_rate_hz=8_000, n_fft=256, window_samples=200, hop_samples=80, n_mels=20, fmax_hz=4_000)


def clip(n_samples: int, seed: int = 0) -> np.ndarray:
    """Noise whose loudness changes by 60 dB, so that an error in a quiet frame beside a loud one would show."""
    rng = np.random.default_rng(seed)
    loudness = 10 ** (1.5 * np.sin(np.arange(n_samples) / 1_700) - 1.5)
    return (loudness * rng.standard_normal(n_samples)).astype(np.float32)


def alone(frontend: LogMel, window: np.ndarray) -> np.ndarray:
    return frontend(torch.from_numpy(np.ascontiguousarray(window))[None])[0].numpy()


class Plain:
    """A `LogMel` as a runtime shows it."""

    def __init__(self, frontend: LogMel) -> None:
        self.frontend = frontend

    def log_mel(self, waveforms: np.ndarray) -> torch.Tensor:
        return self.frontend(torch.from_numpy(waveforms))

    def concatenate(self, parts, axis: int) -> torch.Tensor:
        return torch.cat(parts, axis)


def sliding_windows(blocks, frontend: LogMel, *, window: int, hop: int):
    """(start, stop, log-mel) of a recording's windows."""
    sliding = SlidingLogMel(Plain(frontend), frontend.config, window, hop)
    return [(w.start, w.stop, sliding.log_mel(w)[0]) for w in cut_windows(blocks, window, hop)]


class CountingLogMel(LogMel):
    samples = 0
    longest = 0

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        self.samples += waveform.numel()
        self.longest = max(self.longest, waveform.shape[1])
        return super().forward(waveform)


@pytest.mark.parametrize(
    ("config", "window", "hop"),
    [
        (FrontendConfig(), 320_000, 32_000),
        (FrontendConfig(), 320_000, 320),
        (FrontendConfig(), 64_000, 10_000),  # no multiple of the frontend's hop
        (FrontendConfig(), 64_000, 64_000),  # no overlap
        (FrontendConfig(hop_samples=160), 96_000, 32_000),
        (FrontendConfig(hop_samples=480), 96_000, 32_000),
        (FrontendConfig(hop_samples=800), 96_000, 32_000),
        (FrontendConfig(hop_samples=1000), 96_001, 24_000),
        (FrontendConfig(), 1_500, 320),  # hardly longer than its edges
        (FrontendConfig(), 514, 320),  # the shortest the frontend takes
        (SMALL, 4_000, 400),
        (SMALL, 4_079, 80),
    ],
)
def test_every_window_equals_the_frontend_alone(config: FrontendConfig, window: int, hop: int) -> None:
    frontend = LogMel(config)
    waveform = clip(window + 3 * hop + hop // 3)
    blocks = np.split(waveform, [1, 7, window // 2, window + 5])
    got = sliding_windows(blocks, frontend, window=window, hop=hop)
    assert [start for start, _, _ in got] == [0, hop, 2 * hop, 3 * hop, len(waveform) - window]
    assert [stop - start for start, stop, _ in got] == [window] * 5
    for start, stop, logmel in got:
        np.testing.assert_allclose(logmel.numpy(), alone(frontend, waveform[start:stop]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("n_samples", [1, 37, 3_999])
def test_a_short_recording_is_tiled(n_samples: int) -> None:
    frontend = LogMel(SMALL)
    ((start, stop, logmel),) = sliding_windows([clip(n_samples)], frontend, window=4_000, hop=800)
    tiled = np.tile(clip(n_samples), 4_000 // n_samples + 1)[:4_000]
    assert (start, stop) == (0, n_samples)
    np.testing.assert_array_equal(logmel.numpy(), alone(frontend, tiled))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 9_000), max_size=12), st.sampled_from([80, 800, 810, 1_200, 4_000]))
def test_chunking_changes_not_one_bit(sizes: list[int], hop: int) -> None:
    frontend = LogMel(SMALL)
    waveform = clip(max(sum(sizes), 1))

    def run(cuts: list[int]) -> list[tuple[int, int, bytes]]:
        found = sliding_windows(np.split(waveform, cuts), frontend, window=4_000, hop=hop)
        return [(start, stop, logmel.numpy().tobytes()) for start, stop, logmel in found]

    assert run(list(np.cumsum(sizes[:-1]))) == run([])


def test_a_window_that_does_not_follow_the_latest_is_computed_by_itself() -> None:
    frontend = LogMel(SMALL)
    windows = list(cut_windows([clip(8_000)], 4_000, 400))
    sliding = SlidingLogMel(Plain(frontend), SMALL, 4_000, 400)
    for window in (windows[0], windows[1], windows[5], windows[6], windows[3]):
        found = sliding.log_mel(window)[0]
        np.testing.assert_allclose(found.numpy(), alone(frontend, window.samples), atol=1e-5, rtol=0)
    assert torch.equal(found, torch.from_numpy(alone(frontend, window.samples)))


def test_single_samples() -> None:
    waveform = clip(5_000)
    cutter = WindowCutter(4_000, 400)
    got = [w for sample in waveform for w in cutter.push(np.array([sample]))]
    assert [w.start for w in got] == [0, 400, 800]
    for window in got:
        np.testing.assert_array_equal(window.samples, waveform[window.start : window.stop])


def test_each_frame_is_computed_once() -> None:
    frontend = CountingLogMel()
    windows = 30
    waveform = clip(320_000 + (windows - 1) * 32_000)
    assert len(sliding_windows([waveform], frontend, window=320_000, hop=32_000)) == windows
    assert frontend.samples < 1.15 * len(waveform)  # 7.9 times as much where windows are computed alone


def test_memory_does_not_grow() -> None:
    frontend = CountingLogMel(SMALL)
    cutter, sliding = WindowCutter(4_000, 800), SlidingLogMel(Plain(frontend), SMALL, 4_000, 800)
    block = clip(50_000)

    def feed(n_blocks: int) -> int:
        for _ in range(n_blocks):
            for window in cutter.push(block):
                sliding.log_mel(window)
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = feed(2)
        assert feed(6) - before < 10_000
    finally:
        tracemalloc.stop()
    assert frontend.longest == 4_000
    assert cutter.n_samples == 8 * 50_000


def test_reset_starts_anew() -> None:
    cutter = WindowCutter(4_000, 800)
    first = list(cutter.push(clip(6_000)))
    cutter.reset()
    assert cutter.n_samples == 0 and cutter.finish() is None
    second = list(cutter.push(clip(6_000)))
    assert len(first) == len(second) == 3
    for a, b in zip(first, second, strict=True):
        assert a[:2] == b[:2] and np.array_equal(a.samples, b.samples)


@pytest.mark.parametrize(("window", "hop"), [(513, 100), (4_000, 0), (4_000, 4_001), (4_000, -1)])
def test_lengths_out_of_range(window: int, hop: int) -> None:
    with pytest.raises(InvalidInputError, match=r"must"):
        SlidingLogMel(Plain(LogMel()), FrontendConfig(), window, hop)
    if window == 4_000:
        with pytest.raises(InvalidInputError, match=r"must"):
            WindowCutter(window, hop)

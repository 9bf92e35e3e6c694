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
from audiotag.frontend.sliding import SlidingLogMel, logmel_windows

SMALL = FrontendConfig(sample_rate_hz=8_000, n_fft=256, window_samples=200, hop_samples=80, n_mels=20, fmax_hz=4_000)


def clip(n_samples: int, seed: int = 0) -> np.ndarray:
    """Noise whose loudness changes by 60 dB, so that an error in a quiet frame beside a loud one would show."""
    rng = np.random.default_rng(seed)
    loudness = 10 ** (1.5 * np.sin(np.arange(n_samples) / 1_700) - 1.5)
    return (loudness * rng.standard_normal(n_samples)).astype(np.float32)


def alone(frontend: LogMel, window: np.ndarray) -> np.ndarray:
    return frontend(torch.from_numpy(np.ascontiguousarray(window))[None])[0].numpy()


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
    got = list(logmel_windows(blocks, frontend, window_samples=window, hop_samples=hop))
    assert [w.start for w in got] == [0, hop, 2 * hop, 3 * hop, len(waveform) - window]
    assert [w.stop - w.start for w in got] == [window] * 5
    for w in got:
        np.testing.assert_allclose(w.logmel.numpy(), alone(frontend, waveform[w.start : w.stop]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("n_samples", [1, 37, 3_999])
def test_a_short_recording_is_tiled(n_samples: int) -> None:
    frontend = LogMel(SMALL)
    (window,) = logmel_windows([clip(n_samples)], frontend, window_samples=4_000, hop_samples=800)
    tiled = np.tile(clip(n_samples), 4_000 // n_samples + 1)[:4_000]
    assert (window.start, window.stop) == (0, n_samples)
    np.testing.assert_array_equal(window.logmel.numpy(), alone(frontend, tiled))


def test_no_audio_is_an_error() -> None:
    with pytest.raises(InvalidInputError, match="no samples"):
        list(logmel_windows([np.empty(0, np.float32)], LogMel(SMALL), window_samples=4_000, hop_samples=800))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 9_000), max_size=12), st.sampled_from([80, 800, 810, 1_200, 4_000]))
def test_chunking_changes_not_one_bit(sizes: list[int], hop: int) -> None:
    frontend = LogMel(SMALL)
    waveform = clip(max(sum(sizes), 1))

    def run(cuts: list[int]) -> list[tuple[int, int, bytes]]:
        sliding = SlidingLogMel(frontend, window_samples=4_000, hop_samples=hop)
        windows = [w for chunk in np.split(waveform, cuts) for w in sliding.push(chunk)]
        last = sliding.finish()
        return [(w.start, w.stop, w.logmel.numpy().tobytes()) for w in [*windows, *([last] if last else [])]]

    assert run(list(np.cumsum(sizes[:-1]))) == run([])


def test_single_samples() -> None:
    frontend = LogMel(SMALL)
    waveform = clip(5_000)
    sliding = SlidingLogMel(frontend, window_samples=4_000, hop_samples=400)
    got = [w for sample in waveform for w in sliding.push(np.array([sample]))]
    whole = list(logmel_windows([waveform], frontend, window_samples=4_000, hop_samples=400))
    assert [w.start for w in got] == [0, 400, 800]
    assert all(torch.equal(a.logmel, b.logmel) for a, b in zip(got, whole, strict=False))


def test_each_frame_is_computed_once() -> None:
    frontend = CountingLogMel()
    windows = 30
    waveform = clip(320_000 + (windows - 1) * 32_000)
    assert sum(1 for _ in logmel_windows([waveform], frontend, window_samples=320_000, hop_samples=32_000)) == windows
    assert frontend.samples < 1.15 * len(waveform)  # 7.9 times as much where windows are computed alone


def test_memory_does_not_grow() -> None:
    frontend = CountingLogMel(SMALL)
    sliding = SlidingLogMel(frontend, window_samples=4_000, hop_samples=800)
    block = clip(50_000)

    def feed(n_blocks: int) -> int:
        for _ in range(n_blocks):
            for _ in sliding.push(block):
                pass
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = feed(2)
        assert feed(6) - before < 10_000
    finally:
        tracemalloc.stop()
    assert frontend.longest == 4_000
    assert sliding.n_samples == 8 * 50_000


def test_reset_starts_anew() -> None:
    frontend = LogMel(SMALL)
    sliding = SlidingLogMel(frontend, window_samples=4_000, hop_samples=800)
    first = [w for w in sliding.push(clip(6_000))]
    sliding.reset()
    assert sliding.n_samples == 0 and sliding.finish() is None
    second = [w for w in sliding.push(clip(6_000))]
    assert len(first) == len(second) == 3
    for a, b in zip(first, second, strict=True):
        assert a[:2] == b[:2] and torch.equal(a.logmel, b.logmel)


@pytest.mark.parametrize(("window", "hop"), [(513, 100), (4_000, 0), (4_000, 4_001), (4_000, -1)])
def test_lengths_out_of_range(window: int, hop: int) -> None:
    with pytest.raises(InvalidInputError, match=r"must be"):
        SlidingLogMel(LogMel(), window_samples=window, hop_samples=hop)

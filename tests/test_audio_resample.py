"""Resampling: pieces equal the whole, a tone keeps its pitch and level, and devices change nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import soxr
import torch

from audiotag.audio.recording import load_audio
from audiotag.audio.resample import Resampler

RATES = (8000, 11025, 12345, 22050, 31999, 44100, 48000, 96000)
TARGET = 32_000


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("block", [1000, 4096, 65536])
def test_pieces_equal_the_whole(rate: int, block: int) -> None:
    waveform = np.random.Generator(np.random.PCG64(rate)).standard_normal(2 * rate + 17).astype(np.float32)
    resampler = Resampler(rate, TARGET)
    pieces = [resampler.push(waveform[i : i + block]) for i in range(0, len(waveform), block)]
    whole = soxr.resample(waveform, rate, TARGET, quality="HQ")
    np.testing.assert_allclose(np.concatenate([*pieces, resampler.finish()]), whole, rtol=0, atol=1e-6)


def test_pieces_of_one_sample_equal_the_whole() -> None:
    waveform = np.random.Generator(np.random.PCG64(1)).standard_normal(3000).astype(np.float32)
    resampler = Resampler(44100, TARGET)
    pieces = [resampler.push(waveform[i : i + 1]) for i in range(len(waveform))]
    whole = soxr.resample(waveform, 44100, TARGET, quality="HQ")
    np.testing.assert_allclose(np.concatenate([*pieces, resampler.finish()]), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rate", RATES)
def test_a_tone_keeps_pitch_level_and_length(rate: int) -> None:
    tone_hz = 0.31 * min(rate, TARGET)
    resampled = load_audio((np.sin(2 * np.pi * tone_hz * np.arange(rate) / rate), rate), target_rate_hz=TARGET)
    assert abs(len(resampled) - TARGET) <= 1
    expected = np.sin(2 * np.pi * tone_hz * np.arange(len(resampled)) / TARGET)
    inner = slice(TARGET // 20, -TARGET // 20)  # the edges of a filter see the silence outside
    assert np.abs(resampled - expected)[inner].max() < 1e-3


def test_the_reference_waves_are_reproduced(shared_dir: Any) -> None:
    frozen = np.load(shared_dir / "reference" / "real_audio.npz")
    for name in ("metro_station-paris", "speech"):
        waveform = load_audio(shared_dir / "reference" / f"{name}.wav", target_rate_hz=TARGET)
        np.testing.assert_allclose(waveform, frozen[f"{name}/wave"], rtol=0, atol=1e-5)


class OnADevice(torch.Tensor):
    """A tensor that says it lies on another device, as far as this library asks."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda")


@pytest.mark.parametrize("shape", [(44_100,), (2, 44_100)])
def test_a_tensor_on_a_device_gives_the_samples_of_its_array(shape: tuple[int, ...]) -> None:
    waveform = np.random.Generator(np.random.PCG64(3)).uniform(-0.5, 0.5, shape).astype(np.float32)
    samples = load_audio((torch.from_numpy(waveform).as_subclass(OnADevice), 44100), target_rate_hz=TARGET)
    np.testing.assert_array_equal(samples, load_audio((waveform, 44100), target_rate_hz=TARGET))

"""Resampling: pieces equal the whole, a tone keeps its pitch and level, and torchaudio is never needed."""

from __future__ import annotations

import importlib.abc
import sys
import types
import warnings
from typing import Any

import numpy as np
import pytest
import soxr
import torch

from audiotag.audio.recording import load_audio
from audiotag.audio.resample import Resampler, resample_tensor

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


@pytest.fixture
def waveform() -> np.ndarray:
    return np.random.Generator(np.random.PCG64(3)).uniform(-0.5, 0.5, (2, 44100)).astype(np.float32)


@pytest.fixture
def by_soxr(waveform: np.ndarray) -> np.ndarray:
    return soxr.resample(waveform.mean(axis=0), 44100, TARGET, quality="HQ")


def pretend(monkeypatch: pytest.MonkeyPatch, resample: Any) -> None:
    package, functional = types.ModuleType("torchaudio"), types.ModuleType("torchaudio.functional")
    functional.resample = resample  # type: ignore[attr-defined]
    package.functional = functional  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchaudio", package)
    monkeypatch.setitem(sys.modules, "torchaudio.functional", functional)


def load_on_device(waveform: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_audio((torch.from_numpy(waveform).as_subclass(OnADevice), 44100), target_rate_hz=TARGET)


def test_a_tensor_on_a_device_is_resampled_there(monkeypatch: pytest.MonkeyPatch, waveform: np.ndarray) -> None:
    seen = []

    def resample(tensor: torch.Tensor, orig_freq: int, new_freq: int, **options: Any) -> torch.Tensor:
        warnings.warn("torchaudio is in maintenance", stacklevel=1)
        seen.append((tuple(tensor.shape), orig_freq, new_freq, options["resampling_method"]))
        return tensor[:TARGET] * 0 + 0.125

    pretend(monkeypatch, resample)
    assert np.all(load_on_device(waveform) == np.float32(0.125))
    assert seen == [((44100,), 44100, TARGET, "sinc_interp_kaiser")]


def test_a_tensor_on_the_cpu_goes_through_soxr(
    monkeypatch: pytest.MonkeyPatch, waveform: np.ndarray, by_soxr: np.ndarray
) -> None:
    pretend(monkeypatch, lambda *_, **__: pytest.fail("torchaudio was used"))
    resampled = load_audio((torch.from_numpy(waveform), 44100), target_rate_hz=TARGET)
    np.testing.assert_allclose(resampled, by_soxr, rtol=0, atol=1e-6)


def test_soxr_serves_where_torchaudio_fails_to_resample(
    monkeypatch: pytest.MonkeyPatch, waveform: np.ndarray, by_soxr: np.ndarray
) -> None:
    def resample(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA out of memory")

    pretend(monkeypatch, resample)
    np.testing.assert_allclose(load_on_device(waveform), by_soxr, rtol=0, atol=1e-6)


class Raising(importlib.abc.MetaPathFinder):
    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.asked = 0

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == "torchaudio":
            self.asked += 1
            raise self.error


@pytest.mark.parametrize(
    "error",
    [
        ImportError("no"),
        OSError("libc10_cuda.so: cannot open shared object file"),
        RuntimeError("compiled with different CUDA versions"),
        SystemExit(1),
    ],
)
def test_soxr_serves_where_torchaudio_does_not_import(
    monkeypatch: pytest.MonkeyPatch, waveform: np.ndarray, by_soxr: np.ndarray, error: BaseException
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
        monkeypatch.delitem(sys.modules, name)
    finder = Raising(error)
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    np.testing.assert_allclose(load_on_device(waveform), by_soxr, rtol=0, atol=1e-6)
    assert finder.asked


def test_rates_with_a_huge_kernel_are_left_to_soxr(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, lambda *_, **__: pytest.fail("torchaudio was used"))
    assert resample_tensor(torch.zeros(1000), 31_999, TARGET) is None


def test_torchaudio_where_it_imports_agrees_with_soxr_on_a_tone() -> None:
    tone = np.sin(2 * np.pi * 3000 * np.arange(44100) / 44100).astype(np.float32)
    resampled = resample_tensor(torch.from_numpy(tone), 44100, TARGET)
    if resampled is None:
        pytest.skip("torchaudio does not import here")
    expected = soxr.resample(tone, 44100, TARGET, quality="HQ")
    inner = slice(2000, -2000)
    np.testing.assert_allclose(resampled.numpy()[inner], expected[inner], rtol=0, atol=1e-3)

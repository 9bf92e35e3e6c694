"""The frontend against the formulas in float64 numpy, torchaudio where it imports, and frozen figures."""

import copy
import multiprocessing
import os

import numpy as np
import pytest
import torch

from audiotag.config import FrontendConfig
from audiotag.errors import InvalidInputError
from audiotag.frontend import numpy_logmel
from audiotag.frontend.logmel import LogMel
from audiotag.frontend.mel import hz_to_mel, mel_filterbank, min_samples, n_frames
from audiotag.frontend.numpy_logmel import NumpyLogMel

CONFIGS = {
    "audioset": FrontendConfig(),
    "hop_5": FrontendConfig(hop_samples=160),
    "hop_25": FrontendConfig(hop_samples=800),
    "mels_40": FrontendConfig(n_mels=40),
    "mels_256": FrontendConfig(n_mels=256),
    "small": FrontendConfig(
        sample_rate_hz=16_000, n_fft=512, window_samples=400, hop_samples=161, n_mels=5, fmax_hz=7000
    ),
    "band": FrontendConfig(n_fft=801, window_samples=801, fmin_hz=3000, fmax_hz=3500, n_mels=3),
}


def synthetic(samples, seed=0):
    """A rising tone, a click and noise, float32 in [-1, 1]."""
    t = np.arange(samples) / 32_000
    x = 0.3 * np.sin(2 * np.pi * (200 + 1500 * t) * t) + 0.1 * np.random.default_rng(seed).standard_normal(samples)
    x[samples // 3] += 0.2
    return x.astype(np.float32)


def slow_filters(config):
    """Triangles over the bins, one number at a time."""
    mel = [1127 * np.log(1 + f / 700) for f in (config.fmin_hz, config.fmax_hz)]
    edges = np.linspace(*mel, config.n_mels + 2)
    filters = np.zeros((config.n_mels, config.n_fft // 2 + 1))
    for i in range(config.n_mels):
        left, centre, right = edges[i : i + 3]
        for k in range(config.n_fft // 2):  # Kaldi leaves the last bin out
            m = 1127 * np.log(1 + k * config.sample_rate_hz / config.n_fft / 700)
            filters[i, k] = max(0, min((m - left) / (centre - left), (right - m) / (right - centre)))
    return filters


def slow_log_mel(wave, config):
    """The design's definition in float64: frame by frame, dense filters; (mels, frames)."""
    x = wave.astype(np.float64)
    x = x[1:] - 0.97 * x[:-1]
    n_fft, window_samples = config.n_fft, config.window_samples
    n = np.arange(window_samples)
    window = np.zeros(n_fft)
    start = (n_fft - window_samples) // 2
    window[start : start + window_samples] = 0.5 - 0.5 * np.cos(2 * np.pi * n / (window_samples - 1))
    padded = np.pad(x, n_fft // 2, mode="reflect")
    filters = slow_filters(config)
    columns = []
    for first in range(0, len(padded) - n_fft + 1, config.hop_samples):
        power = np.abs(np.fft.rfft(padded[first : first + n_fft] * window)) ** 2
        columns.append((np.log(filters @ power + 1e-5) + 4.5) / 5)
    return np.stack(columns, 1)


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_the_definition(name):
    config = CONFIGS[name]
    wave = synthetic(40_000)
    expected = slow_log_mel(wave, config)
    found = LogMel(config)(torch.from_numpy(wave)[None])
    assert found.shape == (1, 1, *expected.shape) and found.dtype == torch.float32
    # float32 transforms lose a few digits in the rare cell that is 60 dB below its neighbours.
    error = np.abs(found[0, 0].numpy() - expected)
    assert error.max() < 1e-4 and np.quantile(error, 0.99) < 1e-5


def test_frozen_figures():
    """Of `slow_log_mel` for 10 s of the synthetic signal."""
    found = LogMel()(torch.from_numpy(synthetic(320_000))[None])[0, 0]
    assert found.shape == (128, 1000)
    figures = {
        (0, 0): 0.284696,
        (0, 999): -0.760379,
        (3, 10): -0.495366,
        (40, 333): 0.863235,
        (63, 500): 1.037783,
        (90, 700): 1.446048,
        (127, 0): 1.838618,
        (127, 999): 1.926258,
        (127, 334): 2.03921,
    }
    for (band, frame), value in figures.items():
        assert found[band, frame].item() == pytest.approx(value, abs=2e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_filterbank_equals_the_definition(name):
    filters = mel_filterbank(CONFIGS[name])
    np.testing.assert_allclose(filters, slow_filters(CONFIGS[name]), atol=1e-6)


def test_filterbank_equals_torchaudio():
    try:
        from torchaudio.compliance.kaldi import get_mel_banks
    except Exception as error:  # it fails in many ways beside a torch it was not built for
        pytest.skip(f"torchaudio does not import: {type(error).__name__}")
    banks, _ = get_mel_banks(128, 1024, 32_000.0, 0.0, 15_000.0, 100.0, -500.0, 1.0)
    np.testing.assert_allclose(mel_filterbank(FrontendConfig())[:, :-1], banks.numpy(), atol=1e-4)


def test_mel_scale():
    assert hz_to_mel(0) == 0
    assert hz_to_mel(1000) == pytest.approx(1000, abs=0.1)  # the scale is defined to meet 1000 there


def test_silence_is_the_floor():
    found = LogMel()(torch.zeros(1, 32_000))
    assert torch.allclose(found, torch.tensor((np.log(1e-5) + 4.5) / 5, dtype=torch.float32), atol=1e-6)


@pytest.mark.parametrize("samples", [514, 515, 960, 32_000, 79_999, 80_001, 320_000])
def test_frame_count(samples):
    config = FrontendConfig()
    assert LogMel(config)(torch.zeros(1, samples)).shape == (1, 1, 128, n_frames(samples, config))


def test_ten_seconds_are_a_thousand_frames():
    assert n_frames(320_000, FrontendConfig()) == 1000


def test_rows_do_not_touch_each_other():
    waves = torch.from_numpy(np.stack([synthetic(50_000, seed) * 10.0**-seed for seed in range(4)]))
    together = LogMel()(waves)
    for i in range(4):
        torch.testing.assert_close(together[i], LogMel()(waves[i : i + 1])[0], rtol=0, atol=1e-6)
    assert not torch.allclose(together[0], together[1], atol=0.1)


def test_input_may_be_a_view_and_stays_as_it_was():
    wave = torch.from_numpy(synthetic(100_000))[None]
    view = wave[:, ::2]
    expected = LogMel()(view.contiguous())
    before = wave.clone()
    torch.testing.assert_close(LogMel()(view), expected, rtol=0, atol=0)
    assert torch.equal(wave, before)


def test_louder_by_ten_adds_a_constant_above_the_floor():
    wave = torch.from_numpy(synthetic(64_000))[None]
    quiet, loud = LogMel()(wave), LogMel()(10 * wave)
    above = quiet > (np.log(1e-5) + 4.5) / 5 + 2
    assert above.any()
    torch.testing.assert_close(
        loud[above] - quiet[above], torch.full_like(quiet[above], np.log(100) / 5), atol=1e-3, rtol=0
    )


def test_copies_work_and_hold_no_checkpoint_entries():
    frontend = LogMel()
    assert frontend.state_dict() == {}
    wave = torch.from_numpy(synthetic(32_000))[None]
    torch.testing.assert_close(copy.deepcopy(frontend)(wave), frontend(wave), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(32_000,), (1, 1, 32_000), (1, min_samples(FrontendConfig()) - 1), (1, 0)])
def test_unusable_waveforms(shape):
    with pytest.raises(InvalidInputError, match="waveform must be"):
        LogMel()(torch.zeros(shape))


@pytest.mark.parametrize("recording", ["metro_station-paris", "speech"])
def test_published_figures(shared_dir, recording):
    """Log-mel of real recordings by the authors' code."""
    with np.load(shared_dir / "reference" / "real_audio.npz") as real:
        wave, expected = real[f"{recording}/wave"], real[f"{recording}/logmel"]
    found = LogMel()(torch.from_numpy(wave)[None])[0, 0]
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", CONFIGS)
def test_without_torch_it_equals_the_definition(name, threads):
    config = CONFIGS[name]
    waves = np.stack([synthetic(40_000, seed) for seed in (0, 1)])
    found = NumpyLogMel(config, threads)(waves)
    assert found.dtype == np.float32
    assert found.shape == (2, 1, config.n_mels, n_frames(40_000, config))
    for one, wave in zip(found[:, 0], waves, strict=True):
        np.testing.assert_allclose(one, slow_log_mel(wave, config), atol=5e-5)  # float32, as near as torch comes


def test_without_torch_it_equals_the_torch_form_on_real_audio(shared_dir):
    real = np.load(shared_dir / "reference" / "real_audio.npz")
    for name in ("metro_station-paris", "speech"):
        wave = real[f"{name}/wave"]
        found = NumpyLogMel(threads=2)(wave[None])
        assert np.abs(found - LogMel()(torch.from_numpy(wave)[None]).numpy()).max() < 1e-5
        assert np.abs(found[0, 0] - real[f"{name}/logmel"]).max() < 1e-4


def test_without_torch_companions_and_threads_change_nothing():
    waves = np.stack([synthetic(30_000, seed) for seed in range(3)])
    together = NumpyLogMel(threads=2)(waves)
    for i, wave in enumerate(waves):
        assert np.array_equal(NumpyLogMel(threads=1)(wave[None])[0], together[i])


def test_without_torch_shortest_silent_and_wrong_input():
    config = FrontendConfig()
    shortest = NumpyLogMel()(np.zeros((1, min_samples(config)), np.float32))
    assert shortest.shape == (1, 1, 128, n_frames(min_samples(config), config))
    np.testing.assert_allclose(shortest, (np.log(1e-5) + 4.5) / 5, rtol=1e-6)
    for wrong in (np.zeros((1, min_samples(config) - 1)), np.zeros(40_000)):
        with pytest.raises(InvalidInputError, match="waveform must be"):
            NumpyLogMel()(wrong)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_without_torch_it_works_in_a_forked_child():
    wave = synthetic(40_000)[None]
    expected = NumpyLogMel(threads=2)(wave)  # starts this process's threads
    assert numpy_logmel._pool is not None
    with multiprocessing.get_context("fork").Pool(1) as pool:
        found = pool.apply_async(NumpyLogMel(threads=2), (wave,)).get(timeout=30)
    assert np.array_equal(found, expected)

"""Audio from memory: arrays, tensors, pairs and dictionaries, against arithmetic done here in double precision."""

from __future__ import annotations

import collections
import types
from typing import Any

import numpy as np
import pytest
import soxr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from audiotag.audio.arrays import LARGEST_SAMPLE, MAX_CHANNELS
from audiotag.audio.recording import load_audio, open_audio
from audiotag.errors import AudioError, AudiotagError, InvalidInputError

RATE = 32_000
FLOATS = ("<f2", "<f4", "<f8", ">f4", ">f8")
INTEGERS = ("i1", "<i2", "<i4", ">i2", ">i4", "u1", "<u2", "<u4", ">u2")


def load(source: Any, rate: int | None = None) -> np.ndarray:
    samples = load_audio(source, target_rate_hz=RATE, sample_rate_hz=rate)
    assert samples.dtype == np.float32 and samples.ndim == 1
    return samples


def noise(*shape: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(7)).uniform(-0.9, 0.9, shape)


shapes = st.one_of(
    st.tuples(st.integers(1, 300)),
    st.integers(1, 8).flatmap(lambda channels: st.tuples(st.just(channels), st.integers(channels, 300))),
)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(INTEGERS), shapes)
def test_integers_are_scaled_by_their_full_range(data: st.DataObject, dtype: str, shape: tuple[int, ...]) -> None:
    array = data.draw(hnp.arrays(dtype, shape))
    limits = np.iinfo(dtype)
    middle = 0.0 if limits.min < 0 else (float(limits.max) + 1) / 2
    scaled = (array.astype(np.longdouble) - middle) / (float(limits.max) + 1 - middle)
    expected = scaled if array.ndim == 1 else scaled.mean(axis=0)
    samples = load(array)
    assert samples.shape == expected.shape and np.abs(samples).max() <= 1
    np.testing.assert_allclose(samples, expected.astype(np.float64), atol=2e-7)


@pytest.mark.parametrize("dtype", ["i8", "u8"])
def test_64_bit_integers_are_refused(dtype: str) -> None:
    """16-bit samples in a list become int64 in numpy; by that range they would be silence."""
    with pytest.raises(InvalidInputError, match="int64 leave their scale open; convert to int16"):
        load(np.array([0, 12_000, -12_000] * 200).astype(dtype), RATE)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(FLOATS), shapes)
def test_floats_are_taken_as_they_are(data: st.DataObject, dtype: str, shape: tuple[int, ...]) -> None:
    bound = float(np.dtype(dtype).type(1000))
    width = 8 * np.dtype(dtype).itemsize
    array = data.draw(hnp.arrays(dtype, shape, elements=st.floats(-bound, bound, width=width)))
    expected = array.astype(np.float64) if array.ndim == 1 else array.astype(np.float64).mean(axis=0)
    largest = np.abs(array).max(initial=0)  # channels that cancel leave the rounding of the larger ones
    np.testing.assert_allclose(load(array), expected, rtol=1e-6, atol=max(1e-3 * 2**-10, 1e-7 * largest))


@settings(max_examples=100, deadline=None)
@given(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=200))
def test_every_shape_is_audio_or_refused(shape: tuple[int, ...]) -> None:
    array = np.broadcast_to(np.float32(0.25), shape)
    fits = len(shape) == 1 or (len(shape) == 2 and shape[0] <= min(shape[1], MAX_CHANNELS))
    if 0 not in shape and fits:
        assert np.all(load(array) == 0.25) and len(load(array)) == shape[-1]
    else:
        with pytest.raises(AudiotagError, match="shape"):
            load(array)


@pytest.mark.parametrize("shape", [(480_000, 2), (300, 1), (3, 2)])
def test_samples_by_channels_are_refused_with_a_hint(shape: tuple[int, int]) -> None:
    with pytest.raises(InvalidInputError, match=r"transpose \(array.T\)"):
        load(np.zeros(shape, np.float32))


def test_sixty_four_channels_are_averaged() -> None:
    array = noise(64, 5000)
    np.testing.assert_allclose(load(array), array.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(100, bool),
        np.zeros(100, complex),
        np.array(["a"] * 100),
        np.array([None, 1.0]),
        np.array([{}, 1], object),
        np.zeros(100, "M8[s]"),
        np.zeros(100, [("left", "f4"), ("right", "f4")]),
    ],
)
def test_what_is_not_a_real_number_is_refused(array: np.ndarray) -> None:
    with pytest.raises(InvalidInputError, match="dtype"):
        load(array)


@pytest.mark.parametrize("source", [[0.0, 1.0], None, 3, 1.5, object(), {1, 2}, True])
def test_what_is_not_audio_is_refused(source: Any) -> None:
    with pytest.raises(InvalidInputError):
        load(source)


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 5)])
def test_no_samples_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(AudioError, match="no samples"):
        load(np.zeros(shape))


@pytest.mark.parametrize("samples", [1, 10])
@pytest.mark.parametrize("rate", [8000, RATE, 44100])
def test_very_short_audio_is_read(samples: int, rate: int) -> None:
    array = noise(samples).astype(np.float32)
    np.testing.assert_array_equal(load(array, rate), soxr.resample(array, rate, RATE, quality="HQ"))


def test_silence_is_read() -> None:
    assert not load(np.zeros(1000, np.int16)).any()


@pytest.mark.parametrize(
    ("value", "word"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite"), (2 * LARGEST_SAMPLE, r"2e\+10")]
)
@pytest.mark.parametrize("where", [0, 400_000, 999_999])
def test_bad_values_are_named_with_their_place(value: float, word: str, where: int) -> None:
    array = np.zeros((2, 1_000_000), np.float64)
    array[1, where] = 2 * value
    with pytest.raises(AudioError, match=rf"sample {where} \(at {where / 44100:.3f} s\) is {word}"):
        load(array, 44100)


def test_a_float64_beyond_float32_is_refused() -> None:
    with pytest.raises(AudioError, match="infinite"):
        load(np.full(10, 1e300))


@pytest.mark.parametrize(
    "rate",
    [
        0,
        -1,
        999,
        10**9,
        10**400,
        pytest.param(10**5000, id="huge"),
        44100.5,
        np.nan,
        np.inf,
        "44100",
        True,
        None,
        [44100],
    ],
)
def test_rates_that_cannot_be_are_refused(rate: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"Hz|\(array, sample_rate\)"):
        load((np.zeros(100), rate))
    if rate is not None:
        with pytest.raises(InvalidInputError, match="sample_rate must be a whole number"):
            load(np.zeros(100), rate)


def test_every_way_to_say_the_rate_says_the_same() -> None:
    array = noise(2, 30_000)
    expected = soxr.resample(array.mean(axis=0).astype(np.float32), 44100, RATE, quality="HQ")
    decoder = collections.namedtuple("Decoder", "get_all_samples")
    decoded = collections.namedtuple("Samples", "data sample_rate")
    for source in (
        (array, 44100),
        (array, 44100.0),
        (array, np.int64(44100)),
        (torch.from_numpy(array), 44100),
        {"array": array, "sampling_rate": 44100},
        {"array": array, "sampling_rate": 44100, "path": "gone.wav"},
        decoder(lambda: decoded(torch.from_numpy(array), 44100)),
    ):
        if isinstance(source, tuple) and len(source) == 1:
            source = _Plain(source.get_all_samples)
        np.testing.assert_allclose(load(source), expected, atol=1e-6)
    np.testing.assert_allclose(load(array, 44100), expected, atol=1e-6)
    assert len(load(array)) == 30_000


class _Plain:
    def __init__(self, get_all_samples: Any) -> None:
        self.get_all_samples = get_all_samples


def test_samples_as_torchcodec_gives_them() -> None:
    array = noise(2, 30_000)
    samples = collections.namedtuple("AudioSamples", "data pts_seconds duration_seconds sample_rate")
    given = types.SimpleNamespace(**samples(torch.from_numpy(array), 0.0, 1.0, 44100)._asdict())
    np.testing.assert_array_equal(load(given), load((array, 44100)))


def test_a_decoder_that_fails_is_an_audio_error() -> None:
    def fail() -> None:
        raise RuntimeError("Could not push packet to decoder")

    with pytest.raises(AudioError, match="<decoder>: cannot be read: Could not push"):
        load(types.SimpleNamespace(get_all_samples=fail))


def test_masked_samples_are_refused() -> None:
    array = np.ma.masked_greater(noise(1000), 0.5)
    with pytest.raises(InvalidInputError, match=r"masked.*array\.filled"):
        load(array)
    np.testing.assert_array_equal(load(array.filled(0)), np.where(array.mask, 0, array.data).astype(np.float32))
    assert len(load(np.ma.array(noise(1000)))) == 1000, "nothing is masked"


@pytest.mark.parametrize(("scale", "warned"), [(1, False), (4, False), (127, True), (32767, True)])
def test_floats_far_beyond_full_scale_are_warned_of(scale: float, warned: bool) -> None:
    with open_audio(noise(30_000) * scale, target_rate_hz=RATE) as stream:
        list(stream.blocks())
    assert [("full scale is 1" in text) for text in stream.warnings] == [True] * warned


@pytest.mark.parametrize("rate", [96_000, 192_000])
def test_too_little_for_one_sample_is_an_error_with_a_name(rate: int) -> None:
    with pytest.raises(AudioError, match=rf"<array>: 1 samples at {rate} Hz make none at 32000 Hz"):
        load(np.zeros(1), rate)


def test_a_pair_the_wrong_way_round_is_explained() -> None:
    with pytest.raises(InvalidInputError, match=r"\(array, sample_rate\), in this order, got \(int, ndarray\)"):
        load((44100, np.zeros(100)))


@pytest.mark.parametrize("source", [{}, {"samples": [1]}, {"array": None, "bytes": None}, {"array": np.zeros(9)}])
def test_dictionaries_that_lack_something_are_explained(source: dict) -> None:
    with pytest.raises(InvalidInputError, match="sampling_rate"):
        load(source)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int16, torch.uint8]
)
def test_tensors_equal_arrays(dtype: torch.dtype) -> None:
    values = torch.linspace(-0.9, 0.9, 3000)
    tensor = (values * 100 + 100).to(dtype) if dtype in (torch.int16, torch.uint8) else values.to(dtype)
    plain = tensor.numpy() if dtype != torch.bfloat16 else tensor.float().numpy()
    np.testing.assert_array_equal(load(tensor), load(plain))


def test_tensors_with_gradients_views_and_conjugates() -> None:
    tensor = torch.linspace(-1, 1, 400, requires_grad=True)
    expected = load(tensor.detach().numpy())
    np.testing.assert_array_equal(load(tensor), expected)
    np.testing.assert_array_equal(load(torch.stack([tensor * 2, tensor * 0]).T.contiguous().T), expected)
    negative = torch.complex(torch.zeros(400), tensor.detach()).conj().imag
    np.testing.assert_array_equal(load(negative), -expected)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.nested.nested_tensor([torch.zeros(10), torch.zeros(20)]),
        torch.nested.nested_tensor([torch.zeros(10), torch.zeros(20)], layout=torch.jagged),
        torch.empty(10, dtype=torch.uint4),
        torch.empty(10, dtype=torch.int2),
        torch.zeros(10, dtype=torch.bool),
        torch.zeros(10, dtype=torch.complex64),
        torch.zeros(10, device="meta"),
        torch.zeros(10).to_sparse(),
        torch.zeros(2, 3, 4),
        torch.zeros(()),
        torch.zeros(400, 2),
    ],
)
def test_tensors_that_cannot_be_audio_are_refused(tensor: torch.Tensor) -> None:
    with pytest.raises(InvalidInputError, match="<tensor>"):
        load(tensor)


def test_the_given_array_is_not_changed() -> None:
    array = noise(3, 5000)
    copy = array.copy()
    load(array, 48000)
    np.testing.assert_array_equal(array, copy)


def test_a_section_is_that_part_of_the_whole() -> None:
    array = noise(44100 * 6).astype(np.float32)
    with open_audio((array, 44100), target_rate_hz=RATE) as stream:
        assert stream.duration_s == 6
        part = np.concatenate(list(stream.section(2 * RATE, 3 * RATE)))
    np.testing.assert_allclose(part, load(array, 44100)[2 * RATE : 3 * RATE], rtol=0, atol=1e-5)


def test_a_stream_is_read_once() -> None:
    with open_audio(np.zeros(1000), target_rate_hz=RATE) as stream:
        list(stream.blocks())
        with pytest.raises(InvalidInputError, match="open_audio it again"):
            list(stream.blocks())

"""HEAR's common API, checked from its specification: https://hearbenchmark.com/hear-api.html."""

import numpy as np
import pytest
import torch

from audiotag import InvalidInputError, Tagger, hear
from audiotag.checkpoints.save import save_checkpoint

from .tiny import sound, tiny_checkpoint

RATES = (16_000, 22_050, 32_000, 44_100, 48_000)  # that HEAR's data come in


@pytest.fixture(scope="module", params=["mn", "dymn"])
def folder(request, tmp_path_factory):
    return save_checkpoint(tiny_checkpoint(request.param), tmp_path_factory.mktemp("hear") / "model")


@pytest.fixture(scope="module")
def model(folder):
    return hear.load_model(str(folder))


def sounds(seconds, count=2):
    return torch.from_numpy(np.stack([sound(seconds, seed) for seed in range(count)]))


def test_model(model):
    assert isinstance(model, torch.nn.Module) and model.sample_rate in RATES
    assert isinstance(model.scene_embedding_size, int) and isinstance(model.timestamp_embedding_size, int)
    assert hear.load_model().sample_rate == 32_000  # the one inside the package
    assert model.to("cpu") is model and not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("samples", [1, 100, 1_600, 32_000, 32_000 * 4 + 7])
def test_shapes(model, samples):
    audio = sounds(5)[:, :samples]
    scene = hear.get_scene_embeddings(audio, model)
    assert scene.shape == (2, model.scene_embedding_size) and scene.dtype == torch.float32
    embeddings, timestamps = hear.get_timestamp_embeddings(audio, model)
    assert embeddings.dtype == torch.float32 and embeddings.device == model.device
    assert embeddings.shape == (2, timestamps.shape[1], model.timestamp_embedding_size)
    assert timestamps.shape[0] == 2 and torch.isfinite(embeddings).all() and torch.isfinite(scene).all()
    assert not embeddings.requires_grad


def test_timestamps(model):
    """In milliseconds, equal for all sounds, ascending, at regular intervals of at most 50 ms, within the sound."""
    _, timestamps = hear.get_timestamp_embeddings(sounds(2.03), model)
    assert (timestamps[0] == timestamps[1]).all()
    steps = timestamps[0].diff()
    assert (steps > 0).all() and (steps <= 50).all() and torch.allclose(steps, steps[0].expand_as(steps))
    assert timestamps.min() >= 0 and timestamps.max() <= 2030 and timestamps.max() > 2030 - 50 - 1


def test_embeddings_are_centred(model):
    """A click changes the embeddings of the timestamps within 80 ms (and the STFT's reach) of it, and no others."""
    quiet = 0.01 * sounds(2, 1)
    click = quiet.clone()
    at = 32_000  # 1 s
    click[0, at : at + 32] += 0.9
    before, timestamps = hear.get_timestamp_embeddings(quiet, model)
    after, _ = hear.get_timestamp_embeddings(click, model)
    changed = ((before - after).abs().max(2).values[0] > 1e-5).nonzero()[:, 0]
    times = timestamps[0, changed]
    assert times.min() <= 950 and times.max() >= 1050
    assert times.min() >= 1000 - 80 - 25 and times.max() <= 1000 + 80 + 25
    assert abs(float(times.min() + times.max()) / 2 - 1000) <= 25  # as far to one side as to the other


def test_batch_independence(model):
    audio = sounds(1.3, 4)
    for embed in (hear.get_scene_embeddings, lambda a, m: hear.get_timestamp_embeddings(a, m)[0]):
        together = embed(audio, model)
        alone = torch.cat([embed(audio[i : i + 1], model) for i in range(4)])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_long_sounds_in_stretches_are_whole_ones(model, monkeypatch):
    audio = sounds(3.21, 1)
    whole, times = hear.get_timestamp_embeddings(audio, model)
    monkeypatch.setattr(hear, "STRETCH", 7)
    cut, again = hear.get_timestamp_embeddings(audio, model)
    torch.testing.assert_close(whole, cut, atol=1e-4, rtol=1e-3)
    assert torch.equal(times, again)


@pytest.mark.parametrize("seconds", [0.5, 10, 23])
def test_scene_is_the_taggers_embedding(folder, model, seconds):
    audio = sounds(seconds, 1)
    expected = Tagger.from_pretrained(folder).embed(audio[0].numpy(), layer="mid", hop_s=2.5)
    np.testing.assert_allclose(hear.get_scene_embeddings(audio, model)[0].numpy(), expected, atol=1e-4, rtol=1e-3)


def test_double_precision_audio_and_gradients(model):
    audio = sounds(1, 1).double().requires_grad_(True)
    assert hear.get_scene_embeddings(audio, model).dtype == torch.float32


@pytest.mark.parametrize("audio", [torch.zeros(100), torch.zeros(1, 2, 3), torch.zeros(2, 0), np.zeros((1, 10))])
def test_bad_audio(model, audio):
    with pytest.raises(InvalidInputError, match="audio must be a float tensor"):
        hear.get_scene_embeddings(audio, model)


def test_not_finite(model):
    with pytest.raises(InvalidInputError, match="finite"):
        hear.get_timestamp_embeddings(torch.full((1, 400), float("nan")), model)


def test_no_sounds(model):
    assert hear.get_scene_embeddings(torch.zeros(0, 100), model).shape == (0, model.scene_embedding_size)
    assert hear.get_timestamp_embeddings(torch.zeros(0, 3200), model)[0].shape[0] == 0

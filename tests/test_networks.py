"""The networks against slow arithmetic, the papers' counts, and frozen outputs of the authors' code."""

import json
import math
import zlib

import numpy as np
import pytest
import torch

from audiotag.config import NetworkConfig
from audiotag.networks.build import build_network
from audiotag.networks.dymn import DyMN, DynamicBlock
from audiotag.networks.mobilenet import MN, SqueezeExcitation
from audiotag.networks.table import (
    BlockSpec,
    context_channels,
    make_divisible,
    scaled_blocks,
    state_shapes,
    tap_channels,
)

from .random_networks import log_mels, random_network, randomise

PARAMETERS = {  # released checkpoints, from their shapes
    ("dymn", 0.4): 1_961_239,
    ("dymn", 1.0): 10_548_479,
    ("dymn", 2.0): 39_966_143,
    ("mn", 0.1): 123_783,
    ("mn", 0.2): 324_695,
    ("mn", 0.4): 983_599,
    ("mn", 0.5): 1_431_239,
    ("mn", 1.0): 4_876_831,
    ("mn", 2.0): 17_909_287,
    ("mn", 3.0): 39_086_367,
    ("mn", 4.0): 68_427_303,
}


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def hardswish(z):
    return z * np.clip(z + 3, 0, 6) / 6


def norm(p, name, y):
    """Batch norm over axis 0 of (channels, ...)."""
    shape = (-1,) + (1,) * (y.ndim - 1)
    weight, bias, mean, var = (
        p[f"{name}.{k}"].reshape(shape) for k in ("weight", "bias", "running_mean", "running_var")
    )
    return (y - mean) / np.sqrt(var + 1e-3) * weight + bias


def linear(p, name, v):
    return p[f"{name}.weight"].reshape(len(p[f"{name}.weight"]), -1) @ v + p[f"{name}.bias"]


def mixed_kernel(p, name, h, temperature):
    z = linear(p, f"{name}.residuals.0", h) / temperature
    attention = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    return sum(a * kernel for a, kernel in zip(attention, p[f"{name}.weight"][0, 0], strict=True))


def slow_block(p, x, spec, temperature):
    """Figure 2 of arXiv 2310.15648 for one sample (C, F, T) in float64, one output position at a time."""
    _, kernel, expanded, outputs, _, act, stride = spec
    channels, freq = x.shape[:2]
    positions = np.concatenate([x.mean(2), x.mean(1)], 1)
    joint = p["context_gen.joint_conv.weight"][:, :, 0, 0] @ positions
    g = hardswish(norm(p, "context_gen.joint_norm", joint))
    h = g.mean(1)

    def gate(part, name):
        if stride == 2:
            padded = np.pad(part, ((0, 0), (1, 1)))
            part = np.stack([padded[:, i : i + 3].sum(1) / 3 for i in range(0, part.shape[1], 2)], 1)
        return sigmoid(np.stack([linear(p, f"context_gen.{name}", column) for column in part.T], 1))

    gate_f, gate_t = gate(g[:, :freq], "conv_f"), gate(g[:, freq:], "conv_t")
    y = x
    if expanded != channels:
        weight = mixed_kernel(p, "exp_conv", h, temperature).reshape(expanded, channels)
        y = norm(p, "exp_norm", np.einsum("ec,cft->eft", weight, y))
        y = np.maximum(y, 0) if act == "relu" else hardswish(y)
    weight = mixed_kernel(p, "depth_conv", h, temperature).reshape(expanded, kernel, kernel)
    padded = np.pad(y, ((0, 0), (kernel // 2,) * 2, (kernel // 2,) * 2))
    y = np.empty((expanded, gate_f.shape[1], gate_t.shape[1]))
    for f in range(y.shape[1]):
        for t in range(y.shape[2]):
            patch = padded[:, f * stride : f * stride + kernel, t * stride : t * stride + kernel]
            y[:, f, t] = (patch * weight).sum((1, 2))
    y = norm(p, "depth_norm", y)
    theta = (2 * sigmoid(linear(p, "depth_act.coef_net.0", h)) - 1).reshape(expanded, 4)
    for e in range(expanded):
        first = (theta[e, 0] + 1) * y[e] + 0.5 * theta[e, 2]
        second = theta[e, 1] * y[e] + 0.5 * theta[e, 3]
        y[e] = np.maximum(first, second) * np.outer(gate_f[e], gate_t[e])
    weight = mixed_kernel(p, "proj_conv", h, temperature).reshape(outputs, expanded)
    y = norm(p, "proj_norm", np.einsum("ce,eft->cft", weight, y))
    return x + y if stride == 1 and channels == outputs else y


@pytest.mark.parametrize(
    "spec",
    [
        BlockSpec(16, 3, 64, 16, False, "relu", 1),
        BlockSpec(16, 3, 16, 16, False, "relu", 1),
        BlockSpec(8, 5, 24, 40, False, "hswish", 2),
        BlockSpec(24, 3, 72, 24, False, "hswish", 2),
        BlockSpec(8, 5, 40, 8, False, "hswish", 1),
    ],
)
@pytest.mark.parametrize("temperature", [1.0, 30.0])
def test_dynamic_block_equals_slow_arithmetic(spec, temperature):
    block = randomise(DynamicBlock(spec, 1.0, temperature), seed=1)
    x = torch.randn(2, spec.inputs, 7, 10, generator=torch.Generator().manual_seed(1))
    parameters = {name: value.double().numpy() for name, value in block.state_dict().items()}
    found = block(x).numpy()
    for i in range(2):
        np.testing.assert_allclose(
            found[i], slow_block(parameters, x[i].double().numpy(), spec, temperature), atol=2e-5
        )
    assert np.abs(found[0] - found[1]).max() > 0.1


def test_squeeze_excitation_equals_slow_arithmetic():
    gate = randomise(SqueezeExcitation(32))
    x = torch.randn(2, 32, 3, 5, generator=torch.Generator().manual_seed(0))
    p = {name.removeprefix("conc_se_layers.0."): value.double().numpy() for name, value in gate.state_dict().items()}
    for sample, found in zip(x.double().numpy(), gate(x).numpy(), strict=True):
        scale = sigmoid(linear(p, "fc2", np.maximum(linear(p, "fc1", sample.mean((1, 2))), 0)))
        np.testing.assert_allclose(found, sample * scale[:, None, None], atol=1e-5)


@pytest.mark.parametrize("architecture, width", PARAMETERS)
def test_parameter_counts(architecture, width):
    with torch.device("meta"):
        network = (DyMN if architecture == "dymn" else MN)(NetworkConfig(architecture, width))
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[architecture, width]


@pytest.mark.parametrize(
    "channels, expected", [(1, 8), (6.4, 8), (12, 16), (11.9, 16), (20, 24), (28.8, 32), (36, 40), (80, 80)]
)
def test_make_divisible(channels, expected):
    assert make_divisible(channels) == expected


@pytest.mark.parametrize("width, low, high", [(0.4, 16, 48), (1.0, 32, 128), (2.0, 64, 256)])
def test_context_size_is_bounded(width, low, high):
    sizes = [context_channels(spec.expanded, width) for spec in scaled_blocks(NetworkConfig(width=width))]
    assert min(sizes) == low and max(sizes) == high


@pytest.mark.parametrize(
    "kind", [{}, {"architecture": "mn"}, {"head": "fully_convolutional"}, {"dynamic_blocks": "replace_se"}]
)
@pytest.mark.parametrize("batch, frames", [(1, 1), (2, 65)])
def test_shapes_and_taps(kind, batch, frames):
    network = random_network(**kind, n_labels=5)
    sizes = tap_channels(network.config)
    with torch.no_grad():
        output = network(log_mels(batch, frames), tuple(sizes))
    assert output.logits.shape == (batch, 5)
    assert output.embedding.shape == (batch, sizes["embedding"])
    assert {name: value.shape for name, value in output.taps.items()} == {name: (batch, n) for name, n in sizes.items()}
    assert torch.equal(output.taps["embedding"], output.embedding)


@pytest.mark.parametrize("width, size", [(0.4, 384), (1.0, 960), (2.0, 1920)])
def test_embedding_size_is_the_papers(width, size):
    assert tap_channels(NetworkConfig(width=width))["embedding"] == size


def test_a_clip_does_not_see_its_neighbours():
    network = random_network()
    x = log_mels(3, 80)
    with torch.no_grad():
        together, alone = network(x).logits, network(x[1:2]).logits
    assert (together[1:2] - alone).abs().max() < 1e-4 * together.abs().max()
    assert (together[0] - together[1]).abs().max() > 0.1


def test_temperature_flattens_the_mixture():
    network = random_network()
    x = log_mels(1, 64)
    with torch.no_grad():
        sharp = network(x).logits
        network.set_temperature(1e6)
        flat = network(x).logits
        for block in network.layers:  # equal kernels: the mean of the bank, whatever the attention
            for conv in (block.exp_conv if block.expands else block.depth_conv, block.depth_conv, block.proj_conv):
                conv.weight.copy_(conv.weight.mean(2, keepdim=True).expand_as(conv.weight))
        network.set_temperature(1.0)
        mean = network(x).logits
    torch.testing.assert_close(flat, mean, rtol=1e-3, atol=1e-4)
    assert (sharp - flat).abs().max() > 1e-3


def reference_keys(shared_dir):
    return json.loads((shared_dir / "reference" / "state_dict_keys.json").read_text())


def kind_of(name):
    """Architecture and width from a released name such as dymn10_as."""
    stem = name.split("_")[0]
    return stem.rstrip("0123456789"), int(stem[-2:]) / 10


def test_state_dicts_are_the_released_ones(shared_dir):
    for name, entries in reference_keys(shared_dir).items():
        with torch.device("meta"):
            network = build_network(NetworkConfig(*kind_of(name)))
        found = {key: list(value.shape) for key, value in network.state_dict().items()}
        assert found == {key: value["shape"] for key, value in entries.items()}, name


def filled(name, network, entries, reference):
    """The state dict that the rule in the reference data's README makes."""
    state = {}
    for key, value in network.state_dict().items():
        if key.endswith(("lambdas", "init_v", "num_batches_tracked")):
            state[key] = value
            continue
        if key.endswith(("running_mean", "running_var")):
            state[key] = torch.from_numpy(reference[f"{name}/bn/{key}"])
            continue
        z = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()))).standard_normal(tuple(value.shape))
        if fan_in := entries[key].get("fan_in"):
            z *= math.sqrt(2 / fan_in)
            if any(word in key for word in ("conv_f", "conv_t", "residuals", "coef_net")) and not key.endswith("bias"):
                z *= 0.3
        else:
            z = 0.1 * z if key.endswith("bias") else 1 + 0.1 * z
        state[key] = torch.from_numpy(z.astype(np.float32))
    return state


def reference_input(frames):
    r = np.random.Generator(np.random.PCG64(frames))
    coarse = r.standard_normal((2, 1, 16, math.ceil(frames / 32)))
    noise = r.standard_normal((2, 1, 128, frames))
    return torch.from_numpy((coarse.repeat(8, 2).repeat(32, 3)[..., :frames] + 0.5 * noise).astype(np.float32))


@pytest.mark.parametrize("form", ["textbook", "fused"])
@pytest.mark.parametrize("name", ["dymn04_as", "dymn10_as", "dymn20_as", "mn04_as", "mn10_as"])
def test_outputs_are_the_published_codes(shared_dir, name, form):
    from audiotag.runtimes.fused import fuse

    network = build_network(NetworkConfig(*kind_of(name)))
    with np.load(shared_dir / "reference" / "filled_networks.npz") as reference:
        network.load_state_dict(filled(name, network, reference_keys(shared_dir)[name], reference), strict=True)
        network.eval().requires_grad_(False)
        run = fuse(network) if form == "fused" else network
        for frames in (1000, 613):
            output = run(reference_input(frames))
            for part in ("logits", "embedding"):
                expected = reference[f"{name}/T{frames}/{part}"]
                assert np.abs(getattr(output, part).numpy() - expected).max() < 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("recording", ["metro_station-paris", "speech"])
def test_the_released_network_hears_what_it_heard(shared_dir, recording):
    network = build_network(NetworkConfig("mn", 0.4))
    path = shared_dir / "reference" / "mn04_as_mAP_432.pt"
    network.load_state_dict(torch.load(path, weights_only=True), strict=True)
    with np.load(shared_dir / "reference" / "real_audio.npz") as real, torch.no_grad():
        output = network.eval()(torch.from_numpy(real[f"{recording}/logmel"])[None, None])
        np.testing.assert_allclose(output.logits[0].numpy(), real[f"{recording}/logits"], atol=1e-4)
        np.testing.assert_allclose(output.embedding[0].numpy(), real[f"{recording}/embedding"], atol=1e-4)


@pytest.mark.parametrize("width", [0.1, 0.4, 0.5, 1.0, 2.0, 3.3])
@pytest.mark.parametrize("head", ["mlp", "fully_convolutional"])
@pytest.mark.parametrize("architecture, dynamic_blocks", [("dymn", "all"), ("dymn", "replace_se"), ("mn", "all")])
def test_shapes_of_the_state_dict_are_those_of_the_network(architecture, dynamic_blocks, head, width):
    config = NetworkConfig(architecture, width, n_labels=7, head=head, dynamic_blocks=dynamic_blocks)
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in build_network(config).state_dict().items()}
    assert list(state_shapes(config).items()) == list(expected.items())

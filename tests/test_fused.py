"""The fused form against the textbook networks, and what must hold of any inference-only form."""

import copy
import functools
import gc
import time
import types
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from audiotag.errors import InvalidInputError
from audiotag.networks.build import build_network
from audiotag.networks.dymn import DynamicBlock
from audiotag.networks.table import BlockSpec, scaled_blocks, tap_channels
from audiotag.runtimes.fused import _DynamicBlock, fuse
from audiotag.runtimes.fused_steps import _has_onednn

from .random_networks import log_mels, random_network, randomise

KINDS = {
    "dymn": {},
    "dymn_wider": {"width": 0.4},
    "dymn_published": {"width": 1.0},
    "dymn_replace_se": {"dynamic_blocks": "replace_se"},
    "dymn_convolutional": {"head": "fully_convolutional", "n_labels": 7},
    "dymn_strides": {"strides": (2, 2, 1, 1), "n_labels": 3},
    "dymn_hot": {"temperature": 30.0},
    "mn": {"architecture": "mn"},
    "mn_wider": {"architecture": "mn", "width": 0.4},
    "mn_convolutional": {"architecture": "mn", "head": "fully_convolutional", "strides": (2, 2, 2, 1)},
}


@pytest.fixture(scope="module")
def networks():
    made = {}

    def make(kind):
        if kind not in made:
            network = random_network(**KINDS[kind])
            made[kind] = network, fuse(network)
        return made[kind]

    return make


def assert_same(found, expected, scores=2e-5):
    assert found.logits.dtype == found.embedding.dtype == torch.float32
    size = max(1, expected.logits.abs().max() / 8)  # beyond that no network is trained to go
    assert (found.logits.sigmoid() - expected.logits.sigmoid()).abs().max() < scores * size
    scale = expected.embedding.abs().max()
    assert (found.embedding - expected.embedding).abs().max() < 10 * scores * scale
    assert found.taps.keys() == expected.taps.keys()
    for name, value in expected.taps.items():
        assert (found.taps[name] - value).abs().max() < 10 * scores * value.abs().max(), name


@pytest.mark.parametrize("batch, frames", [(1, 1000), (3, 100), (2, 333)])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_textbook(networks, kind, batch, frames):
    network, fused = networks(kind)
    x = log_mels(batch, frames, seed=1)
    taps = tuple(tap_channels(network.config))
    with torch.no_grad():
        expected = network(x, taps)
    assert_same(fused(x, taps), expected)


@pytest.mark.parametrize("batch, frames", [(16, 100), (1, 6000), (1, 33), (1, 1), (5, 2)])
def test_equals_the_textbook_for_unusual_sizes(networks, batch, frames):
    network, fused = networks("dymn")
    x = log_mels(batch, frames, seed=2)
    with torch.no_grad():
        assert_same(fused(x), network(x))


@pytest.mark.parametrize("bands", [40, 64, 256])
def test_equals_the_textbook_for_other_frontends(networks, bands):
    network, fused = networks("mn")
    x = log_mels(2, 120, seed=2, bands=bands)
    with torch.no_grad():
        assert_same(fused(x), network(x))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("act", ["relu", "hswish"])
@pytest.mark.parametrize("inputs, expanded, outputs", [(16, 64, 16), (16, 16, 16), (8, 24, 40)])
def test_a_block_equals_the_textbook_block(inputs, expanded, outputs, act, stride):
    for kernel in (3, 5):
        spec = BlockSpec(inputs, kernel, expanded, outputs, False, act, stride)
        block = randomise(DynamicBlock(spec, 1.0, 2.0), seed=kernel)
        x = torch.randn(2, inputs, 9, 14, generator=torch.Generator().manual_seed(0))
        found = _DynamicBlock(block).eval()(x.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)
        torch.testing.assert_close(found, block(x), rtol=1e-5, atol=1e-5)


def test_extreme_lines_and_gates(networks):
    """Context weights so large that tanh, sigmoid and softmax saturate."""
    spec = BlockSpec(16, 3, 64, 16, False, "relu", 1)
    block = randomise(DynamicBlock(spec, 1.0, 0.01))
    for part in (block.depth_act.coef_net[0], block.context_gen.conv_f, block.context_gen.conv_t):
        part.weight.mul_(100)
    x = torch.randn(2, 16, 9, 14, generator=torch.Generator().manual_seed(0))
    found = _DynamicBlock(block).eval()(x.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, block(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["dymn", "dymn_replace_se"])
def test_the_accelerators_form_equals_the_loop(networks, kind, monkeypatch):
    _, fused = networks(kind)
    x = log_mels(3, 150, seed=5)
    expected = fused(x)
    monkeypatch.setattr("audiotag.runtimes.fused._sample_by_sample", lambda x: False)
    assert_same(fused(x), expected)


@pytest.mark.parametrize("kind", ["dymn", "mn"])
def test_a_clip_scores_the_same_in_any_company(networks, kind):
    _, fused = networks(kind)
    x = log_mels(7, 150, seed=3)
    together = fused(x)
    for i in (0, 3, 6):
        alone = fused(x[i : i + 1])
        largest = alone.logits.abs().max()  # random weights amplify the last bits of large logits
        assert (together.logits[i] - alone.logits[0]).abs().max() < 1e-5 * largest
        assert (together.embedding[i] - alone.embedding[0]).abs().max() < 1e-4 * together.embedding.abs().max()
    assert (together.logits[0] - together.logits[1]).abs().max() > 1e-3


def test_thread_count_does_not_matter(networks):
    _, fused = networks("dymn_wider")
    x = log_mels(1, 500, seed=4)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(fused(x).logits)
    finally:
        torch.set_num_threads(before)
    largest = results[0].abs().max()  # random weights amplify the last bits of large logits
    assert all((results[0] - other).abs().max() < 1e-5 * largest for other in results[1:])


@pytest.mark.parametrize("kind", ["dymn", "mn"])
def test_threads_may_share_it(networks, kind):
    _, fused = networks(kind)
    inputs = [log_mels(1 + i % 2, 90 + 10 * (i % 3), seed=i) for i in range(6)]
    expected = [fused(x).logits for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for found, one in zip(pool.map(lambda i: fused(inputs[i % 6]).logits, range(48)), expected * 8, strict=True):
            torch.testing.assert_close(found, one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["dymn", "mn"])
def test_source_and_input_stay_as_they_were(kind):
    network = random_network(**KINDS[kind]).train()
    before = copy.deepcopy(network.state_dict())
    x = log_mels(2, 100)
    kept = x.clone()
    fused = fuse(network)
    expected = fused(x)
    assert network.training and torch.equal(x, kept)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    for value in network.state_dict().values():  # and nothing is shared
        value.zero_()
    assert torch.equal(fused(x).logits, expected.logits)


def test_the_source_is_not_kept_alive():
    network = random_network()
    reference, fused = weakref.ref(network), fuse(network)
    del network
    gc.collect()
    assert reference() is None and isinstance(fused, nn.Module)


@pytest.mark.parametrize("kind", ["dymn_replace_se", "mn"])
def test_copies_and_moves(networks, kind):
    _, fused = networks(kind)
    x = log_mels(2, 100)
    expected = fused(x).logits
    assert torch.equal(copy.deepcopy(fused)(x).logits, expected)
    assert torch.equal(copy.deepcopy(fused).to("cpu")(x).logits, expected)
    moved = copy.deepcopy(fused).to("meta")
    assert {value.device.type for value in moved.state_dict().values()} == {"meta"}


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.2), (torch.float16, 0.02), (torch.float32, 1e-5)])
@pytest.mark.parametrize("kind", ["dymn", "mn"])
def test_other_precisions(networks, kind, dtype, tolerance):
    network, _ = networks(kind)
    fused = fuse(network, dtype=dtype)
    assert {value.dtype for value in fused.state_dict().values()} == {dtype}
    x = log_mels(2, 100)
    with torch.no_grad():
        assert_same(fused(x, ("stem", "block14")), network(x, ("stem", "block14")), scores=tolerance)


def test_results_are_ordinary_tensors_without_gradients(networks):
    _, fused = networks("dymn")
    output = fused(log_mels(1, 64).requires_grad_())
    assert not output.logits.requires_grad
    head = nn.Linear(output.embedding.shape[1], 2)
    head(output.embedding).sum().backward()  # a head may be trained on the embedding
    assert head.weight.grad is not None


def test_taps_are_those_asked_for(networks):
    network, fused = networks("dymn")
    sizes = tap_channels(network.config)
    x = log_mels(2, 64)
    assert fused(x).taps == {}
    for name, size in sizes.items():
        taps = fused(x, (name,)).taps
        assert list(taps) == [name] and taps[name].shape == (2, size) and taps[name].dtype == torch.float32
    assert len(sizes) == len(scaled_blocks(network.config)) + 3


def test_fusing_is_quick():
    network = build_network(random_network().config.__class__(width=1.0)).eval()
    fuse(network)
    start = time.process_time()
    fuse(network)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("network, dtype", [(nn.Linear(2, 2), None), ("dymn10_as", None)])
def test_not_a_network(network, dtype):
    with pytest.raises(InvalidInputError, match="network must be a DyMN or an MN"):
        fuse(network, dtype=dtype)


def test_not_a_precision(networks):
    with pytest.raises(InvalidInputError, match="dtype must be float32, bfloat16, float16"):
        fuse(networks("mn")[0], dtype=torch.int8)


def test_without_onednn(networks, monkeypatch):
    """Where torch lacks oneDNN's fused product (some platforms do), plain products give the same."""
    _, fused = networks("dymn_wider")
    x = log_mels(1, 400)
    expected = fused(x)
    monkeypatch.setattr("audiotag.runtimes.fused_steps._has_onednn", lambda dtype: False)
    assert_same(fused(x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wrong", ["nothing", "many rows", "odd outputs", "sigmoid", "absent"])
def test_a_product_of_onednn_that_is_wrong_anywhere_is_not_used(monkeypatch, dtype, wrong):
    def product(x, weight, bias, act, *_):
        if wrong == "absent":
            raise NotImplementedError
        y = torch.nn.functional.linear(x.float(), weight.float(), bias.float())
        y = {"none": y, "relu": y.relu(), "hardswish": torch.nn.functional.hardswish(y), "sigmoid": y.sigmoid()}[act]
        if {"many rows": len(x) > 256, "odd outputs": y.shape[1] % 2, "sigmoid": act == "sigmoid"}.get(wrong):
            y = y + 0.1 * y.abs().max()
        return y.to(dtype)

    op = types.SimpleNamespace(_linear_pointwise=types.SimpleNamespace(default=product))
    monkeypatch.setattr(torch, "ops", types.SimpleNamespace(mkldnn=op))
    assert _has_onednn.__wrapped__(dtype) == (wrong == "nothing")


@pytest.mark.parametrize("kind", ["dymn", "mn"])
def test_it_compiles_as_one_graph(networks, kind, monkeypatch):
    """`fullgraph` refuses what the compiler cannot trace; generated code would take minutes and a C++ compiler."""
    network, _ = networks(kind)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager", fullgraph=True))
    compiled = fuse(network, compile=True)
    x = log_mels(1, 100)
    with torch.no_grad():
        assert_same(compiled(x, ("block3",)), network(x, ("block3",)))
    other = copy.deepcopy(compiled)
    for value in compiled.state_dict().values():  # a copy runs its own weights
        value.zero_()
    with torch.no_grad():
        assert_same(other(x), network(x))


def test_within_autocast_and_inference_mode(networks):
    from audiotag.runtimes import fused_steps as rows

    network, fused = networks("dymn_published")
    x = log_mels(3, 100)
    rows._has_onednn.cache_clear()
    with torch.no_grad():
        expected = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(fused(x), expected)
    with torch.inference_mode():
        found = fused(x)
        assert found.logits.is_contiguous()
        assert_same(found, expected)

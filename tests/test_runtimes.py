"""The runtimes without torch against the textbook networks in torch, and what must hold of any runtime."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from audiotag.checkpoints.load import load_checkpoint
from audiotag.config import FrontendConfig, NetworkConfig
from audiotag.networks.build import build_network
from audiotag.networks.table import tap_channels
from audiotag.runtimes import compiled
from audiotag.runtimes.graph import network_model
from audiotag.runtimes.onnxruntime import OnnxRuntime
from audiotag.runtimes.openvino import OpenVINORuntime

from .random_networks import log_mels, random_network
from .test_networks import filled, kind_of, reference_input, reference_keys

RUNTIMES = {"onnxruntime": OnnxRuntime, "openvino": OpenVINORuntime}
KINDS = {
    "dymn": {},
    "dymn_wider": {"width": 0.4},
    "dymn_replace_se": {"dynamic_blocks": "replace_se"},
    "dymn_convolutional": {"head": "fully_convolutional", "n_labels": 7},
    "dymn_strides": {"strides": (2, 2, 1, 1), "n_labels": 3},
    "dymn_hot": {"temperature": 30.0},
    "mn": {"architecture": "mn"},
    "mn_wider": {"architecture": "mn", "width": 0.4},
    "mn_convolutional": {"architecture": "mn", "head": "fully_convolutional", "strides": (2, 2, 2, 1)},
}


def state_of(network):
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


@pytest.fixture(scope="module")
def networks():
    made = {}

    def make(kind):
        if kind not in made:
            made[kind] = random_network(**KINDS[kind])
        return made[kind]

    return make


@pytest.fixture(scope="module", params=RUNTIMES)
def kind_of_runtime(request):
    if find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return RUNTIMES[request.param]


@pytest.fixture(scope="module")
def runtimes(networks, kind_of_runtime):
    made = {}

    def make(kind, **options):
        if kind not in made:
            network = networks(kind)
            made[kind] = kind_of_runtime(state_of(network), network.config, FrontendConfig(), threads=2, **options)
        return networks(kind), made[kind]

    return make


def textbook(network, x):
    taps = tuple(tap_channels(network.config))
    with torch.no_grad():
        output = network(x, taps)
    return {"logits": output.logits.numpy(), **{name: value.numpy() for name, value in output.taps.items()}}


def assert_same(found, expected):
    """Scores within 1e-5 where logits stay in the range of trained networks, features within 1e-4 of the largest."""
    usual = np.abs(expected["logits"]).max(1) < 40  # a random network now and then explodes on an input
    assert usual.mean() > 0.7
    found, expected = ({name: value[usual] for name, value in some.items()} for some in (found, expected))
    scores = 1 / (1 + np.exp(-expected["logits"].astype(np.float64)))
    size = max(1, np.abs(expected["logits"]).max() / 4)  # random weights amplify the last bits of large logits
    assert np.abs(found["scores"] - scores).max() < 1e-5 * size
    for name in found.keys() - {"scores"}:
        assert found[name].dtype == np.float32
        assert np.abs(found[name] - expected[name]).max() < 1e-4 * np.abs(expected[name]).max(), name


@pytest.mark.parametrize("batch, frames", [(1, 1000), (3, 100)])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_textbook(runtimes, kind, batch, frames):
    network, runtime = runtimes(kind)
    x = log_mels(batch, frames, seed=1)
    found = runtime.run(x.numpy(), ("scores", "embedding"))
    assert list(found) == ["scores", "embedding"]
    assert_same(found, textbook(network, x))


@pytest.mark.parametrize("kind", ["dymn_wider", "mn_convolutional"])
@pytest.mark.parametrize("batch, frames", [(2, 613), (16, 100)])
def test_every_layer_equals_the_textbook(runtimes, kind, batch, frames):
    network, runtime = runtimes(kind)
    x = log_mels(batch, frames, seed=1)
    layers = ("logmel", *tap_channels(network.config))
    found = runtime.run(x.numpy(), layers)
    assert list(found) == list(layers)
    assert_same(
        found | {"scores": runtime.run(x.numpy(), ("scores",))["scores"]},
        textbook(network, x) | {"logmel": x.mean((1, 3)).numpy()},
    )


@pytest.mark.parametrize("bands", [40, 256])
def test_other_mel_counts(networks, kind_of_runtime, bands):
    network = networks("mn")
    runtime = kind_of_runtime(state_of(network), network.config, FrontendConfig(n_mels=bands), threads=1)
    x = log_mels(2, 120, seed=2, bands=bands)
    assert_same(runtime.run(x.numpy(), ("scores", "embedding")), textbook(network, x))


@pytest.mark.parametrize("frames", [1, 2, 33])
def test_unusual_lengths(runtimes, frames):
    network, runtime = runtimes("dymn")
    x = log_mels(1, frames, seed=2)
    assert_same(runtime.run(x.numpy(), ("scores", "embedding")), textbook(network, x))


def test_published_widths(kind_of_runtime):
    for architecture in ("dymn", "mn"):
        network = random_network(architecture, width=1.0)
        runtime = kind_of_runtime(state_of(network), network.config, FrontendConfig(), threads=1)
        x = log_mels(1, 200, seed=1)
        assert_same(runtime.run(x.numpy(), ("scores", "embedding")), textbook(network, x))


@pytest.mark.parametrize("kind", ["dymn", "mn"])
def test_company_threads_and_no_windows(runtimes, kind):
    _, runtime = runtimes(kind)
    x = log_mels(5, 150, seed=3).numpy()
    together = runtime.run(x, ("scores",))["scores"]
    for i in (0, 2, 4):
        assert np.abs(runtime.run(x[i : i + 1], ("scores",))["scores"] - together[i]).max() < 1e-5
        assert np.array_equal(runtime.run(x[[i, 0]], ("scores",))["scores"][0], together[i])
    assert np.abs(together[0] - together[1]).max() > 1e-3
    assert runtime.run(x[:0], ("scores", "hidden", "logmel"))["hidden"].shape[0] == 0
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda i: runtime.run(x[i % 5 : i % 5 + 1 + i % 2], ("scores",))["scores"][0], range(40)):
            assert np.abs(together - found).max(1).min() < 1e-5


def test_log_mel_and_concatenate(runtimes):
    _, runtime = runtimes("dymn")
    wave = np.random.default_rng(0).standard_normal((2, 5000)).astype(np.float32)
    logmel = runtime.log_mel(wave)
    assert logmel.shape == (2, 1, 128, 16)
    assert np.array_equal(runtime.concatenate([logmel[..., :3], logmel[..., 3:]], 3), logmel)
    assert (runtime.device, runtime.dtype, runtime.default_batch) == ("cpu", "float32", 8)


def test_pickled(runtimes):
    _, runtime = runtimes("dymn")
    x = log_mels(1, 100).numpy()
    expected = runtime.run(x, ("scores",))["scores"]
    assert np.array_equal(pickle.loads(pickle.dumps(runtime)).run(x, ("scores",))["scores"], expected)


def in_a_child(runtime, x, queue):
    queue.put([runtime.run(part, ("scores",))["scores"] for part in (x[:1], x)])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_in_a_forked_child(runtimes):
    _, runtime = runtimes("mn")
    x = log_mels(4, 100).numpy()
    expected = [runtime.run(part, ("scores",))["scores"] for part in (x[:1], x)]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=in_a_child, args=(runtime, x, queue))
    child.start()
    found = queue.get(timeout=60)
    child.join(60)
    assert child.exitcode == 0
    for one, other in zip(found, expected, strict=True):
        assert np.abs(one - other).max() < 1e-6
    assert np.array_equal(runtime.run(x, ("scores",))["scores"], expected[1])  # the parent goes on


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frames", [200, None])
def test_the_graph_passes_the_checker(networks, kind, frames):
    onnx = pytest.importorskip("onnx")
    config = networks(kind).config
    outputs = ("scores", "logits", "logmel", *tap_channels(config))
    model = onnx.load_from_string(
        network_model(state_of(networks(kind)), config, mels=128, frames=frames, outputs=outputs)
    )
    onnx.checker.check_model(model, full_check=True)
    assert tuple(one.name for one in model.graph.output) == outputs


def test_building_a_graph_is_quick():
    import time

    state = state_of(build_network(NetworkConfig(width=0.4)))
    times = []
    for _ in range(3):
        start = time.process_time()
        network_model(state, NetworkConfig(width=0.4), mels=128, frames=None, outputs=("scores",))
        times.append(time.process_time() - start)
    assert min(times) < 0.15


def test_openvino_computes_in_float32(networks):
    """It would choose bfloat16 by itself on CPUs that have it; every step must say float32, or none at all."""
    openvino = pytest.importorskip("openvino")
    network = networks("dymn")
    runtime = OpenVINORuntime(state_of(network), network.config, FrontendConfig(), threads=2, cache=False)
    from audiotag.runtimes.looped import Form

    for requests in (1, 2):
        model = runtime._compiled(openvino, Form(("scores",), 100, requests))
        assert model.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
        steps = [node.get_rt_info() for node in model.get_runtime_model().get_ops()]
        precisions = {str(step["runtimePrecision"].astype(str)) for step in steps}
        assert "f32" in precisions and not precisions & {"bf16", "f16", "i8", "u8"}


@pytest.fixture(params=[(OpenVINORuntime, "mn"), (OnnxRuntime, "dymn")], ids=["openvino", "onnxruntime"])
def keeping(request):
    """What makes a runtime that keeps compiled networks, and the kind of network that it keeps."""
    kind, network = request.param
    pytest.importorskip(kind.name)

    def make(network, **options):
        return kind(state_of(network), network.config, FrontendConfig(), threads=1, **options)

    return make, network


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "empty", "inner"])
def test_a_damaged_compiled_file_is_rebuilt(networks, tmp_path, monkeypatch, keeping, damage):
    cached_runtime, kind = keeping
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    x = log_mels(1, 100).numpy()
    expected = cached_runtime(networks(kind)).run(x, ("scores",))["scores"]
    (kept,) = (tmp_path / "audiotag" / "compiled").iterdir()
    whole = kept.read_bytes()
    middle = len(whole) // 2
    broken = {
        "cut": whole[:middle],
        "flipped": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "foreign": b"something else",
        "empty": b"",
    }
    if damage == "inner":  # a file that is whole, of what OpenVINO does not read
        calls = []
        monkeypatch.setattr(compiled.CompiledFiles, "read", lambda self, key: calls.append(key) or b"not a network")
    else:
        kept.write_bytes(broken[damage])
    assert np.array_equal(cached_runtime(networks(kind)).run(x, ("scores",))["scores"], expected)
    monkeypatch.undo()
    assert kept.stat().st_size == len(whole)
    assert kept.read_bytes()[: len(compiled.MAGIC)] == compiled.MAGIC


def test_compiled_files_tell_apart_what_differs(networks, tmp_path, monkeypatch, keeping):
    cached_runtime, kind = keeping
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    x = log_mels(2, 100).numpy()
    network, other = networks(kind), random_network(kind, seed=5)
    for one in (network, other, network):
        expected = cached_runtime(one, cache=False).run(x[:1], ("scores",))["scores"]
        assert np.array_equal(cached_runtime(one).run(x[:1], ("scores",))["scores"], expected)
    assert len(list((tmp_path / "audiotag" / "compiled").iterdir())) == 2


def test_a_disk_that_cannot_be_written_only_costs_time(networks, tmp_path, monkeypatch, keeping):
    cached_runtime, kind = keeping
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "not there"))
    assert cached_runtime(networks(kind)).run(log_mels(1, 100).numpy(), ("scores",))["scores"].shape == (1, 527)


def test_compiled_files_do_not_grow_without_end(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(compiled, "KEPT_BYTES", 1000)
    files = compiled.CompiledFiles("test")
    for i in range(6):
        files.write(f"key {i}", bytes([i]) * 300)
        os.utime(files._path(f"key {i}"), (i, i))
    assert [i for i in range(6) if files.read(f"key {i}")] == [4, 5]
    files.write("large", bytes(5000))
    assert files.read("large") == bytes(5000)


def test_real_weights_give_the_authors_numbers(kind_of_runtime, shared_dir):
    """Logits, embedding and log-mel that the authors' code gave for two recordings, frozen."""
    checkpoint = load_checkpoint(shared_dir / "reference" / "mn04_as_mAP_432.pt")
    runtime = kind_of_runtime(checkpoint.state, checkpoint.config.network, checkpoint.config.frontend, threads=2)
    real = np.load(shared_dir / "reference" / "real_audio.npz")
    names = ("metro_station-paris", "speech")
    logmel = runtime.log_mel(np.stack([real[f"{name}/wave"] for name in names]))
    found = runtime.run(logmel, ("scores", "embedding"))
    for i, name in enumerate(names):
        scores = 1 / (1 + np.exp(-real[f"{name}/logits"].astype(np.float64)))
        assert np.abs(found["scores"][i] - scores).max() < 1e-5
        embedding = real[f"{name}/embedding"]
        assert np.abs(found["embedding"][i] - embedding).max() < 1e-4 * np.abs(embedding).max()
        assert np.abs(logmel[i, 0] - real[f"{name}/logmel"]).max() < 3e-5


@pytest.mark.parametrize("frames", [1000, 613])
@pytest.mark.parametrize("name", ["dymn04_as", "dymn10_as", "mn04_as"])
def test_filled_networks_give_the_authors_numbers(kind_of_runtime, shared_dir, name, frames):
    """Networks filled by the rule of the reference's README, outputs of the authors' code, frozen."""
    frozen = np.load(shared_dir / "reference" / "filled_networks.npz")
    config = NetworkConfig(*kind_of(name))
    tensors = filled(name, build_network(config), reference_keys(shared_dir)[name], frozen)
    state = {key: tensor.numpy() for key, tensor in tensors.items()}
    x = reference_input(frames).numpy()
    runtime = kind_of_runtime(state, config, FrontendConfig(), threads=2)
    found = runtime.run(x, ("scores", "embedding"))
    logits, embedding = frozen[f"{name}/T{frames}/logits"], frozen[f"{name}/T{frames}/embedding"]
    size = max(1, np.abs(logits).max() / 4)
    assert np.abs(found["scores"] - 1 / (1 + np.exp(-logits.astype(np.float64)))).max() < 1e-5 * size
    assert np.abs(found["embedding"] - embedding).max() < 1e-4 * np.abs(embedding).max()


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="this system has no such signals")
def test_a_signal_after_a_network_was_let_go_by_another_thread():
    """OpenVINO gives threads a stack for signals; freed by another thread, it would take the process with it."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    program = """
import gc, os, signal, threading, time
from audiotag import Tagger
signal.signal(signal.SIGUSR1, lambda *_: print("handled", flush=True))
held = [Tagger.from_pretrained(runtime="openvino")]
held[0].scores(__import__("numpy").zeros(320_000, "float32"))
def let_go():
    held.clear()
    gc.collect()
thread = threading.Thread(target=let_go)
thread.start()
thread.join()
os.kill(os.getpid(), signal.SIGUSR1)
time.sleep(0.05)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr

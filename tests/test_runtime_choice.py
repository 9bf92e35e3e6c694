"""Which runtime is chosen, what a broken one gets, and the whole where torch cannot be imported."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from audiotag import InvalidInputError, MissingDependencyError, Tagger
from audiotag.inference import runtime as choice

from .tiny import sound, tiny_checkpoint

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def checkpoint():
    return tiny_checkpoint("mn")


@pytest.fixture(autouse=True)
def undecided(monkeypatch):
    monkeypatch.delenv("AUDIOTAG_RUNTIME")
    monkeypatch.setattr(choice.platform, "machine", lambda: "x86_64")


def installed(monkeypatch, *names):
    monkeypatch.setattr(choice, "_spec", lambda name: object() if name in names else None)
    monkeypatch.setattr(choice, "_torch_has_a_gpu", lambda: False)


@pytest.mark.parametrize(
    ("there", "prefer", "chosen"),
    [
        (("torch", "openvino", "onnxruntime"), "speed", "openvino"),
        (("torch", "openvino", "onnxruntime"), "start", "onnxruntime"),
        (("torch", "onnxruntime"), "speed", "onnxruntime"),
        (("torch", "openvino"), "start", "openvino"),
        (("torch",), "speed", "torch"),
    ],
)
def test_auto_takes_the_best_of_what_is_installed(checkpoint, monkeypatch, there, prefer, chosen):
    pytest.importorskip(chosen)
    installed(monkeypatch, *there)
    tagger = Tagger(checkpoint, prefer=prefer)
    assert tagger.runtime == chosen and f"on cpu, {chosen})" in repr(tagger)
    assert tagger.predict(sound(1)).describe()["runtime"] == chosen


def test_auto_on_other_processors_and_with_nothing(checkpoint, monkeypatch):
    pytest.importorskip("onnxruntime")
    installed(monkeypatch, "torch", "openvino", "onnxruntime")
    monkeypatch.setattr(choice.platform, "machine", lambda: "aarch64")
    assert Tagger(checkpoint).runtime == "onnxruntime"
    installed(monkeypatch)
    with pytest.raises(MissingDependencyError, match="nothing that runs a network is installed: pip install"):
        Tagger(checkpoint)


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"device": "cpu", "dtype": "float16"}])
def test_auto_is_torch_where_only_torch_can(checkpoint, options):
    assert Tagger(checkpoint, **options).runtime == "torch"
    with pytest.raises(InvalidInputError, match=r'runtime "onnxruntime" runs in float32 on the CPU, but dtype'):
        Tagger(checkpoint, runtime="onnxruntime", **options)


def test_the_environment_decides_for_auto(checkpoint, monkeypatch):
    monkeypatch.setenv("AUDIOTAG_RUNTIME", "torch")
    assert Tagger(checkpoint).runtime == "torch"
    monkeypatch.setenv("AUDIOTAG_RUNTIME", "tensorflow")
    with pytest.raises(InvalidInputError, match="AUDIOTAG_RUNTIME must be one of auto, torch"):
        Tagger(checkpoint)
    with pytest.raises(InvalidInputError, match="runtime must be one of auto, torch, openvino, onnxruntime, got 'jax'"):
        Tagger(checkpoint, runtime="jax")


def test_auto_passes_over_what_does_not_work(checkpoint, monkeypatch, caplog):
    pytest.importorskip("onnxruntime")
    from audiotag.runtimes import openvino

    def broken():
        raise MissingDependencyError('runtime "openvino" cannot be used here (ImportError: libtbb.so)')

    installed(monkeypatch, "torch", "openvino", "onnxruntime")
    monkeypatch.setattr(openvino, "load_library", broken)
    with caplog.at_level(logging.WARNING):
        assert Tagger(checkpoint).runtime == "onnxruntime"
    assert "libtbb.so" in caplog.text and "going on with another runtime" in caplog.text
    with pytest.raises(MissingDependencyError, match=r"libtbb\.so"):
        Tagger(checkpoint, runtime="openvino")


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_library_that_is_too_old_or_fails_says_so(checkpoint, monkeypatch, name):
    library = pytest.importorskip(name)
    if name == "onnxruntime":
        monkeypatch.setattr(library, "__version__", "1.3.0")
    else:
        monkeypatch.setattr(library, "get_version", lambda: "2022.1.0-123")
    with pytest.raises(MissingDependencyError, match=f'runtime "{name}"'):
        Tagger(checkpoint, runtime=name)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=rf'runtime "{name}" cannot be used here \(.*pip install'):
        Tagger(checkpoint, runtime=name)


def test_a_network_that_does_not_compile_is_the_runtimes_fault(checkpoint, monkeypatch):
    library = pytest.importorskip("onnxruntime")

    def fails(*_, **__):
        raise RuntimeError("no kernel for Conv")

    monkeypatch.setattr(library, "InferenceSession", fails)
    with pytest.raises(MissingDependencyError, match=r"does not run this network here .*no kernel for Conv"):
        Tagger(checkpoint, runtime="onnxruntime")


@pytest.mark.parametrize(
    ("version_file", "for_gpus"),
    [
        ("cuda: Optional[str] = None\nhip: Optional[str] = None\n", False),
        ("__all__ = ['cuda', 'hip']\ncuda: Optional[str] = '12.8'\nhip: Optional[str] = None\n", True),
        ("cuda = '11.8'\nhip = None\n", True),
        ("cuda = None\nhip = '6.0'\n", True),
    ],
)
def test_torch_is_not_imported_to_see_that_it_has_no_gpu(version_file, for_gpus):
    assert choice._for_gpus(version_file) == for_gpus


NO_TORCH = """
import sys
class Barred:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchaudio", "lightning"):
            raise ImportError("torch is not here")
sys.meta_path.insert(0, Barred())
"""


def without_torch(code, *argv, **env):
    return subprocess.run(
        [sys.executable, "-c", NO_TORCH + code, *argv],
        cwd=ROOT,
        env={**{k: v for k, v in os.environ.items() if k != "AUDIOTAG_RUNTIME"}, "HF_HUB_OFFLINE": "1", **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


COMMAND = "from audiotag.cli import main\nraise SystemExit(main(sys.argv[1:]))"


def test_the_command_without_torch():
    pytest.importorskip("onnxruntime")
    done = without_torch(COMMAND, "tag", "examples/train_jet_saw.ogg", "--format", "jsonl", "--top", "2")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["runtime"] == "onnxruntime"
    expected = Tagger.from_pretrained(runtime="torch").predict(ROOT / "examples" / "train_jet_saw.ogg").top(2)
    assert [tag["label"] for tag in record["tags"]] == [tag.label for tag in expected]
    np.testing.assert_allclose([tag["score"] for tag in record["tags"]], [tag.score for tag in expected], atol=1e-5)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["tag", "examples/train_jet_saw.ogg", "--runtime", "torch"], 'runtime "torch" cannot be used here'),
        (["tag", "examples/train_jet_saw.ogg", "--device", "cuda"], 'runtime "torch" cannot be used here'),
        (["train", "distil", "bank", "--out", "x"], "training needs torch and Lightning"),
    ],
)
def test_what_needs_torch_says_so_without_it(argv, said):
    done = without_torch(COMMAND, *argv)
    assert done.returncode == 1 and said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_a_pt_file_without_torch(checkpoint, tmp_path):
    import torch

    torch.save({name: torch.tensor(array) for name, array in checkpoint.state.items()}, tmp_path / "x.pt")
    done = without_torch(COMMAND, "tag", "examples/train_jet_saw.ogg", "--model", str(tmp_path / "x.pt"))
    assert done.returncode == 1 and "x.pt: reading a .pt file needs torch" in done.stderr


def test_everything_a_tagger_does_without_torch():
    pytest.importorskip("onnxruntime")
    code = """
import io, numpy as np, pickle
from audiotag import Tagger
tagger = Tagger.from_pretrained(prefer="start")
x = 0.1 * np.random.default_rng(0).standard_normal(500_000).astype(np.float32)
assert tagger.predict(x, hop_s=1.0).window_scores.shape == (7, 527)
assert tagger.embed([x, x], layer=["mid", "hidden", "logmel"]).shape[0] == 2
stream = tagger.stream(sample_rate=32_000)
assert len(list(stream.push(x))) >= 1
assert pickle.loads(pickle.dumps(tagger)).predict(x).scores.shape == (527,)
import sys, tempfile
with tempfile.TemporaryDirectory() as folder:
    again = Tagger.from_pretrained(tagger.save_pretrained(folder + "/saved"), prefer="start")
    assert np.array_equal(again.predict(x).scores, tagger.predict(x).scores)
assert not [name for name in sys.modules if name.split(".")[0] == "torch"]
"""
    done = without_torch(code)
    assert done.returncode == 0, done.stderr


def test_the_lite_distribution_differs_in_what_it_requires():
    sys.path.insert(0, str(ROOT / "packaging"))
    try:
        from build_lite import NAME, lite_setup
    finally:
        sys.path.pop(0)
    setup = lite_setup((ROOT / "setup.cfg").read_text())
    required = {line.split()[0] for line in setup["options"]["install_requires"].split("\n") if line}
    assert setup["metadata"]["name"] == NAME == "audiotag-dymn-lite"
    assert {"numpy", "onnxruntime", "soundfile", "soxr", "safetensors", "huggingface_hub"} <= required
    assert not required & {"torch", "torchaudio", "av", "onnx", "openvino"}
    assert {"torch", "openvino", "media"} <= set(setup["options.extras_require"])
    assert not {"train", "test"} & set(setup["options.extras_require"])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_the_command_keeps_what_torch_frees(tmp_path):
    """Page faults of a prediction, in a process of its own: the thresholds are the process's."""
    code = """
import resource, sys
import numpy as np
from audiotag.cli.memory import keep_freed_memory
if not keep_freed_memory():
    raise SystemExit("no glibc")
from audiotag import Tagger
tagger = Tagger.from_pretrained(runtime="torch", device="cpu")
x = 0.1 * np.random.default_rng(0).standard_normal(320_000).astype(np.float32)
for _ in range(4):
    tagger.predict(x)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    tagger.predict(x)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 4)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    if "no glibc" in done.stderr:
        pytest.skip("another libc")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 200  # about 2,000 without

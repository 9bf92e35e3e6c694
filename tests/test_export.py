"""Exported ONNX files against the Tagger and the definition of the log-mel, in onnxruntime alone and under Node."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiotag import InvalidInputError, MissingDependencyError, OutputError, Tagger
from audiotag.cli import command as cli
from audiotag.config import FrontendConfig, HeadConfig
from audiotag.frontend.numpy_logmel import NumpyLogMel
from audiotag.runtimes import onnx_format
from audiotag.runtimes.graph import Graph, model_bytes
from audiotag.runtimes.logmel_graph import add_log_mel, dft_factors

from .tiny import RATE, sound, tiny_checkpoint

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
ROOT = Path(__file__).parents[1]
CONFIGS = {
    "audioset": FrontendConfig(),
    "hop_5": FrontendConfig(hop_samples=160),
    "hop_25": FrontendConfig(hop_samples=800),
    "mels_256": FrontendConfig(n_mels=256),
    "small": FrontendConfig(
        sample_rate_hz=16_000, n_fft=512, window_samples=400, hop_samples=161, n_mels=5, fmax_hz=7000
    ),
    "odd": FrontendConfig(n_fft=801, window_samples=801, fmin_hz=3000, fmax_hz=3500, n_mels=3),
    "prime": FrontendConfig(n_fft=101, window_samples=90, hop_samples=100, n_mels=4),
}


@pytest.fixture(scope="module")
def tagger():
    return Tagger(tiny_checkpoint(n_labels=5), runtime="onnxruntime")


def session(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", CONFIGS)
def test_the_frontend_as_a_graph(name):
    config = CONFIGS[name]
    n1, n2 = dft_factors(config)
    assert n1 * n2 == config.n_fft
    graph = Graph()
    graph.op("Identity", add_log_mel(graph, "x", config), output="y")
    inputs = [onnx_format.value_info("x", ("samples",))]
    content = model_bytes(graph.message("g", inputs, [onnx_format.value_info("y", (1, 1, "mels", "frames"))]))
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    run = session(content)
    for samples in (3 * config.n_fft, 20_000, 20_000 + config.hop_samples - 1):
        x = sound(1.0)[:samples]
        (found,) = run.run(None, {"x": x})
        np.testing.assert_allclose(found, NumpyLogMel(config)(x[None]), atol=2e-4)


@pytest.mark.parametrize("architecture, head", [("dymn", "mlp"), ("mn", "fully_convolutional")])
def test_any_batch_and_length(tmp_path, architecture, head):
    tagger = Tagger(tiny_checkpoint(architecture, head=head, n_labels=5), runtime="onnxruntime")
    assert tagger.export(tmp_path / "model.onnx") == tmp_path / "model.onnx"
    onnx.checker.check_model(onnx.load(tmp_path / "model.onnx"), full_check=True)
    run = session(tmp_path / "model.onnx")
    whole = np.stack([sound(10, seed) for seed in range(4)])
    for waveforms in (whole, whole[:1], whole[:3, : 7 * RATE + 11]):
        scores, embedding = run.run(["scores", "embedding"], {"waveform": waveforms})
        logmel = tagger.engine.runtime.log_mel(waveforms)
        np.testing.assert_allclose(scores, tagger.engine.scores(logmel), atol=1e-4)
        expected = tagger.engine.features(logmel, ("embedding",))
        np.testing.assert_allclose(embedding, expected, atol=1e-3 * np.abs(expected).max())
    (scores,) = run.run(["scores"], {"waveform": whole})
    np.testing.assert_allclose(scores[1], tagger.predict(whole[1]).scores, atol=1e-4)
    assert np.abs(scores[0] - scores[1]).max() > 0.005  # by which these sounds' scores differ at least


def test_metadata_and_log_mel_input(tagger, tmp_path):
    path = tagger.export(tmp_path / "model.onnx", frontend=False)
    run = session(path)
    (taken,) = run.get_inputs()
    assert (taken.name, taken.shape) == ("logmel", ["batch", 1, 128, "frames"])
    assert [(out.name, out.shape[0]) for out in run.get_outputs()] == [("scores", "batch"), ("embedding", "batch")]
    told = run.get_modelmeta().custom_metadata_map
    assert json.loads(told["labels"]) == list(tagger.labels.names)
    assert (told["sample_rate_hz"], told["window_samples"], told["checkpoint"]) == ("32000", "320000", "tiny")
    assert json.loads(told["frontend"])["hop_samples"] == 320
    x = sound(10)
    scores = run.run(["scores"], {"logmel": tagger.engine.runtime.log_mel(x[None])})[0]
    np.testing.assert_allclose(scores[0], tagger.predict(x).scores, atol=1e-5)


@pytest.mark.parametrize(
    "head",
    [
        HeadConfig(labels=("a", "b"), inputs=("embedding", "block3")),
        HeadConfig(labels=("a", "b"), inputs=("hidden",), activation="softmax", rest=True, keep_network=True),
    ],
)
def test_own_labels(tmp_path, head):
    base = tiny_checkpoint(n_labels=5)
    sizes = Tagger(base, runtime="onnxruntime").layers
    rng = np.random.default_rng(0)
    features = sum(sizes[name] for name in head.inputs)
    state = base.state | {
        "head.weight": 0.1 * rng.standard_normal((head.rows, features), np.float32),
        "head.bias": rng.standard_normal(head.rows).astype(np.float32),
    }
    tagger = Tagger(replace(base, config=replace(base.config, head=head), state=state), runtime="onnxruntime")
    run = session(tagger.export(tmp_path / "model.onnx"))
    x = sound(10)
    np.testing.assert_allclose(run.run(["scores"], {"waveform": x[None]})[0][0], tagger.predict(x).scores, atol=1e-4)
    assert json.loads(run.get_modelmeta().custom_metadata_map["labels"]) == list(tagger.labels.names)


def test_a_file_that_disagrees_is_not_left(tagger, tmp_path, monkeypatch):
    real = tagger.engine.scores
    (tmp_path / "old.onnx").write_bytes(b"an older file")
    for broken in (lambda logmel: real(logmel) + 1e-3, lambda logmel: np.full_like(real(logmel), np.nan)):
        monkeypatch.setattr(tagger.engine, "scores", broken)
        for name in ("new.onnx", "old.onnx"):
            with pytest.raises(OutputError, match=r"not written; in onnxruntime its scores differ by"):
                tagger.export(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["old.onnx"]
    assert (tmp_path / "old.onnx").read_bytes() == b"an older file"


def test_without_onnxruntime_and_where_nothing_can_be_written(tagger, tmp_path, monkeypatch):
    with pytest.raises(OutputError, match="cannot be written"):
        tagger.export(tmp_path / "missing" / "model.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match="onnxruntime"):
        tagger.export(tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def built_in(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    assert cli.main(["export", "-o", str(folder / "model.onnx")]) == 0
    soundfile.write(folder / "sound.wav", sound(10), RATE, subtype="FLOAT")
    return folder


def test_the_command_refuses_another_ending(capsys):
    assert cli.main(["export", "-o", "model.pt"]) == 2
    assert "must end in .onnx" in capsys.readouterr().err
    with pytest.raises(InvalidInputError, match="runtime must be one of"):
        Tagger.from_pretrained(runtime="onnx")


def test_the_example_runs_it_in_onnxruntime_alone(built_in):
    command = [sys.executable, str(ROOT / "examples" / "run_onnx.py"), "model.onnx", "sound.wav"]
    done = subprocess.run(command, cwd=built_in, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = [(tag.label, tag.score) for tag in Tagger.from_pretrained().predict(sound(10)).top(5)]
    found = [(label, score) for score, label in eval(done.stdout)]
    assert [label for label, _ in found] == [label for label, _ in expected]
    np.testing.assert_allclose([s for _, s in found], [s for _, s in expected], atol=1e-5)


def test_the_web_example_gives_the_same_scores_under_node(built_in):
    """Where Node and onnxruntime-web are: its folder is named by ORT_WEB, or lies beside the example."""
    package = Path(os.environ.get("ORT_WEB") or ROOT / "examples" / "web" / "node_modules" / "onnxruntime-web")
    if shutil.which("node") is None or not package.is_dir():
        pytest.skip("needs node, and ORT_WEB naming onnxruntime-web's folder")
    tagger = Tagger.from_pretrained()
    for samples in (sound(10), sound(13), sound(2)):
        samples.tofile(built_in / "samples")
        command = ["node", str(ROOT / "tests" / "web_scores.mjs"), str(package), "model.onnx", "samples"]
        done = subprocess.run(command, cwd=built_in, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["labels"] == list(tagger.labels.names) and found["sampleRate"] == RATE
        np.testing.assert_allclose(found["scores"], tagger.predict(samples).scores, atol=1e-5)

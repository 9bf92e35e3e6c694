"""A checkpoint as one ONNX file that needs nothing of audiotag: waveform or log-mel in, scores and embedding out.

Kernels of a DyMN differ from sample to sample. Exporters that trace the network bake the batch they saw into the file;
this one writes the graph of one window and puts it into a Scan over the batch, which is exact at any batch and length.
The file is held against the running network before it gets its name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..config import CheckpointConfig
from ..errors import OutputError
from ..files import whole_file
from ..labels.label_set import LabelSet
from ..networks.table import tap_channels
from ..version import __version__
from . import onnx_format
from .graph import Graph, NetworkGraph, State, model_bytes
from .logmel_graph import add_log_mel
from .onnxruntime import ONLY_FATAL, PROVIDERS, load_library

WAVEFORM, LOGMEL = "waveform", "logmel"  # names of the file's input
SCORES, EMBEDDING = "scores", "embedding"  # and of its outputs
BATCHES = (1, 2, 5)
# Absolute; relative to the largest. Ten times what trained networks need: some amplify the last bits of the log-mel.
SCORES_TOLERANCE, EMBEDDING_TOLERANCE = 1e-4, 1e-3

# Waveforms (B, samples) to what the file is held against: log-mel (B, 1, mels, frames), scores and embedding (B, n).
Reference = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


def export_model(
    path: str | os.PathLike[str],
    state: State,
    config: CheckpointConfig,
    labels: LabelSet,
    reference: Reference,
    *,
    frontend: bool = True,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint's ONNX file, checked by onnxruntime against `reference`; it appears whole or not at all.

    Parameters
    ----------
    path : path
        Of the file.
    state, config, labels
        The checkpoint's.
    reference : callable
        The checkpoint as it runs here.
    frontend : bool
        Take waveforms; otherwise log-mel.
    facts : mapping, optional
        The checkpoint's card, for the metadata.

    Raises
    ------
    MissingDependencyError
        onnxruntime, which checks the file, cannot be used.
    CheckpointError
        The network is larger than the ONNX format allows.
    OutputError
        The disk refuses, or the file does not give what `reference` gives.
    """
    onnxruntime = load_library()
    content = export_bytes(state, config, labels, frontend=frontend, facts=facts)
    path = Path(path).expanduser()
    with whole_file(path, binary=True) as file:
        file.write(content)
        file.flush()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = ONLY_FATAL
        session = onnxruntime.InferenceSession(file.name, options, providers=PROVIDERS)
        _check(session, config, reference, frontend, path)
    return path


def _check(session: Any, config: CheckpointConfig, reference: Reference, frontend: bool, path: Path) -> None:
    whole = config.window_samples
    for samples in (whole, max(config.frontend.n_fft, whole * 2 // 5 + 7)):
        waveforms = _sounds(max(BATCHES), samples, config.frontend.sample_rate_hz)
        for batch in BATCHES:
            logmel, scores, embedding = reference(waveforms[:batch])
            inputs = {WAVEFORM: waveforms[:batch]} if frontend else {LOGMEL: np.asarray(logmel, np.float32)}
            found = dict(zip((SCORES, EMBEDDING), session.run([SCORES, EMBEDDING], inputs), strict=True))
            far = float(np.abs(found[SCORES] - scores).max())
            far_features = float(np.abs(found[EMBEDDING] - embedding).max() / max(np.abs(embedding).max(), 1e-12))
            # Written so that what is no number fails too.
            if not (far <= SCORES_TOLERANCE and far_features <= EMBEDDING_TOLERANCE):
                raise OutputError(
                    f"{path}: not written; in onnxruntime its scores differ by {far:.1e} and its embedding by "
                    f"{far_features:.1e} for {batch} x {samples} samples (allowed: {SCORES_TOLERANCE:g} and "
                    f"{EMBEDDING_TOLERANCE:g}); update onnxruntime, and report this if it stays"
                )


def _sounds(batch: int, samples: int, rate_hz: int) -> np.ndarray:
    """Make sounds that differ: a rising tone with a beat in noise, float32 (batch, samples)."""
    rng = np.random.default_rng(0)
    t = np.arange(samples) / rate_hz
    rise = np.linspace(0.01, 0.04, batch)[:, None] * rate_hz
    beat = 0.6 + 0.4 * np.sin(2 * np.pi * np.arange(1, batch + 1)[:, None] * t)
    tone = beat * np.sin(2 * np.pi * rise * t * (1 + 0.2 * t))
    return (0.2 * tone + 0.03 * rng.standard_normal((batch, samples))).astype(np.float32)


def export_bytes(
    state: State,
    config: CheckpointConfig,
    labels: LabelSet,
    *,
    frontend: bool = True,
    facts: Mapping[str, Any] | None = None,
) -> bytes:
    """Make the content of the file that `export_model` writes, unchecked."""
    mels = config.frontend.n_mels
    body = Graph("body_")
    element = f"{WAVEFORM if frontend else LOGMEL}_of_one"
    logmel = add_log_mel(body, element, config.frontend) if frontend else body.op("Unsqueeze", element, body.shape(0))
    for name, value in _add_outputs(body, logmel, state, config).items():
        body.op("Squeeze", value, body.shape(0), output=f"{name}_of_one")
    shape: tuple[onnx_format.Dimension, ...] = ("samples",) if frontend else (1, mels, "frames")
    sizes = {SCORES: len(labels), EMBEDDING: tap_channels(config.network)[EMBEDDING]}
    inner = body.message(
        "one_window",
        [onnx_format.value_info(element, shape)],
        [onnx_format.value_info(f"{name}_of_one", (size,)) for name, size in sizes.items()],
    )
    main = Graph()
    source = WAVEFORM if frontend else LOGMEL
    main.nodes.append(onnx_format.node("Scan", [source], list(sizes), {"body": inner, "num_scan_inputs": 1}))
    outer = main.message(
        "audiotag",
        [onnx_format.value_info(source, ("batch", *shape))],
        [onnx_format.value_info(name, ("batch", size)) for name, size in sizes.items()],
    )
    return model_bytes(outer, _metadata(config, labels, facts or {}), doc=_doc(config, frontend))


def _add_outputs(g: Graph, logmel: str, state: State, config: CheckpointConfig) -> dict[str, str]:
    """Add scores and embedding, each (1, n); own labels as `audiotag.config.HeadConfig` says."""
    head = config.head
    wanted = [SCORES, EMBEDDING, *(head.inputs if head else ())]
    found = NetworkGraph(g, state, config.network, config.frontend.n_mels, None).add(logmel, wanted)
    if head is None:
        return {name: found[name] for name in (SCORES, EMBEDDING)}
    features = g.op("Concat", *(found[name] for name in head.inputs), axis=1)
    weight, bias = (np.asarray(state[f"head.{name}"], np.float32) for name in ("weight", "bias"))
    logits = g.op("Gemm", features, g.constant(weight.T), g.constant(bias))
    own = g.op("Softmax", logits, axis=1) if head.activation == "softmax" else g.op("Sigmoid", logits)
    if len(bias) > len(head.labels):
        own = g.slice(own, 1, 0, len(head.labels))
    scores = g.op("Concat", found[SCORES], own, axis=1) if head.keep_network else own
    return {SCORES: scores, EMBEDDING: found[EMBEDDING]}


def _metadata(config: CheckpointConfig, labels: LabelSet, facts: Mapping[str, Any]) -> dict[str, str]:
    """Say what the file says of itself; lists and objects as JSON."""
    return {
        "audiotag_version": __version__,
        "checkpoint": config.name,
        "labels": json.dumps(list(labels.names)),
        "mids": json.dumps(list(labels.mids)),
        "sample_rate_hz": str(config.frontend.sample_rate_hz),
        "window_samples": str(config.window_samples),
        "frontend": json.dumps(asdict(config.frontend)),
        "config": json.dumps(config.to_dict()),
        "card": json.dumps(dict(facts)),
    }


def _doc(config: CheckpointConfig, frontend: bool) -> str:
    rate = config.frontend.sample_rate_hz
    takes = (
        f"{WAVEFORM} (batch, samples): mono at {rate} Hz, float32 in [-1, 1]"
        if frontend
        else f"{LOGMEL} (batch, 1, {config.frontend.n_mels}, frames): log-mel as the metadata's frontend says"
    )
    return (
        f"Checkpoint {config.name}, exported by audiotag. Takes {takes}; any batch, any length. Trained on windows of "
        f"{config.window_s:g} s: cut longer audio into them, repeat shorter audio to fill one. Gives {SCORES} "
        f"(batch, labels) in [0, 1], in the order of the metadata's labels, and {EMBEDDING} (batch, features)."
    )

"""A checkpoint's network as an ONNX graph, written from its tensors and configuration; no torch, no tracing.

The graph is of one window, (1, 1, mels, frames): kernels differ from sample to sample, and runtimes loop over the
windows faster than they run a batched graph. `export` puts the same graph into a Scan over the batch.

What is folded, exactly as in `audiotag.runtimes.fused`: batch norms into kernels, banks and biases; the softmax
temperature into the attention's linear layer; the dynamic ReLU's 2 sigmoid(z) - 1 = tanh(z / 2) with the factor in its
weights; one of coordinate attention's gates, which are positive, into the dynamic ReLU's lines. A dynamic convolution
is a Conv whose kernel is computed. The oracle in the tests is the textbook network in torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..config import NetworkConfig
from ..errors import CheckpointError
from ..networks.table import (
    HEAD_NORM_EPS,
    N_KERNELS,
    N_SLOPES,
    NORM_EPS,
    BlockSpec,
    has_squeeze,
    is_dynamic,
    scaled_blocks,
)
from ..version import __version__
from . import onnx_format

State = Mapping[str, np.ndarray]
INPUT = "input"  # name of the log-mel that the graph takes


class Graph:
    """Nodes and constants being collected; `op` and `constant` return the name of what they add."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.nodes: list[onnx_format.Message] = []
        self.initializers: list[onnx_format.Message] = []
        self._small: dict[tuple, str] = {}

    def _name(self, kind: str) -> str:
        return f"{self.prefix}{kind}{len(self.nodes) + len(self.initializers)}"

    def op(self, kind: str, *inputs: str, n_outputs: int = 1, output: str | None = None, **attributes: Any) -> Any:
        """Add a node; the name of its output, or a list of them if `n_outputs` is not 1."""
        name = output or self._name(kind)
        names = [name] if n_outputs == 1 else [f"{name}_{i}" for i in range(n_outputs)]
        self.nodes.append(onnx_format.node(kind, inputs, names, attributes))
        return names[0] if n_outputs == 1 else names

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        """Add an initializer; a small one only once."""
        array = np.asarray(values, dtype)
        key = (array.tobytes(), array.shape, array.dtype.name) if array.size <= 8 else ()
        if key in self._small:
            return self._small[key]
        name = self._name("c")
        self.initializers.append(onnx_format.tensor(name, array))
        if key:
            self._small[key] = name
        return name

    def shape(self, *sizes: int) -> str:
        """Add a shape, or anything else made of integers, as an initializer."""
        return self.constant(sizes, np.int64)

    def slice(self, x: str, axis: int, start: int, stop: int | None = None) -> str:
        """Add ``x[start:stop]`` along an axis; negative positions count from the end, None is the end."""
        end = np.iinfo(np.int64).max if stop is None else stop
        return self.op("Slice", x, self.shape(start), self.shape(end), self.shape(axis))

    def activation(self, x: str, act: str) -> str:
        """Add ReLU, hard-swish, sigmoid or, for an empty `act`, nothing."""
        kind = {"relu": "Relu", "hswish": "HardSwish", "sigmoid": "Sigmoid"}
        return self.op(kind[act], x) if act else x

    def message(
        self, name: str, inputs: Iterable[onnx_format.Message], outputs: Iterable[onnx_format.Message]
    ) -> onnx_format.Message:
        """Write the GraphProto."""
        return onnx_format.graph(name, self.nodes, self.initializers, inputs, outputs)


class NetworkGraph:
    """The nodes of one checkpoint's network for one window, added to a `Graph`.

    Parameters
    ----------
    graph : Graph
    state : mapping of str to ndarray
        The checkpoint's state dict, float32.
    config : NetworkConfig
    mels : int
    frames : int, optional
        None: any number, known when the graph runs; a little slower.
    """

    def __init__(self, graph: Graph, state: State, config: NetworkConfig, mels: int, frames: int | None) -> None:
        self.g, self.state, self.config = graph, state, config
        self.freq, self.time = mels, frames  # of the feature map at hand

    def add(self, logmel: str, wanted: Sequence[str]) -> dict[str, str]:
        """Add the network; `logmel` names (1, 1, mels, frames). The names of the wanted outputs, each (1, n)."""
        g, config = self.g, self.config
        specs = scaled_blocks(config)
        dymn = config.architecture == "dymn"
        stem, top = ("in_c", "out_c") if dymn else ("features.0", "features.16")
        found = {}
        if "logmel" in wanted:
            found["logmel"] = g.op("Flatten", g.op("ReduceMean", logmel, axes=[1, 3], keepdims=0))
        x = self._static(logmel, stem, 3, 2, 1, "hswish")
        self._tap("stem", x, wanted, found)
        for i, spec in enumerate(specs):
            prefix = f"layers.{i}" if dymn else f"features.{i + 1}"
            block = self._dynamic_block if is_dynamic(spec, config) else self._static_block
            x = block(x, prefix, spec)
            self._tap(f"block{i}", x, wanted, found)
        x = self._static(x, top, 1, 1, 1, "hswish")
        pooled = g.op("GlobalAveragePool", x)
        embedding = g.op("Flatten", pooled)
        found["embedding"] = embedding
        if config.head == "fully_convolutional":
            # Convolution, batch norm and mean are all linear, so the mean may come first.
            scale, shift = self._folded("classifier.1", HEAD_NORM_EPS)
            logits = self._gemm(embedding, self.state["classifier.0.weight"][:, :, 0, 0] * scale[:, None], shift)
        else:
            hidden = self._linear(embedding, "classifier.2", "hswish")
            found["hidden"] = hidden
            logits = self._linear(hidden, "classifier.5")
        found["logits"] = logits
        if "scores" in wanted:
            found["scores"] = g.op("Sigmoid", logits)
        return {name: found[name] for name in wanted}

    def _tap(self, name: str, x: str, wanted: Sequence[str], found: dict[str, str]) -> None:
        if name in wanted:
            found[name] = self.g.op("Flatten", self.g.op("GlobalAveragePool", x))

    def _folded(self, prefix: str, eps: float = NORM_EPS) -> tuple[np.ndarray, np.ndarray]:
        """Scale and shift that a batch norm applies per channel."""
        weight, bias, mean, variance = (
            self.state[f"{prefix}.{name}"].astype(np.float64)
            for name in ("weight", "bias", "running_mean", "running_var")
        )
        scale = weight / np.sqrt(variance + eps)
        return scale, bias - mean * scale

    def _gemm(self, x: str, weight: np.ndarray, bias: np.ndarray) -> str:
        """Add x W^T + b for x (1, inputs) and W (outputs, inputs)."""
        return self.g.op("Gemm", x, self.g.constant(weight.T), self.g.constant(bias))

    def _linear(self, x: str, prefix: str, act: str = "") -> str:
        weight, bias = self.state[f"{prefix}.weight"], self.state[f"{prefix}.bias"]
        return self.g.activation(self._gemm(x, weight, bias), act)

    def _conv(self, x: str, weight: str, bias: str, kernel: int, stride: int = 1, groups: int = 1) -> str:
        """Add convolution with a kernel that is a constant or computed."""
        pad = kernel // 2
        options: dict[str, Any] = {"kernel_shape": [kernel, kernel], "pads": [pad] * 4, "strides": [stride, stride]}
        return self.g.op("Conv", x, weight, bias, group=groups, **options)

    def _halve(self, stride: int) -> None:
        """Compute the map's size after a convolution with padding kernel // 2."""
        if stride == 2:
            self.freq = (self.freq + 1) // 2
            self.time = None if self.time is None else (self.time + 1) // 2

    def _static(self, x: str, prefix: str, kernel: int, stride: int, groups: int, act: str) -> str:
        """Add convolution and batch norm, with an activation."""
        scale, shift = self._folded(f"{prefix}.1")
        weight = self.state[f"{prefix}.0.weight"] * scale[:, None, None, None]
        x = self._conv(x, self.g.constant(weight), self.g.constant(shift), kernel, stride, groups)
        self._halve(stride)
        return self.g.activation(x, act)

    def _static_block(self, x: str, prefix: str, spec: BlockSpec) -> str:
        """Add MN's block: expand, depthwise, squeeze-and-excitation, project."""
        start, step = x, 0
        if spec.expanded != spec.inputs:
            x = self._static(x, f"{prefix}.block.{step}", 1, 1, 1, spec.activation)
            step += 1
        x = self._static(x, f"{prefix}.block.{step}", spec.kernel, spec.stride, spec.expanded, spec.activation)
        if has_squeeze(spec, self.config):
            step += 1
            layers = f"{prefix}.block.{step}.conc_se_layers.0"
            gate = self.g.op("GlobalAveragePool", x)
            for name, act in (("fc1", "relu"), ("fc2", "sigmoid")):
                weight, bias = (self.state[f"{layers}.{name}.{kind}"] for kind in ("weight", "bias"))
                gate = self._conv(gate, self.g.constant(weight[:, :, None, None]), self.g.constant(bias), 1)
                gate = self.g.activation(gate, act)
            x = self.g.op("Mul", x, gate)
        x = self._static(x, f"{prefix}.block.{step + 1}", 1, 1, 1, "")
        return self.g.op("Add", x, start) if spec.stride == 1 and spec.inputs == spec.outputs else x

    def _dynamic_block(self, x: str, prefix: str, spec: BlockSpec) -> str:
        """Add DyMN's block; shapes in the comments are of one window."""
        g, start = self.g, x
        h, g_f, g_t = self._context(x, prefix, spec)  # (1, H), (1, H, F', 1), (1, H, 1, T')
        gate_f, gate_t = (
            g.op("Sigmoid", self._conv(part, *self._weights(f"{prefix}.context_gen.conv_{axis}"), 1))
            for part, axis in ((g_f, "f"), (g_t, "t"))
        )  # (1, E, F', 1), (1, E, 1, T')
        if spec.expanded != spec.inputs:
            x = self._mixed(x, h, f"{prefix}.exp", (spec.expanded, spec.inputs, 1, 1), 1, 1)
            x = g.activation(x, spec.activation)
        x = self._mixed(
            x, h, f"{prefix}.depth", (spec.expanded, 1, spec.kernel, spec.kernel), spec.stride, spec.expanded
        )
        x = self._dynamic_relu(x, h, f"{prefix}.depth_act", spec.expanded, gate_f)
        x = g.op("Mul", x, gate_t)
        x = self._mixed(x, h, f"{prefix}.proj", (spec.outputs, spec.expanded, 1, 1), 1, 1)
        return g.op("Add", x, start) if spec.stride == 1 and spec.inputs == spec.outputs else x

    def _weights(self, prefix: str) -> tuple[str, str]:
        return self.g.constant(self.state[f"{prefix}.weight"]), self.g.constant(self.state[f"{prefix}.bias"])

    def _mean(self, x: str, axis: int) -> str:
        """Add the mean along the map's axis 2 (frequency) or 3 (time), which stays with size 1."""
        size = (self.freq, self.time)[axis - 2]
        if self.time is None or size is None:
            return self.g.op("ReduceMean", x, axes=[axis], keepdims=1)
        # As average pooling: 10 to 30 % of the whole network's time.
        kernel = [size, 1] if axis == 2 else [1, size]
        return self.g.op("AveragePool", x, kernel_shape=kernel, strides=[1, 1])

    def _context(self, x: str, prefix: str, spec: BlockSpec) -> tuple[str, str, str]:
        """Add the context vector (1, H), and what the gates along frequency and time are made of.

        The published layer concatenates the positions of both axes for one convolution; their mean is therefore
        that of each axis weighted by its positions.
        """
        g = self.g
        scale, shift = self._folded(f"{prefix}.context_gen.joint_norm")
        weight = g.constant(self.state[f"{prefix}.context_gen.joint_conv.weight"] * scale[:, None, None, None])
        bias = g.constant(shift)
        g_f = g.activation(self._conv(self._mean(x, 3), weight, bias, 1), "hswish")  # (1, H, F, 1)
        g_t = g.activation(self._conv(self._mean(x, 2), weight, bias, 1), "hswish")  # (1, H, 1, T)
        if self.time is None:
            both = g.op("Concat", g_f, g.op("Transpose", g_t, perm=[0, 1, 3, 2]), axis=2)
            h = g.op("GlobalAveragePool", both)
        else:
            total = self.freq + self.time
            h_f, h_t = (
                g.op("Mul", g.op("GlobalAveragePool", part), g.constant(size / total))
                for part, size in ((g_f, self.freq), (g_t, self.time))
            )
            h = g.op("Add", h_f, h_t)
        if spec.stride == 2:
            options: dict[str, Any] = {"count_include_pad": 1}
            g_f = g.op("AveragePool", g_f, kernel_shape=[3, 1], strides=[2, 1], pads=[1, 0, 1, 0], **options)
            g_t = g.op("AveragePool", g_t, kernel_shape=[1, 3], strides=[1, 2], pads=[0, 1, 0, 1], **options)
        return g.op("Flatten", h), g_f, g_t

    def _mixed(self, x: str, h: str, name: str, shape: tuple[int, int, int, int], stride: int, groups: int) -> str:
        """Add a dynamic convolution and batch norm: the kernel is the bank's, weighted by a softmax over h."""
        scale, shift = self._folded(f"{name}_norm")
        bank = self.state[f"{name}_conv.weight"][0, 0].reshape(N_KERNELS, shape[0], -1) * scale[:, None]
        weight, bias = (self.state[f"{name}_conv.residuals.0.{kind}"] for kind in ("weight", "bias"))
        temperature = self.config.temperature
        attention = self.g.op("Softmax", self._gemm(h, weight / temperature, bias / temperature), axis=1)
        kernel = self.g.op("MatMul", attention, self.g.constant(bank.reshape(N_KERNELS, -1)))
        kernel = self.g.op("Reshape", kernel, self.g.shape(*shape))
        x = self._conv(x, kernel, self.g.constant(shift), shape[2], stride, groups)
        self._halve(stride)
        return x

    def _dynamic_relu(self, x: str, h: str, name: str, channels: int, gate: str) -> str:
        """Add the larger of two lines per channel, both times a gate that is positive."""
        g = self.g
        rows = 2 * N_SLOPES
        # The released layout has the 2M coefficients of one channel next to each other.
        weight = self.state[f"{name}.coef_net.0.weight"].reshape(channels, rows, -1).transpose(1, 0, 2) / 2
        bias = self.state[f"{name}.coef_net.0.bias"].reshape(channels, rows).T / 2
        theta = g.op("Tanh", self._gemm(h, weight.reshape(rows * channels, -1), bias.reshape(-1)))
        scale, shift = (
            np.repeat(self.state[f"{name}.{kind}"].astype(np.float32), channels)[None] for kind in ("lambdas", "init_v")
        )
        theta = g.op("Add", g.op("Mul", theta, g.constant(scale)), g.constant(shift))
        theta = g.op("Reshape", theta, g.shape(rows, channels, 1, 1))
        slope_1, slope_2, intercept_1, intercept_2 = g.op("Split", theta, g.shape(1, 1, 1, 1), n_outputs=rows, axis=0)
        lines = [
            g.op("Add", g.op("Mul", x, g.op("Mul", slope, gate)), g.op("Mul", intercept, gate))
            for slope, intercept in ((slope_1, intercept_1), (slope_2, intercept_2))
        ]
        return g.op("Max", *lines)


def network_model(
    state: State, config: NetworkConfig, *, mels: int, frames: int | None, outputs: Sequence[str]
) -> bytes:
    """Build the network of one window as an ONNX model.

    Parameters
    ----------
    state : mapping of str to ndarray
        The checkpoint's state dict, float32.
    config : NetworkConfig
    mels, frames : int
        Size of the input, named `INPUT`: log-mel, float32 (1, 1, mels, frames). Frames None: any number.
    outputs : sequence of str
        Among ``scores``, ``logits``, ``embedding``, ``hidden``, ``stem``, ``block0`` to ``block14`` and ``logmel``;
        each float32 (1, n).

    Raises
    ------
    CheckpointError
        The network is larger than the ONNX format allows, 2 GB.
    """
    graph = Graph()
    found = NetworkGraph(graph, state, config, mels, frames).add(INPUT, outputs)
    for name, value in found.items():
        graph.op("Identity", value, output=name)
    described = [onnx_format.value_info(name, (1, f"{name}_size")) for name in found]
    inputs = [onnx_format.value_info(INPUT, (1, 1, mels, "frames" if frames is None else frames))]
    return model_bytes(graph.message("audiotag", inputs, described))


def model_bytes(main: onnx_format.Message, metadata: Mapping[str, str] | None = None, doc: str = "") -> bytes:
    """Write the model around a graph.

    Raises
    ------
    CheckpointError
        It is larger than the ONNX format allows.
    """
    try:
        return onnx_format.model(main, producer="audiotag", version=__version__, doc=doc, metadata=metadata or {})
    except OverflowError as error:
        raise CheckpointError(f'{error}; use runtime="torch"') from error

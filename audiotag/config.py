"""What a checkpoint says of itself: the numbers that rebuild its frontend and network, as frozen dataclasses."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from .checks import HIGHEST_RATE_HZ, LOWEST_RATE_HZ, one_of, shown, span_samples
from .errors import InvalidInputError

N_AUDIOSET_LABELS = 527
ARCHITECTURES = ("dymn", "mn")
HEADS = ("mlp", "fully_convolutional")
DYNAMIC_BLOCKS = ("all", "replace_se")
ACTIVATIONS = ("sigmoid", "softmax")
# A configuration comes from strangers: what these allow takes at most some hundred MB of the frontend's and a window's.
MAX_WIDTH = 8.0
MAX_N_FFT = 16_384
MAX_N_MELS = 1024
MAX_WINDOW_SAMPLES = 1 << 24  # 9 minutes at 32 kHz
MAX_LOGMEL_VALUES = 1 << 20  # of one window, bands times frames: 8 times the usual
LAYER = re.compile(r"logmel|stem|embedding|hidden|block(\d|1[0-4])")  # feature vectors a head may take


@dataclass(frozen=True)
class FrontendConfig:
    """Constants of the log-mel frontend; they belong to the checkpoint.

    The defaults are those of every AudioSet checkpoint whose name says nothing else.
    """

    sample_rate_hz: int = 32_000
    n_fft: int = 1024
    window_samples: int = 800
    hop_samples: int = 320
    n_mels: int = 128
    fmin_hz: float = 0.0
    fmax_hz: float = 15_000.0

    def __post_init__(self) -> None:
        for name, lowest, highest in (
            ("sample_rate_hz", LOWEST_RATE_HZ, HIGHEST_RATE_HZ),
            ("n_fft", 1, MAX_N_FFT),
            ("window_samples", 1, self.n_fft),
            ("hop_samples", 1, self.n_fft),
            ("n_mels", 1, MAX_N_MELS),
        ):
            _whole(getattr(self, name), name, lowest, highest)
        low, high, top = self.fmin_hz, self.fmax_hz, self.sample_rate_hz / 2
        if not (_number(low) and _number(high) and 0 <= low < high <= top):
            raise InvalidInputError(f"need 0 <= fmin_hz < fmax_hz <= {top:g}, got fmin_hz={low!r}, fmax_hz={high!r}")


@dataclass(frozen=True)
class NetworkConfig:
    """Everything needed to build a network whose state dict the checkpoint holds."""

    architecture: str = "dymn"
    width: float = 1.0
    n_labels: int = N_AUDIOSET_LABELS
    temperature: float = 1.0  # of the dynamic convolutions' softmax; not in the state dict
    head: str = "mlp"
    strides: tuple[int, int, int, int] = (2, 2, 2, 2)  # of blocks 1, 3, 6 and 12
    dynamic_blocks: str = "all"  # DyMN only; "replace_se": blocks 3-5 and 10-14

    def __post_init__(self) -> None:
        for name, allowed in (("architecture", ARCHITECTURES), ("head", HEADS), ("dynamic_blocks", DYNAMIC_BLOCKS)):
            one_of(getattr(self, name), allowed, name)
        _positive(self.width, "width", MAX_WIDTH)
        _whole(self.n_labels, "n_labels", 1)
        _positive(self.temperature, "temperature")
        strides = tuple(self.strides)
        if len(strides) != 4 or any(isinstance(s, bool) or not isinstance(s, int) or s not in (1, 2) for s in strides):
            raise InvalidInputError(f"strides must be four numbers, each 1 or 2, got {shown(self.strides)}")
        object.__setattr__(self, "strides", strides)


@dataclass(frozen=True)
class HeadConfig:
    """Labels of one's own: one linear layer on feature vectors of the network, as `audiotag fit` makes it.

    For a window with feature vector x (features,), the concatenation of the layers ``inputs`` in that order, each as
    `Tagger.embed` gives it for that window::

        logits = weight @ x + bias            # weight (rows, features), bias (rows,)
        scores = sigmoid(logits)              # activation "sigmoid": any number of labels at once
        scores = softmax(logits)[:n_labels]   # activation "softmax": at most one label

    ``weight`` and ``bias`` are float32 tensors ``head.weight`` and ``head.bias`` in ``model.safetensors``, beside the
    network's own, which stay as they were. ``rows`` is the number of labels, one more where ``rest`` is true: a last
    row for "none of them", whose score is left out. The standardisation of x and the calibration are folded into both
    tensors: nothing else is applied. A clip's scores are made of its windows' as for any checkpoint.

    The scores of a checkpoint with a head are the head's, in the order of ``labels``. With ``keep_network`` they are
    the network's own (sigmoid; `CheckpointConfig.labels`) followed by the head's, from one pass.

    Attributes
    ----------
    labels : tuple of str
        Names in output order; they differ from each other and, with ``keep_network``, from the network's.
    inputs : tuple of str
        Among ``logmel``, ``stem``, ``block0`` .. ``block14``, ``embedding``, ``hidden``; each once.
    activation : {"sigmoid", "softmax"}
    rest : bool
        Only with softmax.
    keep_network : bool
    calibration : mapping, optional
        What was folded in, as a record: ``{"method": "temperature", "temperature": t}``, the logits divided by t; or
        ``{"method": "platt", "a": [...], "b": [...]}``, the logits of label k times a[k] plus b[k].
    """

    labels: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ("embedding",)
    activation: str = "sigmoid"
    rest: bool = False
    keep_network: bool = False
    calibration: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", _names(self.labels, "labels"))
        object.__setattr__(self, "inputs", _names(self.inputs, "inputs"))
        for name in self.inputs:
            if not LAYER.fullmatch(name):
                raise InvalidInputError(
                    f"inputs must be among logmel, stem, block0 to block14, embedding and hidden, got {name!r}"
                )
        one_of(self.activation, ACTIVATIONS, "activation")
        for name in ("rest", "keep_network"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidInputError(f"{name} must be true or false, got {getattr(self, name)!r}")
        if self.rest and self.activation != "softmax":
            raise InvalidInputError(f"rest goes with the activation softmax, got {self.activation!r}")
        if self.calibration is not None:
            object.__setattr__(self, "calibration", _calibration(self.calibration, len(self.labels)))

    @property
    def rows(self) -> int:
        """Rows of ``head.weight``."""
        return len(self.labels) + self.rest


@dataclass(frozen=True)
class CheckpointConfig:
    """A checkpoint's whole configuration, as written to ``config.json``.

    Attributes
    ----------
    labels : tuple of str, optional
        Names of the network's own outputs; None for AudioSet's 527.
    head : HeadConfig, optional
        Labels of one's own, beside or instead of the network's.
    thresholds : tuple of float or None, optional
        For each score, in [0, 1], the one from which its label is taken to be there; None where no threshold is known.
    threshold_support : tuple of int or None, optional
        For each threshold, how many positive clips it rests on.
    """

    name: str = "unnamed"
    network: NetworkConfig = field(default_factory=NetworkConfig)
    frontend: FrontendConfig = field(default_factory=FrontendConfig)
    window_s: float = 10.0
    labels: tuple[str, ...] | None = None
    head: HeadConfig | None = None
    thresholds: tuple[float | None, ...] | None = None
    threshold_support: tuple[int | None, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise InvalidInputError(f"name must be a string, got {shown(self.name)}")
        _positive(self.window_s, "window_s", MAX_WINDOW_SAMPLES / self.frontend.sample_rate_hz)
        frontend, samples = self.frontend, self.window_samples
        hop, bands = frontend.hop_samples, frontend.n_mels
        if samples < frontend.n_fft:
            raise InvalidInputError(f"window_s {self.window_s!r} must hold at least n_fft {frontend.n_fft} samples")
        if samples // hop * bands > MAX_LOGMEL_VALUES:
            raise InvalidInputError(
                f"window_s {self.window_s!r}, hop_samples {hop} and n_mels {bands} make more than "
                f"{MAX_LOGMEL_VALUES} values of log-mel a window"
            )
        if self.labels is not None:
            object.__setattr__(self, "labels", _names(self.labels, "labels"))
            if len(self.labels) != self.network.n_labels:
                raise InvalidInputError(f"{len(self.labels)} labels for a network with {self.network.n_labels} outputs")
        for name, top in (("thresholds", 1.0), ("threshold_support", math.inf)):
            values = getattr(self, name)
            if values is None:
                continue
            if isinstance(values, str) or not all(v is None or (_number(v) and 0 <= v <= top) for v in values):
                allowed = "numbers in [0, 1]" if top == 1 else "counts"
                raise InvalidInputError(f"{name} must be a list of {allowed} or null, got {shown(values)}")
            object.__setattr__(self, name, tuple(values))
            if len(values) != self.n_scores:
                raise InvalidInputError(f"{len(values)} {name} for {self.n_scores} scores; give one for each")

    @property
    def n_scores(self) -> int:
        """How many scores a window gets."""
        if self.head is None:
            return self.network.n_labels
        return len(self.head.labels) + (self.network.n_labels if self.head.keep_network else 0)

    @property
    def window_samples(self) -> int:
        """Length of the window that the network sees, in samples."""
        return round(self.window_s * self.frontend.sample_rate_hz)

    def window_and_hop(self, window_s: float | None = None, hop_s: float | None = None) -> tuple[int, int]:
        """Convert a window's length and the step between windows from seconds to samples.

        Parameters
        ----------
        window_s : float, optional
            In (0, `window_s` of the checkpoint]; None: the checkpoint's.
        hop_s : float, optional
            In (0, window]; None: one window.

        Raises
        ------
        InvalidInputError
            A length is out of range.
        """
        window, rate_hz = self.window_samples, self.frontend.sample_rate_hz
        if window_s is not None:
            window = span_samples(window_s, window, rate_hz, "window_s")
        return window, window if hop_s is None else span_samples(hop_s, window, rate_hz, "hop_s")

    def to_dict(self) -> dict[str, Any]:
        """Make a plain JSON-ready dictionary; ``from_dict`` reverses it."""
        plain = asdict(self, dict_factory=_with_lists)
        optional = ("head", "thresholds", "threshold_support")  # older readers do not know them
        return {name: value for name, value in plain.items() if value is not None or name not in optional}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> CheckpointConfig:
        """Rebuild a configuration from ``to_dict``'s form; an unknown key is an error, a missing one its default."""
        values = dict(plain)
        values["network"] = build(NetworkConfig, values.get("network", {}))
        values["frontend"] = build(FrontendConfig, values.get("frontend", {}))
        if values.get("head") is not None:
            values["head"] = build(HeadConfig, values["head"])
        return build(cls, values)


def _with_lists(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dictionary whose tuples are lists, as JSON reads them back."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in pairs}


def _names(values: Any, argument: str) -> tuple[str, ...]:
    """Return names that are not empty and differ from each other, at least one."""
    if isinstance(values, str) or not all(isinstance(value, str) and value.strip() for value in values):
        raise InvalidInputError(f"{argument} must be a list of names, got {shown(values)}")
    names = tuple(values)
    if not names or len(set(names)) != len(names):
        raise InvalidInputError(f"{argument} must be names that differ, at least one, got {shown(names)}")
    return names


def _number(value: Any) -> bool:
    """Whether a value is a number that a float can hold."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _positive(value: Any, name: str, highest: float = sys.float_info.max) -> None:
    if not (_number(value) and 0 < value <= highest):
        limit = "" if highest == sys.float_info.max else f" up to {highest:g}"
        raise InvalidInputError(f"{name} must be a positive number{limit}, got {shown(value)}")


def _whole(value: Any, name: str, lowest: int, highest: int | None = None) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < lowest or (highest and value > highest):
        limits = f"at least {lowest}" if highest is None else f"from {lowest} to {highest}"
        raise InvalidInputError(f"{name} must be a whole number {limits}, got {shown(value)}")


def _calibration(given: Any, n_labels: int) -> dict[str, Any]:
    """Return the record of a calibration, checked and plain."""
    method = given.get("method") if isinstance(given, Mapping) else None
    if method == "temperature" and set(given) == {"method", "temperature"}:
        if _number(given["temperature"]) and given["temperature"] > 0:
            return {"method": method, "temperature": float(given["temperature"])}
    elif method == "platt" and set(given) == {"method", "a", "b"}:
        a, b = list(given["a"]), list(given["b"])
        if len(a) == len(b) == n_labels and all(map(_number, (*a, *b))):
            return {"method": method, "a": [float(v) for v in a], "b": [float(v) for v in b]}
    raise InvalidInputError(
        f"calibration must be {{method: temperature, temperature > 0}} or {{method: platt, a, b}} with a number for "
        f"each of {n_labels} labels, got {shown(given)}"
    )


def build(cls: Any, values: Any) -> Any:
    """Make a dataclass of a mapping that names some of its fields and nothing else."""
    if not isinstance(values, Mapping):
        raise InvalidInputError(f"{cls.__name__} must be a mapping, got {type(values).__name__}")
    known = [f.name for f in fields(cls)]
    unknown = sorted(shown(name) for name in set(values) - set(known))
    if unknown:
        raise InvalidInputError(f"{cls.__name__} has no {', '.join(unknown[:3])}; it has {', '.join(known)}")
    try:
        return cls(**values)
    except TypeError as error:
        raise InvalidInputError(f"{cls.__name__}: {error}") from error

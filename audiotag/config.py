"""What a checkpoint says of itself: the numbers that rebuild its frontend and network, as frozen dataclasses."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from .errors import InvalidInputError

ARCHITECTURES = ("dymn", "mn")
HEADS = ("mlp", "fully_convolutional")
DYNAMIC_BLOCKS = ("all", "replace_se")
ACTIVATIONS = ("sigmoid", "softmax")
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
        for name in ("sample_rate_hz", "n_fft", "window_samples", "hop_samples", "n_mels"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InvalidInputError(f"{name} must be a positive integer, got {value!r}")
        if self.window_samples > self.n_fft:
            raise InvalidInputError(f"window_samples {self.window_samples} must not exceed n_fft {self.n_fft}")
        if not 0 <= self.fmin_hz < self.fmax_hz <= self.sample_rate_hz / 2:
            raise InvalidInputError(
                f"need 0 <= fmin_hz < fmax_hz <= {self.sample_rate_hz / 2:g}, "
                f"got fmin_hz={self.fmin_hz!r}, fmax_hz={self.fmax_hz!r}"
            )


@dataclass(frozen=True)
class NetworkConfig:
    """Everything needed to build a network whose state dict the checkpoint holds."""

    architecture: str = "dymn"
    width: float = 1.0
    n_labels: int = 527
    temperature: float = 1.0  # of the dynamic convolutions' softmax; not in the state dict
    head: str = "mlp"
    strides: tuple[int, int, int, int] = (2, 2, 2, 2)  # of blocks 1, 3, 6 and 12
    dynamic_blocks: str = "all"  # DyMN only; "replace_se": blocks 3-5 and 10-14

    def __post_init__(self) -> None:
        for name, allowed in (("architecture", ARCHITECTURES), ("head", HEADS), ("dynamic_blocks", DYNAMIC_BLOCKS)):
            if getattr(self, name) not in allowed:
                raise InvalidInputError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if not 0 < self.width < math.inf:
            raise InvalidInputError(f"width must be positive and finite, got {self.width!r}")
        if not isinstance(self.n_labels, int) or self.n_labels < 1:
            raise InvalidInputError(f"n_labels must be a positive integer, got {self.n_labels!r}")
        if not self.temperature > 0:
            raise InvalidInputError(f"temperature must be positive, got {self.temperature!r}")
        strides = tuple(self.strides)
        if len(strides) != 4 or any(s not in (1, 2) for s in strides):
            raise InvalidInputError(f"strides must be four numbers, each 1 or 2, got {self.strides!r}")
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
        if self.activation not in ACTIVATIONS:
            raise InvalidInputError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {self.activation!r}")
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
            raise InvalidInputError(f"name must be a string, got {self.name!r}")
        if not 0 < self.window_s < math.inf:
            raise InvalidInputError(f"window_s must be positive and finite, got {self.window_s!r}")
        if self.labels is not None:
            if isinstance(self.labels, str) or not all(isinstance(label, str) for label in self.labels):
                raise InvalidInputError(f"labels must be a list of names, got {str(self.labels)[:80]!r}")
            object.__setattr__(self, "labels", tuple(self.labels))
            if len(self.labels) != self.network.n_labels:
                raise InvalidInputError(f"{len(self.labels)} labels for a network with {self.network.n_labels} outputs")
        for name, top in (("thresholds", 1.0), ("threshold_support", math.inf)):
            values = getattr(self, name)
            if values is None:
                continue
            if isinstance(values, str) or not all(v is None or (_number(v) and 0 <= v <= top) for v in values):
                allowed = "numbers in [0, 1]" if top == 1 else "counts"
                raise InvalidInputError(f"{name} must be a list of {allowed} or null, got {str(values)[:80]!r}")
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
        return round(self.window_s * self.frontend.sample_rate_hz)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready dictionary; ``from_dict`` reverses it."""
        plain = asdict(self)
        plain["network"]["strides"] = list(self.network.strides)
        plain["labels"] = None if self.labels is None else list(self.labels)
        if self.head is not None:
            plain["head"] |= {"labels": list(self.head.labels), "inputs": list(self.head.inputs)}
        for name in (
            "head",
            "thresholds",
            "threshold_support",
        ):  # what an older audiotag does not know, where it is used
            if plain[name] is None:
                del plain[name]
            elif name != "head":
                plain[name] = list(plain[name])
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> CheckpointConfig:
        """Rebuild from ``to_dict``'s form; an unknown key is an error, a missing one its default."""
        values = dict(plain)
        values["network"] = _build(NetworkConfig, values.get("network", {}))
        values["frontend"] = _build(FrontendConfig, values.get("frontend", {}))
        if values.get("head") is not None:
            values["head"] = _build(HeadConfig, values["head"])
        return _build(cls, values)


def _names(values: Any, argument: str) -> tuple[str, ...]:
    """Names that are not empty and differ from each other, at least one."""
    if isinstance(values, str) or not all(isinstance(value, str) and value.strip() for value in values):
        raise InvalidInputError(f"{argument} must be a list of names, got {str(values)[:80]!r}")
    names = tuple(values)
    if not names or len(set(names)) != len(names):
        raise InvalidInputError(f"{argument} must be names that differ, at least one, got {str(names)[:80]}")
    return names


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _calibration(given: Any, n_labels: int) -> dict[str, Any]:
    """The record of a calibration, checked and plain."""
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
        f"each of {n_labels} labels, got {str(given)[:80]}"
    )


def _build(cls: Any, values: Any) -> Any:
    if not isinstance(values, Mapping):
        raise InvalidInputError(f"{cls.__name__} must be a mapping, got {type(values).__name__}")
    known = [f.name for f in fields(cls)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise InvalidInputError(f"{cls.__name__} has no {', '.join(unknown)}; it has {', '.join(known)}")
    try:
        return cls(**values)
    except TypeError as error:
        raise InvalidInputError(f"{cls.__name__}: {error}") from error

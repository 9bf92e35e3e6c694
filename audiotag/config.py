"""What a checkpoint says of itself: the numbers that rebuild its frontend and network, as frozen dataclasses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from .errors import InvalidInputError

ARCHITECTURES = ("dymn", "mn")
HEADS = ("mlp", "fully_convolutional")
DYNAMIC_BLOCKS = ("all", "replace_se")


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
class CheckpointConfig:
    """A checkpoint's whole configuration, as written to ``config.json``.

    ``labels`` is None for AudioSet's 527 labels and the list of names for any other head.
    """

    name: str = "unnamed"
    network: NetworkConfig = field(default_factory=NetworkConfig)
    frontend: FrontendConfig = field(default_factory=FrontendConfig)
    window_s: float = 10.0
    labels: tuple[str, ...] | None = None

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

    @property
    def window_samples(self) -> int:
        return round(self.window_s * self.frontend.sample_rate_hz)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready dictionary; ``from_dict`` reverses it."""
        plain = asdict(self)
        plain["network"]["strides"] = list(self.network.strides)
        plain["labels"] = None if self.labels is None else list(self.labels)
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> CheckpointConfig:
        """Rebuild from ``to_dict``'s form; an unknown key is an error, a missing one its default."""
        values = dict(plain)
        values["network"] = _build(NetworkConfig, values.get("network", {}))
        values["frontend"] = _build(FrontendConfig, values.get("frontend", {}))
        return _build(cls, values)


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

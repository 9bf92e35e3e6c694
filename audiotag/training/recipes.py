"""Training recipes, named or from a file: everything that decides a run but the audio, the teachers and the machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..config import NetworkConfig
from ..errors import InvalidInputError
from ..files import write_whole
from .mixing import MixConfig

OBJECTIVES = ("gates", "whole", "scores")


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one objective.

    objective: "gates", what a DyMN's blocks have and their teacher's lack (context, dynamic ReLU, attention, and the
    projection behind them), every block alone between the teacher's features; "whole", the network on its own features,
    with the teacher's features beside them; "scores", the teacher's scores (and labels) alone, for any teacher.

    A phase on features keeps the last `pool` clips as feature maps in memory: a batch is `fresh_clips` new ones and
    others drawn from them, so that a clip is made once and learned from several times.
    """

    objective: str
    steps: int
    clip_s: float
    batch_size: int
    learning_rate: float
    warmup_steps: int = 100
    rampdown_start: int = 0  # step of the phase
    rampdown_steps: int = 0
    last_rate: float = 0.01
    score_weight: float = 1.0
    logit_weight: float = 1.0  # of the squared difference of logits
    feature_weight: float = 1.0
    first_block: int = 0  # blocks before it are held fixed, and the stem
    first_kernel_block: int = 0  # depthwise kernels before it are held fixed
    fresh_clips: int = 0  # of a batch; 0: all
    pool: int = 0  # clips kept; 0: none

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise InvalidInputError(f"objective must be one of {', '.join(OBJECTIVES)}, got {self.objective!r}")
        if self.steps < 1 or self.batch_size < 1:
            raise InvalidInputError(
                f"steps and batch_size must be positive, got {self.steps!r} and {self.batch_size!r}"
            )
        if not 0 <= self.fresh_clips <= self.batch_size:
            raise InvalidInputError(
                f"fresh_clips must be between 0 and batch_size {self.batch_size}, got {self.fresh_clips!r}"
            )
        if self.pool and self.pool < self.batch_size:
            raise InvalidInputError(f"pool must hold a batch of {self.batch_size} at least, got {self.pool!r}")

    @property
    def new_clips(self) -> int:
        """Clips to be made for each step."""
        return self.fresh_clips or self.batch_size


@dataclass(frozen=True)
class Recipe:
    """A whole run: phases in order, and what they share."""

    name: str
    network: NetworkConfig
    phases: tuple[Phase, ...]
    mix: MixConfig = field(default_factory=MixConfig)
    inherit: bool = False  # the student begins with its teacher's static weights, batch norms' statistics held fixed
    offline: bool = False  # whole pieces with scores computed beforehand, instead of fresh mixtures scored online
    temperature_start: float = 30.0
    temperature_steps: int = 600
    label_share: float = 0.0  # of the labels in the loss; the teacher has the rest
    mixup_alpha: float = 0.0  # of the Beta distribution; 0: none
    jitter_hz: float = 0.0  # filterbank edges move by up to this
    dropout: float = 0.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    norm_momentum: float = 0.01
    ema_decay: float = 0.0  # of the averaged weights; 0: the last weights are exported
    gradient_clip: float = 0.0
    precision: str = "32-true"

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def at(self, step: int) -> tuple[Phase, int]:
        """Return the phase of a step of the run, and the step within it."""
        for phase in self.phases:
            if step < phase.steps:
                return phase, step
            step -= phase.steps
        return self.phases[-1], self.phases[-1].steps

    def scaled(self, factor: float) -> Recipe:
        """Return the same recipe with every count of steps multiplied, to try it out or to train longer."""
        if not factor > 0:
            raise InvalidInputError(f"steps_scale must be positive, got {factor!r}")

        def times(count: int) -> int:
            return max(1, round(count * factor)) if count else 0

        phases = tuple(
            replace(
                phase,
                steps=times(phase.steps),
                warmup_steps=times(phase.warmup_steps),
                rampdown_start=times(phase.rampdown_start),
                rampdown_steps=times(phase.rampdown_steps),
            )
            for phase in self.phases
        )
        return replace(self, phases=phases, temperature_steps=times(self.temperature_steps))


PAPER_EPOCH = 100_000 // 120  # steps: 100,000 clips in batches of 120


def _paper() -> Recipe:
    """Teach by scores of an ensemble computed beforehand, 0.9 of the loss, labels 0.1; 200 epochs of 100,000 clips.

    arXiv 2211.04772, section 4, and the authors' published defaults; the temperature as arXiv 2310.15648 has it.
    """
    phase = Phase(
        "scores",
        steps=200 * PAPER_EPOCH,
        clip_s=10.0,
        batch_size=120,
        learning_rate=8e-4,
        warmup_steps=8 * PAPER_EPOCH,
        rampdown_start=80 * PAPER_EPOCH,
        rampdown_steps=95 * PAPER_EPOCH,
        logit_weight=0.0,
        feature_weight=0.0,
    )
    return Recipe(
        "paper",
        NetworkConfig("dymn", 0.4),
        (phase,),
        mix=MixConfig(gain_db=(-7, 7)),  # offline: pieces are turned and scaled, never mixed before the frontend
        offline=True,
        temperature_steps=30 * PAPER_EPOCH,
        label_share=0.1,
        mixup_alpha=0.3,
        jitter_hz=1000.0,
        dropout=0.2,
        betas=(0.9, 0.999),
        precision="16-mixed",
    )


def _features() -> Recipe:
    """From an MN of the student's width: its static weights inherited, gates first, then the last blocks, then all.

    For two processes (``--devices 2``), each of which draws its own batches.
    """
    gates = Phase(
        "gates",
        3_000,
        clip_s=10.0,
        batch_size=12,
        learning_rate=2e-3,
        warmup_steps=30,
        rampdown_start=1_500,
        rampdown_steps=1_500,
        last_rate=0.1,
        first_block=3,
        fresh_clips=4,
        pool=768,
    )
    late = replace(
        gates,
        objective="whole",
        steps=4_000,
        batch_size=16,
        learning_rate=1e-3,
        rampdown_start=2_500,
        last_rate=0.3,
        feature_weight=0.2,
        first_block=10,
        pool=1_536,
    )
    whole = replace(
        late,
        steps=12_000,
        batch_size=8,
        learning_rate=5e-4,
        warmup_steps=100,
        rampdown_start=4_000,
        rampdown_steps=8_000,
        last_rate=0.0,
        first_block=3,
        first_kernel_block=10,
        fresh_clips=2,
        pool=768,
    )
    return Recipe(
        "features",
        NetworkConfig("dymn", 0.4),
        (gates, late, whole),
        mix=MixConfig(
            coloured=0.5,
            common_limits=0.5,
            equalised=0.5,
            padded=0.25,
            excerpt=0.3,
            room=0.2,
            machine=0.15,
            scene=0.15,
            texture=0.15,
        ),
        inherit=True,
        temperature_start=1.0,
        ema_decay=0.998,
        gradient_clip=20.0,
    )


def recipe(name: str) -> Recipe:
    """Return the recipe of that name, or of that JSON file.

    Raises
    ------
    InvalidInputError
        If there is none; the message lists the names.
    """
    made = {"features": _features, "paper": _paper}
    if name in made:
        return made[name]()
    if Path(name).suffix == ".json":
        return read_recipe(name)
    raise InvalidInputError(f"no recipe {name!r}; there are {', '.join(made)}, and JSON files")


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe from a JSON file, as a run writes it to its ``recipe.json``.

    Raises
    ------
    InvalidInputError
        If the file is no JSON object, names a field that a recipe has not, or holds a value it cannot have.
    """
    try:
        plain = json.loads(Path(path).read_text(encoding="utf-8"))
        network, mix = _fields(NetworkConfig, plain.pop("network")), _fields(MixConfig, plain.pop("mix", {}))
        phases = tuple(_fields(Phase, phase) for phase in plain.pop("phases"))
        return _fields(Recipe, {**plain, "network": network, "mix": mix, "phases": phases})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidInputError(f"{path}: no recipe: {error}") from error


def write_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write a recipe as `read_recipe` reads it."""
    write_whole(path, (json.dumps(asdict(recipe), indent=2) + "\n").encode())


def _fields(made: type, plain: Mapping[str, Any]) -> Any:
    unknown = set(plain) - {field.name for field in fields(made)}
    if unknown:
        raise InvalidInputError(f"unknown field {', '.join(sorted(unknown))}")
    return made(**{name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()})

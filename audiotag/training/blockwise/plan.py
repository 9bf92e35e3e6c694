"""The plan of a blockwise run, from one JSON file: everything that decides the network that comes out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ...errors import InvalidInputError
from ..mixing import MixConfig

OBJECTIVES = ("blocks", "head", "whole")


@dataclass(frozen=True)
class Fit:
    """A phase: what is fitted to the scored clips, by Adam at a rate that falls to 0.

    objective: "blocks", what is dynamic in the blocks `first_block` to `last_block` and the projection behind it, one
    block after the other, from the student's own map before it to the teacher's map behind it; "head", the last
    convolution and the classifier, to the teacher's logits; "whole", the blocks from `first_block` on and the head
    together, to logits and maps.

    A fit of "head" or "whole" is measured on the held-out clips `checks` times, and the best of these states (that
    before it among them) is kept.
    """

    objective: str
    steps: int  # of each block
    batch_size: int
    learning_rate: float
    warmup_steps: int = 20
    first_block: int = 0  # 0: the first that is not the teacher's own
    last_block: int = 14
    first_kernel_block: int = 10  # of "whole": depthwise kernels before it are held fixed
    score_weight: float = 1.0
    logit_weight: float = 1.0  # of the squared difference of logits
    feature_weight: float = 0.0
    gradient_clip: float = 0.0  # of the gradient's norm; 0: none
    checks: int = 4

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise InvalidInputError(f"objective must be one of {', '.join(OBJECTIVES)}, got {self.objective!r}")
        if min(self.steps, self.batch_size, self.checks) < 1 or not self.learning_rate > 0:
            raise InvalidInputError(
                "steps, batch_size, checks and learning_rate must be positive, got "
                f"{self.steps!r}, {self.batch_size!r}, {self.checks!r}, {self.learning_rate!r}"
            )


@dataclass(frozen=True)
class Plan:
    """A run: the student inherits the teacher's static weights; clips are scored once; the phases follow in order.

    banks, teacher: folders that ``audiotag train prepare`` made and a checkpoint of an MN, whose width and labels are
    the student's. As paths they are relative to the folder of the plan's file; a teacher that is none there is a name.
    before: a plan of the same teacher that is carried out first, in the folder ``before``; the student begins as the
    network that it gave. before_share: that network's share, in [0, 1), of the average of its weights and those behind
    the last phase, which is exported (weight averaging as of arXiv 2203.05482).
    turns: a clip's target is the mean of the teacher's logits for it and for it as often turned: begun elsewhere, its
    start behind its end.
    """

    name: str
    teacher: str
    banks: tuple[str, ...]
    phases: tuple[Fit, ...]
    seed: int = 0
    mix: MixConfig = field(default_factory=MixConfig)
    clip_s: float = 10.0
    clips: int = 16_000  # of split "train"
    held_out_clips: int = 480  # of split "val"
    turns: int = 0
    places: int = 24  # of every map of a clip that are compared
    threshold_clips: int = 2_400  # mixtures of split "val" for the stored thresholds; 0: none are stored
    before: Plan | None = None
    before_share: float = 0.0

    def __post_init__(self) -> None:
        counts = (self.clips, self.held_out_clips, self.places)
        if min(counts) < 1 or not self.banks or not self.phases:
            raise InvalidInputError(
                "a plan needs banks, phases, and clips, held_out_clips and places above 0, got "
                f"{len(self.banks)}, {len(self.phases)}, {', '.join(map(str, counts))}"
            )
        if self.turns < 0:
            raise InvalidInputError(f"turns must not be below 0, got {self.turns!r}")
        if self.before and self.before.teacher != self.teacher:  # the first blocks are its own and stay so
            raise InvalidInputError(f"the plan before must have the same teacher, got {self.before.teacher!r}")
        if not 0 <= self.before_share < 1 or (self.before_share and not self.before):
            raise InvalidInputError(
                f"before_share must be in [0, 1), and 0 without a plan before, got {self.before_share!r}"
            )


def read_plan(path: str | Path) -> Plan:
    """Read a plan from its JSON file, or from the record of a run, which holds it as "plan".

    Raises
    ------
    InvalidInputError
        The file is no JSON object, names a field that a plan has not, or holds a value it cannot have.
    """
    try:
        plain = json.loads(Path(path).read_text(encoding="utf-8"))
        return plan_of(plain.get("plan", plain))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidInputError(f"{path}: no plan: {error}") from error


def plan_of(plain: Mapping[str, Any]) -> Plan:
    """Make a plan of what `dict_of` made of one."""
    phases = tuple(_made(Fit, phase) for phase in plain["phases"])
    mix = _made(MixConfig, plain.get("mix", {}))
    before = None if plain.get("before") is None else plan_of(plain["before"])
    plan: Plan = _made(Plan, {**plain, "phases": phases, "mix": mix, "before": before})
    return plan


def dict_of(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain values for JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(plan)))
    return plain


def _made(kind: type, plain: Mapping[str, Any]) -> Any:
    unknown = set(plain) - {one.name for one in fields(kind)}
    if unknown:
        raise InvalidInputError(f"unknown field {', '.join(sorted(unknown))}")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()})

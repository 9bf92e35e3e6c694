"""Named training recipes: everything that decides a run but the audio, the teachers and the machine."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..config import NetworkConfig
from ..errors import InvalidInputError
from .bank import MixConfig

OBJECTIVES = ("blocks", "halves", "whole", "scores")


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one objective.

    objective: "blocks", every block alone between the teacher's features before and after it; "halves", two chains of
    blocks on their own features; "whole", the network on its own features, with the teacher's features beside them;
    "scores", the teacher's scores (and labels) alone, for any teacher.
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
    frozen_norms: bool = False  # batch norms use their running statistics, as they will after training

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise InvalidInputError(f"objective must be one of {', '.join(OBJECTIVES)}, got {self.objective!r}")
        if self.steps < 1 or self.batch_size < 1:
            raise InvalidInputError(
                f"steps and batch_size must be positive, got {self.steps!r} and {self.batch_size!r}"
            )


@dataclass(frozen=True)
class Recipe:
    """A whole run: phases in order, and what they share."""

    name: str
    network: NetworkConfig
    phases: tuple[Phase, ...]
    mix: MixConfig = field(default_factory=MixConfig)
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
        """The phase of a step of the run, and the step within it."""
        for phase in self.phases:
            if step < phase.steps:
                return phase, step
            step -= phase.steps
        return self.phases[-1], self.phases[-1].steps

    def scaled(self, factor: float) -> Recipe:
        """The same recipe with every count of steps multiplied, to try it out or to train longer."""
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
    """Scores of an ensemble computed beforehand, 0.9 of the loss, labels 0.1; 200 epochs of 100,000 AudioSet clips.

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


def _open() -> Recipe:
    """Features first, scores last, on endless mixtures scored as they are made; needs an MN of the student's width."""
    return Recipe(
        "open",
        NetworkConfig("dymn", 0.4),
        (
            Phase("blocks", 1_200, 4.0, 8, 3e-3, rampdown_start=600, rampdown_steps=600, last_rate=0.5),
            Phase("halves", 2_000, 4.0, 16, 1.2e-3, rampdown_start=800, rampdown_steps=1_200, last_rate=0.05),
            Phase(
                "whole",
                3_300,
                4.0,
                16,
                8e-4,
                rampdown_start=1_800,
                rampdown_steps=1_500,
                last_rate=0.5,
                feature_weight=0.3,
            ),
            Phase(
                "whole",
                2_500,
                10.0,
                8,
                3e-4,
                rampdown_start=100,
                rampdown_steps=2_400,
                feature_weight=0.2,
                frozen_norms=True,
            ),
        ),
        ema_decay=0.998,
    )


def recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises
    ------
    InvalidInputError
        If there is none; the message lists the names.
    """
    made = {"open": _open, "paper": _paper}
    if name not in made:
        raise InvalidInputError(f"no recipe {name!r}; there are {', '.join(made)}")
    return made[name]()

"""Fine-tuning: network and head trained together by the recipe published for these networks, from the probe on.

Adam without weight decay; exponential warm-up over 10 of 80 epochs, then a straight line down to 0.01 of the rate over
65; gain, turning and mixing of waveforms, mixup of log-mels, filterbank edges that move (Schmid et al., arXiv
2211.04772 and 2310.15648, and the authors' published settings). The head starts from the probe and is
trained alone at first. Other than there, batch norms keep the statistics of the checkpoint.

A plain loop rather than a framework's: everything a step does follows from seed, job and step, and what it needs to go
on is one safetensors file.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...checkpoints.load import Checkpoint, build
from ...config import HeadConfig
from ...files import write_whole
from ...inference.head import BIAS, WEIGHT
from ..augment import jittered_frontend, mixup
from ..schedule import rate_factor
from .linear import Linear, Standard
from .waveforms import Waveforms, batch

EPOCHS, WARMUP, RAMPDOWN, LAST_RATE = 80, 10, 65, 0.01
HEAD_FIRST = 2  # of 80 epochs
RATES = {"dymn": 4e-5, "mn": 6e-5}  # at width 1
STEPS_AN_EPOCH, SMALLEST_BATCH, LARGEST_BATCH = 12, 16, 128
MICRO_BATCH = 32  # clips at once on a CPU
MIXUP_ALPHA, JITTER_HZ = 0.3, 1000.0
KEEP_WEIGHT = 20.0  # of the mean loss over AudioSet's labels, where these are kept
SAVE_EVERY_S = 20.0
STATE_SUFFIX = ".state.safetensors"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a fine-tuning but the clips and the checkpoint; kept with the run, so that it resumes.

    folds: which are evaluated. evaluated_at: epochs after which a fold's clips are scored.
    """

    epochs: int
    folds: tuple[int, ...]
    batch_size: int
    samples: int
    rate: float
    seed: int
    keep_network: bool
    evaluated_at: tuple[int, ...]

    def factor(self, progress: float) -> float:
        """Share of the learning rate at a number of epochs, which may be broken."""
        unit = self.epochs / EPOCHS
        return rate_factor(
            progress, warmup=WARMUP * unit, rampdown_start=WARMUP * unit, rampdown=RAMPDOWN * unit, last=LAST_RATE
        )

    def describe(self) -> dict[str, Any]:
        plain = asdict(self)
        return {**plain, "folds": len(self.folds), "evaluated_at": list(self.evaluated_at)}


def evaluated_at(epochs: int) -> tuple[int, ...]:
    """Epochs after which held-out clips are scored: six, from a quarter of the way on."""
    return tuple(sorted({max(1, round(epochs * share)) for share in (0.25, 0.4, 0.55, 0.7, 0.85, 1.0)}))


def default_rate(architecture: str, width: float) -> float:
    """The published learning rate at width 1; narrower networks take larger steps."""
    return RATES[architecture] / max(min(width, 4.0), 0.05) ** 0.5


def default_batch(n_clips: int) -> int:
    """As many clips that an epoch has about twelve steps: 128, as published, for 1,600."""
    return int(np.clip(round(n_clips / STEPS_AN_EPOCH), SMALLEST_BATCH, LARGEST_BATCH))


class Student(nn.Module):
    """A network with a head of own labels on standardised feature vectors, both trained."""

    mean: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, layers: tuple[str, ...], standard: Standard, start: Linear) -> None:
        super().__init__()
        self.network, self.layers = network, layers
        self.register_buffer("mean", torch.from_numpy(standard.mean.astype(np.float32)))
        self.register_buffer("scale", torch.from_numpy(standard.scale.astype(np.float32)))
        self.weight = nn.Parameter(torch.from_numpy(np.ascontiguousarray(start.weight.T, np.float32)))
        self.bias = nn.Parameter(torch.from_numpy(np.asarray(start.bias, np.float32)))

    def train(self, mode: bool = True) -> Student:
        """Set the mode of everything but the batch norms, which keep their statistics: a few clips have poorer ones."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, logmel: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the own labels (B, rows), and the network's (B, labels)."""
        output = self.network(logmel, taps=tuple(name for name in self.layers if name != "logmel"))
        found = {**output.taps, "logmel": logmel.mean((1, 3))}
        features = torch.cat([found[name] for name in self.layers], 1)
        return F.linear((features - self.mean) / self.scale, self.weight, self.bias), output.logits

    def head(self) -> Linear:
        """The head on features as they are."""
        weight = self.weight.detach().cpu().double().numpy().T
        standard = Standard(self.mean.cpu().double().numpy(), self.scale.cpu().double().numpy())
        return Linear(weight, self.bias.detach().cpu().double().numpy()).folded(standard)

    def checkpoint(self, base: Checkpoint, head: HeadConfig, name: str) -> Checkpoint:
        """What was trained as a checkpoint; `head` says the form, nothing is calibrated yet."""
        linear = self.head()
        state = {key: tensor.detach().cpu().numpy().copy() for key, tensor in self.network.state_dict().items()}
        state[WEIGHT] = np.ascontiguousarray(linear.weight.T, np.float32)
        state[BIAS] = linear.bias.astype(np.float32)
        config = replace(base.config, name=name, head=head, thresholds=None, threshold_support=None)
        return replace(base, config=config, state=state, origin=name)


@dataclass(frozen=True)
class Job:
    """One training: of a fold's model, or the final one.

    name: of its files. number: decides its random numbers. clips: indices to train on. epochs: after which it stops.
    start: head, on features standardised by `standard`.
    """

    name: str
    number: int
    clips: np.ndarray
    epochs: int
    layers: tuple[str, ...]
    standard: Standard
    start: Linear


class Trainer:
    """Trains a job, keeping its state so that a killed one goes on to the same weights.

    Parameters
    ----------
    base : Checkpoint
    recipe : Recipe
    waveforms : Waveforms
    targets : ndarray
        float32 (clips, rows) in [0, 1], nan for unknown.
    activation : {"sigmoid", "softmax"}
    folder : Path
        For states.
    device : str
    """

    def __init__(
        self,
        base: Checkpoint,
        recipe: Recipe,
        waveforms: Waveforms,
        targets: np.ndarray,
        activation: str,
        folder: Path,
        device: str,
    ) -> None:
        self.base, self.recipe, self.waveforms, self.targets = base, recipe, waveforms, targets
        self.activation, self.folder, self.device = activation, folder, torch.device(device)
        self.teacher = build(base).to(self.device) if recipe.keep_network else None

    def train(
        self,
        job: Job,
        *,
        evaluate: Callable[[int, Student], None] | None = None,
        tell: Callable[[int, int], None] | None = None,
        deadline: float | None = None,
    ) -> tuple[Student, bool]:
        """Train to the end, or from an earlier state on; the student, and whether the end was reached.

        Parameters
        ----------
        evaluate : callable, optional
            Called with the epochs done and the student after those of the recipe's `evaluated_at`.
        tell : callable, optional
            Called with the steps done and all of them.
        deadline : float, optional
            By `time.monotonic`; the job stops there and the student is as far as it got.
        """
        steps_an_epoch = max(1, -(-len(job.clips) // self.recipe.batch_size))
        total = job.epochs * steps_an_epoch
        student = Student(build(self.base), job.layers, job.standard, job.start).to(self.device)
        student.requires_grad_(True)
        optimiser = _optimiser(student)
        path = self.folder / f"{job.name}{STATE_SUFFIX}"
        step = _load(path, student, optimiser)
        saved = time.monotonic()
        while step < total:
            epoch, within = divmod(step, steps_an_epoch)
            self._step(job, student, optimiser, epoch, within, steps_an_epoch)
            step += 1
            if tell is not None:
                tell(step, total)
            ended = step % steps_an_epoch == 0
            if ended and evaluate is not None and step // steps_an_epoch in self.recipe.evaluated_at:
                evaluate(step // steps_an_epoch, student)
            if time.monotonic() - saved > SAVE_EVERY_S or step == total:
                _save(path, student, optimiser, step)
                saved = time.monotonic()
            if deadline is not None and time.monotonic() > deadline:
                break
        return student.eval().requires_grad_(False), step >= total

    def _step(self, job: Job, student: Student, optimiser: Any, epoch: int, within: int, steps_an_epoch: int) -> None:
        recipe = self.recipe
        progress = epoch + within / steps_an_epoch
        factor = recipe.factor(progress)
        only_head = progress < HEAD_FIRST * recipe.epochs / EPOCHS
        optimiser.param_groups[0]["lr"] = 0.0 if only_head else recipe.rate * factor
        optimiser.param_groups[1]["lr"] = recipe.rate * factor
        student.train(not only_head)
        size = min(recipe.batch_size, len(job.clips))
        key = (recipe.seed, job.number)
        waves, targets = batch(
            self.waveforms,
            self.targets,
            job.clips,
            size=size,
            samples=recipe.samples,
            key=key,
            epoch=epoch,
            within=within,
        )
        rng = np.random.default_rng([*key, epoch, 2, within])
        frontend = jittered_frontend(self.base.config.frontend, rng, JITTER_HZ).to(self.device)
        wanted = torch.from_numpy(targets).to(self.device)
        known = ~torch.isnan(wanted)
        wanted = torch.nan_to_num(wanted)
        with torch.no_grad():
            logmel = frontend(torch.from_numpy(waves).to(self.device))
            # Mixed with an unknown label, a label is unknown: the share of known ones is below 1.
            logmel, wanted, certain = mixup(rng, MIXUP_ALPHA, logmel, wanted, known.float())
        known = certain > 0.999
        optimiser.zero_grad(set_to_none=True)
        micro = size if self.device.type != "cpu" else MICRO_BATCH
        with torch.random.fork_rng(devices=[] if self.device.type == "cpu" else None):
            torch.manual_seed(int(rng.integers(0, 2**31)))
            for rows in torch.arange(size).chunk(-(-size // micro)):
                loss = self._loss(student, logmel[rows], wanted[rows], known[rows])
                (loss * (len(rows) / size)).backward()
        optimiser.step()

    def _loss(self, student: Student, logmel: Tensor, wanted: Tensor, known: Tensor) -> Tensor:
        own, network = student(logmel)
        if self.activation == "softmax":
            loss = -(wanted * F.log_softmax(own, 1)).sum(1).mean()
        else:
            each = F.binary_cross_entropy_with_logits(own, wanted, reduction="none")
            loss = (each * known).sum(1).mean()
        if self.teacher is not None:
            with torch.no_grad():
                scores = self.teacher(logmel).logits.sigmoid()
            loss = loss + KEEP_WEIGHT * F.binary_cross_entropy_with_logits(network, scores)
        return loss

    def seconds_a_clip(self, job: Job) -> float:
        """How long a clip takes in training, by two steps whose outcome is thrown away."""
        student = Student(build(self.base), job.layers, job.standard, job.start).to(self.device).requires_grad_(True)
        optimiser = _optimiser(student)
        few = replace(self.recipe, batch_size=min(16, len(job.clips)))
        trial = Trainer.__new__(Trainer)
        trial.__dict__.update(self.__dict__, recipe=few)
        times = []
        for within in range(2):
            began = time.monotonic()
            trial._step(job, student, optimiser, few.epochs - 1, within, 2)  # noqa: SLF001 - its own class
            times.append(time.monotonic() - began)
        return min(times) / few.batch_size


def _optimiser(student: Student) -> torch.optim.Optimizer:
    """Adam, the network's parameters and the head's in two groups."""
    groups = [list(student.network.parameters()), [student.weight, student.bias]]
    return torch.optim.Adam([{"params": group} for group in groups], lr=0.0, weight_decay=0.0)


def _named(student: Student) -> dict[str, nn.Parameter]:
    return dict(student.named_parameters())


def _save(path: Path, student: Student, optimiser: Any, step: int) -> None:
    """One file, whole or not at all: parameters, buffers, Adam's two moments, the step."""
    from safetensors.torch import save

    tensors = {f"model.{name}": tensor for name, tensor in student.state_dict().items()}
    count = 0
    for name, parameter in _named(student).items():
        state = optimiser.state.get(parameter)
        if state:
            tensors[f"first.{name}"], tensors[f"second.{name}"] = state["exp_avg"], state["exp_avg_sq"]
            count = int(state["step"])
    dense = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, save(dense, metadata={"state": json.dumps({"step": step, "adam": count})}))


def _load(path: Path, student: Student, optimiser: Any) -> int:
    """The step to go on with; 0 where nothing was kept."""
    from safetensors import safe_open

    if not path.is_file():
        return 0
    with safe_open(path, framework="pt") as file:
        told = json.loads((file.metadata() or {})["state"])
        names = set(file.keys())
        student.load_state_dict({n.removeprefix("model."): file.get_tensor(n) for n in names if n.startswith("model.")})
        device = student.weight.device
        for name, parameter in _named(student).items():
            if f"first.{name}" in names:
                optimiser.state[parameter] = {
                    "step": torch.tensor(float(told["adam"])),
                    "exp_avg": file.get_tensor(f"first.{name}").to(device),
                    "exp_avg_sq": file.get_tensor(f"second.{name}").to(device),
                }
    return int(told["step"])

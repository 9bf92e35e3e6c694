"""A blockwise run in a folder: clips, fits, log, and in the end the checkpoint and the record of how it was made."""

from __future__ import annotations

import csv
import hashlib
import json
import platform
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ...checkpoints.load import build, load_checkpoint
from ...config import CheckpointConfig, NetworkConfig
from ...errors import InvalidInputError
from ...files import read_json, write_json, write_whole
from ...frontend.logmel import LogMel
from ...networks.build import build_network
from ...networks.dymn import DyMN, DynamicBlock
from ...networks.mobilenet import MN
from ..bank import PLACES_FILE, PieceBank
from ..inherit import exact_blocks, inherit
from ..mixing import Mixer, split_mixer
from ..objectives import check_teacher
from ..prepare import INDEX_FILE
from ..run import EXPORT_FILE, export
from ..thresholds import add_thresholds
from .clips import ScoredClips, prepare_clips, read_clips
from .fits import (
    GateInputs,
    StudentMaps,
    gates_error,
    head_losses,
    held_out_error,
    held_out_losses,
    minimise,
    trained_parts,
    whole_loss,
)
from .plan import Fit, Plan, dict_of, plan_of, read_plan

PLAN_FILE, LOG_FILE, RECORD_FILE = "plan.json", "log.json", "record.json"
CLIPS_FOLDER, FITS_FOLDER, BEFORE_FOLDER = "clips", "fits", "before"
INHERIT_CLIPS = 24
DIGITS = 4  # of numbers in the log
HOUR_SAMPLES = 3600 * 32_000
CURVE = (
    "phase; behind the last, the average with the network before",
    "block, 15: the head, 16: the whole network after the phase",
    "step",
    "mean training loss since the row before",
    "on the held-out clips: of a block, squared error of its output over the variance; else, binary cross-entropy over "
    "527 labels less its minimum",
    "on the held-out clips: mean squared difference of logits",
)

Tell = Callable[[str], None]


def train_blockwise(plan_file: str | Path, out: str | Path, *, tell: Tell = lambda line: None) -> Path:
    """Carry a plan out and export the network; the command ``audiotag train open``.

    What the folder holds already is not done again: the same call after any end goes on, to the same network.

    Parameters
    ----------
    plan_file : path
        JSON that `audiotag.training.blockwise.plan.read_plan` reads.
    out : path
        The run's folder: clips (0.3 MB each), fits, log.
    tell : callable
        Given a line of text whenever something is done.

    Returns
    -------
    Path
        The exported ``model.safetensors``; ``record.json`` beside it holds plan, audio, versions and the curve.

    Raises
    ------
    InvalidInputError
        If the plan cannot be used, its teacher is no MN, or the folder holds a run of another plan.
    """
    return _carry_out(read_plan(plan_file), Path(plan_file).resolve().parent, Path(out), tell)


def _carry_out(plan: Plan, base: Path, folder: Path, tell: Tell) -> Path:
    path = folder / EXPORT_FILE
    (folder / FITS_FOLDER).mkdir(parents=True, exist_ok=True)
    (folder / CLIPS_FOLDER).mkdir(exist_ok=True)
    _claim(folder, plan)
    if path.exists() and (folder / RECORD_FILE).exists():  # the record is written last
        return path
    begun = load_checkpoint(_carry_out(plan.before, base, folder / BEFORE_FOLDER, tell)) if plan.before else None
    banks = [base / bank for bank in plan.banks]
    teacher_name = str(base / plan.teacher) if (base / plan.teacher).exists() else plan.teacher
    loaded = load_checkpoint(teacher_name)
    teacher = cast(MN, build(loaded).eval().requires_grad_(False))
    network = NetworkConfig(
        "dymn",
        loaded.config.network.width,
        strides=loaded.config.network.strides,
        n_labels=loaded.config.network.n_labels,
    )
    mixers = {split: split_mixer(banks, split, plan.mix) for split in ("train", "val")}
    samples = round(plan.clip_s * loaded.config.frontend.sample_rate_hz)
    if begun is None:
        student = _inherited(plan, network, teacher, mixers["train"], samples)
    else:
        student = cast(DyMN, build(begun))
        check_teacher(teacher, student)
    sets = {}
    for split, count in (("val", plan.held_out_clips), ("train", plan.clips)):
        options = {"seed": plan.seed, "samples": samples, "places": plan.places, "turns": plan.turns}
        for done in prepare_clips(folder / CLIPS_FOLDER, split, count, teacher, mixers[split], **options):
            tell(f"clips {split}: {done} of {count}")
        sets[split] = read_clips(folder / CLIPS_FOLDER, split, count)
    run = _Run(plan, folder, student, exact_blocks(teacher), sets["train"], sets["val"], tell)
    for number in range(len(plan.phases)):
        run.phase(number)
    if begun is not None and plan.before_share:
        run.average(begun.state, plan.before_share)
    config = CheckpointConfig(name=plan.name, network=network)
    card = {"description": f"Trained block by block from {Path(plan.teacher).name}", "teachers": [plan.teacher]}
    export(student, config, card, path)
    if plan.threshold_clips:
        made = add_thresholds(banks, str(path), path, teacher=teacher_name, clips=plan.threshold_clips)
        tell(f"thresholds for {sum(one is not None for one in made.score)} of {len(made.score)} labels")
    record = {
        "plan": dict_of(plan),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "threads": torch.get_num_threads(),
        "teacher_weights_sha256": _weights_digest(teacher),
        "checkpoint_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "banks": {name: _audio(bank) for name, bank in zip(plan.banks, banks, strict=True)},
        "curve_columns": CURVE,
        "curve": run.table(),
    }
    if plan.before:
        told = read_json(folder / BEFORE_FOLDER / RECORD_FILE) or {}
        record["before"] = {key: value for key, value in told.items() if key not in ("plan", "curve_columns")}
    write_whole(folder / RECORD_FILE, record_text(record).encode())
    return path


class _Run:
    """The phases of a run on scored clips."""

    def __init__(
        self, plan: Plan, folder: Path, student: DyMN, first: int, clips: ScoredClips, held: ScoredClips, tell: Tell
    ) -> None:
        self.plan, self.folder, self.student, self.first = plan, folder, student, first
        self.clips, self.held, self.tell = clips, held, tell
        self.scale = clips.variances()
        self.maps, self.held_maps = StudentMaps(student, clips, first), StudentMaps(student, held, first)
        self.rows: dict[tuple[int, ...], list[Any]] = {}
        for row in (read_json(folder / LOG_FILE) or {"rows": []})["rows"]:
            self.rows[tuple(row[:3])] = row

    def phase(self, number: int) -> None:
        """Carry out a phase; what of it was done before is taken over."""
        fit, behind = self.plan.phases[number], len(self.student.layers)
        first = max(fit.first_block, self.first)
        if fit.objective == "blocks":
            for block in range(first, fit.last_block + 1):
                self._fit(number, fit, block)
        else:
            self._fit(number, fit, first if fit.objective == "whole" else behind)
        if (number, behind + 1, fit.steps) not in self.rows:
            self._log(number, behind + 1, fit.steps, None, held_out_losses(self.student, self.held_maps))

    @torch.no_grad()
    def average(self, state: Mapping[str, np.ndarray], share: float) -> None:
        """Take the average of the student's weights and another network's, of which that share is the other's."""
        for name, value in self.student.state_dict().items():
            if value.is_floating_point():
                value.lerp_(torch.as_tensor(np.array(state[name], np.float32)), share)
        self.held_maps.changed(self.first)
        number, whole = len(self.plan.phases), len(self.student.layers) + 1
        self._log(number, whole, 0, None, held_out_losses(self.student, self.held_maps))

    def _fit(self, number: int, fit: Fit, block: int) -> None:
        parameters = trained_parts(fit, self.student, block)
        done = self.folder / FITS_FOLDER / f"{number}-{block:02d}.safetensors"
        state = done.with_suffix(".pt")  # the fit's own, so that one left behind is never another's
        if done.exists():
            self.student.load_state_dict(load_file(done), strict=False)
        else:
            loss, check = self._objective(fit, block)
            minimise(
                fit,
                parameters,
                loss,
                len(self.clips),
                state,
                seed=(self.plan.seed, number, block),
                check=check,
                tell=lambda step, value, held: self._log(number, block, step, value, held),
            )
            write_whole(done, save({name: p.detach().contiguous() for name, p in parameters.items()}))
        state.unlink(missing_ok=True)
        self.student.requires_grad_(False)
        self.maps.changed(block)
        self.held_maps.changed(block)

    def _objective(self, fit: Fit, block: int) -> tuple[Callable[[Tensor], Tensor], Callable[[], list[float]]]:
        """Return the loss of a batch's clips, and the measure on the held-out ones."""
        student, maps = self.student, self.maps.before(block)
        if fit.objective == "blocks":
            layer, place = cast(DynamicBlock, student.layers[block]), block - self.first
            variance = self.scale.out[place]
            ours, held = (
                GateInputs.of(layer, some.before(block), some.clips.places[place], some.clips.out[place])
                for some in (self.maps, self.held_maps)
            )
            return (
                lambda picks: gates_error(layer, ours, picks, variance),
                lambda: [held_out_error(layer, held, variance)],
            )
        if fit.objective == "whole":

            def measured() -> list[float]:
                self.held_maps.changed(block)
                return held_out_losses(student, self.held_maps)

            return lambda picks: whole_loss(fit, student, maps, self.clips, picks, self.scale, self.first), measured

        def loss(picks: Tensor) -> Tensor:
            y = torch.stack([maps[n] for n in picks.tolist()]).float()
            scores, squared = head_losses(student, y, self.clips, picks)
            return fit.score_weight * scores + fit.logit_weight * squared

        return loss, lambda: held_out_losses(student, self.held_maps)

    def _log(self, phase: int, block: int, step: int, loss: float | None, held_out: list[float]) -> None:
        row = [phase, block, step, *(None if v is None else float(f"{v:.{DIGITS}g}") for v in (loss, *held_out))]
        self.rows[phase, block, step] = row
        write_json(self.folder / LOG_FILE, {"rows": self.table()})
        self.tell(f"phase {phase} block {block} step {step}: loss {row[3]}, held out {row[4:]}")

    def table(self) -> list[list[Any]]:
        """Return the rows of the log in order: phase, block, step, loss, and what was measured on held-out clips."""
        return [self.rows[key] for key in sorted(self.rows)]


def _claim(folder: Path, plan: Plan) -> None:
    """Write the plan into the run's folder, or find the same one there."""
    plain = dict_of(plan)
    if (kept := read_json(folder / PLAN_FILE)) is not None:
        theirs = dict_of(plan_of(kept))  # with the defaults of fields that are younger than the file
        if differing := sorted(name for name in plain if theirs[name] != plain[name]):
            raise InvalidInputError(
                f"{folder} holds a run of another plan ({', '.join(differing)}); choose another folder"
            )
    write_json(folder / PLAN_FILE, plain)


def _inherited(plan: Plan, network: NetworkConfig, teacher: MN, mixer: Mixer, samples: int) -> DyMN:
    """Build the student that every run of the plan begins with."""
    torch.manual_seed(plan.seed)
    student = cast(DyMN, build_network(network).eval().requires_grad_(False))
    check_teacher(teacher, student)
    x = LogMel()(torch.from_numpy(mixer.clips(np.random.default_rng(plan.seed), INHERIT_CLIPS, samples)))
    inherit(student, teacher, x)
    return student


def _audio(bank: Path) -> dict[str, Any]:
    """Tell what a bank holds: pieces and hours of each split, and pieces of each source under its licence."""
    pieces = PieceBank.open(bank)
    with np.load(bank / PLACES_FILE) as places:
        split = places["split"]
    hours = {name: round(float(pieces.length[split == name].sum()) / HOUR_SAMPLES, 2) for name in sorted(set(split))}
    told: dict[str, Any] = {"pieces": dict(sorted(Counter(split.tolist()).items())), "hours": hours}
    if (bank / INDEX_FILE).exists():
        with open(bank / INDEX_FILE, newline="", encoding="utf-8") as file:
            sources = Counter((row.get("licence", ""), row.get("source", "")) for row in csv.DictReader(file))
        told["sources"] = {}
        for (licence, source), count in sorted(sources.items()):
            told["sources"].setdefault(licence or "not told", {})[source or "not told"] = count
    return told


def _weights_digest(network: nn.Module) -> str:
    """Compute the SHA-256 of a network's tensors as bytes, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def record_text(record: Mapping[str, Any]) -> str:
    """Write a record as JSON, every list and every innermost dictionary on one line."""
    text = json.dumps(record, indent=1)
    return (
        re.sub(r"([\[{])\n\s+([^\[\]{}]*?)\s+([\]}])", lambda m: re.sub(r"\s+", " ", "".join(m.groups())), text) + "\n"
    )

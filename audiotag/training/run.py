"""A training run in a folder: states to resume from, a log, a copy of the recipe, and the exported checkpoint."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.load import build, load_checkpoint, save_weights
from ..config import CheckpointConfig
from ..errors import InvalidInputError, MissingDependencyError
from .bank import LABELS_FILE, LOGITS_FILE, PieceBank, read_split, read_table
from .batches import Batches
from .recipes import Recipe, write_recipe
from .recipes import recipe as named_recipe

LAST_STATE = "last.ckpt"
EXPORT_FILE = "model.safetensors"


def half(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Store a state dict's float32 tensors as float16, which halves a checkpoint's file."""
    return {key: value.half() if value.dtype == torch.float32 else value for key, value in state.items()}


def export(network: nn.Module, config: CheckpointConfig, card: dict[str, Any], path: str | Path) -> Path:
    """Write a trained network as a float16 checkpoint that `audiotag` loads.

    Raises
    ------
    InvalidInputError
        If a weight is not finite or does not fit float16.
    """
    state = half({key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()})
    broken = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if broken:
        raise InvalidInputError(
            f"network holds values that are not finite in float16: {', '.join(broken[:3])}; it cannot be exported"
        )
    save_weights(path, state, config, card)
    return Path(path)


def load_teachers(names: Sequence[str]) -> list[nn.Module]:
    """Load the networks of the checkpoints of those names, folders or files."""
    return [build(load_checkpoint(name)) for name in names]


def make_batches(
    folders: Sequence[str | Path], recipe: Recipe, *, seed: int, process: int = 0, split: str = "train"
) -> Batches:
    """Make batches of the pieces of one split of some banks."""
    picks = read_split(folders, split)
    labels, logits = read_table(folders, LABELS_FILE), read_table(folders, LOGITS_FILE)
    return Batches(
        PieceBank.open(*folders).subset(picks),
        recipe,
        logits=None if logits is None else logits[picks],
        labels=None if labels is None else labels[picks],
        seed=seed,
        process=process,
    )


def distil(
    banks: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    recipe: str | Recipe = "features",
    teachers: Sequence[str] = (),
    begin: str | None = None,
    resume: bool = False,
    steps_scale: float = 1.0,
    seed: int = 0,
    devices: int = 1,
    nodes: int = 1,
    accelerator: str = "auto",
    precision: str | None = None,
    save_every: int = 500,
) -> Path:
    """Run a recipe to its end and export the network; the command ``audiotag train distil``.

    Parameters
    ----------
    banks : path or list of paths
        Made by `audiotag.training.prepare`; several serve as one.
    out : path
        The run's folder. ``last.ckpt`` in it is replaced whole every `save_every` steps.
    recipe : str or Recipe
        A recipe, its name, or the JSON file of one, such as the ``recipe.json`` of another run.
    begin : str, optional
        Checkpoint of the recipe's network whose weights the student begins with; random ones otherwise.
    resume : bool
        Go on from ``last.ckpt``; batches, rates and temperature go on as if nothing had happened.

    Returns
    -------
    Path
        The exported ``model.safetensors``.

    Raises
    ------
    InvalidInputError
        If the run folder already holds a state and `resume` is not asked for, or the reverse; if `begin` is of
        another network.
    """
    try:
        import lightning
        from lightning.pytorch.callbacks import ModelCheckpoint
        from lightning.pytorch.loggers import CSVLogger
    except ImportError as error:
        raise MissingDependencyError(
            "training needs Lightning; install it with: pip install audiotag-dymn[train]"
        ) from error
    from .module import Distillation

    plan = (named_recipe(recipe) if isinstance(recipe, str) else recipe).scaled(steps_scale)
    folders = [banks] if isinstance(banks, (str, Path)) else list(banks)
    folder = Path(out)
    state = folder / LAST_STATE
    if state.exists() != resume:
        next_step = (
            "give --resume to go on from it, or another folder" if state.exists() else "leave --resume out to begin"
        )
        raise InvalidInputError(f"{folder} holds {'a' if state.exists() else 'no'} {LAST_STATE}: {next_step}")
    folder.mkdir(parents=True, exist_ok=True)
    write_recipe(plan, folder / "recipe.json")
    lightning.seed_everything(seed, verbose=False)
    local, node = (int(os.environ.get(name, "0")) for name in ("LOCAL_RANK", "NODE_RANK"))
    process = int(os.environ.get("RANK", str(node * devices + local)))  # each draws its own batches
    batches = make_batches(folders, plan, seed=seed, process=process)
    if resume:
        batches.first_step = int(torch.load(state, map_location="cpu", weights_only=True)["global_step"])
    module = Distillation(plan, load_teachers(teachers), batches, begin=_beginning(begin, plan))
    trainer = lightning.Trainer(
        max_steps=plan.steps,
        max_epochs=-1,
        accelerator=accelerator,
        devices=devices,
        num_nodes=nodes,
        # phases train different parts, which plain DDP would wait for
        strategy="ddp_find_unused_parameters_true" if devices * nodes > 1 else "auto",
        precision=precision or plan.precision,  # type: ignore[arg-type]
        gradient_clip_val=plan.gradient_clip or None,
        use_distributed_sampler=False,
        logger=CSVLogger(str(folder), name="", version=f"log-{batches.first_step:09d}"),
        log_every_n_steps=1,
        callbacks=[
            ModelCheckpoint(
                folder,
                filename="last",
                every_n_train_steps=save_every,
                save_on_train_epoch_end=True,
                enable_version_counter=False,
            )
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    trainer.fit(module, loader, ckpt_path=str(state) if resume else None, weights_only=True if resume else None)
    config = CheckpointConfig(name=folder.resolve().name, network=plan.network)
    card = {
        "description": f"Distilled with the recipe {plan.name!r}",
        "trained_on": ", ".join(map(str, folders)),
        "teachers": list(teachers),
    }
    path = folder / EXPORT_FILE
    return export(module.trained(), config, card, path) if trainer.is_global_zero else path


def _beginning(name: str | None, plan: Recipe) -> dict[str, Tensor] | None:
    if name is None:
        return None
    loaded = load_checkpoint(name)
    if loaded.config.network != plan.network:
        raise InvalidInputError(f"recipe {plan.name} trains {plan.network}, but {name} is {loaded.config.network}")
    return build(loaded).state_dict()


def read_log(folder: str | Path) -> dict[str, list[tuple[int, float]]]:
    """Read a run's log as (step, value) by column; what a run did again after it was resumed counts as last done."""
    columns: dict[str, dict[int, float]] = {}
    for file in sorted(Path(folder).glob("log-*/metrics.csv")):
        with open(file, newline="") as lines:
            for row in csv.DictReader(lines):
                step = int(row.pop("step"))
                for name, value in row.items():
                    if value and name != "epoch":
                        columns.setdefault(name, {})[step] = float(value)
    return {name: sorted(values.items()) for name, values in columns.items()}

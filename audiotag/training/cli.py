"""The `audiotag train` command: prepare audio, distil, evaluate, export. Imports nothing heavy until it runs."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ..errors import MissingDependencyError


def add_parser(subparsers: Any) -> None:
    """Add ``train`` and its own commands to the command line's subparsers."""
    train = subparsers.add_parser(
        "train", help="distil a network from others, and evaluate it (needs audiotag-dymn[train])"
    )
    commands = train.add_subparsers(dest="train_command", required=True, metavar="COMMAND")

    prepare = commands.add_parser("prepare", help="decode folders and tars of audio once into a bank of pieces")
    prepare.add_argument("sources", nargs="+", metavar="SOURCE", help="folder or tar of audio files")
    prepare.add_argument("--out", required=True, metavar="FOLDER", help="folder of the bank; must not hold one yet")
    prepare.add_argument(
        "--index", metavar="CSV", help="table with id (file name without suffix), split, source and licence"
    )
    prepare.add_argument(
        "--labels", metavar="CSV", help="table with id and label (name or mid), one row per label present"
    )
    prepare.add_argument(
        "--max-s", type=float, default=10.0, help="longer recordings are cut into pieces of this many seconds"
    )
    prepare.add_argument(
        "--teacher",
        metavar="CHECKPOINT",
        help="store this one's scores of every piece: they balance the drawing, and recipe paper learns from them",
    )
    prepare.set_defaults(run=run_prepare)

    distil = commands.add_parser("distil", help="train a network to give a teacher's scores")
    distil.add_argument("banks", nargs="+", metavar="BANK", help="folder made by `audiotag train prepare`")
    distil.add_argument(
        "--recipe", default="features", help="features, paper, or a JSON file such as another run's recipe.json"
    )
    distil.add_argument(
        "--teacher",
        action="append",
        default=[],
        metavar="CHECKPOINT",
        help="name, folder or file; several are averaged",
    )
    distil.add_argument(
        "--begin", metavar="CHECKPOINT", help="begin with this checkpoint's weights (default: random ones)"
    )
    distil.add_argument(
        "--out", required=True, metavar="FOLDER", help="run folder: states to resume from, logs, exports"
    )
    distil.add_argument("--resume", action="store_true", help="go on from the run folder's last state")
    distil.add_argument(
        "--steps-scale", type=float, default=1.0, help="multiply every phase's steps, to try a recipe out"
    )
    distil.add_argument("--seed", type=int, default=0)
    distil.add_argument("--devices", type=int, default=1, help="processes or GPUs on each machine")
    distil.add_argument("--nodes", type=int, default=1, help="machines")
    distil.add_argument("--accelerator", default="auto", help="auto, cpu, gpu, mps")
    distil.add_argument(
        "--precision", default=None, help="Lightning's name of it, such as 32-true, bf16-mixed, 16-mixed"
    )
    distil.add_argument(
        "--save-every", type=int, default=500, metavar="STEPS", help="steps between states to resume from"
    )
    distil.set_defaults(run=run_distil)

    blockwise = commands.add_parser(
        "open",
        help="train a DyMN block by block from an MN, as dymn04_open was; the same command goes on after any end",
    )
    blockwise.add_argument(
        "plan", metavar="PLAN", help="JSON file with audio, teacher, seed and phases, or the record of another run"
    )
    blockwise.add_argument("--out", required=True, metavar="FOLDER", help="run folder: clips, fits, log, checkpoint")
    blockwise.set_defaults(run=run_open)

    evaluate = commands.add_parser("evaluate", help="mAP, AUC and d-prime on labelled pieces, agreement with a teacher")
    evaluate.add_argument("banks", nargs="+", metavar="BANK", help="folder made by `audiotag train prepare`")
    evaluate.add_argument(
        "--checkpoint", default=None, metavar="CHECKPOINT", help="name, folder or file (default: the built-in one)"
    )
    evaluate.add_argument(
        "--teacher", default=None, metavar="CHECKPOINT", help="compare with this one's scores on the same pieces"
    )
    evaluate.add_argument("--split", default="val", help="pieces of this split of the bank's index")
    evaluate.add_argument("--out", required=True, metavar="FOLDER", help="folder for report.json and report.png")
    evaluate.add_argument("--batch-size", type=int, default=8)
    evaluate.set_defaults(run=run_evaluate)

    thresholds = commands.add_parser(
        "thresholds", help="write a checkpoint again with each label's threshold of best F1 against a teacher"
    )
    thresholds.add_argument("banks", nargs="+", metavar="BANK", help="folder made by `audiotag train prepare`")
    thresholds.add_argument("--checkpoint", required=True, metavar="CHECKPOINT", help="name, folder or file")
    thresholds.add_argument("--teacher", required=True, metavar="CHECKPOINT", help="whose scores say what is there")
    thresholds.add_argument("--split", default="val", help="pieces of this split of the banks' index")
    thresholds.add_argument("--clips", type=int, default=4_000, help="mixtures of those pieces that both score")
    thresholds.add_argument("--out", required=True, metavar="FILE", help="the .safetensors file to write")
    thresholds.set_defaults(run=run_thresholds)


def run_prepare(args: argparse.Namespace) -> int:
    _need_torch()
    from .prepare import prepare_bank

    count = prepare_bank(
        args.sources, args.out, index=args.index, labels=args.labels, teacher=args.teacher, max_s=args.max_s
    )
    print(f"{count} pieces in {args.out}")
    return 0


def run_distil(args: argparse.Namespace) -> int:
    _need_torch()
    from .run import distil

    exported = distil(
        args.banks,
        args.out,
        recipe=args.recipe,
        teachers=args.teacher,
        begin=args.begin,
        resume=args.resume,
        steps_scale=args.steps_scale,
        seed=args.seed,
        devices=args.devices,
        nodes=args.nodes,
        accelerator=args.accelerator,
        precision=args.precision,
        save_every=args.save_every,
    )
    print(exported)
    return 0


def run_open(args: argparse.Namespace) -> int:
    _need_torch()
    from .blockwise.run import train_blockwise

    print(train_blockwise(args.plan, args.out, tell=lambda line: print(line, file=sys.stderr, flush=True)))
    return 0


def run_evaluate(args: argparse.Namespace) -> int:
    _need_torch()
    from .evaluate import evaluate_bank

    report = evaluate_bank(
        args.banks,
        args.out,
        checkpoint=args.checkpoint,
        teacher=args.teacher,
        split=args.split,
        batch_size=args.batch_size,
    )
    print(report.summary())
    return 0


def run_thresholds(args: argparse.Namespace) -> int:
    _need_torch()
    from .thresholds import add_thresholds

    made = add_thresholds(
        args.banks, args.checkpoint, args.out, teacher=args.teacher, split=args.split, clips=args.clips
    )
    kept = [f1 for f1 in made.f1 if f1 is not None]
    print(f"{args.out}: thresholds for {len(kept)} of {len(made.score)} labels")
    return 0


def _need_torch() -> None:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            'training needs torch and Lightning: pip install "audiotag-dymn[train]"'
        ) from error

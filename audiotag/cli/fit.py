"""Commands about labels of one's own: fit and evaluate. Parsing needs no torch."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from typing import Any

from ..errors import InvalidInputError
from ..runs.progress import tell
from ..text import clock, printable

DATA = """\
DATA is a folder of folders named by label, at any depth; a folder of recordings with Audacity label tracks or Raven
selection tables beside them (dawn.wav, dawn.labels.txt or dawn.selections.txt); or a CSV or TSV with the columns file
and label, and any of onset, offset, fold, split, group. In a label cell, "a;b" are two labels, "-a" is verified absent,
"?a" is unknown. background, noise, none and silence are no label.
"""
EXAMPLES = """\
examples:
  audiotag fit sounds/ -o my_model                 sounds/dog/a.wav, sounds/cat/b.wav, ...
  audiotag fit labels.csv -o my_model --group site --negatives quiet_nights/
  audiotag tag field.wav --model my_model
"""
UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add ``fit`` and ``evaluate`` to the command's parsers."""
    fit = commands.add_parser(
        "fit",
        help="learn labels of your own from labelled recordings (needs audiotag-dymn[fit])",
        description="Learn labels of your own and write a checkpoint folder that every other command takes as --model, "
        "with honest figures and a report.",
        epilog=f"{DATA}\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    fit.add_argument("data", metavar="DATA", help="labelled recordings: a folder or a table")
    fit.add_argument("-o", "--output", metavar="FOLDER", help="folder to make, new or empty (needed but for --dry-run)")
    fit.add_argument(
        "--method",
        choices=("auto", "probe", "finetune"),
        default="auto",
        help="probe: logistic regression on embeddings; finetune: the whole network; auto: the better one that fits "
        "into --time-limit (default: %(default)s)",
    )
    fit.add_argument("--model", metavar="NAME", help="checkpoint to start from (default: the built-in one)")
    _add_task(fit)
    fit.add_argument(
        "--group",
        metavar="file|parent|COLUMN|REGEX",
        help="what must not be on both sides of a split: a file, the folder it lies in, a column, or what a regular "
        "expression finds in the path (default: the column group, else file)",
    )
    fit.add_argument("--folds", metavar="N|COLUMN", type=_folds, help="default: the column fold, else 5")
    fit.add_argument("--test", metavar="PATH", help="labelled recordings to test on and never train on")
    _add_negatives(fit)
    fit.add_argument("--keep-audioset", action="store_true", help="give AudioSet's labels too, from the same pass")
    fit.add_argument("--time-limit", metavar="TIME", type=_seconds, help="such as 90s, 10m or 2h, for the whole fit")
    fit.add_argument("--resume", action="store_true", help="go on with fine-tuning where a killed run was")
    fit.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    fit.add_argument("--dry-run", action="store_true", help="check the data and show the splits, nothing more")
    _add_machine(fit)
    fit.add_argument("--cache", metavar="FOLDER", help="where embeddings are kept (default: ~/.cache/audiotag)")
    fit.set_defaults(run=run_fit)

    evaluate = commands.add_parser(
        "evaluate",
        help="how well a checkpoint does on labelled recordings (needs audiotag-dymn[fit])",
        description="Score labelled recordings with a checkpoint and report how well: the report that fit makes, on "
        "other data.",
        epilog=DATA,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    evaluate.add_argument("model", metavar="MODEL", help="folder that fit made, or any other checkpoint")
    evaluate.add_argument("data", metavar="DATA", help="labelled recordings: a folder or a table")
    evaluate.add_argument("-o", "--output", metavar="FOLDER", help="folder for the report (default: figures in print)")
    _add_task(evaluate)
    _add_negatives(evaluate)
    evaluate.add_argument("--seed", type=int, default=0, help="of the intervals (default: %(default)s)")
    _add_machine(evaluate)
    evaluate.set_defaults(run=run_evaluate)


def _add_task(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--task",
        choices=("auto", "single", "multi"),
        default="auto",
        help="at most one label a recording, or any number (default: as the data has it)",
    )


def _add_negatives(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--negatives", metavar="DIR", help="folder of recordings that have no label")


def _add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda, mps ... (default: cuda where there is one, else cpu)")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def _folds(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in UNITS or not float(match[1]):
        raise argparse.ArgumentTypeError(f"must be a time such as 90s, 10m or 2h, got {text!r}")
    return float(match[1]) * UNITS[match[2]]


def run_fit(args: argparse.Namespace) -> int:
    """Learn own labels, and print how well they are told."""
    from ..training.fit.run import fit

    if args.output is None and not args.dry_run:
        raise InvalidInputError("name the folder to make with -o, or only look at the data with --dry-run")
    with _Bar(quiet=args.quiet) as bar:
        made = fit(
            args.data,
            args.output,
            method=args.method,
            model=args.model,
            task=args.task,
            group=args.group,
            folds=args.folds,
            test=args.test,
            negatives=args.negatives,
            keep_audioset=args.keep_audioset,
            time_limit_s=args.time_limit,
            resume=args.resume,
            seed=args.seed,
            dry_run=args.dry_run,
            device=args.device,
            cache_dir=args.cache,
            progress=bar,
        )
    warnings = made.metrics["warnings"] if args.dry_run else made.metrics["data"]["warnings"]
    for line in warnings:
        tell(f"warning: {line}")
    if args.dry_run:
        _print_plan(made.metrics)
        return 0
    _print_figures(made.metrics)
    print(f"\n{made.folder}: report.html has the rest; use it with --model {made.folder}")
    return 1 if made.metrics["data"]["unreadable"] else 0


def run_evaluate(args: argparse.Namespace) -> int:
    """Print how well a checkpoint does on labelled recordings."""
    from ..training.fit.evaluate import evaluate

    with _Bar(quiet=args.quiet) as bar:
        made = evaluate(
            args.model,
            args.data,
            args.output,
            task=args.task,
            negatives=args.negatives,
            seed=args.seed,
            device=args.device,
            progress=bar,
        )
    for line in made.metrics["data"]["warnings"]:
        tell(f"warning: {line}")
    _print_figures(made.metrics)
    if made.folder is not None:
        print(f"\n{made.folder}: report.html has the rest")
    return 1 if made.metrics["data"]["unreadable"] else 0


def _print_plan(plan: Mapping[str, Any]) -> None:
    print(
        f"{plan['recordings']:,} recordings, {plan['clips']:,} clips, {plan['hours'] * 60:.1f} minutes, "
        f"{plan['groups']:,} groups; task: {plan['task']}"
    )
    print(
        "folds"
        + (" (given)" if plan["folds_given"] else "")
        + ": "
        + ", ".join(f"{name}: {count:,}" for name, count in plan["folds"].items())
        + (f"; test: {plan['test']:,}" if plan["test"] else "")
    )
    for name, count in plan["labels"].items():
        print(f"  {count:6,}  {printable(name)}")
    print(f"  {plan['background']:6,}  (no label)")


def _print_figures(metrics: Mapping[str, Any]) -> None:
    from ..training.fit.page import TITLES

    for key, about in (("out_of_fold", "out-of-fold"), ("figures", "all clips"), ("test", "test split")):
        figures = metrics.get(key)
        if not figures:
            continue
        print(f"{about}: {figures['clips']:,} clips, {figures['groups']:,} groups ({metrics['method']})")
        for name, (title, _) in TITLES.items():
            if figures.get(name) is not None:
                between = figures["interval_95"].get(name)
                told = f"  (95 %: {between[0]:.1%} to {between[1]:.1%})" if between else ""
                print(f"  {title:24s} {figures[name]:6.1%}{told}")
        if figures["false_alarms"]:
            print(f"  {'False alarms per hour':24s} {figures['false_alarms']['per_hour']:6.1f}")
    if "seconds" in metrics:
        print(f"took {clock(metrics['seconds'])}")


class _Bar:
    """Progress bar of one thing after another, on a terminal."""

    def __init__(self, *, quiet: bool) -> None:
        self._bar: Any = None
        self._what = ""
        self._shown = sys.stderr.isatty() and not quiet

    def __call__(self, what: str, done: int, of: int) -> None:
        if not self._shown:
            return
        from tqdm import tqdm

        if what != self._what:
            self.close()
            self._what = what
            self._bar = tqdm(total=of, desc=what, leave=False, dynamic_ncols=True, delay=0.3)
        self._bar.total = of
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

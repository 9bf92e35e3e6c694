"""Options that several commands have, and the types of their values."""

from __future__ import annotations

import argparse
from typing import Any

DEFAULT_TOP = 10


def add_top(parser: argparse._ActionsContainer) -> None:
    """Add ``--top`` and ``--threshold``, which choose tags; `chosen_top` reads the first."""
    parser.add_argument(
        "--top",
        type=number_or_all,
        metavar="N",
        help=f"at most N labels, or all (default: {DEFAULT_TOP}; all that reach --threshold if that is given)",
    )
    parser.add_argument(
        "--threshold",
        type=score_or_auto,
        metavar="SCORE",
        help="only labels scoring at least this, 0 to 1, or auto: each label's threshold stored with the checkpoint "
        "(default: auto for own labels, else none)",
    )


def chosen_top(args: argparse.Namespace) -> int | None:
    """Return how many tags the options ask for at most, None for all."""
    top = args.top if args.top is not None else DEFAULT_TOP if args.threshold is None else 0
    return top or None


def add_roll_up(parser: argparse._ActionsContainer) -> None:
    """Add ``--roll-up``."""
    parser.add_argument(
        "--roll-up", action="store_true", help="give a label at least the best score of the labels under it"
    )


def add_from_file(parser: argparse._ActionsContainer) -> None:
    """Add ``--from-file``; `audiotag.cli.session.Inputs` reads it."""
    parser.add_argument(
        "--from-file",
        metavar="LIST",
        help="also the files and folders named in LIST, one per line or NUL-separated; - reads the list from stdin",
    )


def add_labels(parser: argparse._ActionsContainer) -> None:
    """Add ``--include`` and ``--exclude``."""
    for name, about in (
        ("--include", "only this label and those under it"),
        ("--exclude", "not this label, nor those under it"),
    ):
        parser.add_argument(
            name,
            action="append",
            metavar="LABEL",
            help=f"{about}; repeat it for several ('audiotag labels' lists them)",
        )


def add_on_off(parser: argparse._ActionsContainer, on: str, off: str) -> None:
    """Add ``--on`` and ``--off``, the scores at which events start and end."""
    parser.add_argument(
        "--on",
        type=score_or_auto,
        metavar="SCORE",
        help=f"{on}, or auto: each label's threshold stored with the checkpoint "
        "(default: auto for own labels, else 0.3)",
    )
    parser.add_argument("--off", type=float, metavar="SCORE", help=f"{off} (default: half of --on)")


def add_hop(parser: argparse._ActionsContainer, default: str) -> None:
    """Add ``--hop``, the step between windows."""
    parser.add_argument("--hop", type=float, metavar="S", help=f"step between windows in seconds (default: {default})")


def add_window(parser: argparse._ActionsContainer) -> None:
    """Add ``--window``, the length of the windows."""
    parser.add_argument(
        "--window",
        type=float,
        metavar="S",
        help="length of the windows in seconds (default: the checkpoint's, 10 for most); 3 to 5 time events better",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the group "checkpoint": which one, and how it runs; `audiotag.cli.session.load_tagger` reads it."""
    group = parser.add_argument_group("checkpoint")
    group.add_argument("--model", metavar="NAME", help="a name of 'audiotag models', a file, folder or Hub repository")
    group.add_argument(
        "--runtime",
        choices=("auto", "torch", "openvino", "onnxruntime"),
        default="auto",
        help="what runs the network; scores are the same (default: auto, the quickest here for this much audio)",
    )
    group.add_argument("--device", help="cpu, cuda, cuda:1, mps ... (default: cuda where there is one, else cpu)")
    group.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    group.add_argument("--batch-size", type=int, metavar="N", help="windows per run of the network; changes speed only")
    group.add_argument("--revision", help="commit, branch or tag of a Hub repository")
    add_cache_option(group)
    group.add_argument("--local-files-only", action="store_true", help="never download")
    add_unverified_option(group)


def checkpoint_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the group "checkpoint" says of finding one, as arguments of `Tagger.from_pretrained`."""
    return {name: getattr(args, name) for name in ("revision", "cache_dir", "local_files_only", "allow_unverified")}


def add_cache_option(parser: argparse._ActionsContainer) -> None:
    """Add ``--cache-dir``."""
    parser.add_argument("--cache-dir", metavar="DIR", help="where checkpoints are kept (default: the Hub's cache)")


def add_unverified_option(parser: argparse._ActionsContainer) -> None:
    """Add ``--allow-unverified``."""
    parser.add_argument(
        "--allow-unverified",
        action="store_true",
        help="fetch a file of which no checksum is known; its digest is printed so that you can pin it",
    )


def add_text_or_json(parser: argparse._ActionsContainer) -> None:
    """Add ``--format`` for what is short enough for either."""
    parser.add_argument("--format", choices=("text", "json"), default="text")


def number_or_all(text: str) -> int:
    """Read a number of labels; 0 stands for all."""
    if text == "all":
        return 0
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a positive number or 'all', got {text!r}")
    return number


def table(rows: list[list[str]], right: set[int]) -> str:
    """Align rows as columns, two spaces apart; the columns in `right` are flush right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def score_or_auto(text: str) -> float | str:
    """Read a score, or the word auto."""
    if text == "auto":
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a score from 0 to 1 or 'auto', got {text!r}") from None

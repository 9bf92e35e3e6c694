"""Commands about checkpoints, labels and this installation: models, fetch, convert, labels, info, completion."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any


def add_parsers(commands: argparse._SubParsersAction) -> None:
    models = commands.add_parser("models", help="list the checkpoints: size, accuracy, licence, where they come from")
    models.add_argument("--format", choices=("text", "json"), default="text")
    add_cache_option(models)
    models.set_defaults(run=run_models)

    fetch = commands.add_parser("fetch", help="download and verify a checkpoint, for use offline")
    fetch.add_argument("name", help="a name that `audiotag models` lists, or a Hub repository id")
    add_cache_option(fetch)
    add_unverified_option(fetch)
    fetch.set_defaults(run=run_fetch)

    convert = commands.add_parser("convert", help="make a Hub-ready folder of a released .pt file")
    convert.add_argument("source", metavar="SRC", help=".pt file, checkpoint name or folder")
    convert.add_argument("folder", metavar="DIR", help="folder to write; must be new or empty")
    add_cache_option(convert)
    add_unverified_option(convert)
    convert.set_defaults(run=run_convert)

    labels = commands.add_parser("labels", help="list or search the labels")
    labels.add_argument("words", nargs="*", metavar="WORDS", help="words that a label's name must contain")
    labels.add_argument("--format", choices=("text", "json"), default="text")
    labels.set_defaults(run=run_labels)

    info = commands.add_parser("info", help="versions, devices and cache, for bug reports")
    info.add_argument("--format", choices=("text", "json"), default="text")
    info.set_defaults(run=run_info)

    completion = commands.add_parser(
        "completion",
        help="print a shell completion script",
        description="Print a completion script. bash: audiotag completion bash > "
        "~/.local/share/bash-completion/completions/audiotag; zsh: write it to a file named _audiotag in your fpath.",
    )
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    completion.set_defaults(run=run_completion)


def add_cache_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--cache-dir", metavar="DIR", help="where checkpoints are kept (default: the Hub's cache)")


def add_unverified_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--allow-unverified",
        action="store_true",
        help="fetch a file of which no checksum is known; its digest is printed so that you can pin it",
    )


def table(rows: list[list[str]], right: set[int]) -> str:
    """Rows as aligned columns, two spaces apart; the columns in `right` are flush right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def run_models(args: argparse.Namespace) -> int:
    from ..checkpoints.fetch import status  # no torch: only the manifest and a look into the cache

    found = [status(name, cache_dir=args.cache_dir) for name in _manifest().entries]
    if args.format == "json":
        print(json.dumps(found, indent=1))
        return 0
    rows = [["name", "width", "params", "GMACs", "mAP", "size", "licence", "from", "here"]]
    for facts in found:
        rows.append(
            [
                facts["name"] + (" *" if facts["name"] == _manifest().default else ""),
                f"{facts['width']:g}",
                f"{facts['parameters'] / 1e6:.2f} M",
                _number(facts["gmacs"], "{:.2f}"),
                _number(facts["mean_average_precision"], "{:.3f}"),
                _size(facts),
                facts["licence"],
                facts["from"],
                "yes" if facts["cached"] else "no",
            ]
        )
    print(table(rows, right={1, 2, 3, 4, 5}))
    print(
        "\n* the default, inside the package. mAP: published, on AudioSet's evaluation set. GMACs: for 10 s. ~: about."
    )
    return 0


def _manifest() -> Any:
    from ..checkpoints.manifest import manifest

    return manifest()


def _number(value: float | None, form: str) -> str:
    return "?" if value is None else form.format(value)


def _size(facts: dict[str, Any]) -> str:
    """Of the file; about four bytes for each parameter where nobody has written it down."""
    if facts["size"] is not None:
        return f"{facts['size'] / 1e6:.1f} MB"
    return f"~{4 * facts['parameters'] / 1e6:.{0 if facts['parameters'] > 2e6 else 1}f} MB"


def run_fetch(args: argparse.Namespace) -> int:
    from ..checkpoints.fetch import fetch

    print(fetch(args.name, cache_dir=args.cache_dir, allow_unverified=args.allow_unverified))
    return 0


def run_convert(args: argparse.Namespace) -> int:
    from ..checkpoints.save import convert

    print(convert(args.source, args.folder, cache_dir=args.cache_dir, allow_unverified=args.allow_unverified))
    return 0


def run_labels(args: argparse.Namespace) -> int:
    from ..labels.label_set import audioset_labels

    labels = audioset_labels()
    found = labels.find(" ".join(args.words)) if args.words else list(labels)
    if args.format == "json":
        plain = [
            {
                "index": label.index,
                "mid": label.mid,
                "name": label.display_name,
                "parents": [node.name for node in labels.parents(label)],
            }
            for label in found
        ]
        print(json.dumps(plain, indent=1, ensure_ascii=False))
    elif found:
        rows = [["index", "mid", "name", "under"]]
        for label in found:
            parents = "; ".join(node.name for node in labels.parents(label))
            rows.append([str(label.index), label.mid, label.display_name, parents])
        print(table(rows, right={0}))
    if not found:
        print(f"audiotag: no label contains {' '.join(args.words)!r}", file=sys.stderr)
        return 1
    return 0


def run_info(args: argparse.Namespace) -> int:
    from .info import installation

    facts = installation()
    if args.format == "json":
        print(json.dumps(facts, indent=1))
    else:
        print(table([[key, str(value)] for key, value in facts.items()], right=set()))
    return 0


def run_completion(args: argparse.Namespace) -> int:
    import shtab

    from .command import build_parser

    print(shtab.complete(build_parser(), shell=args.shell))
    return 0

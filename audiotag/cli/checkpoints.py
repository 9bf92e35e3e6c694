"""Commands about checkpoints and their labels: models, fetch, convert, export, labels."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..errors import InvalidInputError
from .options import add_cache_option, add_text_or_json, add_unverified_option, table


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the commands to the command's parsers."""
    models = commands.add_parser("models", help="list the checkpoints: size, accuracy, licence, where they come from")
    add_text_or_json(models)
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

    export = commands.add_parser("export", help="write a checkpoint as an ONNX file that runs without audiotag")
    export.add_argument(
        "name", nargs="?", metavar="NAME", help="a checkpoint as for --model (default: the built-in one)"
    )
    export.add_argument("-o", "--output", required=True, metavar="FILE", help="the file to write, .onnx")
    export.add_argument("--no-frontend", action="store_true", help="the file takes log-mel instead of waveforms")
    add_cache_option(export)
    add_unverified_option(export)
    export.set_defaults(run=run_export)

    labels = commands.add_parser("labels", help="list or search the labels")
    labels.add_argument("words", nargs="*", metavar="WORDS", help="words that a label's name must contain")
    add_text_or_json(labels)
    labels.set_defaults(run=run_labels)


def run_models(args: argparse.Namespace) -> int:
    """Print the checkpoints there are."""
    from ..checkpoints.access import Access
    from ..checkpoints.fetch import status  # no torch: only the manifest and a look into the cache

    found = [status(name, Access(args.cache_dir)) for name in _manifest().entries]
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
    """Say how large the file is; about four bytes for each parameter where nobody has written it down."""
    if facts["size"] is not None:
        return f"{facts['size'] / 1e6:.1f} MB"
    return f"~{4 * facts['parameters'] / 1e6:.{0 if facts['parameters'] > 2e6 else 1}f} MB"


def run_fetch(args: argparse.Namespace) -> int:
    """Download a checkpoint and print where it is."""
    from ..checkpoints.access import Access
    from ..checkpoints.fetch import fetch

    print(fetch(args.name, Access(args.cache_dir, allow_unverified=args.allow_unverified)))
    return 0


def run_convert(args: argparse.Namespace) -> int:
    """Write a folder for the Hub and print where it is."""
    from ..checkpoints.access import Access
    from ..checkpoints.save import convert

    print(convert(args.source, args.folder, Access(args.cache_dir, allow_unverified=args.allow_unverified)))
    return 0


def run_export(args: argparse.Namespace) -> int:
    """Write an ONNX file and print where it is."""
    from ..tagger import Tagger

    if not args.output.endswith(".onnx"):
        raise InvalidInputError(f"-o {args.output}: an ONNX file's name must end in .onnx")
    tagger = Tagger.from_pretrained(
        args.name, prefer="start", cache_dir=args.cache_dir, allow_unverified=args.allow_unverified
    )
    print(tagger.export(args.output, frontend=not args.no_frontend))
    return 0


def run_labels(args: argparse.Namespace) -> int:
    """Print the labels that contain the words."""
    from ..labels.label_set import audioset_labels
    from ..runs.progress import tell

    labels = audioset_labels()
    found = labels.find(" ".join(args.words)) if args.words else list(labels)
    if args.format == "json":
        print(json.dumps([labels.describe(label) for label in found], indent=1, ensure_ascii=False))
    elif found:
        rows = [["index", "mid", "name", "under"]]
        for label in found:
            parents = "; ".join(node.name for node in labels.parents(label))
            rows.append([str(label.index), label.mid, label.display_name, parents])
        print(table(rows, right={0}))
    if not found:
        tell(f"no label contains {' '.join(args.words)!r}")
        return 1
    return 0

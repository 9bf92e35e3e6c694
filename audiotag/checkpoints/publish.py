"""Publishing known checkpoints: the maintainers' command that keeps the manifest.

``python -m audiotag.checkpoints.publish hub NAME...`` converts, uploads and records revision, size and SHA-256;
``... package FILE`` puts the built-in checkpoint into the package and records its size, SHA-256 and facts;
``... pin NAME...`` fetches release files and records their digests.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..errors import AudiotagError, CheckpointError, InvalidInputError
from ..files import write_whole
from .access import Access
from .digests import Digests, digests
from .fetch import fetch_entry, package_path
from .load import load_checkpoint, load_entry, save_weights
from .manifest import HUB_FILE, Entry, Manifest, Source, manifest_path, parse
from .push import push_to_hub
from .save import save_checkpoint
from .tensor_files import read_safetensors

log = logging.getLogger(__name__)

TEXT_FACTS = ("description", "trained_on", "licence", "metric_source")


def with_source(known: Manifest, name: str, source: Source) -> Manifest:
    """Return a manifest in which `source` takes the place of the entry's source of the same kind, or comes first."""
    entry = known.entry(name)
    kinds = [old.kind for old in entry.sources]
    sources = list(entry.sources)
    if source.kind in kinds:
        sources[kinds.index(source.kind)] = source
    else:
        sources.insert(0, source)
    return with_entry(known, replace(entry, sources=tuple(sources)))


def with_entry(known: Manifest, entry: Entry) -> Manifest:
    """Return a manifest in which an entry has been replaced."""
    return replace(known, entries=known.entries | {entry.name: entry})


def write_manifest(known: Manifest, path: Path) -> None:
    """Replace a manifest file, through a link if it is one, after reading back what will be written."""
    text = known.to_json()
    assert parse(text) == known
    write_whole(path.resolve(), text.encode())


def publish_to_hub(known: Manifest, name: str, namespace: str, *, private: bool = False) -> Manifest:
    """Convert and upload an entry's checkpoint, from its other sources; returns the manifest that records it."""
    if known.hub_namespace not in (None, namespace):
        raise InvalidInputError(f"namespace must be the manifest's {known.hub_namespace!r}, got {namespace!r}")
    entry = known.entry(name)
    elsewhere = replace(entry, sources=tuple(source for source in entry.sources if source.kind != "hub"))
    checkpoint = load_entry(elsewhere, known)
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(checkpoint, folder)
        revision = push_to_hub(folder, f"{namespace}/{name}", private=private, message=f"Add {name}")
        found = digests(Path(folder) / HUB_FILE)
    source = Source("hub", HUB_FILE, size=found.size, sha256=found.sha256, revision=revision)
    return with_source(replace(known, hub_namespace=namespace), name, source)


def put_in_package(
    known: Manifest, file: Path, facts: Mapping[str, Any] = MappingProxyType({}), destination: Path | None = None
) -> Manifest:
    """Write the built-in checkpoint into the package; returns the manifest that records its digest and facts.

    The tensors are those of `file`, in its precision; facts in the header become the manifest's, thresholds stay there.

    Parameters
    ----------
    file : path
        A ``.safetensors`` file as training writes it; its configuration must be the manifest's but for the name.
    facts : mapping
        Facts of the entry (`Entry`'s fields) that neither the manifest nor the file's header has right.
    destination : path, optional
        Instead of the package's own place.

    Raises
    ------
    CheckpointError
        If the file is malformed or of another configuration.
    """
    entry = known.entry(known.default)
    checkpoint = load_checkpoint(file)
    told = checkpoint.config
    if replace(told, name=entry.name, thresholds=None, threshold_support=None) != entry.config:
        raise CheckpointError(f"{file}: its configuration {checkpoint.config} is not the manifest's {entry.config}")
    names = [f.name for f in fields(Entry) if f.name not in ("name", "config", "sources")]
    if unknown := sorted(set(facts) - set(names)):
        raise InvalidInputError(f"facts must be among {', '.join(names)}, got {', '.join(unknown)}")
    known_facts = {name: checkpoint.card[name] for name in names if name in checkpoint.card} | dict(facts)
    entry = replace(entry, **known_facts)
    source = next(source for source in entry.sources if source.kind == "package")
    target = destination or package_path(source)
    state, _ = read_safetensors(file)
    config = replace(entry.config, thresholds=told.thresholds, threshold_support=told.threshold_support)
    save_weights(target, state, config, checkpoint.card | entry.card())
    found = digests(target)
    return with_source(with_entry(known, entry), entry.name, replace(source, size=found.size, sha256=found.sha256))


def pin(known: Manifest, name: str) -> tuple[Manifest, Digests]:
    """Fetch an entry's release file, load it, and record its digests; returns the manifest that does, and them."""
    entry = known.entry(name)
    source = next((source for source in entry.sources if source.kind == "release"), None)
    if source is None:
        raise InvalidInputError(f"{name!r} has no release file to pin")
    released = replace(entry, sources=(source,))
    access = Access(allow_unverified=True)
    load_entry(released, known, access)
    found = digests(fetch_entry(released, known, access).path)
    return with_source(known, name, replace(source, **found._asdict())), found


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m audiotag.checkpoints.publish", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--manifest", type=Path, default=manifest_path(), help="the file to update (default: the package's)"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    hub = commands.add_parser("hub", help="convert, upload and record checkpoints")
    hub.add_argument("names", nargs="+", metavar="NAME")
    hub.add_argument("--namespace", help="user or organisation on the Hub (default: the manifest's)")
    hub.add_argument("--private", action="store_true")
    package = commands.add_parser("package", help="put the built-in checkpoint into the package and record it")
    package.add_argument("file", type=Path, metavar="FILE", help=".safetensors, as training writes it")
    for fact in TEXT_FACTS:
        package.add_argument(f"--{fact.replace('_', '-')}", metavar="TEXT", help="instead of what the file says")
    package.add_argument("--mean-average-precision", type=float, metavar="MAP", help="on AudioSet's evaluation set")
    pinned = commands.add_parser("pin", help="fetch release files and record their digests")
    pinned.add_argument("names", nargs="+", metavar="NAME")
    return parser


def run(args: argparse.Namespace) -> None:
    """Do what the command line says, and write the manifest."""
    known = parse(args.manifest.read_text(encoding="utf-8"), str(args.manifest))
    if args.command == "package":
        options = (*TEXT_FACTS, "mean_average_precision")
        facts = {name: getattr(args, name) for name in options if getattr(args, name) is not None}
        write_manifest(put_in_package(known, args.file, facts), args.manifest)
        return
    for name in args.names:  # one at a time, so that what succeeded is recorded whatever comes after
        if args.command == "hub":
            namespace = args.namespace or known.hub_namespace
            if namespace is None:
                raise InvalidInputError("the manifest has no hub_namespace yet; name one with --namespace")
            known = publish_to_hub(known, name, namespace, private=args.private)
        else:
            known, found = pin(known, name)
            print(f"{name}: {found.size} bytes, SHA-256 {found.sha256}, git blob SHA-1 {found.git_blob_sha1}")
        write_manifest(known, args.manifest)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    try:
        run(build_parser().parse_args(argv))
    except (AudiotagError, OSError) as error:
        print(f"audiotag.checkpoints.publish: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

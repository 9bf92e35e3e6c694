"""The manifest: every known checkpoint's facts and sources, read from ``weights_manifest.json``. No torch, no network.

In the file, a checkpoint's ``network`` and ``frontend`` are those of `audiotag.config`; ``labels`` null means
AudioSet's 527; ``mean_average_precision`` is on AudioSet's evaluation set, in [0, 1]; ``gmacs`` are the published
multiply-accumulates for 10 s, in 1e9; a null is a fact nobody has published. ``sources`` are tried in order.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import asdict, dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..checks import SHOWN, one_of, shown
from ..config import CheckpointConfig, build
from ..errors import AudiotagError, CheckpointError, InvalidInputError

FILE_NAME = "weights_manifest.json"
FORMAT_VERSION = 1
SOURCE_KINDS = ("package", "hub", "release")
HUB_FILE = "model.safetensors"  # of every Hub repository audiotag reads or writes


@dataclass(frozen=True)
class Source:
    """One place a checkpoint's weights come from.

    Parameters
    ----------
    kind : {"package", "hub", "release"}
        Inside the wheel, a repository on the Hugging Face Hub, or a file of the authors' release.
    file : str
        Path inside the package, name inside the repository, or name in the release.
    size : int, optional
        Bytes.
    sha256 : str, optional
        Lower-case hexadecimal, of the file.
    git_blob_sha1 : str, optional
        What ``git hash-object`` says of the file; known for release files that a public repository holds.
    revision : str, optional
        Commit of the Hub repository.
    """

    kind: str
    file: str
    size: int | None = None
    sha256: str | None = None
    git_blob_sha1: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        one_of(self.kind, SOURCE_KINDS, "kind")
        if not isinstance(self.file, str) or not self.file or ".." in self.file or self.file.startswith("/"):
            raise InvalidInputError(f"file must be a relative path without '..', got {self.file!r}")
        if self.size is not None and (not isinstance(self.size, int) or self.size < 1):
            raise InvalidInputError(f"size must be a positive number of bytes or null, got {self.size!r}")
        for name, digits in (("sha256", 64), ("git_blob_sha1", 40), ("revision", 40)):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and re.fullmatch(rf"[0-9a-f]{{{digits}}}", value)):
                raise InvalidInputError(f"{name} must be {digits} lower-case hexadecimal digits or null, got {value!r}")

    @property
    def verifiable(self) -> bool:
        """Whether a digest of the file is known."""
        return bool(self.sha256 or self.git_blob_sha1)


@dataclass(frozen=True)
class Entry:
    """What the manifest says of one checkpoint."""

    name: str
    config: CheckpointConfig
    description: str
    parameters: int
    gmacs: float | None
    mean_average_precision: float | None
    metric_source: str | None
    licence: str
    trained_on: str
    paper: str | None
    sources: tuple[Source, ...]

    def card(self) -> dict[str, Any]:
        """Return the facts without configuration and sources, as a checkpoint carries them."""
        kept = (f.name for f in fields(self) if f.name not in ("name", "config", "sources"))
        return {name: getattr(self, name) for name in kept}


@dataclass(frozen=True)
class Manifest:
    """All entries by name, the name of the built-in one, and where the others are published.

    ``hub_namespace`` is null until weights are published on the Hub; the repository of an entry is
    ``<hub_namespace>/<name>``.
    """

    default: str
    hub_namespace: str | None
    release_url: str
    entries: dict[str, Entry]

    def __post_init__(self) -> None:
        if self.default not in self.entries:
            raise InvalidInputError(f"default {self.default!r} is not among the checkpoints")
        for name, entry in self.entries.items():
            if not self.usable_sources(entry):
                raise InvalidInputError(f"checkpoint {name!r} has no source that is published")

    def hub_repository(self, name: str) -> str | None:
        """Return the repository id of an entry, or None while nothing is published."""
        return None if self.hub_namespace is None else f"{self.hub_namespace}/{name}"

    def usable_sources(self, entry: Entry) -> tuple[Source, ...]:
        """Return the entry's sources that are published: one on the Hub needs namespace, revision and SHA-256."""
        published = self.hub_namespace is not None
        return tuple(s for s in entry.sources if s.kind != "hub" or (published and s.revision and s.sha256))

    def entry(self, name: str) -> Entry:
        """Look up the entry called `name`.

        Raises
        ------
        InvalidInputError
            If there is none; the message names near ones.
        """
        if name in self.entries:
            return self.entries[name]
        near = self.near_names(name[:SHOWN])
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise InvalidInputError(
            f"no checkpoint is called {shown(name)}; {hint}'audiotag models' lists all {len(self.entries)}; a file "
            "or folder, or a Hub repository id (owner/name), is also allowed"
        )

    def near_names(self, name: str) -> list[str]:
        """List up to three names spelled most like `name`, the best first."""
        import difflib

        folded = name.strip().lower().replace("-", "_")
        return difflib.get_close_matches(folded, self.entries, n=3, cutoff=0.6)

    def to_json(self) -> str:
        """Write the file's text: one fact per line; `parse` reverses it."""
        lines = ["{", f' "format_version": {FORMAT_VERSION},']
        lines += [
            f" {json.dumps(name)}: {json.dumps(getattr(self, name))},"
            for name in ("default", "hub_namespace", "release_url")
        ]
        entries = ",\n".join(f"  {json.dumps(name)}: {_entry_json(entry)}" for name, entry in self.entries.items())
        return "\n".join([*lines, ' "checkpoints": {', entries, " }", "}", ""])


def _entry_json(entry: Entry) -> str:
    config = entry.config.to_dict()
    del config["name"]
    facts = [f"   {json.dumps(key)}: {json.dumps(value)}" for key, value in (entry.card() | config).items()]
    sources = []
    for source in entry.sources:
        shown = {k: v for k, v in asdict(source).items() if k != "revision" or source.kind == "hub"}
        if source.kind != "release":
            del shown["git_blob_sha1"]
        sources.append(f"    {json.dumps(shown)}")
    return "{\n" + ",\n".join([*facts, '   "sources": [\n' + ",\n".join(sources) + "\n   ]"]) + "\n  }"


def parse(text: str, origin: str = FILE_NAME) -> Manifest:
    """Read a manifest's text.

    Raises
    ------
    CheckpointError
        If it is not JSON, of another format version, or an entry is malformed; the message names `origin` and entry.
    """
    where = origin
    try:
        plain = json.loads(text)
        if plain["format_version"] != FORMAT_VERSION:
            raise InvalidInputError(f"format_version must be {FORMAT_VERSION}, got {plain['format_version']!r}")
        entries = {}
        for name, values in plain["checkpoints"].items():
            where = f"{origin}, checkpoint {name!r}"
            entries[name] = _parse_entry(name, dict(values))
        where = origin
        return Manifest(plain["default"], plain["hub_namespace"], plain["release_url"], entries)
    except (ValueError, KeyError, TypeError, AttributeError, AudiotagError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{where}: {reason}; reinstall audiotag, or repair the file") from error


def _parse_entry(name: str, values: dict[str, Any]) -> Entry:
    config = {key: values.pop(key) for key in ("network", "frontend", "window_s", "labels")}
    sources = tuple(build(Source, source) for source in values.pop("sources"))
    built = CheckpointConfig.from_dict({"name": name, **config})
    return build(Entry, values | {"name": name, "config": built, "sources": sources})


def manifest_path() -> Path:
    """Return where the installed manifest lies."""
    return Path(str(files("audiotag").joinpath(FILE_NAME)))


@functools.lru_cache(maxsize=1)
def manifest() -> Manifest:
    """Read the manifest inside the package.

    Raises
    ------
    CheckpointError
        If it is missing or malformed.
    """
    path = manifest_path()
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}); reinstall audiotag") from error
    return parse(text, str(path))

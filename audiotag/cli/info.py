"""``audiotag info``: facts about this installation, for bug reports."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from typing import Any

from .options import add_text_or_json, table

PACKAGES = ("torch", "numpy", "soundfile", "av", "soxr", "safetensors", "huggingface_hub", "tqdm")
EXTRAS = {"parquet": "pyarrow", "plot": "matplotlib", "mic": "sounddevice", "train": "lightning"}


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add ``info`` to the command's parsers."""
    info = commands.add_parser("info", help="versions, devices and cache, for bug reports")
    add_text_or_json(info)
    info.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the facts."""
    facts = installation()
    if args.format == "json":
        print(json.dumps(facts, indent=1))
    else:
        print(table([[key, str(value)] for key, value in facts.items()], right=set()))
    return 0


def installation() -> dict[str, Any]:
    """Gather versions, devices, threads, cache and extras, as one flat dictionary of names to plain values."""
    import huggingface_hub.constants
    import soundfile
    import torch

    from ..checkpoints.manifest import manifest
    from ..version import __version__

    facts: dict[str, Any] = {
        "audiotag": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else "no",
        "mps": "yes" if torch.backends.mps.is_available() else "no",
        **{name: _version(name) for name in PACKAGES},
        "libsndfile": soundfile.__libsndfile_version__,
        "hub endpoint": huggingface_hub.constants.ENDPOINT,
        "hub offline": "yes" if huggingface_hub.constants.HF_HUB_OFFLINE else "no",
        "hub cache": huggingface_hub.constants.HF_HUB_CACHE,
        "default checkpoint": manifest().default,
    }
    facts.update({f"extra [{extra}]": _version(package) for extra, package in EXTRAS.items()})
    return facts


def _version(package: str) -> str:
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"

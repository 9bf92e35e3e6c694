"""``audiotag info``: facts about this installation, for bug reports."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from typing import Any

from .options import add_text_or_json, table

PACKAGES = (
    "torch",
    "openvino",
    "onnxruntime",
    "numpy",
    "soundfile",
    "av",
    "soxr",
    "safetensors",
    "huggingface_hub",
    "tqdm",
)
# One package that each extra of setup.cfg brings and others do not.
EXTRAS = {
    "parquet": "pyarrow",
    "plot": "matplotlib",
    "mic": "sounddevice",
    "fit": "scikit-learn",
    "serve": "starlette",
    "train": "lightning",
    "openvino": "openvino",
    "onnxruntime": "onnxruntime",
    "ray": "ray",
}


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

    from ..checkpoints.manifest import manifest
    from ..runtimes.looped import usable_cores
    from ..version import __version__

    facts: dict[str, Any] = {
        "audiotag": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "cores for this process": usable_cores(),
        "runtime": _runtime("speed"),
        "runtime of short commands": _runtime("start"),
        **_torch(),
        **{name: _version(name) for name in PACKAGES},
        "libsndfile": soundfile.__libsndfile_version__,
        "hub endpoint": huggingface_hub.constants.ENDPOINT,
        "hub offline": "yes" if huggingface_hub.constants.HF_HUB_OFFLINE else "no",
        "hub cache": huggingface_hub.constants.HF_HUB_CACHE,
        "default checkpoint": manifest().default,
    }
    facts.update({f"extra [{extra}]": _version(package) for extra, package in EXTRAS.items()})
    return facts


def _runtime(prefer: str) -> str:
    """Return what "auto" chooses here for the default checkpoint."""
    from ..checkpoints.load import load_checkpoint
    from ..errors import AudiotagError
    from ..inference.runtime import open_runtime

    try:
        runtime = open_runtime(load_checkpoint(), prefer=prefer)
    except AudiotagError as error:
        return f"none: {error}"
    return f"{runtime.name} on {runtime.device}"


def _torch() -> dict[str, Any]:
    """Return what torch says of this machine, where it is installed and works."""
    try:
        import torch
    except Exception as error:  # a broken installation may raise anything; its version stands below
        return {} if isinstance(error, ModuleNotFoundError) else {"torch fails": f"{type(error).__name__}: {error}"}
    return {
        "torch threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else "no",
        "mps": "yes" if torch.backends.mps.is_available() else "no",
    }


def _version(package: str) -> str:
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"

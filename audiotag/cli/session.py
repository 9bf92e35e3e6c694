"""What the commands about recordings share: inputs and outputs as the options name them, and the run's fingerprint."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..errors import InvalidInputError
from ..runs.inputs import STDIN, common_folder, expand, read_list

if TYPE_CHECKING:
    from ..runs.run import Task
    from ..tagger import Tagger


def load_tagger(args: argparse.Namespace) -> Tagger:
    """The tagger that the options of the group "checkpoint" say."""
    from ..tagger import Tagger

    return Tagger.from_pretrained(
        args.model,
        device=args.device,
        dtype=args.dtype,
        revision=args.revision,
        cache_dir=args.cache_dir,
        local_files_only=args.local_files_only,
        allow_unverified=args.allow_unverified,
    )


@dataclass(frozen=True)
class Destination:
    """Where results go: one file, a folder, or a stream, which is standard output (None), a pipe or a device."""

    path: Path | None
    is_file: bool = False
    is_folder: bool = False


def destination(output: str | None) -> Destination:
    """What ``-o`` means: a folder if it is one, ends in a slash, or is new and has no ending."""
    if output is None or output == STDIN:
        return Destination(None)
    path = Path(output)
    if path.is_dir() or output.endswith(("/", os.sep)) or not (path.suffix or path.exists()):
        return Destination(path, is_folder=True)
    return Destination(path, is_file=path.is_file() or not path.exists())


def check_use(args: argparse.Namespace, target: Destination, *, binary: bool) -> None:
    """Refuse options that do not go together.

    Raises
    ------
    InvalidInputError
        Says which, and what to do.
    """
    stream = not (target.is_file or target.is_folder)
    if not args.paths and args.from_file is None:
        raise InvalidInputError("nothing to do: name files or folders, or a list of them with --from-file")
    if args.from_file == STDIN and STDIN in args.paths:
        raise InvalidInputError("standard input is either audio (-) or the list (--from-file -), not both")
    if stream and args.resume:
        raise InvalidInputError("--resume needs -o FILE or -o FOLDER, for what is printed cannot be gone on with")
    if stream and binary:
        raise InvalidInputError("this format is binary; name a file with -o")
    if STDIN in args.paths:
        stdin()


def run(args: argparse.Namespace, task: Task, target: Destination, *, text: bool) -> int:
    """Work through the inputs that the options name; returns the exit code. `text` is for people, not for machines."""
    from ..runs.run import Reporter, to_file, to_folder, to_stream

    reporter = Reporter(quiet=args.quiet)
    with ExitStack() as stack:
        listed = _list_file(args.from_file, stack) if args.from_file is not None else None

        def entries() -> Iterator[str]:
            if listed is not None:
                listed.seek(0)
                yield from read_list(listed, args.from_file)

        inputs = expand(args.paths, entries())
        if target.path is None:
            return to_stream(task, inputs, stdout(text=text), None, reporter)
        if not (target.is_file or target.is_folder):
            stream = stack.enter_context(open(target.path, "w", encoding="utf-8", newline=""))
            return to_stream(task, inputs, stream, str(target.path), reporter)
        if target.is_folder:
            root = common_folder(chain(args.paths, entries()))
            return to_folder(task, inputs, root, target.path, reporter, resume=args.resume)
        asked = {"paths": args.paths, "from_file": args.from_file, "in": os.getcwd()}
        return to_file(task, inputs, asked, target.path, reporter, resume=args.resume)


def _list_file(name: str, stack: ExitStack) -> IO[bytes]:
    """The list, so that it can be read twice."""
    if name == STDIN:
        copy: IO[bytes] = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        shutil.copyfileobj(sys.stdin.buffer, copy)
        return copy
    try:
        return stack.enter_context(open(name, "rb"))
    except OSError as error:
        raise InvalidInputError(f"--from-file {name}: cannot be read: {error.strerror or error}") from error


def stdin() -> IO[bytes]:
    """Standard input as bytes.

    Raises
    ------
    InvalidInputError
        Somebody would have to type them.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise InvalidInputError("-: standard input is a terminal; pipe the contents of an audio file into it")
    return sys.stdin.buffer


def stdout(*, text: bool) -> IO[str]:
    """Standard output; UTF-8 and its own line ends for what machines read."""
    if not text and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", newline="")
    return sys.stdout


def fingerprint(args: argparse.Namespace, tagger: Tagger, options: dict[str, Any], batch_size: int) -> dict[str, Any]:
    """Everything that decides what is written about an input, to the last bit."""
    from ..runs.journal import FORMAT_VERSION

    return {
        "version": FORMAT_VERSION,
        "command": args.command,
        "checkpoint": {"name": tagger.config.name, "sha256": _digest(tagger)},
        "device": tagger.device.partition(":")[0],
        "dtype": args.dtype,
        "batch_size": batch_size,
        "options": options,
    }


def _digest(tagger: Tagger) -> str:
    """Of the weights themselves, wherever they came from and however they were stored."""
    import torch

    digest = hashlib.sha256(json.dumps(tagger.config.to_dict(), sort_keys=True).encode())
    for name, tensor in sorted(tagger.checkpoint.state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def silence(tagger: Tagger) -> Any:
    """A prediction in which nothing is heard, to try options on."""
    import numpy as np

    from ..results.prediction import Prediction

    scores = np.zeros((1, len(tagger.labels)), np.float32)
    return Prediction(
        scores=scores[0],
        window_scores=scores,
        window_start_s=np.zeros(1),
        window_end_s=np.ones(1),
        labels=tagger.labels,
        source="",
        duration_s=1.0,
        checkpoint=tagger.config.name,
        hop_s=1.0,
        window_s=1.0,
        aggregate="max",
    )

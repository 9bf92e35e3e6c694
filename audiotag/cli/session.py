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
from contextlib import closing, nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..errors import InvalidInputError, OutputError
from ..runs.inputs import STDIN, Input, common_folder, expand, read_list
from .options import checkpoint_options

if TYPE_CHECKING:
    from ..runs.run import Task
    from ..tagger import Tagger

SHORT_FILES, SHORT_BYTES = 8, 16_000_000  # up to which starting takes longer than the network


def load_tagger(args: argparse.Namespace) -> Tagger:
    """Make the tagger that the options of the group "checkpoint" say."""
    from ..tagger import Tagger
    from .memory import keep_freed_memory

    keep_freed_memory()
    return Tagger.from_pretrained(
        args.model,
        runtime=args.runtime,
        prefer="start" if _is_short(args) else "speed",
        device=args.device,
        dtype=args.dtype,
        **checkpoint_options(args),
    )


def _is_short(args: argparse.Namespace) -> bool:
    """Whether there is so little to do that most of the time goes into starting; the same for a run that is resumed."""
    paths = [args.path] if hasattr(args, "path") else getattr(args, "paths", [])
    if not 0 < len(paths) <= SHORT_FILES or getattr(args, "from_file", None) is not None:
        return False
    try:
        total = sum(0 if path == STDIN else os.path.getsize(path) for path in paths)
    except OSError:  # a pattern, or what is reported later
        return False
    return total <= SHORT_BYTES and not any(os.path.isdir(path) for path in paths)


@dataclass(frozen=True)
class Destination:
    """Where results go: one file, a folder, or a stream, which is standard output (None), a pipe or a device."""

    path: Path | None
    is_file: bool = False
    is_folder: bool = False


def destination(output: str | None) -> Destination:
    """Read what ``-o`` means: a folder if it is one, ends in a slash, or is new and has no ending."""
    if output is None or output == STDIN:
        return Destination(None)
    if not output:
        raise InvalidInputError("-o: is empty; name a file or a folder")
    path = Path(output)
    if path.is_dir() or output.endswith(("/", os.sep)) or not (path.suffix or path.exists()):
        return Destination(path, is_folder=True)
    return Destination(path, is_file=path.is_file() or not path.exists())


class Inputs:
    """What the options name to work on; the list of ``--from-file`` is copied, so that it can be read twice.

    Raises
    ------
    InvalidInputError
        Nothing is named, or a stream that cannot be read, or two things of standard input.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.paths: list[str] = args.paths
        self.list_name: str | None = args.from_file
        if not self.paths and self.list_name is None:
            raise InvalidInputError("nothing to do: name files or folders, or a list of them with --from-file")
        if STDIN in self.paths and self.list_name == STDIN:
            raise InvalidInputError("standard input is either audio (-) or the list (--from-file -), not both")
        if STDIN in self.paths:
            stdin()
        self._list: IO[bytes] | None = None
        if self.list_name is not None:
            self._list = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `close`
            try:
                with open(self.list_name, "rb") if self.list_name != STDIN else nullcontext(stdin()) as given:
                    shutil.copyfileobj(given, self._list)
            except OSError as error:
                raise InvalidInputError(
                    f"--from-file {self.list_name}: cannot be read: {error.strerror or error}"
                ) from error

    def listed(self) -> Iterator[str]:
        """Read the paths in the list, none where there is no list."""
        if self._list is not None:
            self._list.seek(0)
            yield from read_list(self._list, str(self.list_name))

    def __iter__(self) -> Iterator[Input]:
        return expand(self.paths, self.listed())

    def folder(self) -> str:
        """Return the folder that an output tree mirrors."""
        return common_folder(chain(self.paths, self.listed()))

    def refuse_output(self, output: Path) -> None:
        """Refuse to replace what is read.

        Raises
        ------
        InvalidInputError
            `output` is an input, the list, or what standard input comes from.
        """
        if not output.exists():
            return
        if STDIN in (*self.paths, self.list_name) and _same(output):
            raise _overwritten(output, "standard input")
        if self.list_name is not None and _same(output, self.list_name):
            raise _overwritten(output, f"the list --from-file {self.list_name}")
        for item in self:
            if item.path != STDIN and _same(output, item.path):
                raise _overwritten(output, f"the input {item.path}")

    def close(self) -> None:
        """Let go of the list."""
        if self._list is not None:
            self._list.close()


def _same(output: Path, other: str | None = None) -> bool:
    """Whether `other`, or what standard input comes from, is the output."""
    try:
        there = os.fstat(stdin().fileno()) if other is None else os.stat(other)
        return os.path.samestat(there, output.stat())
    except (OSError, ValueError):  # no file at all
        return False


def _overwritten(output: Path, what: str) -> InvalidInputError:
    return InvalidInputError(f"-o {output}: is {what} and would be overwritten; name another file")


def checked_inputs(args: argparse.Namespace, target: Destination, *, binary: bool) -> Inputs:
    """Take the inputs that the options name, before anything of them is opened.

    Raises
    ------
    InvalidInputError
        Options that do not go together, or the output is an input; says what to do.
    """
    inputs = Inputs(args)
    stream = not (target.is_file or target.is_folder)
    if stream and args.resume:
        raise InvalidInputError("--resume needs -o FILE or -o FOLDER, for what is printed cannot be gone on with")
    if stream and binary:
        raise InvalidInputError("this format is binary; name a file with -o")
    if target.is_file and target.path is not None:
        inputs.refuse_output(target.path)
    return inputs


def run(args: argparse.Namespace, inputs: Inputs, task: Task, target: Destination, *, text: bool) -> int:
    """Work through the inputs; returns the exit code. `text` is for people, not for machines."""
    from ..runs.progress import Reporter
    from ..runs.run import to_file, to_folder, to_stream

    reporter = Reporter(quiet=args.quiet)
    with closing(inputs):
        if target.path is None:
            return to_stream(task, inputs, stdout(text=text), None, reporter)
        if target.is_folder:
            return to_folder(task, inputs, inputs.folder(), target.path, reporter, resume=args.resume)
        if target.is_file:
            asked = {"paths": args.paths, "from_file": args.from_file, "in": os.getcwd()}
            return to_file(task, inputs, asked, target.path, reporter, resume=args.resume)
        try:
            with open(target.path, "w", encoding="utf-8", newline="") as stream:
                return to_stream(task, inputs, stream, str(target.path), reporter)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"{target.path}: cannot be written: {error.strerror or error}") from error


def stdin() -> IO[bytes]:
    """Return standard input as bytes.

    Raises
    ------
    InvalidInputError
        It is closed, or somebody would have to type them.
    """
    if sys.stdin is None:
        raise InvalidInputError("standard input is closed; pipe something into it, or name a file")
    if sys.stdin.isatty():
        raise InvalidInputError("-: standard input is a terminal; pipe the contents of an audio file into it")
    return sys.stdin.buffer


def stdout(*, text: bool) -> IO[str]:
    """Return standard output; UTF-8 and its own line ends for what machines read."""
    if not text and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", newline="")
    return sys.stdout


def fingerprint(args: argparse.Namespace, tagger: Tagger, options: dict[str, Any], batch_size: int) -> dict[str, Any]:
    """Gather everything that decides what is written about an input, to the last bit."""
    from ..runs.journal import FORMAT_VERSION

    return {
        "version": FORMAT_VERSION,
        "command": args.command,
        "checkpoint": {"name": tagger.config.name, "sha256": _digest(tagger)},
        "device": tagger.device.partition(":")[0],
        "runtime": tagger.engine.runtime.name,
        "dtype": args.dtype,
        "batch_size": batch_size,
        "options": options,
    }


def _digest(tagger: Tagger) -> str:
    """Digest the weights themselves, wherever they came from and however they were stored."""
    from ..runtimes.compiled import state_digest

    said = json.dumps(tagger.config.to_dict(), sort_keys=True) + state_digest(tagger.checkpoint.state)
    return hashlib.sha256(said.encode()).hexdigest()

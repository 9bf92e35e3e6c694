"""The command: parser, exit codes and where errors go. Commands live in the modules beside this one and import late.

Exit codes: 0 all well, 1 some input failed, 2 the command was used wrongly, 130 interrupted. stdout carries data,
stderr everything else.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from ..errors import AudiotagError, InvalidInputError
from ..version import __version__

# Modules whose `add_parser` adds these commands, in the order of the help. None may import numpy, torch or other
# people's packages before it runs.
MODULES = {
    ".recordings": ("tag", "events", "embed", "plot"),
    ".corpus": ("corpus",),
    ".listen": ("listen",),
    ".serve": ("serve",),
    ".checkpoints": ("models", "fetch", "convert", "export", "labels"),
    ".fit": ("fit", "evaluate"),
    ".info": ("info",),
    "..training.cli": ("train",),
}
EXAMPLES = """\
examples:
  audiotag tag street.wav                          what is in a recording
  audiotag tag recordings/ -o tags.jsonl           a whole folder, resumable with --resume
  audiotag events call.flac --include Speech       when it happens
  audiotag embed a.wav b.wav -o vectors.npz        feature vectors for your own classifier
  ffmpeg -i URL -f s16le -ac 1 -ar 16000 - | audiotag listen --rate 16000
  audiotag fit sounds/ -o my_model                 your own labels, from folders of recordings
  audiotag models                                  the checkpoints there are

exit codes: 0 all well, 1 some input failed, 2 wrong use, 130 interrupted
"""


def build_parser(words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Build the command line: whole, or what parsing `words` needs if a command is the first that is no option."""
    first = next((word for word in words if not word.startswith("-")), None)
    modules = [module for module, names in MODULES.items() if first in names] or list(MODULES)
    parser = argparse.ArgumentParser(
        prog="audiotag",
        description="Say what is in audio: AudioSet's 527 labels, events and embeddings, by efficient dynamic CNNs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"audiotag {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the full traceback of an error")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for module in modules:
        import_module(module, __package__).add_parser(commands)
    completion = commands.add_parser(
        "completion",
        help="print a shell completion script",
        description="Print a completion script. bash: audiotag completion bash > "
        "~/.local/share/bash-completion/completions/audiotag; zsh: write it to a file named _audiotag in your fpath.",
    )
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    completion.set_defaults(run=run_completion)
    return parser


def run_completion(args: argparse.Namespace) -> int:
    """Print what makes a shell complete the command."""
    import shtab

    print(shtab.complete(build_parser(), shell=args.shell))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    _fill_closed_streams()
    debug = False
    try:
        try:
            words = sys.argv[1:] if argv is None else argv
            args = build_parser(words).parse_args(words)
            debug = args.debug
            logging.basicConfig(level=logging.WARNING, handlers=[_Told()])
            code = args.run(args)
        except SystemExit as exit_:  # argparse has printed its message
            code = int(exit_.code or 0)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader, such as head, has what it wanted
        _drop_stdout()
        return 0
    except KeyboardInterrupt:
        _tell("interrupted")
        return 130
    except AudiotagError as error:
        if debug:
            raise
        _tell(*f"error: {error}".split("\n"))
        return 2 if isinstance(error, InvalidInputError) else 1
    except OSError as error:  # every file of ours that fails is an OutputError
        if debug or error.filename is not None:
            raise
        _drop_stdout()
        _tell(f"error: standard output: cannot be written: {error.strerror or error}")
        return 1


def _tell(*lines: str) -> None:
    from ..runs.progress import tell

    tell(*lines)


class _Told(logging.Handler):
    """Handler that tells what the library logs as everything else is told."""

    def emit(self, record: logging.LogRecord) -> None:
        _tell(record.getMessage())


def _fill_closed_streams() -> None:
    """Put something in the place of standard streams that are closed, or the next file opened would take it.

    Writing to stdout is then the error that it is for every command; what would go to stderr is lost.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(number)
        except OSError:
            there = os.open(os.devnull, os.O_WRONLY if number == 2 else os.O_RDONLY)
            if there != number:
                os.dup2(there, number)
                os.close(there)
        if name != "stdin":  # `session.stdin` says what is wrong with it
            stream = open(number, mode, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


def _drop_stdout() -> None:
    """Let what is still to be written to stdout vanish, or the interpreter would complain of it in the end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

"""The command: parser, exit codes and where errors go. Commands live in the modules beside this one and import late.

Exit codes: 0 all well, 1 some input failed, 2 the command was used wrongly, 130 interrupted. stdout carries data,
stderr everything else.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from ..errors import AudiotagError, InvalidInputError
from ..version import __version__
from . import checkpoints, listen, recordings

EXAMPLES = """\
examples:
  audiotag tag street.wav                          what is in a recording
  audiotag tag recordings/ -o tags.jsonl           a whole folder, resumable with --resume
  audiotag events call.flac --include Speech       when it happens
  audiotag embed a.wav b.wav -o vectors.npz        feature vectors for your own classifier
  ffmpeg -i URL -f s16le -ac 1 -ar 16000 - | audiotag listen --rate 16000
  audiotag models                                  the checkpoints there are
"""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; building it imports no torch."""
    parser = argparse.ArgumentParser(
        prog="audiotag",
        description="Say what is in audio: AudioSet's 527 labels, events and embeddings, by efficient dynamic CNNs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"audiotag {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the full traceback of an error")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    recordings.add_parsers(commands)
    listen.add_parser(commands)
    checkpoints.add_parsers(commands)
    _add_training(commands)
    return parser


def _add_training(commands: argparse._SubParsersAction) -> None:
    from ..training.cli import add_parser

    add_parser(commands)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as exit_:  # argparse has printed its message
        return int(exit_.code or 0)
    logging.basicConfig(level=logging.WARNING, format="audiotag: %(message)s", stream=sys.stderr)
    try:
        code = args.run(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader, such as head, has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("audiotag: interrupted", file=sys.stderr)
        return 130
    except AudiotagError as error:
        if args.debug:
            raise
        print(f"audiotag: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InvalidInputError) else 1

"""The command ``corpus``: recordings without number, on a cluster or on the processors of one machine."""

from __future__ import annotations

import argparse
import re
from contextlib import closing

from .options import (
    add_from_file,
    add_hop,
    add_labels,
    add_model,
    add_on_off,
    add_roll_up,
    add_top,
    add_window,
    checkpoint_options,
    chosen_top,
)
from .session import Inputs

NOTES = """\
INPUT is a file, a folder, a pattern in quotes, a Parquet file with a column of audio bytes, or a WebDataset tar
archive: local, or an address (s3://, gs://, ... whatever pyarrow or fsspec can open). A recording that cannot be
read, or that kills the process that reads it, is a row with an error; the exit code is then 1.

-o FOLDER, local or an address, gets Parquet files, each of which appears whole. After a kill of anything, the same
command with --resume goes on: every row is there once in the end. _audiotag/labels.parquet in it names the labels.

examples:
  audiotag corpus recordings/ -o tags/                                  on all cores of this machine, by Ray
  audiotag corpus recordings/ -o tags/ --shard 1/1                      the same without Ray
  audiotag corpus s3://bucket/audio/ -o s3://bucket/tags/ --address auto --actors 8:64 --resume
  audiotag corpus /data/audio -o /data/tags --shard $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT --resume
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "corpus",
        help="tag or embed a corpus of any size into Parquet, on a Ray cluster or in shards",
        description="Tag or embed a corpus of any size into a folder of Parquet files, on a Ray cluster or in shards.",
        epilog=NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", nargs="*", metavar="INPUT", help="files, folders, patterns, local or addresses")
    add_from_file(parser)
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="folder of Parquet files to write")
    parser.add_argument("--resume", action="store_true", help="go on with the run in FOLDER; take new inputs too")
    parser.add_argument("--retry-errors", action="store_true", help="go on, and do again what failed")
    parser.add_argument("--quiet", action="store_true", help="on stderr nothing but errors")
    parser.add_argument("--audio-column", metavar="NAME", help="of Parquet inputs (default: found by name and type)")

    what = parser.add_argument_group("what to find out")
    kind = what.add_mutually_exclusive_group()
    kind.add_argument("--events", action="store_true", help="when things happen; long recordings are then not cut")
    kind.add_argument("--embed", action="store_true", help="feature vectors, in float16")
    add_top(what)
    add_on_off(what, "score that an event must reach", "score that it must keep")
    add_labels(what)
    add_roll_up(what)
    what.add_argument("--layer", action="append", metavar="NAME", help="of --embed; see 'audiotag embed --help'")
    what.add_argument("--windows", action="store_true", help="each window's tags, or vector, too")
    add_window(what)
    add_hop(what, "one window; 1 for events, whose times are multiples of it")
    what.add_argument("--aggregate", choices=("max", "mean"), default="max", help="how windows make a row's tags")
    what.add_argument(
        "--segment",
        type=float,
        default=600.0,
        metavar="S",
        help="cut longer recordings into rows of S seconds, which give the windows of the whole (default: %(default)g)",
    )

    where = parser.add_argument_group("where it runs")
    where.add_argument(
        "--address", help="local, auto or a Ray address (default: RAY_ADDRESS says, else local: all of this machine)"
    )
    where.add_argument(
        "--actors",
        type=_actors,
        metavar="MIN:MAX",
        help="processes with a model each, one core each; MIN: is without end (default: as many as there is room for)",
    )
    where.add_argument("--gpus-per-actor", type=float, default=0.0, metavar="F", help="0.25: four actors share a GPU")
    where.add_argument(
        "--shard", type=_shard, metavar="I/N", help="without Ray: the I-th of N shares, on the cores of this machine"
    )
    where.add_argument(
        "--hang",
        type=float,
        default=600.0,
        metavar="S",
        help="give a recording up when nothing happens for S seconds (default: %(default)g)",
    )
    where.add_argument(
        "--memory", type=float, default=0.0, metavar="GB", help="give a recording up when its process holds more"
    )
    add_model(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run over a corpus."""
    from ..corpus.driver import run as run_corpus

    if args.retry_errors:
        args.resume = True
    with closing(Inputs(args)) as inputs:
        summary = run_corpus(
            inputs.paths,
            args.output,
            kind="events" if args.events else "embeddings" if args.embed else "tags",
            top=chosen_top(args),
            threshold=args.threshold,
            on=args.on,
            off=args.off,
            include=args.include,
            exclude=args.exclude,
            roll_up=args.roll_up,
            windows=args.windows,
            window_s=args.window,
            hop_s=args.hop,
            aggregate=args.aggregate,
            layer=args.layer or "embedding",
            segment_s=args.segment,
            listed=inputs.listed(),
            audio_column=args.audio_column,
            resume=args.resume,
            retry_errors=args.retry_errors,
            address=args.address,
            actors=args.actors,
            gpus_per_actor=args.gpus_per_actor,
            shard=args.shard,
            hang_s=args.hang,
            memory_bytes=round(args.memory * 1e9),
            progress=True,
            quiet=args.quiet,
            model=args.model,
            runtime=args.runtime,
            device=args.device,
            dtype=args.dtype,
            batch_size=args.batch_size,
            **checkpoint_options(args),
        )
    return 1 if summary.failed else 0


def _actors(text: str) -> tuple[int, int | None]:
    match = re.fullmatch(r"(\d+)(:(\d*))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"must be a number, MIN:MAX or MIN:, got {text!r}")
    fewest = int(match[1])
    return fewest, (int(match[3]) if match[3] else None) if match[2] else fewest


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"must be I/N with I from 1 to N, got {text!r}")
    return int(match[1]), int(match[2])

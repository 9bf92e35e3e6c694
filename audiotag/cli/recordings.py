"""Commands about recordings: tag, events, embed, plot. Parsing needs no torch; a command imports what it runs."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from ..errors import InvalidInputError
from ..outputs.formats import About, Format, find_format, formats_for
from ..runs.inputs import STDIN
from .options import (
    DEFAULT_TOP,
    add_from_file,
    add_hop,
    add_labels,
    add_model,
    add_on_off,
    add_roll_up,
    add_top,
    add_window,
    chosen_top,
    number_or_all,
)
from .session import Destination, checked_inputs, destination, fingerprint, load_tagger, run, stdin

if TYPE_CHECKING:
    from ..tagger import Tagger

EVENTS_HOP_S = 1.0
GPU_WORKERS = 4  # threads that decode for a GPU; a CPU is busy with the network

INPUTS = """\
PATH is a file, a folder (searched for audio, with its subfolders), a pattern in quotes ("rec/**/*.wav"), or - for
audio on standard input. A file is tried whatever its ending. One that cannot be read is reported on stderr and in
the output and does not stop the others; the exit code is then 1.
"""
OUTPUT = """\
-o FILE appears whole when all is done. Until then FILE.partial/ keeps what is done: after a kill, a full disk or
Ctrl-C the same command with --resume goes on where it was, over the same list of files. -o FOLDER/ gets one file
for each input, in folders like theirs; --resume does those that are missing.
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the commands to the command's parsers."""
    tag = _command(
        commands,
        "tag",
        "say what is in recordings",
        "Say what is in recordings: AudioSet's labels with scores from 0 to 1, best first.",
        """\
examples:
  audiotag tag street.wav
  audiotag tag recordings/ --include Animal --threshold 0.2
  audiotag tag recordings/ -o tags.jsonl --resume
  find . -name '*.flac' -print0 | audiotag tag --from-file - --format csv > tags.csv
""",
    )
    _add_output(tag, "tags", "text in print and jsonl in a folder")
    add_top(tag)
    add_labels(tag)
    add_roll_up(tag)
    add_window(tag)
    add_hop(tag, "one window")
    tag.add_argument(
        "--aggregate",
        choices=("max", "mean"),
        default="max",
        help="how windows make the recording's score: max, it occurs somewhere; mean, on average",
    )
    tag.add_argument("--windows", action="store_true", help="write each window's labels too (not in text)")
    add_model(tag)
    tag.set_defaults(run=run_tag)

    events = _command(
        commands,
        "events",
        "say when things happen in recordings",
        "Say when things happen: labels with onset and offset, in seconds.",
        """\
examples:
  audiotag events call.flac --include Speech
  audiotag events call.flac -o call.labels.txt        a label track for Audacity
  audiotag events recordings/ --format raven -o selections/
""",
    )
    _add_output(
        events,
        "events",
        "text in print and jsonl in a folder; .labels.txt is audacity, .selections.txt raven, .vtt webvtt",
    )
    add_on_off(events, "score that an event must reach", "score that it must keep")
    for name, about in (
        ("--min-duration", "shortest event to report"),
        ("--max-gap", "longest gap to fill between two events of a label"),
        ("--median", "length of a running median over the scores"),
    ):
        events.add_argument(name, type=float, default=0.0, metavar="S", help=f"{about}, in seconds (default: 0)")
    add_labels(events)
    add_roll_up(events)
    add_window(events)
    add_hop(events, f"{EVENTS_HOP_S:g}; times are multiples of it")
    add_model(events)
    events.set_defaults(run=run_events)

    embed = _command(
        commands,
        "embed",
        "feature vectors of recordings, for your own classifier or search",
        "Feature vectors of recordings. .npz holds embeddings, source, and failed with error; .npy one matrix with a "
        "row of NaN for what failed; .parquet and .jsonl a row or line for each.",
        """\
examples:
  audiotag embed a.wav b.wav -o vectors.npz
  audiotag embed recordings/ -o vectors.parquet --layer mid --per window --hop 1
""",
    )
    _add_output(embed, "embeddings", "npz in a folder")
    embed.add_argument(
        "--layer",
        action="append",
        metavar="NAME",
        help="embedding (default), hidden, stem, block0 to block14, logmel or mid; repeat it to concatenate several",
    )
    embed.add_argument("--per", choices=("clip", "window"), default="clip", help="mean over windows, or each window")
    add_hop(embed, "one window, 10 s for most checkpoints")
    add_model(embed)
    embed.set_defaults(run=run_embed)

    plot = commands.add_parser(
        "plot",
        help="a picture of a recording: log-mel above, scores over time below",
        description="Draw a recording's log-mel and, below it, the scores of its best labels over time.",
    )
    plot.add_argument("path", metavar="PATH", help="the recording, or - for audio on standard input")
    plot.add_argument("-o", "--output", required=True, metavar="FILE", help="picture to write: .png, .svg or .pdf")
    plot.add_argument("--top", type=number_or_all, default=DEFAULT_TOP, metavar="N", help="rows (default: %(default)s)")
    add_labels(plot)
    add_window(plot)
    add_hop(plot, f"{EVENTS_HOP_S:g}")
    add_model(plot)
    plot.set_defaults(run=run_plot)


def _command(
    commands: argparse._SubParsersAction, name: str, about: str, description: str, examples: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=about,
        description=description,
        epilog="\n".join((INPUTS, OUTPUT, examples)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", nargs="*", metavar="PATH", help="files, folders, patterns, or - for standard input")
    add_from_file(parser)
    return parser


def _add_output(parser: argparse.ArgumentParser, kind: str, default: str) -> None:
    parser.add_argument("-o", "--output", metavar="FILE", help="file to write, or a folder for one file per input")
    parser.add_argument("--format", choices=formats_for(kind), help=f"default: as FILE ends; {default}")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on where a run with the same options was stopped; a FILE no such run wrote is left alone",
    )
    parser.add_argument("--quiet", action="store_true", help="on stderr nothing but errors")
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help=f"threads that decode; several help where files are slow to read (default: 1, {GPU_WORKERS} for a GPU)",
    )


def run_tag(args: argparse.Namespace) -> int:
    """Write what is in recordings."""
    from ..outputs.records import tag_record

    options = {"k": chosen_top(args), "threshold": args.threshold, "windows": args.windows}
    return _run_predictions(args, "tags", tag_record, options, hop_s=args.hop, aggregate=args.aggregate)


def run_events(args: argparse.Namespace) -> int:
    """Write when things happen in recordings."""
    from ..outputs.records import event_record

    options = {
        "on": args.on,
        "off": args.off,
        "min_duration_s": args.min_duration,
        "max_gap_s": args.max_gap,
        "median_s": args.median,
    }
    hop_s = EVENTS_HOP_S if args.hop is None else args.hop
    return _run_predictions(args, "events", event_record, options, hop_s=hop_s, aggregate="max")


def _run_predictions(
    args: argparse.Namespace, kind: str, describe: Any, options: dict[str, Any], *, hop_s: float | None, aggregate: str
) -> int:
    from ..outputs.writers import open_writer
    from ..results.prediction import Prediction
    from ..runs.run import Task

    target = destination(args.output)
    form = _format(args, kind, target, in_folder="jsonl")
    inputs = checked_inputs(args, target, binary=form.binary)
    options = {**options, "include": args.include, "exclude": args.exclude}
    tagger = load_tagger(args)
    window_s = tagger.config.window_s if args.window is None else args.window
    analysis: dict[str, Any] = {
        "window_s": window_s,
        "hop_s": window_s if hop_s is None else hop_s,
        "aggregate": aggregate,
    }
    speed = _speed(args, tagger)
    # What is wrong with the options shows here, before anything is written.
    tagger.predict_each([], **analysis, **speed)
    describe(Prediction.silent(tagger.labels, tagger.thresholds), **options)
    about = About(kind, fmax_hz=tagger.config.frontend.fmax_hz)
    settings = {"format": form.name, "roll_up": args.roll_up, **analysis, **options}
    task = Task(
        analyse=lambda sources, progress: tagger.predict_each(sources, **analysis, **speed, progress=progress),
        describe=lambda _, prediction: describe(prediction.roll_up() if args.roll_up else prediction, **options),
        opened=lambda place: open_writer(form, about, place),
        suffix=form.suffix,
        one_input=form.name if form.one_recording else None,
        batch_size=speed["batch_size"],
        fingerprint=lambda: fingerprint(args, tagger, settings, speed["batch_size"]),
    )
    return run(args, inputs, task, target, text=form.name == "text")


def run_embed(args: argparse.Namespace) -> int:
    """Write feature vectors of recordings."""
    from ..outputs.records import embedding_record
    from ..outputs.writers import open_writer
    from ..runs.run import Task

    target = destination(args.output)
    form = _format(args, "embeddings", target, in_folder="npz")
    inputs = checked_inputs(args, target, binary=form.binary)
    tagger = load_tagger(args)
    layers = args.layer or ["embedding"]
    analysis: dict[str, Any] = {
        "layer": layers,
        "hop_s": tagger.config.window_s if args.hop is None else args.hop,
    }
    speed = _speed(args, tagger)
    tagger.embed_each([], **analysis, **speed)
    features = sum(tagger.layers[layer] for layer in layers)
    settings = {"format": form.name, "per": args.per, **analysis}
    about = About("embeddings", fmax_hz=tagger.config.frontend.fmax_hz, features=features, per=args.per)
    task = Task(
        analyse=lambda sources, progress: tagger.embed_each(sources, **analysis, **speed, progress=progress),
        describe=lambda source, found: embedding_record(source, found, per=args.per),
        opened=lambda place: open_writer(form, about, place),
        suffix=form.suffix,
        one_input="npy with --per window" if form.name == "npy" and args.per == "window" else None,
        batch_size=speed["batch_size"],
        fingerprint=lambda: fingerprint(args, tagger, settings, speed["batch_size"]),
    )
    return run(args, inputs, task, target, text=False)


def _format(args: argparse.Namespace, kind: str, target: Destination, *, in_folder: str) -> Format:
    """Find the format that the options say; `in_folder` where they say a folder only."""
    name = in_folder if args.format is None and target.is_folder else args.format
    return find_format(kind, name, target.path if target.is_file else None)


def _speed(args: argparse.Namespace, tagger: Tagger) -> dict[str, Any]:
    """Return the options of `Tagger.predict_each` and `embed_each` that change speed only."""
    workers = 1 if tagger.device == "cpu" else GPU_WORKERS
    return {
        "batch_size": tagger.batch_size if args.batch_size is None else args.batch_size,
        "workers": workers if args.workers is None else args.workers,
    }


def run_plot(args: argparse.Namespace) -> int:
    """Draw a recording."""
    from ..results import plot
    from ..runs.progress import tell

    if not args.output.lower().endswith(plot.SUFFIXES):
        raise InvalidInputError(f"-o {args.output}: a picture's name must end in {', '.join(plot.SUFFIXES)}")
    if os.path.exists(args.path) and os.path.exists(args.output) and os.path.samefile(args.path, args.output):
        raise InvalidInputError(f"-o {args.output}: is the input and would be overwritten; name another file")
    tagger = load_tagger(args)
    labels = {"include": args.include, "exclude": args.exclude}
    tagger.labels.select(**labels)
    with ExitStack() as stack:
        source: Any = args.path
        if args.path == STDIN:  # it is read twice
            source = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(stdin(), source)
            source.seek(0)
        hop_s = EVENTS_HOP_S if args.hop is None else args.hop
        prediction = tagger.predict(source, hop_s=hop_s, window_s=args.window)
        if args.path == STDIN:
            source.seek(0)
        figure = prediction.plot(source, k=args.top or len(tagger.labels), **labels)
    for warning in prediction.warnings:
        tell(f"warning: {warning}")
    plot.save_figure(figure, args.output)
    return 0

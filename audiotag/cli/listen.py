"""The command for live audio: raw PCM from standard input, or a microphone, to events as they start and end."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from ..errors import AudioError, InvalidInputError
from ..runs.progress import tell
from ..text import clock, printable
from .live_input import SAMPLE_FORMATS, STDIN_RATE_HZ, Interrupt, Microphone, Stdin
from .options import add_labels, add_model, add_on_off
from .session import load_tagger

if TYPE_CHECKING:
    from ..live.stream import Stream, StreamWindow

DESCRIPTION = """\
Say what happens in live audio, as it starts and ends. Every hop the last 10 s are scored (the window of most
checkpoints). An event starts when its score reaches --on and ends when it falls below --off; the end is known when
the sound has left the window, so it is reported later. The input's end, Ctrl-C and SIGTERM end what is open; the exit
code is 0.
"""
EXAMPLES = """\
examples:
  ffmpeg -i URL -f s16le -ac 1 -ar 16000 - | audiotag listen --rate 16000
  arecord -f S16_LE -r 16000 -t raw | audiotag listen --clock --include Animal
  audiotag listen --mic --format jsonl >> events.jsonl
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add ``listen`` to the command's parsers."""
    parser = commands.add_parser(
        "listen",
        help="events in live audio from standard input or a microphone",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_argument_group("input")
    source.add_argument(
        "--mic",
        nargs="?",
        const="",
        metavar="DEVICE",
        help="listen to a microphone, by name or number (python -m sounddevice lists them), instead of standard input",
    )
    source.add_argument(
        "--rate", type=int, metavar="HZ", help=f"sample rate (default: {STDIN_RATE_HZ}; the microphone's own)"
    )
    source.add_argument("--channels", type=int, default=1, metavar="N", help="channels, averaged (default: 1)")
    source.add_argument(
        "--sample-format",
        choices=tuple(SAMPLE_FORMATS),
        default="s16le",
        help="samples on standard input: 16-bit integers or 32-bit floats, little-endian (default: s16le)",
    )
    events = parser.add_argument_group("events")
    events.add_argument("--hop", type=float, default=1.0, metavar="S", help="seconds between scores (default: 1)")
    add_on_off(events, "score that starts an event", "score that keeps it going")
    events.add_argument(
        "--min-duration", type=float, default=0.0, metavar="S", help="report what is up for this long (default: 0)"
    )
    events.add_argument(
        "--max-gap", type=float, metavar="S", help="seconds below --off that do not end an event (default: 2)"
    )
    add_labels(events)
    output = parser.add_argument_group("output")
    output.add_argument("--format", choices=("text", "jsonl"), default="text", help="(default: text)")
    output.add_argument(
        "--clock", action="store_true", help="local time of day instead of time since the start; for live input"
    )
    output.add_argument("--top", type=int, default=0, metavar="N", help="also the best N labels of every window")
    add_model(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Listen until the input ends or an interrupt."""
    if args.top < 0:
        raise InvalidInputError(f"--top must not be negative, got {args.top}")
    source = (
        Microphone(args.mic, args.rate, args.channels)
        if args.mic is not None
        else Stdin(args.rate, args.channels, args.sample_format)
    )
    options = {"on": args.on, "max_gap_s": args.max_gap}
    stream = load_tagger(args).stream(
        sample_rate=source.rate_hz,
        channels=args.channels,
        hop_s=args.hop,
        off=args.off,
        min_duration_s=args.min_duration,
        include=args.include,
        exclude=args.exclude,
        **{name: value for name, value in options.items() if value is not None},
    )
    report = _Reporter(stream, args)
    with Interrupt() as interrupt:
        tell(f"listening to {source.name} at {source.rate_hz} Hz; Ctrl-C ends")
        try:
            for chunk in source.chunks(interrupt):
                report(stream.push(chunk))
        finally:  # also what a bad sample or a lost device left open has ended now
            report(stream.flush())
    if not stream.position_s and not interrupt.requested:
        raise AudioError(f"no audio came from {source.name}; is the program before it running?")
    return 0


class _Reporter:
    """Writes windows' events, one line each, at once."""

    def __init__(self, stream: Stream, args: argparse.Namespace) -> None:
        self._stream = stream
        self._jsonl, self._clock, self._top = args.format == "jsonl", args.clock, args.top
        self._options = {"include": args.include, "exclude": args.exclude}

    def __call__(self, windows: list[StreamWindow]) -> None:
        for window in windows:
            for line in self._json(window) if self._jsonl else self._text(window):
                print(line, flush=True)

    def _time(self, seconds: float) -> str:
        """Tell the time since the start, or of day: counted back from now, whatever the sound card's clock says."""
        if not self._clock:
            return clock(seconds)
        return f"{self._moment(seconds):%H:%M:%S}"

    def _moment(self, seconds: float) -> datetime:
        return datetime.now().astimezone() - timedelta(seconds=self._stream.position_s - seconds)

    def _text(self, window: StreamWindow) -> Iterator[str]:
        now = f"{self._time(window.end_s):>9}"
        for onset in window.started:
            yield f"{now}  begins  {printable(onset.label)}  {onset.score:.2f}, since {self._time(onset.onset_s)}"
        for event in window.ended:
            when = f"{self._time(event.onset_s)} to {self._time(event.offset_s)}"
            yield f"{now}  ends    {printable(event.label)}  {when}, peak {event.peak:.2f}"
        if self._top:
            tags = window.top(self._top, **self._options)
            yield f"{now}          " + ", ".join(f"{printable(tag.label)} {tag.score:.2f}" for tag in tags)

    def _json(self, window: StreamWindow) -> Iterator[str]:
        for kind, found in (("begin", window.started), ("end", window.ended)):
            for event in found:
                yield self._line({"type": kind, "time_s": window.end_s, **event.to_dict()})
        if self._top:
            tags = [tag.to_dict() for tag in window.top(self._top, **self._options)]
            yield self._line(
                {
                    "type": "window",
                    "time_s": window.end_s,
                    "start_s": window.start_s,
                    "end_s": window.end_s,
                    "tags": tags,
                }
            )

    def _line(self, record: dict[str, Any]) -> str:
        from ..outputs.records import dumps

        if self._clock:
            record["clock"] = self._moment(record["time_s"]).isoformat(timespec="milliseconds")
        return dumps(record)

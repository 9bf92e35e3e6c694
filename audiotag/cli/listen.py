"""The command for live audio: raw PCM from standard input, or a microphone, to events as they start and end."""

from __future__ import annotations

import argparse
import contextlib
import json
import queue
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from ..errors import AudioError, InvalidInputError, MissingDependencyError
from ..text import clock
from .recordings import add_labels, add_model
from .session import load_tagger

if TYPE_CHECKING:
    import numpy as np

    from ..live.stream import Stream, StreamWindow

STDIN_RATE_HZ = 16_000
SAMPLE_FORMATS = {"s16le": "<i2", "f32le": "<f4"}
READ_BYTES = 1 << 16
WAIT_S = 0.2  # how soon a microphone that is waited for lets an interrupt through
BLOCKS_PER_S = 20  # that a microphone gives
MIC_QUEUE_S = 60  # audio kept while scoring is behind; what comes on top is lost, and said to be
# What other things on standard input begin with; as samples they would be noise, and tagged as such.
HEADERS = {b"RIFF": "WAV", b"RF64": "WAV", b"fLaC": "FLAC", b"OggS": "Ogg", b"ID3": "MP3", b"FORM": "AIFF"}

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
    events.add_argument(
        "--on", type=float, metavar="SCORE", help="score that starts an event (default: 0.3)"
    )
    events.add_argument("--off", type=float, metavar="SCORE", help="score that keeps it going (default: half of --on)")
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
    source = _Microphone(args.mic, args.rate, args.channels) if args.mic is not None else _Stdin(args)
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
    with _Interrupt() as interrupt:
        _say(f"listening to {source.name} at {source.rate_hz} Hz; Ctrl-C ends")
        try:
            for chunk in source.chunks(interrupt):
                report(stream.push(chunk))
        finally:  # also what a bad sample or a lost device left open has ended now
            report(stream.flush())
    if not stream.position_s and not interrupt.requested:
        raise AudioError(f"no audio came from {source.name}; is the program before it running?")
    return 0


def _say(text: str) -> None:
    print(f"audiotag: {text}", file=sys.stderr, flush=True)


class _Interrupt:
    """SIGINT and SIGTERM, let through only while input is waited for: so never in the middle of a window.

    A second one comes through at once.
    """

    def __init__(self) -> None:
        self.requested = False
        self._waiting = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> _Interrupt:
        with contextlib.suppress(ValueError):  # not the main thread: signals do not arrive here anyway
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        if self._waiting or self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def wait(self, read: Callable[[], Any]) -> Any:
        """What `read` returns; None where an interrupt came."""
        try:
            self._waiting = True
            return None if self.requested else read()
        except KeyboardInterrupt:
            self.requested = True
            return None
        finally:
            self._waiting = False


class _Stdin:
    """Raw PCM from standard input, as soon as it comes."""

    name = "standard input"

    def __init__(self, args: argparse.Namespace) -> None:
        if sys.stdin.isatty():
            raise InvalidInputError(
                "standard input is a terminal; pipe raw PCM into it, such as "
                "'ffmpeg -i URL -f s16le -ac 1 -ar 16000 - | audiotag listen', or use --mic"
            )
        self.rate_hz = STDIN_RATE_HZ if args.rate is None else args.rate
        self._channels, self._format = args.channels, args.sample_format

    def chunks(self, interrupt: _Interrupt) -> Iterator[np.ndarray]:
        import numpy as np

        dtype = np.dtype(SAMPLE_FORMATS[self._format])
        frame = dtype.itemsize * self._channels
        pcm: Any = sys.stdin.buffer
        rest, first = b"", True
        while data := interrupt.wait(lambda: pcm.read1(READ_BYTES)):
            data = rest + data
            if first and len(data) >= 4:
                _refuse_header(data)
                first = False
            whole = len(data) // frame * frame
            rest = data[whole:]
            yield np.frombuffer(data[:whole], dtype).reshape(-1, self._channels).T
        if rest and not interrupt.requested:
            _say(
                f"the input ended within a sample frame: its last {len(rest)} of {frame} bytes were left out; check "
                "--sample-format and --channels if the results are strange"
            )


def _refuse_header(data: bytes) -> None:
    for magic, kind in HEADERS.items():
        if data.startswith(magic):
            raise AudioError(
                f"standard input is a {kind} file, not raw PCM; use 'audiotag events -' for it, or let ffmpeg write "
                "raw PCM with -f s16le"
            )


class _Microphone:
    """A microphone through sounddevice (PortAudio), whose own thread queues what is recorded."""

    def __init__(self, device: str, rate_hz: int | None, channels: int) -> None:
        try:
            import sounddevice
        except ImportError as error:
            raise MissingDependencyError(
                "--mic needs sounddevice: pip install 'audiotag-dymn[mic]', or pipe PCM into standard input"
            ) from error
        except OSError as error:
            raise MissingDependencyError(
                f"--mic needs the PortAudio library ({error}); on Debian and Ubuntu: apt install libportaudio2"
            ) from error
        self._sounddevice, self._channels = sounddevice, channels
        self._device: Any = int(device) if device.isdecimal() else device or None
        with self._errors("cannot be found"):
            facts = sounddevice.query_devices(self._device, "input")
        self.name = f"microphone {facts['name']!r}"
        self.rate_hz = round(facts["default_samplerate"]) if rate_hz is None else rate_hz

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except (self._sounddevice.PortAudioError, ValueError) as error:
            wanted = "the default microphone" if self._device is None else f"microphone {self._device!r}"
            raise AudioError(f"{wanted} {what}: {error}; python -m sounddevice lists the devices") from error

    def chunks(self, interrupt: _Interrupt) -> Iterator[np.ndarray]:
        waiting: queue.Queue[np.ndarray] = queue.Queue(BLOCKS_PER_S * MIC_QUEUE_S)
        lost = False

        def record(samples: np.ndarray, n_frames: int, time: object, status: Any) -> None:
            nonlocal lost
            lost = lost or bool(status.input_overflow)
            try:
                waiting.put_nowait(samples.T.copy())
            except queue.Full:
                lost = True

        def read() -> np.ndarray | None:
            while True:
                try:
                    return waiting.get(timeout=WAIT_S)
                except queue.Empty:
                    if not microphone.active:
                        return None

        with self._errors("cannot be opened"):
            microphone = self._sounddevice.InputStream(
                samplerate=self.rate_hz,
                blocksize=self.rate_hz // BLOCKS_PER_S,
                device=self._device,
                channels=self._channels,
                dtype="float32",
                callback=record,
            )
        with microphone:
            while (chunk := interrupt.wait(read)) is not None:
                if lost:
                    lost = False
                    _say("audio was lost: this machine is too slow or busy; a longer --hop costs less")
                yield chunk
        if not interrupt.requested:
            raise AudioError(f"{self.name} stopped sending; is it still plugged in?")


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
        """Time since the start, or of day: counted back from now, so that the sound card's clock does not matter."""
        if not self._clock:
            return clock(seconds)
        return f"{self._moment(seconds):%H:%M:%S}"

    def _moment(self, seconds: float) -> datetime:
        return datetime.now().astimezone() - timedelta(seconds=self._stream.position_s - seconds)

    def _text(self, window: StreamWindow) -> Iterator[str]:
        now = f"{self._time(window.end_s):>9}"
        for onset in window.started:
            yield f"{now}  begins  {onset.label}  {onset.score:.2f}, since {self._time(onset.onset_s)}"
        for event in window.ended:
            when = f"{self._time(event.onset_s)} to {self._time(event.offset_s)}"
            yield f"{now}  ends    {event.label}  {when}, peak {event.peak:.2f}"
        if self._top:
            tags = window.top(self._top, **self._options)
            yield f"{now}          " + ", ".join(f"{tag.label} {tag.score:.2f}" for tag in tags)

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
        if self._clock:
            record["clock"] = self._moment(record["time_s"]).isoformat(timespec="milliseconds")
        return json.dumps(record, ensure_ascii=False)

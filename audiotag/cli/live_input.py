"""Where live audio comes from, raw PCM on standard input or a microphone, and how an interrupt ends it."""

from __future__ import annotations

import contextlib
import queue
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..errors import AudioError, InvalidInputError, MissingDependencyError
from ..runs.progress import tell

if TYPE_CHECKING:
    import numpy as np

STDIN_RATE_HZ = 16_000
SAMPLE_FORMATS = {"s16le": "<i2", "f32le": "<f4"}
READ_BYTES = 1 << 16
WAIT_S = 0.2  # how soon a microphone that is waited for lets an interrupt through
BLOCKS_PER_S = 20  # that a microphone gives
MIC_QUEUE_S = 60  # audio kept while scoring is behind; what comes on top is lost, and said to be
# What other things on standard input begin with; as samples they would be noise, and tagged as such.
HEADERS = {b"RIFF": "WAV", b"RF64": "WAV", b"fLaC": "FLAC", b"OggS": "Ogg", b"ID3": "MP3", b"FORM": "AIFF"}


class Interrupt:
    """Guard that lets SIGINT and SIGTERM through only while input is waited for: never in the middle of a window.

    A second one comes through at once.
    """

    def __init__(self) -> None:
        self.requested = False
        self._waiting = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
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
        """Call `read` and return what it does; None where an interrupt came."""
        try:
            self._waiting = True
            return None if self.requested else read()
        except KeyboardInterrupt:
            self.requested = True
            return None
        finally:
            self._waiting = False


class Stdin:
    """Raw PCM from standard input, as soon as it comes."""

    name = "standard input"

    def __init__(self, rate_hz: int | None, channels: int, sample_format: str) -> None:
        if sys.stdin is None or sys.stdin.isatty():
            raise InvalidInputError(
                f"standard input is {'closed' if sys.stdin is None else 'a terminal'}; pipe raw PCM into it, such as "
                "'ffmpeg -i URL -f s16le -ac 1 -ar 16000 - | audiotag listen', or use --mic"
            )
        self.rate_hz = STDIN_RATE_HZ if rate_hz is None else rate_hz
        self._channels, self._format = channels, sample_format

    def chunks(self, interrupt: Interrupt) -> Iterator[np.ndarray]:
        """Yield samples (channels, samples) until the input ends or an interrupt comes."""
        import numpy as np

        dtype = np.dtype(SAMPLE_FORMATS[self._format])
        frame = dtype.itemsize * self._channels
        pcm: Any = sys.stdin.buffer
        rest, first = b"", True

        def read() -> bytes:
            try:
                return pcm.read1(READ_BYTES)
            except OSError as error:
                raise AudioError(f"standard input: cannot be read: {error.strerror or error}") from error

        while data := interrupt.wait(read):
            data = rest + data
            if first and len(data) >= 4:
                _refuse_header(data)
                first = False
            whole = len(data) // frame * frame
            rest = data[whole:]
            yield np.frombuffer(data[:whole], dtype).reshape(-1, self._channels).T
        if rest and not interrupt.requested:
            tell(
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


class Microphone:
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

    def chunks(self, interrupt: Interrupt) -> Iterator[np.ndarray]:
        """Yield samples (channels, samples) until an interrupt comes."""
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
                    tell("audio was lost: this machine is too slow or busy; a longer --hop costs less")
                yield chunk
        if not interrupt.requested:
            raise AudioError(f"{self.name} stopped sending; is it still plugged in?")

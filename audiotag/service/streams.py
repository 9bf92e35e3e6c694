"""Live streams over a WebSocket: PCM in; scores, onsets and offsets out, as `Tagger.stream` gives them.

The client sends ``{"type": "start", "sample_rate": ..., "format": "pcm_s16le" | "pcm_f32le", ...}``, then binary
messages of samples, then ``{"type": "stop"}``. The server sends ready, scores, onset, offset, lag, error and done.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from ..errors import AudiotagError, InvalidInputError
from ..frontend.windows import Window
from ..live.stream import Stream, StreamWindow
from ..runtimes.protocol import Array
from ..text import printable
from .guards import SUBPROTOCOL
from .picture import Picture, on_host
from .work import Feed

if TYPE_CHECKING:
    from .state import Service

FORMATS: dict[str, np.dtype[Any]] = {"pcm_s16le": np.dtype("<i2"), "pcm_f32le": np.dtype("<f4")}
START = {
    "sample_rate": None,
    "format": "pcm_s16le",
    "channels": 1,
    "window": None,
    "hop": 1.0,
    "on": None,
    "off": None,
    "min_duration": 0.0,
    "max_gap": None,
    "include": None,
    "exclude": None,
    "top": 10,
    "scores": "top",
    "picture": False,
}
WAITING_S = 5.0  # audio taken from a client before it is read; then TCP makes the client wait
LAG_S = 1.0  # that is worth telling
LAG_EVERY_S = 1.0
CLOSE_GOING_AWAY, CLOSE_POLICY, CLOSE_OVERLOADED = 1001, 1008, 1013


class Ended(Exception):
    """Raised to end a stream with an error for the client."""

    def __init__(self, detail: str, code: int = CLOSE_POLICY, kind: str = "invalid") -> None:
        super().__init__(detail)
        self.detail, self.code, self.kind = detail, code, kind


async def run(websocket: WebSocket, service: Service) -> None:
    """Serve one stream, from its handshake to its end."""
    wanted = websocket.scope.get("subprotocols", [])
    await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in wanted else None)
    live = LiveStream(websocket, service)
    end = "done"
    try:
        await live.run()
    except Ended as ended:
        end = ended.kind
        await _last_words(websocket, {"type": "error", "error": ended.kind, "detail": ended.detail}, ended.code)
    except WebSocketDisconnect:
        end = "left"
    finally:
        live.close()
        service.metrics.streams.labels(end).inc()


async def _last_words(websocket: WebSocket, message: dict[str, Any], code: int) -> None:
    try:
        if websocket.application_state is WebSocketState.CONNECTED:
            await websocket.send_text(json.dumps(message))
            await websocket.close(code)
    except (WebSocketDisconnect, RuntimeError):
        pass


class LiveStream:
    """One client's stream: it reads samples, hands them to the worker, and sends what comes back."""

    def __init__(self, websocket: WebSocket, service: Service) -> None:
        self._websocket, self._service = websocket, service
        self._limits = service.limits
        self._feed: Feed | None = None
        self._given: asyncio.Queue[tuple[list[StreamWindow] | Exception, list[dict[str, Any]], bool]] = asyncio.Queue()
        self._told_lag = 0.0

    def close(self) -> None:
        """Take the stream away from the worker."""
        if self._feed is not None:
            self._service.worker.remove_feed(self._feed)

    async def run(self) -> None:
        """Serve the stream from its ``start`` to its ``done``."""
        options = await self._start()
        sender = asyncio.create_task(self._send_results())
        reader = asyncio.create_task(self._read(options))
        draining = asyncio.create_task(self._service.draining.wait())
        try:
            await asyncio.wait({sender, reader, draining}, return_when=asyncio.FIRST_COMPLETED)
            if not sender.done() and not reader.done():  # the service stops: what has come is finished
                reader.cancel()
                self._push(None)
                await asyncio.wait_for(sender, self._limits.grace_s)
                await self._finish("stopping", CLOSE_GOING_AWAY)
            elif reader.done() and not sender.done():
                reader.result()  # raises what ended it, if it was not a stop
                await sender
                await self._finish("stop", 1000)
            else:
                sender.result()
        finally:
            for task in (sender, reader, draining):
                task.cancel()
            await asyncio.gather(sender, reader, draining, return_exceptions=True)

    async def _finish(self, reason: str, code: int) -> None:
        assert self._feed is not None
        await self._send({"type": "done", "reason": reason, "position_s": self._feed.stream.position_s})
        await self._websocket.close(code)

    async def _receive(self) -> dict[str, Any]:
        try:
            message = await asyncio.wait_for(self._websocket.receive(), self._limits.idle_s)
        except asyncio.TimeoutError:
            raise Ended(f"nothing came for {self._limits.idle_s:g} s", kind="idle") from None
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1000))
        return dict(message)

    async def _control(self) -> dict[str, Any] | bytes:
        """Receive the next message: an object with a type, or samples."""
        message = await self._receive()
        if message.get("bytes") is not None:
            return bytes(message["bytes"])
        try:
            plain = json.loads(message.get("text") or "")
        except (ValueError, RecursionError):
            plain = None
        if not isinstance(plain, dict) or not isinstance(plain.get("type"), str):
            raise Ended('a text message must be an object with a type, such as {"type": "stop"}')
        return plain

    async def _start(self) -> dict[str, Any]:
        message = await self._control()
        if isinstance(message, bytes) or message.pop("type") != "start":
            raise Ended('the first message must be {"type": "start", "sample_rate": ..., "format": "pcm_s16le"}')
        unknown = sorted(set(message) - set(START))
        if unknown:
            raise Ended(f"start has no {printable(unknown[0])[:80]!r}; it has {', '.join(START)}")
        options = {**START, **message}
        if not isinstance(options["format"], str) or options["format"] not in FORMATS:
            raise Ended(f"format must be one of {', '.join(FORMATS)}, got {options['format']!r:.80}")
        if not isinstance(options["picture"], bool):
            raise Ended(f"picture must be true or false, got {options['picture']!r:.80}")
        if options["scores"] not in ("top", "all", "none"):
            raise Ended(f"scores must be top, all or none, got {options['scores']!r:.80}")
        tagger = self._service.tagger()
        picture = Picture(tagger.sample_rate, tagger.config.frontend.hop_samples, None)
        strips: list[dict[str, Any]] = []

        def draw(window: Window, logmel: Array) -> None:
            strip = picture.add(window, on_host(logmel[0]), np.empty(0, np.float32))
            if strip:
                strips.append(strip)

        arguments = {
            "on": options["on"],
            "max_gap_s": options["max_gap"],
        }
        try:
            channels, rate = options["channels"], options["sample_rate"]
            if isinstance(channels, int) and channels > self._limits.max_channels:
                raise InvalidInputError(f"channels must be at most {self._limits.max_channels}, got {channels}")
            if isinstance(rate, (int, float)) and rate > self._limits.max_rate_hz:
                raise InvalidInputError(f"sample_rate must be at most {self._limits.max_rate_hz} Hz, got {rate}")
            if rate is None:
                raise InvalidInputError("sample_rate is missing; it is the rate of the samples in Hz")
            stream = Stream(
                tagger.engine,
                tagger.labels,
                sample_rate=rate,
                channels=channels,
                window_s=options["window"],
                hop_s=options["hop"],
                off=options["off"],
                min_duration_s=options["min_duration"],
                include=options["include"],
                exclude=options["exclude"],
                watch=draw if options["picture"] else None,
                **{name: value for name, value in arguments.items() if value is not None},
            )
            if stream.hop_s < 0.1:
                raise InvalidInputError(f"hop must be at least 0.1 s, got {options['hop']!r}")
            top = options["top"]
            if isinstance(top, bool) or not isinstance(top, int) or not 1 <= top <= len(tagger.labels):
                raise InvalidInputError(f"top must be a whole number from 1 to {len(tagger.labels)}, got {top!r:.80}")
        except AudiotagError as error:
            raise Ended(str(error)) from error
        loop = asyncio.get_running_loop()

        def give(found: list[StreamWindow] | Exception, last: bool) -> None:
            loop.call_soon_threadsafe(self._given.put_nowait, (found, strips.copy(), last))
            strips.clear()

        self._feed = Feed(stream, give)
        self._options = options
        self._service.worker.add_feed(self._feed)
        await self._send(
            {
                "type": "ready",
                "checkpoint": tagger.config.name,
                "sample_rate": stream.sample_rate,
                "channels": stream.channels,
                "format": options["format"],
                "hop_s": stream.hop_s,
                "window_s": stream.window_s,
            }
        )
        return options

    async def _read(self, options: dict[str, Any]) -> None:
        """Take samples until the client says stop."""
        assert self._feed is not None
        dtype, channels = FORMATS[options["format"]], self._feed.stream.channels
        while True:
            message = await self._control()
            if isinstance(message, bytes):
                if len(message) % (dtype.itemsize * channels):
                    raise Ended(
                        f"a binary message must hold whole frames of {dtype.itemsize * channels} bytes, "
                        f"got {len(message)} bytes"
                    )
                samples = np.frombuffer(message, dtype).reshape(-1, channels).T
                while self._push(samples) > WAITING_S:
                    samples = samples[:, :0]
                    await asyncio.sleep(0.02)
            elif message["type"] == "stop":
                self._push(None)
                return
            else:
                raise Ended(f"a message of type {printable(message['type'])[:80]!r} is not known; there is stop")

    def _push(self, samples: np.ndarray | None) -> float:
        assert self._feed is not None
        return self._service.worker.push(self._feed, samples)

    async def _send_results(self) -> None:
        """Send what the worker gives, until the stream is flushed."""
        assert self._feed is not None
        feed, flushed = self._feed, False
        while not flushed:
            try:
                given, strips, flushed = await asyncio.wait_for(self._given.get(), LAG_EVERY_S)
            except asyncio.TimeoutError:
                await self._tell_lag(feed)
                continue
            if isinstance(given, AudiotagError):
                raise Ended(str(given), kind="audio")
            if isinstance(given, Exception):
                raise Ended("the service failed at this stream", 1011, "failed")
            for window in given:
                await self._send_window(window)
            for strip in strips:
                await self._send({"type": "picture", **strip})
            await self._tell_lag(feed)

    async def _tell_lag(self, feed: Feed) -> None:
        lag_s, now = feed.lag_s, time.monotonic()
        if lag_s > self._limits.max_lag_s:
            raise Ended(f"scoring has fallen {lag_s:.0f} s behind", CLOSE_OVERLOADED, "overloaded")
        if lag_s > LAG_S and feed.is_live and now - self._told_lag > LAG_EVERY_S:
            self._told_lag = now
            await self._send({"type": "lag", "lag_s": round(lag_s, 3), "waiting_s": round(feed.pending_s, 3)})

    async def _send_window(self, window: StreamWindow) -> None:
        options = self._options
        times = {"start_s": window.start_s, "end_s": window.end_s}
        if options["scores"] != "none" and window.end_s > window.start_s:
            message: dict[str, Any] = {"type": "scores", **times}
            labels = {"include": options["include"], "exclude": options["exclude"]}
            message["tags"] = [tag.to_dict() for tag in window.top(options["top"], **labels)]
            if options["scores"] == "all":
                message["scores"] = base64.b64encode(window.scores.astype("<f4").tobytes()).decode()
            await self._send(message)
        for onset in window.started:
            await self._send({"type": "onset", "time_s": window.end_s, **onset.to_dict()})
        for event in window.ended:
            await self._send({"type": "offset", "time_s": window.end_s, **event.to_dict()})

    async def _send(self, message: dict[str, Any]) -> None:
        try:
            await self._websocket.send_text(json.dumps(message, ensure_ascii=False))
        except RuntimeError as error:  # closed meanwhile
            raise WebSocketDisconnect(1006) from error

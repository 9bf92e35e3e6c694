"""The server under the application: uvicorn, with bounds on slow clients and a stop that finishes what it has."""

from __future__ import annotations

import asyncio
import logging
import socket
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from .app import make_app
from .guards import HEAD_BYTES
from .limits import Limits
from .problems import MEDIA_TYPE, Problem
from .state import Service

MAX_FRAGMENTS = 1000  # of one WebSocket message
_log = logging.getLogger(__name__)


class _Patience:
    """A time limit on a client: `then` is called unless it is stopped before."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None

    def start(self, seconds: float, then: Any) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(seconds, self._over, then)

    def _over(self, then: Any) -> None:
        self._timer = None
        then()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def http_protocol(limits: Limits) -> type[H11Protocol]:
    """Make uvicorn's HTTP/1.1 protocol with bounds on the time for a request's head and for reading an answer."""

    class Protocol(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._head, self._unread = _Patience(self.loop), _Patience(self.loop)
            if len(self.connections) > limits.max_connections:
                transport.abort()
                return
            self._head.start(limits.head_s, self._head_over)

        def connection_lost(self, exc: Exception | None) -> None:
            self._head.stop()
            self._unread.stop()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.transport.get_protocol() is not self:  # a WebSocket now
                self._head.stop()
                self._unread.stop()
            elif self.cycle is None or self.cycle.response_complete:
                self._head.start(limits.head_s, self._head_over)
            else:
                self._head.stop()

        def on_response_complete(self) -> None:
            self._head.stop()
            super().on_response_complete()
            if self.transport.is_closing():
                self._unread.start(limits.write_s, self.transport.abort)
            elif self.conn.their_state is h11.SEND_BODY:  # the rest of a body that was refused
                self._head.start(limits.head_s, self.transport.abort)
            if not self.cycle.response_complete:
                self._head.stop()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            self._unread.start(limits.write_s, self.transport.abort)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._unread.start(limits.write_s, self.transport.abort)

        def resume_writing(self) -> None:
            self._unread.stop()
            super().resume_writing()

        def _head_over(self) -> None:
            if self.transport.is_closing():
                return
            if self.conn.our_state is h11.IDLE and self.conn.their_state is h11.IDLE:
                self._answer(Problem(408, f"the request's head took longer than {limits.head_s:g} s"))
            else:
                self.transport.abort()

        def send_400_response(self, msg: str) -> None:
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                self._answer(Problem(400, "this is not an HTTP request that can be read, or its head is too large"))
            else:
                self.transport.abort()

        def _answer(self, problem: Problem) -> None:
            body = problem.body()
            headers = [
                (b"content-type", MEDIA_TYPE.encode()),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            start = h11.Response(status_code=problem.status, headers=headers, reason=b"")
            for event in (start, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()
            self._unread.start(limits.write_s, self.transport.abort)

    return Protocol


def websocket_protocol(limits: Limits) -> type[WebSocketsSansIOProtocol]:
    """Make uvicorn's WebSocket protocol with bounds on unread answers and on messages in very many fragments."""

    class Protocol(WebSocketsSansIOProtocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._unread = _Patience(self.loop)

        def connection_lost(self, exc: Exception | None) -> None:
            self._unread.stop()
            super().connection_lost(exc)

        def handle_cont(self, event: Any) -> None:
            if len(self.frames) >= MAX_FRAGMENTS:
                self.transport.abort()
                return
            super().handle_cont(event)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._unread.start(limits.write_s, self.transport.abort)

        def resume_writing(self) -> None:
            self._unread.stop()
            super().resume_writing()

        def eof_received(self) -> None:
            self._unread.start(limits.write_s, self.transport.abort)

    return Protocol


class Server(uvicorn.Server):
    """uvicorn's server, which at a first SIGTERM or SIGINT refuses what is new and finishes what it has."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._asked = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drained: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._asked or self._loop is None:
            self.should_exit = True
            self.force_exit = self._asked
            return
        self._asked = True
        self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        _log.info("stopping: finishing %d requests and streams", self._service.in_hand)
        self._service.draining.set()
        self._drained = asyncio.ensure_future(self._wait())

    async def _wait(self) -> None:
        deadline = asyncio.get_running_loop().time() + self._service.limits.grace_s
        while self._service.in_hand and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        if self._service.worker.failure is not None:
            self.should_exit = True
        return await super().on_tick(counter)


def make_server(service: Service) -> Server:
    """Make the server of a service, to be run on sockets that are bound already."""
    limits = service.limits
    config = uvicorn.Config(
        make_app(service),
        http=http_protocol(limits),
        ws=websocket_protocol(limits),
        ws_max_size=limits.max_frame_bytes,
        ws_per_message_deflate=False,
        ws_ping_interval=limits.idle_s,
        ws_ping_timeout=limits.idle_s,
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=limits.keep_alive_s,  # type: ignore[arg-type]
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=HEAD_BYTES,
    )
    return Server(config, service)


def bound_socket(host: str, port: int) -> socket.socket:
    """Open a listening socket.

    Raises
    ------
    OSError
        The address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named asyncio turns Nagle's algorithm off, which costs 40 ms an answer.
    server = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        server.bind((host, port))
        server.listen(256)
    except OSError:
        server.close()
        raise
    server.setblocking(False)
    return server

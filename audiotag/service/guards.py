"""Who may ask, and what every answer carries: hosts, origins, the token, and headers that keep a page to itself."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import ipaddress
import time
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .metrics import Metrics
from .problems import MEDIA_TYPE, Problem

# What may be had without the token: the page, which holds nothing, and the probes.
OPEN_PATHS = ("/livez", "/readyz", "/openapi.json")
SUBPROTOCOL = "audiotag.v1"
BEARER_SUBPROTOCOL = "bearer."  # a browser cannot set headers on a WebSocket, but name subprotocols

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "media-src blob:",
        "connect-src 'self'",
        "worker-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = (
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"permissions-policy", b"microphone=(self), camera=(), geolocation=()"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
)
HEAD_BYTES = 16 << 10  # of a request's headers
LOOPBACK_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost")


@dataclass(frozen=True)
class Access:
    """Rules of who may ask: by host, origin and token.

    Attributes
    ----------
    token : str or None
        What clients must show.
    hosts : tuple of str
        Names, besides localhost and addresses, that a request may call the service by.
    origins : tuple of str
        Pages of other origins that may ask, such as ``https://example.org``.
    loopback : bool
        Whether the service listens on this machine alone; then other machines' addresses are no names of it.
    """

    token: str | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    loopback: bool = True

    def knows_host(self, host: str) -> bool:
        """Whether a Host header names this service, not a name that somebody's DNS pointed here (rebinding)."""
        name = _host_name(host)
        if name is None:
            return False
        if name in LOOPBACK_NAMES or name in self.hosts:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not self.loopback

    def knows_origin(self, origin: str, host: str) -> bool:
        """Whether a page of this origin may ask the host it asks."""
        if origin in self.origins:
            return True
        try:
            parts = urlsplit(origin)
            return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower() and bool(parts.netloc)
        except ValueError:
            return False

    def knows_token(self, token: str | None) -> bool:
        """Whether `token` is the service's; takes the same time for every wrong one."""
        if self.token is None:
            return True
        ours, theirs = (
            hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest() for text in (self.token, token or "")
        )
        return hmac.compare_digest(ours, theirs) and token is not None


def _host_name(host: str) -> str | None:
    """Take the name out of ``name:port`` or ``[address]:port``, in lower case; None where there is none."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return None
    if parts.netloc != host or parts.username is not None or parts.path or not parts.hostname:
        return None
    return parts.hostname.rstrip(".").lower()


class Guard:
    """ASGI middleware that refuses what `Access` does not know, adds `HEADERS`, counts, and closes unread bodies.

    Parameters
    ----------
    app : ASGIApp
    access : Access
    metrics : Metrics
    open_paths : iterable of str
        Paths besides `OPEN_PATHS` that need no token: the page's files.
    """

    def __init__(self, app: ASGIApp, access: Access, metrics: Metrics, open_paths: Iterable[str]) -> None:
        self.app, self.access, self.metrics = app, access, metrics
        self.open_paths = frozenset((*OPEN_PATHS, *open_paths))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        since = time.perf_counter()
        status = 0
        answered = _Answered(receive)

        async def guarded(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                status = message["status"]
                headers = [*message.get("headers", ()), *HEADERS]
                if not any(name == b"cache-control" for name, _ in headers):
                    headers.append((b"cache-control", b"no-store"))
                if status >= 400 and not answered.whole:
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": headers}
            elif message["type"] == "http.response.body" and status >= 400 and not answered.whole:
                # A client that is still sending reads the answer only if its connection is not reset meanwhile.
                if message.get("more_body", False):
                    await send(message)
                    return
                await send({**message, "more_body": True})
                await answered.drain()
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        try:
            self._check(scope)
        except Problem as problem:
            await refuse(scope, answered, guarded, problem)
        else:
            await self.app(scope, answered, guarded)
        if scope["type"] == "http":
            route = getattr(scope.get("route"), "path", None) or "other"
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.latency.labels(route).observe(time.perf_counter() - since)

    def _check(self, scope: Scope) -> None:
        if sum(len(name) + len(value) for name, value in scope["headers"]) > HEAD_BYTES:
            raise Problem(431, f"the request's headers are larger than the {HEAD_BYTES} bytes that are taken")
        headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            if name in (b"host", b"origin", b"authorization") and name in headers:
                raise Problem(400, f"the header {name.decode()} was given twice")
            headers[name] = value
        host = headers.get(b"host", b"").decode("latin-1")
        if not self.access.knows_host(host):
            raise Problem(
                421, f"this service is not called {host[:100]!r}; if it should be, start it with --allowed-host"
            )
        origin = headers.get(b"origin")
        asks = scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD", "OPTIONS")
        if asks and origin is not None and not self.access.knows_origin(origin.decode("latin-1"), host):
            raise Problem(403, "a page of another origin asks; if it may, start the service with --cors ORIGIN")
        if asks and origin is None and headers.get(b"sec-fetch-site") in (b"cross-site", b"same-site"):
            raise Problem(403, "a page of another origin asks; if it may, start the service with --cors ORIGIN")
        preflight = scope["type"] == "http" and scope["method"] == "OPTIONS"
        if scope["path"] in self.open_paths or preflight:
            return
        if not self.access.knows_token(_token(headers)):
            raise Problem(
                401,
                "this service wants its token, as the header Authorization: Bearer ...",
                headers={"WWW-Authenticate": "Bearer"},
            )


def _token(headers: dict[bytes, bytes]) -> str | None:
    """Find the token a request shows, in its header or, from a browser's WebSocket, among its subprotocols."""
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer":
        return token.strip().decode("utf-8", "surrogateescape")
    for name in headers.get(b"sec-websocket-protocol", b"").decode("latin-1").split(","):
        name = name.strip()
        if name.startswith(BEARER_SUBPROTOCOL):
            try:
                padded = name.removeprefix(BEARER_SUBPROTOCOL)
                return base64.urlsafe_b64decode(padded + "=" * (-len(padded) % 4)).decode("utf-8")
            except (binascii.Error, ValueError):
                return None
    return None


class _Answered:
    """A request's `receive` that remembers whether the whole body has come."""

    DRAIN_S, DRAIN_BYTES = 2.0, 64 << 20

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.whole = False

    async def __call__(self) -> Message:
        message = await self._receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            self.whole = True
        return message

    async def drain(self) -> None:
        """Throw away what a client still sends, for a little while."""

        async def rest() -> None:
            taken = 0
            while not self.whole and taken < self.DRAIN_BYTES:
                taken += len((await self()).get("body", b""))

        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(rest(), self.DRAIN_S)


async def refuse(scope: Scope, receive: Receive, send: Send, problem: Problem) -> None:
    """Answer with a problem; a WebSocket that was not accepted yet gets it too."""
    body = problem.body()
    headers = [
        (b"content-type", MEDIA_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        *((name.lower().encode(), value.encode()) for name, value in problem.headers.items()),
    ]
    kind = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
    if scope["type"] == "websocket":
        await receive()  # the connect
    await send({"type": f"{kind}.start", "status": problem.status, "headers": headers})
    await send({"type": f"{kind}.body", "body": body, "more_body": False})

"""The service as an ASGI application: its routes, the page's files, and what errors become.

Starlette rather than FastAPI: it is what is used of it here, 3 MB less, and no documentation page that loads from
another host.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.resources
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from ..errors import AudiotagError
from ..version import __version__
from . import options as opts
from . import recordings, streams, tasks
from .bodies import ClientGone
from .facts import labels_of, models_of
from .guards import Guard, refuse
from .metrics import MEDIA_TYPE as METRICS_TYPE
from .openapi import document
from .problems import MEDIA_TYPE as PROBLEM_TYPE
from .problems import Problem, problem_of
from .recordings import json_response
from .state import Service
from .work import CancelledWork

PAGE_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


def make_app(service: Service) -> Any:
    """Make the ASGI application of a service."""
    page = _page()
    routes = [
        *(Route(path, _asset(*found), methods=["GET"]) for path, found in page.items()),
        Route("/livez", _livez, methods=["GET"]),
        Route("/readyz", _readyz, methods=["GET"]),
        Route("/metrics", _metrics, methods=["GET"]),
        Route("/openapi.json", _openapi, methods=["GET"]),
        Route("/v1/models", _models, methods=["GET"]),
        Route("/v1/labels", _labels, methods=["GET"]),
        Route("/v1/tag", recordings.endpoint(opts.TAG, tasks.tag_task), methods=["POST"]),
        Route("/v1/events", recordings.endpoint(opts.EVENTS, tasks.event_task), methods=["POST"]),
        Route("/v1/embed", recordings.endpoint(opts.EMBED, tasks.embed_task), methods=["POST"]),
        Route("/v1/analyze", recordings.endpoint(opts.ANALYZE, tasks.analysis_task), methods=["POST"]),
        Route("/v1/audio/classification", recordings.hugging_face, methods=["POST"]),
        WebSocketRoute("/v1/stream", _stream),
    ]

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.worker.start()
        yield
        await asyncio.to_thread(service.worker.stop)

    middleware = []
    if service.access.origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(service.access.origins),
                allow_methods=["GET", "POST"],
                allow_headers=["Authorization", "Content-Type", "Content-Disposition", "Accept"],
                expose_headers=["Retry-After"],
            )
        )
    app = Starlette(routes=routes, lifespan=lifespan, middleware=middleware, exception_handlers=_HANDLERS)
    app.state.service = service
    return Guard(app, service.access, service.metrics, page)


# -- the page and facts --------------------------------------------------------------------------------------------


def _page() -> dict[str, tuple[bytes, str, str]]:
    """Read the page's files by path: contents, content type and tag."""
    found = {}
    for file in importlib.resources.files(__package__).joinpath("page").iterdir():
        ending = "." + file.name.rpartition(".")[2]
        if ending in PAGE_TYPES:
            data = file.read_bytes()
            path = "/" if file.name == "index.html" else f"/page/{file.name}"
            found[path] = (data, PAGE_TYPES[ending], f'"{hashlib.sha256(data).hexdigest()[:20]}"')
    return found


def _asset(data: bytes, content_type: str, tag: str) -> Any:
    headers = {"content-type": content_type, "etag": tag, "cache-control": "no-cache"}

    async def serve(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(data, headers=headers)

    return serve


def _service(request: Request) -> Service:
    return request.app.state.service


async def _livez(request: Request) -> Response:
    return json_response({"status": "alive", "version": __version__})


async def _readyz(request: Request) -> Response:
    state = _service(request).state()
    if state == "ready":
        return json_response({"status": state})
    return json_response({"status": state}, 503, {"Retry-After": "5"})


async def _metrics(request: Request) -> Response:
    return Response(_service(request).metrics.text(), headers={"content-type": METRICS_TYPE})


async def _openapi(request: Request) -> Response:
    return json_response(document(_service(request).limits, bool(_service(request).access.token)))


async def _models(request: Request) -> Response:
    service = _service(request)
    return json_response(models_of(service.tagger(), service.limits))


async def _labels(request: Request) -> Response:
    words = request.query_params.get("search", "")
    return json_response(labels_of(_service(request).tagger(), words))


# -- streams and errors --------------------------------------------------------------------------------------------


async def _stream(websocket: WebSocket) -> None:
    service: Service = websocket.app.state.service
    try:
        if websocket.query_params:
            opts.parse(websocket.query_params.multi_items(), ())
        service.tagger()
        if service.n_streams >= service.limits.max_streams:
            raise Problem(429, f"{service.n_streams} streams are open already; come again later", retry_after_s=10)
    except Problem as problem:
        await refuse(websocket.scope, websocket.receive, websocket.send, problem)
        return
    service.n_streams += 1
    try:
        await streams.run(websocket, service)
    finally:
        service.n_streams -= 1


def _problem(problem: Problem) -> Response:
    return Response(problem.body(), problem.status, headers={**problem.headers, "content-type": PROBLEM_TYPE})


async def _on_problem(request: Request, error: Any) -> Response:
    return _problem(error)


async def _on_http(request: Request, error: Any) -> Response:
    detail = {404: f"there is nothing at {request.url.path[:100]}", 405: f"{request.method} is not for this path"}
    return _problem(Problem(error.status_code, detail.get(error.status_code, error.detail), headers=error.headers))


async def _on_gone(request: Request, error: Any) -> Response:
    _service(request).metrics.cancelled.inc()
    return Response(status_code=499)


async def _on_audiotag(request: Request, error: Any) -> Response:
    return _problem(problem_of(error, opened=True))


async def _on_bug(request: Request, error: Exception) -> Response:
    return _problem(Problem(500, "the service failed at this request; its log says why"))


_HANDLERS: dict[Any, Any] = {
    Problem: _on_problem,
    HTTPException: _on_http,
    ClientGone: _on_gone,
    CancelledWork: _on_gone,
    AudiotagError: _on_audiotag,
    Exception: _on_bug,
}

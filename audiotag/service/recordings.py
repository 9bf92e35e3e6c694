"""Requests about recordings: from options and bodies through the worker to answers, whole or line by line."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from ..errors import AudiotagError
from ..outputs.formats import About, find_format
from ..outputs.records import dumps, error_record
from ..outputs.writers import open_writer
from ..text import shortest
from . import options as opts
from . import tasks
from .bodies import Body, BodyReader, ClientGone, Upload, read_body, read_hugging_face
from .picture import Picture, scores_base64
from .problems import Problem, problem_of
from .state import Service
from .work import Recording, Scored

if TYPE_CHECKING:
    from ..inference.batches import Analysis
    from ..tagger import Tagger

NDJSON = "application/x-ndjson"
CONTENT_TYPES = {"csv": "text/csv; charset=utf-8", "webvtt": "text/vtt; charset=utf-8"}
PROGRESS_EVERY_S = 0.25
KEPT_TASKS = 64


def json_response(plain: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Make an answer of strict JSON."""
    return Response(dumps(plain) + "\n", status, headers=headers, media_type="application/json")


def endpoint(known: tuple[opts.Option, ...], make_task: Any) -> Any:
    @functools.lru_cache(KEPT_TASKS)  # most clients ask the same again and again
    def task_of(tagger: Tagger, pairs: tuple[tuple[str, str], ...]) -> tasks.Task:
        return make_task(tagger, opts.parse(pairs, known))

    async def handle(request: Request) -> Response:
        service: Service = request.app.state.service
        pairs = tuple(request.query_params.multi_items())
        with contextlib.ExitStack() as stack:
            stack.enter_context(service.counted())
            task_of(service.tagger(), pairs)  # before a large body is read
            reader = BodyReader(request, service.limits, service.store)
            stack.callback(lambda: _release(service, reader))
            body = await read_body(request, service.limits, reader)
            stack.callback(body.close)
            tagger = service.tagger()
            task = task_of(tagger, (*pairs, *body.fields))
            job = Job(service, tagger, task, body, request)
            if task.kind == "analysis" or _accepts(request, NDJSON):
                if task.format != "json":
                    raise Problem(422, f"format={task.format} cannot be sent as {NDJSON}")
                kept = stack.pop_all()
                return StreamingResponse(_closing(job.lines(), kept), headers={"content-type": NDJSON})
            return await job.whole()

    return handle


def _release(service: Service, reader: BodyReader) -> None:
    service.store.held -= reader.n_bytes


def _accepts(request: Request, media_type: str) -> bool:
    return media_type in request.headers.get("accept", "")


async def _closing(lines: AsyncGenerator[bytes, None], stack: contextlib.ExitStack) -> AsyncGenerator[bytes, None]:
    with stack:
        try:
            async for line in lines:
                yield line
        finally:
            await lines.aclose()


class Job:
    """The files of one request on their way through the worker."""

    def __init__(self, service: Service, tagger: Tagger, task: tasks.Task, body: Body, request: Request) -> None:
        self._service, self._tagger, self._task, self._body, self._request = service, tagger, task, body, request

    def recording(self, upload: Upload, watch: Any = None) -> Recording:
        """Make the worker's piece of work of a file."""
        config, task = self._tagger.config, self._task
        return Recording(
            upload.source,
            upload.name,
            n_bytes=upload.n_bytes,
            rate_hz=config.frontend.sample_rate_hz,
            window=task.window,
            hop=task.hop,
            limits=self._service.limits,
            layers=task.layers,
            watch=watch,
            keep=task.kind == "analysis",
        )

    async def analyse(self, recording: Recording) -> Analysis:
        """Wait for a recording's analysis; a client that goes away cancels it."""
        worker = self._service.worker
        worker.submit(recording)
        gone = asyncio.ensure_future(self._gone())
        done = asyncio.wrap_future(recording.done)
        try:
            await asyncio.wait((gone, done), return_when=asyncio.FIRST_COMPLETED)
            if not done.done():
                raise ClientGone
            return done.result()
        finally:
            if not recording.done.done():
                worker.cancel(recording)
            gone.cancel()
            done.cancel()
            await asyncio.gather(gone, done, return_exceptions=True)

    async def _gone(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass

    async def whole(self) -> Response:
        """Answer once all files are done."""
        records, form = [], self._body.is_form
        for upload in self._body.uploads:
            recording = self.recording(upload)
            try:
                records.append(self._task.describe(await self.analyse(recording)))
            except AudiotagError as error:
                if not form:
                    raise problem_of(error, opened=recording.begun) from error
                records.append(error_record(upload.name, error))
        if self._task.format != "json":
            return self._written(records)
        return json_response({"results": records} if form else records[0])

    def _written(self, records: list[dict[str, Any]]) -> Response:
        form = find_format(self._task.kind, self._task.format)
        about = About(self._task.kind, fmax_hz=self._tagger.config.frontend.fmax_hz)
        file = io.StringIO(newline="")
        with open_writer(form, about, file) as writer:
            for record in records:
                writer.write(record)
        content_type = CONTENT_TYPES.get(self._task.format, "text/plain; charset=utf-8")
        return Response(file.getvalue().encode("utf-8", "backslashreplace"), headers={"content-type": content_type})

    async def lines(self) -> AsyncGenerator[bytes, None]:
        """Yield a line for each step of the work, then each file's record."""
        for upload in self._body.uploads:
            async for plain in self._steps(upload):
                yield (dumps(plain) + "\n").encode()

    async def _steps(self, upload: Upload) -> AsyncGenerator[dict[str, Any], None]:
        loop = asyncio.get_running_loop()
        scored: asyncio.Queue[Scored] = asyncio.Queue()

        def watch(one: Scored) -> None:
            loop.call_soon_threadsafe(scored.put_nowait, one)

        recording = self.recording(upload, watch)
        analysis = asyncio.ensure_future(self.analyse(recording))
        picture: Picture | None = None
        told = loop.time() if self._task.kind != "analysis" else 0.0
        try:
            while not (analysis.done() and scored.empty()):
                getter = asyncio.ensure_future(scored.get())
                await asyncio.wait({getter, analysis}, return_when=asyncio.FIRST_COMPLETED)
                if not getter.done():
                    getter.cancel()
                    await asyncio.sleep(0)  # what was given just before the end
                    continue
                some = [getter.result()]
                # Many windows a line where they come fast.
                if loop.time() - told < PROGRESS_EVERY_S and not analysis.done():
                    await asyncio.wait({analysis}, timeout=PROGRESS_EVERY_S - (loop.time() - told))
                while not scored.empty():
                    some.append(scored.get_nowait())
                told = loop.time()
                rate = recording.analysis.rate_hz
                if self._task.kind == "analysis":
                    if picture is None:
                        picture = Picture(rate, self._tagger.config.frontend.hop_samples, recording.analysis.expected_s)
                    yield {"windows": _windows(some, rate, picture)}
                yield {
                    "progress": {
                        "source": upload.name,
                        "done_s": some[-1].window.stop / rate,
                        "duration_s": recording.analysis.expected_s,
                    }
                }
            record = self._task.describe(analysis.result())
            if picture is not None:
                rest = picture.finish()
                if rest:
                    yield {"windows": {"start_s": [], "end_s": [], "scores": "", "strips": [rest]}}
            yield record
        except Problem as problem:
            yield {"source": upload.name, "error": problem.detail, "error_type": "Refused"}
        except AudiotagError as error:
            yield error_record(upload.name, error)
        finally:
            if not analysis.done():
                analysis.cancel()
                await asyncio.gather(analysis, return_exceptions=True)


def _windows(some: list[Scored], rate_hz: int, picture: Picture) -> dict[str, Any]:
    """Write windows as a line of `/v1/analyze` has them."""
    strips = [
        picture.add(one.window, one.logmel, one.samples)
        for one in some
        if one.logmel is not None and one.samples is not None
    ]
    return {
        "start_s": [one.window.start / rate_hz for one in some],
        "end_s": [one.window.stop / rate_hz for one in some],
        "scores": scores_base64([one.row for one in some]),
        "strips": [strip for strip in strips if strip],
    }


async def hugging_face(request: Request) -> Response:
    """Answer `/v1/audio/classification`, as Hugging Face's inference clients ask."""
    service: Service = request.app.state.service
    for name in request.query_params:
        opts.parse([(name, "")], ())
    with contextlib.ExitStack() as stack:
        stack.enter_context(service.counted())
        reader = BodyReader(request, service.limits, service.store)
        stack.callback(lambda: _release(service, reader))
        upload, parameters = await read_hugging_face(request, service.limits, reader)
        stack.callback(upload.source.close)
        top_k = parameters.get("top_k", 5)
        function = parameters.get("function_to_apply") or "sigmoid"
        if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
            raise Problem(422, f"top_k must be a positive whole number, got {top_k!r:.80}")
        if function not in ("sigmoid", "softmax", "none"):
            raise Problem(422, f"function_to_apply must be sigmoid, softmax or none, got {function!r:.80}")
        tagger = service.tagger()
        task = tasks.scores_task(tagger)
        job = Job(service, tagger, task, Body([upload]), request)
        recording = job.recording(upload)
        try:
            scores = task.describe(await job.analyse(recording))["scores"]
        except AudiotagError as error:
            raise problem_of(error, opened=recording.begun) from error
    shown = _applied(scores, function)
    best = np.argsort(-shown, kind="stable")[:top_k]
    return json_response([{"label": tagger.labels[int(i)].display_name, "score": shortest(shown[i])} for i in best])


def _applied(scores: np.ndarray, function: str) -> np.ndarray:
    """Return sigmoid scores as they are, or their logits, or the softmax of these."""
    if function == "sigmoid":
        return scores
    inside = np.clip(scores.astype(np.float64), 1e-30, 1 - 1e-12)
    logits = np.log(inside) - np.log1p(-inside)
    if function == "none":
        return logits.astype(np.float32)
    powers = np.exp(logits - logits.max())
    return (powers / powers.sum()).astype(np.float32)

"""Request bodies: read within their bounds of size and time, and kept so that a decoder can read them."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import json
import os
import re
import tempfile
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from ..text import printable
from .limits import Limits
from .problems import Problem

IN_MEMORY = 4 << 20  # bytes of a body; more goes to a temporary file
MAX_NAME = 200
JSON_BYTES = 64 << 20


class ClientGone(Exception):
    """Raised where the client has closed the connection."""


@dataclass
class Upload:
    """One file of a request: what a decoder reads, and the client's name for it, which is only shown."""

    source: Any
    name: str
    n_bytes: int


@dataclass
class Body:
    """The files of a request, and the options that came in its form."""

    uploads: list[Upload]
    fields: list[tuple[str, str]] = field(default_factory=list)
    is_form: bool = False

    def close(self) -> None:
        for upload in self.uploads:
            upload.source.close()


class Store:
    """Count of the bytes of bodies that are being held."""

    def __init__(self, limits: Limits) -> None:
        self.most, self.held = 4 * limits.max_bytes, 0

    def take(self, n_bytes: int) -> None:
        """Count so many more bytes; a `Problem` where they are too many."""
        self.held += n_bytes
        if self.held > self.most:
            raise Problem(503, "too many large bodies are being held at once; come again later", retry_after_s=30)


class BodyReader:
    """Reader of a request's body, chunk by chunk, bounded in bytes and in time.

    A body may stand still for `idle_s`, and must come at `min_bytes_per_s` on average after the first `idle_s`.
    """

    def __init__(self, request: Request, limits: Limits, store: Store) -> None:
        self._request, self._limits, self._store = request, limits, store
        self.n_bytes = 0

    def check_head(self) -> None:
        """Refuse what the request's head already says to be wrong."""
        headers = self._request.headers
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Problem(415, "a compressed body is not taken; audio formats compress better")
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._limits.max_bytes:
            raise self._too_large()

    def _too_large(self) -> Problem:
        return Problem(413, f"the body is larger than the {self._limits.max_bytes} bytes that are taken")

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the body's chunks as they come."""
        loop = asyncio.get_running_loop()
        started, idle = loop.time(), self._limits.idle_s
        while True:
            patience = started + idle + self.n_bytes / self._limits.min_bytes_per_s - loop.time()
            try:
                message = await asyncio.wait_for(self._request.receive(), max(0.001, min(idle, patience)))
            except asyncio.TimeoutError:
                raise Problem(408, f"the body came too slowly: {self.n_bytes} bytes and then nothing") from None
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunk = message.get("body", b"")
            self.n_bytes += len(chunk)
            if self.n_bytes > self._limits.max_bytes:
                raise self._too_large()
            self._store.take(len(chunk))
            if chunk:
                yield chunk
            if not message.get("more_body", False):
                return


async def read_body(request: Request, limits: Limits, reader: BodyReader) -> Body:
    """Read a request's files and form fields.

    Raises
    ------
    Problem
        400: a malformed form. 408: too slow. 413: too large. 415: compressed. 422: no file.
    ClientGone
    """
    reader.check_head()
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == "multipart/form-data":
        return await _read_form(request.headers, limits, reader)
    if content_type and not _may_be_audio(content_type):
        raise Problem(
            415, f"a body of type {content_type[:80]!r} is not taken; send a recording's bytes, or multipart/form-data"
        )
    return Body([await _read_raw(request, reader)])


def _may_be_audio(content_type: str) -> bool:
    return content_type.startswith(("audio/", "video/")) or content_type in (
        "application/octet-stream",
        "binary/octet-stream",
        "application/ogg",
        "application/x-www-form-urlencoded",  # what curl says of --data-binary unless told otherwise
    )


async def _read_raw(request: Request, reader: BodyReader) -> Upload:
    memory = bytearray()
    file: Any = None
    try:
        async for chunk in reader.chunks():
            memory += chunk
            if len(memory) > IN_MEMORY:
                if file is None:
                    file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
                await asyncio.to_thread(_write_all, file, memory)
                memory = bytearray()
        if file is not None:
            await asyncio.to_thread(_write_all, file, memory)
    except BaseException:
        if file is not None:
            file.close()
        raise
    name = _name(_disposition_name(request.headers.get("content-disposition", "")))
    if not reader.n_bytes:
        raise Problem(422, "the body is empty; send a recording's bytes")
    return _upload(memory if file is None else file, name, reader.n_bytes)


def _write_all(file: Any, data: bytes | bytearray) -> None:
    view = memoryview(data)
    while len(view):
        view = view[file.write(view) :]


async def _read_form(headers: Headers, limits: Limits, reader: BodyReader) -> Body:
    parser = MultiPartParser(headers, reader.chunks(), max_files=limits.max_files, max_fields=100, max_part_size=4096)
    parser.spool_max_size = IN_MEMORY
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Problem(400, f"the form cannot be read: {error.message}") from error
    except KeyError as error:
        raise Problem(400, f"the form cannot be read: {error} is missing in its content type") from error
    body = Body([], is_form=True)
    try:
        for key, value in form.multi_items():
            if not isinstance(value, UploadFile):
                body.fields.append((key, value))
            elif key in ("file", "files", "file[]", "files[]"):
                body.uploads.append(_taken_over(value))
            else:
                raise Problem(422, f"a form's files must be called file, got {key[:80]!r}")
    except BaseException:
        body.close()
        raise
    finally:
        await form.close()
    if not body.uploads:
        raise Problem(422, "the form has no file; add one called file, such as with curl -F file=@street.wav")
    return body


def _taken_over(value: UploadFile) -> Upload:
    """Take an uploaded file over from its form, which closes its own."""
    size = value.size or 0
    if size <= IN_MEMORY:
        value.file.seek(0)
        return _upload(value.file.read(), _name(value.filename), size)
    value.file.flush()
    descriptor = os.dup(value.file.fileno())
    os.lseek(descriptor, 0, os.SEEK_SET)
    return _upload(io.FileIO(descriptor, "rb"), _name(value.filename), size)


class _InMemory(io.BytesIO):
    name: str


def _upload(source: bytes | bytearray | io.FileIO, name: str, n_bytes: int) -> Upload:
    if isinstance(source, (bytes, bytearray)):
        source = _InMemory(source)  # type: ignore[assignment]
    source.seek(0)  # type: ignore[union-attr]
    source.name = name  # type: ignore[union-attr]  # what messages call it
    return Upload(source, name, n_bytes)


def _name(name: str | None) -> str:
    r"""Make a client's name for its file one printable line without folders."""
    last = re.split(r"[/\\]", name or "")[-1]
    return printable(last)[:MAX_NAME] or "upload"


def _disposition_name(header: str) -> str | None:
    found = re.search(r'filename="([^"]*)"', header)
    return found[1].encode("latin-1", "replace").decode("utf-8", "replace") if found else None


async def read_hugging_face(request: Request, limits: Limits, reader: BodyReader) -> tuple[Upload, dict[str, Any]]:
    """Read a body as `huggingface_hub.InferenceClient` sends it: bytes, or JSON with ``inputs`` and ``parameters``."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        return (await read_body(request, limits, reader)).uploads[0], {}
    reader.check_head()
    data = bytearray()
    async for chunk in reader.chunks():
        data += chunk
        if len(data) > JSON_BYTES:
            raise Problem(413, f"JSON of more than {JSON_BYTES} bytes is not taken; send the recording's bytes")
    try:
        plain = json.loads(data)
        inputs, parameters = plain["inputs"], plain.get("parameters") or {}
        audio = base64.b64decode(inputs, validate=True)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
        raise Problem(
            400, f'the body must be {{"inputs": base64 of a recording, "parameters": {{...}}}}: {error!s:.100}'
        ) from error
    if not isinstance(parameters, dict):
        raise Problem(422, f"parameters must be an object, got {type(parameters).__name__}")
    if not audio:
        raise Problem(422, "inputs is empty; it must be a recording in base64")
    return _upload(audio, "upload", len(audio)), parameters

"""One file over HTTP: resumed, capped, locked against other processes, verified, renamed into place.

urllib serves. pooch would neither resume nor cap nor lock, and knows no git blob digest, the only one recorded for some
files; `huggingface_hub`'s own downloader is undocumented, caps nothing, and exchanged its HTTP client twice between the
versions supported here, so that what it raises cannot be told apart.
"""

from __future__ import annotations

import http.client
import io
import logging
import os
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock, Timeout
from tqdm import tqdm

from ..errors import DownloadError, VerificationError
from ..version import __version__
from .digests import CHUNK_BYTES, difference, digests
from .manifest import Source

log = logging.getLogger(__name__)

TIMEOUT_S = 30.0  # without a byte, or with fewer than LEAST_BYTES
LEAST_BYTES = 1 << 15
PAUSES_S = (0.5, 1.0, 2.0, 4.0)  # between attempts; one more attempt than pauses
MAX_BYTES = 1 << 30  # of a file whose size is not recorded; the largest released one is about 280 MB
TRANSIENT_STATUS = (408, 416, 425, 429, 500, 502, 503, 504)
WAIT_NOTE_S = 1.0  # until it is said that another process is being waited for
REPLACED = "the file may have been replaced; check the address, and report it if this repeats"


class _Transient(Exception):
    """Raised for a failure that another attempt may not meet."""


def record_path(path: Path) -> Path:
    """Return where the digest of a file fetched without verification is kept, in the form of ``sha256sum``."""
    return path.with_name(path.name + ".sha256")


def check_cached(path: Path, source: Source) -> str | None:
    """Compare a cached file with what the manifest records, or else the record beside it; None where they agree."""
    if not source.verifiable:
        with suppress(OSError, ValueError, IndexError):
            source = Source(source.kind, source.file, sha256=record_path(path).read_text(encoding="ascii").split()[0])
    return difference(path, source)


def fetch_file(url: str, source: Source, path: Path) -> None:
    """Download `url` to `path` unless another process just did; the file appears verified or not at all.

    A file without a recorded digest is fetched too (whether it may be is the caller's decision), and its digest
    recorded beside it.

    Raises
    ------
    DownloadError
        If it cannot be fetched or stored. What arrived is kept for the next attempt where a digest can tell it whole.
    VerificationError
        If it is not what is recorded; it is deleted.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path):
            if path.is_file() and check_cached(path, source) is None:
                return
            for pause in (*PAUSES_S, None):
                try:
                    return _attempt(url, source, path)
                except _Transient as error:
                    if pause is None:
                        tried = f"{url}: {error}, after {len(PAUSES_S) + 1} attempts"
                        raise DownloadError(f"{tried}; check the connection and try again") from error
                    log.info("%s: %s; trying again in %g s", url, error, pause)
                    time.sleep(pause)
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        step = "free some space, or choose a writable folder with cache_dir or HF_HOME"
        raise DownloadError(f"{path}: cannot be stored ({reason}); {step}") from error


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process downloads `path`, and keep others waiting."""
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=WAIT_NOTE_S)
    except Timeout:
        log.warning("%s: waiting for another process that is downloading it", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _attempt(url: str, source: Source, path: Path) -> None:
    part = path.with_name(path.name + ".part")
    if not source.verifiable:
        part.unlink(missing_ok=True)  # without a digest nothing could tell a file patched together of two
    resumed = part.exists()
    _receive(url, source, part)
    if not source.verifiable:
        found = digests(part)
        # The record goes first: a file without one would count as never verified.
        record_path(path).write_text(f"{found.sha256}  {path.name}\n", encoding="ascii")
        message = "%s: fetched without verification; to pin it, its SHA-256 is %s, %d bytes"
        log.warning(message, path, found.sha256, found.size)
    elif wrong := difference(part, source):
        part.unlink()
        if resumed:
            raise _Transient(f"what an earlier download left did not fit ({wrong})")
        raise VerificationError(f"{url}: {wrong}; what arrived was deleted; {REPLACED}")
    os.replace(part, path)


def _receive(url: str, source: Source, part: Path) -> None:
    """Append to `part` what is missing of the file; what arrived before a failure is kept."""
    cap = source.size or MAX_BYTES
    have = part.stat().st_size if part.exists() else 0
    if have == source.size:
        return
    if have >= cap:
        part.unlink()
        have = 0
    headers = {"User-Agent": f"audiotag/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with _open(url, headers, part) as response:
        if response.headers.get("Content-Range", "").split("-")[0] != f"bytes {have}":
            have = 0
        total = None if response.length is None else have + response.length
        if total is None and not response.chunked and not source.verifiable:
            raise DownloadError(
                f"{url}: the server does not say how long the file is, so that a cut one would not show"
            )
        if total is not None and total > cap:
            raise DownloadError(f"{url}: the server announces {total} bytes, but {cap} are allowed; {REPLACED}")
        silent = sys.stderr is None or not sys.stderr.isatty()
        bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem, disable=silent)
        with bar, open(part, "ab" if have else "wb") as file:
            for chunk in _chunks(response, url):
                have += len(chunk)
                if have > cap:
                    raise DownloadError(f"{url}: the server sends more than the {cap} bytes allowed; {REPLACED}")
                file.write(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    if total is not None and have < total:
        raise _Transient(f"the connection ended after {have} of {total} bytes")


def _open(url: str, headers: dict[str, str], part: Path) -> http.client.HTTPResponse:
    with _explained(url):
        if urlsplit(url).scheme not in ("http", "https"):
            raise ValueError("only http and https can be")
        try:
            opener = urllib.request.build_opener(_HTTPHandler, _HTTPSHandler)
            request = urllib.request.Request(url, headers=headers)
            opened: http.client.HTTPResponse = opener.open(request, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as error:
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                part.unlink(missing_ok=True)
            raise
        return opened


def _chunks(response: http.client.HTTPResponse, url: str) -> Iterator[bytes]:
    while True:
        with _explained(url):
            chunk = response.read1(CHUNK_BYTES)
        if not chunk:
            return
        yield chunk


class _PacedFile(io.RawIOBase):
    """The bytes a server sends, headers and body; `_Transient` where they are fewer than LEAST_BYTES in TIMEOUT_S.

    A socket's own timeout bounds each wait, so that a server could keep a download, and all that wait for it, for ever.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._file = sock.makefile("rb", buffering=0)
        self.restart()

    def restart(self) -> None:
        """Count anew: what was slow so far is forgiven."""
        self._since, self._count = time.monotonic(), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        n_bytes = self._file.readinto(buffer) or 0
        self._count += n_bytes
        if n_bytes and time.monotonic() - self._since > TIMEOUT_S:
            if self._count < LEAST_BYTES:
                raise _Transient(f"no more than {self._count} bytes in {TIMEOUT_S:g} s")
            self.restart()
        return n_bytes

    def close(self) -> None:
        self._file.close()
        super().close()


class _PacedResponse(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp.close()
        self._paced = _PacedFile(sock)
        self.fp = io.BufferedReader(self._paced)

    def begin(self) -> None:
        super().begin()
        self._paced.restart()


class _HTTPConnection(http.client.HTTPConnection):
    response_class = _PacedResponse


class _HTTPSConnection(http.client.HTTPSConnection):
    response_class = _PacedResponse


class _HTTPHandler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HTTPConnection, req)


class _HTTPSHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HTTPSConnection, req)


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turn what urllib raises, of servers and addresses good and bad, into `_Transient` or `DownloadError`."""
    try:
        yield
    except urllib.error.HTTPError as error:
        answer = f"the server answered {error.code} {error.reason}"
        if error.code in TRANSIENT_STATUS:
            raise _Transient(answer) from error
        raise DownloadError(f"{url}: {answer}; check the address, and that the file exists") from error
    except (ValueError, OverflowError, http.client.InvalidURL) as error:
        why = f"{url}: the address, or one it leads to, cannot be fetched ({error})"
        raise DownloadError(f"{why}; correct AUDIOTAG_RELEASE_URL") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, ssl.SSLCertVerificationError):
            step = "install the system's certificates, or name them in SSL_CERT_FILE"
            raise DownloadError(f"{url}: the server's certificate cannot be verified ({reason}); {step}") from error
        raise _Transient(f"the connection failed ({reason or type(error).__name__})") from error

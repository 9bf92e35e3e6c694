"""One file over HTTP: resumed, capped, locked against other processes, verified, renamed into place.

urllib serves because a release file needs nothing more, and because `huggingface_hub`, which fetches everything else,
exchanged its HTTP client between the versions supported here.
"""

from __future__ import annotations

import errno
import http.client
import logging
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock, Timeout
from tqdm import tqdm

from ..errors import DownloadError, VerificationError
from ..version import __version__
from .digests import CHUNK_BYTES, Digests, digests, mismatch
from .manifest import Source

log = logging.getLogger(__name__)

TIMEOUT_S = 30.0  # without a byte
PAUSES_S = (0.5, 1.0, 2.0, 4.0)  # between attempts; one more attempt than pauses
MAX_BYTES = 1 << 30  # of a file whose size is not recorded; the largest released one is about 280 MB
TRANSIENT_STATUS = (408, 425, 429, 500, 502, 503, 504)
WAIT_NOTE_S = 10.0  # between log lines while another process downloads
REPLACED = "the file may have been replaced; check the address, and report it if this repeats"


class _Transient(Exception):
    """A failure that another attempt may not meet."""


def record_path(path: Path) -> Path:
    """Where the digest of a file fetched without verification is kept, in the form of ``sha256sum``."""
    return path.with_name(path.name + ".sha256")


def recorded(path: Path, source: Source) -> Source:
    """`source` with the digest recorded beside `path`, where the manifest has none and a record exists."""
    if source.verifiable:
        return source
    try:
        sha256 = record_path(path).read_text(encoding="ascii").split()[0]
        return Source(source.kind, source.file, sha256=sha256)
    except (OSError, ValueError, IndexError):
        return source


def check_cached(path: Path, source: Source) -> str | None:
    """What is wrong with a cached file; None where it is as recorded.

    Raises
    ------
    DownloadError
        If it cannot be read.
    """
    expected = recorded(path, source)
    if not expected.verifiable:
        return "no digest of it is recorded"
    try:
        return mismatch(digests(path), expected)
    except OSError as error:
        reason = error.strerror or error
        raise DownloadError(f"{path}: cannot be read ({reason}); check its permissions or delete it") from error


def fetch_file(url: str, source: Source, path: Path) -> Digests:
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
    if urlsplit(url).scheme not in ("http", "https"):
        raise DownloadError(f"{url}: only http and https addresses can be fetched; correct AUDIOTAG_RELEASE_URL")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path):
            if path.exists():
                if check_cached(path, source) is None:
                    return digests(path)
                path.unlink()
            return _fetch_locked(url, source, path)
    except (DownloadError, VerificationError):
        raise
    except (OSError, NotImplementedError) as error:
        raise DownloadError(_storage_message(path, error)) from error


def _storage_message(path: Path, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error)
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return f"{path}: the disk is full ({reason}); free some, or choose another folder with cache_dir or HF_HOME"
    return f"{path}: cannot be stored ({reason}); choose a writable folder with cache_dir or HF_HOME"


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    lock = FileLock(str(path) + ".lock")
    while True:
        try:
            lock.acquire(timeout=WAIT_NOTE_S)
            break
        except Timeout:
            log.info("%s: waiting for another process that is downloading it", path)
    try:
        yield
    finally:
        lock.release()


def _fetch_locked(url: str, source: Source, path: Path) -> Digests:
    part = path.with_name(path.name + ".part")
    resumed = part.exists()
    for pause in (*PAUSES_S, None):
        if not source.verifiable:
            part.unlink(missing_ok=True)  # without a digest nothing could tell a file patched together of two
        try:
            _receive(url, source, part)
        except _Transient as error:
            if pause is None:
                raise DownloadError(
                    f"{url}: {error}, after {len(PAUSES_S) + 1} attempts; check the connection and try again"
                ) from error
            log.info("%s: %s; trying again in %g s", url, error, pause)
            time.sleep(pause)
            continue
        found = digests(part)
        difference = mismatch(found, source)
        if difference is None:
            return _settle(part, path, source, found)
        part.unlink()
        if not resumed:
            raise VerificationError(f"{url}: {difference}; what arrived was deleted; {REPLACED}")
        log.info("%s: what an earlier download left did not fit (%s); starting again", url, difference)
        resumed = False
    raise DownloadError(f"{url}: not complete after {len(PAUSES_S) + 1} attempts; try again")


def _settle(part: Path, path: Path, source: Source, found: Digests) -> Digests:
    if not source.verifiable:
        # The record goes first: a file without one would count as never verified.
        record_path(path).write_text(f"{found.sha256}  {path.name}\n", encoding="ascii")
        message = "%s: fetched without verification; to pin it, its SHA-256 is %s, %d bytes"
        log.warning(message, path, found.sha256, found.size)
    os.replace(part, path)
    return found


def _receive(url: str, source: Source, part: Path) -> None:
    """Append to `part` what is missing of the file.

    Raises
    ------
    _Transient
        If the connection fails or ends early; what arrived is kept.
    DownloadError
        If the server refuses, or sends more than allowed.
    """
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
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S) as response:
            if have and not _continues(response, have):
                have = 0
            announced = response.headers.get("Content-Length")
            total = have + int(announced) if announced and announced.isdigit() else None
            if total is not None and total > cap:
                raise DownloadError(f"{url}: the server announces {total} bytes, but {cap} are allowed; {REPLACED}")
            _copy(response, part, have, total, cap, url)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            part.unlink()
            raise _Transient("the server would not continue an earlier download") from error
        if error.code in TRANSIENT_STATUS:
            raise _Transient(f"the server answered {error.code} {error.reason}") from error
        answer = f"{error.code} {error.reason}"
        raise DownloadError(
            f"{url}: the server answered {answer}; check the address, and that the file exists"
        ) from error
    except (urllib.error.URLError, http.client.HTTPException, ssl.SSLError, ConnectionError, TimeoutError) as error:
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, ssl.SSLCertVerificationError):
            step = "install the system's certificates, or name them in SSL_CERT_FILE"
            raise DownloadError(f"{url}: the server's certificate cannot be verified ({reason}); {step}") from error
        raise _Transient(f"the connection failed ({reason or type(error).__name__})") from error


def _continues(response: http.client.HTTPResponse, have: int) -> bool:
    content_range = response.headers.get("Content-Range", "")
    return response.status == http.HTTPStatus.PARTIAL_CONTENT and content_range.startswith(f"bytes {have}-")


def _copy(response: http.client.HTTPResponse, part: Path, have: int, total: int | None, cap: int, url: str) -> None:
    silent = not sys.stderr.isatty()
    bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem, disable=silent)
    with bar, open(part, "ab" if have else "wb") as file:
        while chunk := response.read(CHUNK_BYTES):
            have += len(chunk)
            if have > cap:
                raise DownloadError(f"{url}: the server sends more than the {cap} bytes allowed; {REPLACED}")
            file.write(chunk)
            bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())
    if total is not None and have < total:
        raise _Transient(f"the connection ended after {have} of {total} bytes")

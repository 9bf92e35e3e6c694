"""Fetching release files from a loopback server: verified, resumed, capped, shared between processes, offline."""

import contextlib
import errno
import hashlib
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import filelock
import numpy as np
import pytest

from audiotag.checkpoints import release
from audiotag.checkpoints.access import Access
from audiotag.checkpoints.fetch import fetch, fetch_entry, is_cached
from audiotag.checkpoints.manifest import Manifest, Source, manifest
from audiotag.config import CheckpointConfig
from audiotag.errors import CheckpointError, DownloadError, InvalidInputError, VerificationError

from .hub import Fault

NAME = "weights.pt"
CONTENT = np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
BLOB = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(release, "PAUSES_S", (0.01, 0.01, 0.01))


@pytest.fixture
def server(hub):
    hub.releases[NAME] = CONTENT
    return hub


def known(source=None):
    """A manifest of one checkpoint, `thing`, served by the release only."""
    entry = manifest().entries["mn04_as"]
    source = source or Source("release", NAME, size=len(CONTENT), sha256=SHA256)
    entry = replace(entry, name="thing", config=CheckpointConfig("thing"), sources=(source,))
    return Manifest("thing", None, "http://127.0.0.1:9/", {"thing": entry})


def get(cache, source=None, **options):
    data = known(source)
    return fetch_entry(data.entries["thing"], data, Access(cache, **options)).path


def here(cache):
    """What lies in the cache but for the lock."""
    folder = cache / "audiotag"
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock") if folder.exists() else []


def gets(server):
    return server.requested("GET", NAME)


@pytest.mark.parametrize(
    "source",
    [
        Source("release", NAME, sha256=SHA256),
        Source("release", NAME, git_blob_sha1=BLOB),
        Source("release", NAME, size=len(CONTENT), sha256=SHA256, git_blob_sha1=BLOB),
    ],
    ids=["sha256", "git blob", "everything"],
)
def test_fetched_once_then_cached(server, cache, source):
    path = get(cache, source)
    assert path == cache / "audiotag" / NAME and path.read_bytes() == CONTENT and here(cache) == [NAME]
    assert get(cache, source) == path
    assert get(cache, source, local_files_only=True) == path
    assert len(gets(server)) == 1


@pytest.mark.parametrize(
    ("source", "named"),
    [
        (Source("release", NAME, sha256="0" * 64), f"SHA-256 {SHA256} .expected {'0' * 64}"),
        (Source("release", NAME, git_blob_sha1="0" * 40), f"git blob SHA-1 {BLOB} .expected {'0' * 40}"),
        (Source("release", NAME, sha256=SHA256, git_blob_sha1="0" * 40), "git blob SHA-1"),
    ],
)
def test_wrong_digest_is_never_kept(server, cache, source, named):
    with pytest.raises(VerificationError, match=rf"{server.release_url}{NAME}: {named}.*deleted"):
        get(cache, source)
    assert here(cache) == []


@pytest.mark.parametrize("size", [len(CONTENT) - 1, 1])
def test_more_than_the_recorded_size_is_not_read(server, cache, size):
    with pytest.raises(DownloadError, match=f"announces {len(CONTENT)} bytes, but {size} are allowed"):
        get(cache, Source("release", NAME, size=size, sha256=SHA256))
    server.faults = [Fault(no_length=True)]
    with pytest.raises(DownloadError, match=f"sends more than the {size} bytes allowed"):
        get(cache, Source("release", NAME, size=size, sha256=SHA256))
    assert NAME not in here(cache)
    assert sum((cache / "audiotag" / name).stat().st_size for name in here(cache)) <= size


def test_less_than_the_recorded_size_is_refused(server, cache):
    with pytest.raises(VerificationError, match=f"size {len(CONTENT)} .expected {len(CONTENT) + 5}"):
        get(cache, Source("release", NAME, size=len(CONTENT) + 5, sha256=SHA256))
    assert here(cache) == []


def test_a_cap_holds_where_no_size_is_recorded(server, cache, monkeypatch):
    monkeypatch.setattr(release, "MAX_BYTES", 1000)
    with pytest.raises(DownloadError, match="1000 are allowed"):
        get(cache, Source("release", NAME, sha256=SHA256))


def test_cut_connection_is_resumed_where_it_ended(server, cache):
    server.faults = [Fault(cut_after=1_000_000), Fault(cut_after=500_000)]
    assert get(cache).read_bytes() == CONTENT
    assert [headers.get("range") for headers in gets(server)] == [None, "bytes=1000000-", "bytes=1500000-"]


def test_server_that_ignores_ranges(server, cache):
    server.faults = [Fault(cut_after=1_000_000), Fault(ignore_range=True)]
    assert get(cache).read_bytes() == CONTENT


def test_interrupted_download_is_continued_by_the_next_run(server, cache):
    server.faults = [Fault(cut_after=2_000_000)] + [Fault(status=503)] * 3
    with pytest.raises(DownloadError, match=r"503.*after 4 attempts.*try again"):
        get(cache)
    assert here(cache) == [NAME + ".part"]
    assert get(cache).read_bytes() == CONTENT
    assert gets(server)[-1]["range"] == "bytes=2000000-"
    assert here(cache) == [NAME]


@pytest.mark.parametrize("left", [CONTENT[:5000][::-1], CONTENT[::-1], CONTENT + b"x"], ids=["part", "whole", "longer"])
def test_leftovers_that_do_not_fit_are_replaced(server, cache, left):
    (cache / "audiotag").mkdir()
    (cache / "audiotag" / (NAME + ".part")).write_bytes(left)
    assert get(cache).read_bytes() == CONTENT
    assert here(cache) == [NAME]


def test_whole_leftover_needs_no_request(server, cache):
    (cache / "audiotag").mkdir()
    (cache / "audiotag" / (NAME + ".part")).write_bytes(CONTENT)
    assert get(cache).read_bytes() == CONTENT
    assert gets(server) == []


@pytest.mark.parametrize("fault", [Fault(status=500), Fault(status=429), Fault(cut_after=0)])
def test_passing_failures_are_tried_again(server, cache, fault):
    source = Source("release", NAME, sha256=SHA256)
    server.faults = [fault]
    assert get(cache, source).read_bytes() == CONTENT
    assert len(gets(server)) == 2


def test_false_length_is_seen_through(server, cache):
    server.faults = [Fault(announce=10**7)]
    assert get(cache, Source("release", NAME, sha256=SHA256)).read_bytes() == CONTENT


def test_slow_server_is_given_up(server, cache, monkeypatch):
    monkeypatch.setattr(release, "TIMEOUT_S", 0.05)
    monkeypatch.setattr(release, "PAUSES_S", (0.01,))
    server.faults = [Fault(delay_s=0.5)] * 2
    with pytest.raises(DownloadError, match=r"timed out.*after 2 attempts"):
        get(cache)


def test_missing_file_is_not_tried_again(hub, cache):
    with pytest.raises(DownloadError, match=rf"{NAME}: the server answered 404"):
        get(cache)
    assert len(gets(hub)) == 1


def test_nobody_listening(hub, cache, monkeypatch):
    monkeypatch.setenv("AUDIOTAG_RELEASE_URL", "http://127.0.0.1:1/")
    with pytest.raises(DownloadError, match=r"http://127\.0\.0\.1:1/weights\.pt: the connection failed \(.*refused"):
        get(cache)


@pytest.mark.parametrize("base", ["file:///etc", "ftp://127.0.0.1", "nonsense"])
def test_only_http_is_fetched(hub, cache, monkeypatch, base):
    monkeypatch.setenv("AUDIOTAG_RELEASE_URL", base)
    with pytest.raises(DownloadError, match=r"only http and https.*AUDIOTAG_RELEASE_URL"):
        get(cache)


def test_manifest_address_serves_without_the_variable(server, cache, monkeypatch):
    monkeypatch.delenv("AUDIOTAG_RELEASE_URL")
    data = replace(known(), release_url=server.release_url)
    assert fetch_entry(data.entries["thing"], data, Access(cache)).path.read_bytes() == CONTENT


# the cache


def test_damaged_cached_file_is_fetched_again(server, cache, caplog):
    path = get(cache)
    path.write_bytes(CONTENT[:-1] + b"\0")
    assert get(cache).read_bytes() == CONTENT
    assert f"{path}: SHA-256" in caplog.text and SHA256 in caplog.text
    assert len(gets(server)) == 2


def test_damaged_cached_file_is_refused_offline(server, cache, offline):
    path = cache / "audiotag" / NAME
    path.parent.mkdir()
    path.write_bytes(CONTENT[:100])
    with pytest.raises(VerificationError, match=rf"{path}: size 100 .expected 3000000.*not used; delete it"):
        get(cache)
    assert gets(server) == []


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_offline_without_a_cached_file(server, cache, how, request):
    if how == "variable":
        request.getfixturevalue("offline")
    with pytest.raises(DownloadError, match=r"is not there.*not to be used; run 'audiotag fetch thing'"):
        get(cache, local_files_only=how == "argument")
    assert server.requests == []


def test_default_cache_is_in_hf_home(server, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    assert get(None) == tmp_path / "home" / "audiotag" / NAME


def test_is_cached(server, cache):
    entry = manifest().entries["mn04_as"]
    assert is_cached(entry, Access(cache)) is None
    path = cache / "audiotag" / entry.sources[-1].file
    path.parent.mkdir()
    path.write_bytes(b"")
    assert is_cached(entry, Access(cache)) == path


# what cannot be verified


def test_unverifiable_is_not_fetched_unasked(server, cache, caplog):
    source = Source("release", NAME)
    with pytest.raises(VerificationError, match=r"is not fetched: no digest.*--allow-unverified"):
        get(cache, source)
    assert server.requests == []
    with caplog.at_level(logging.WARNING):
        path = get(cache, source, allow_unverified=True)
    assert SHA256 in caplog.text and "3000000 bytes" in caplog.text
    assert here(cache) == [NAME, NAME + ".sha256"]
    subprocess.run(["sha256sum", "--check", NAME + ".sha256"], cwd=path.parent, check=True, capture_output=True)


def test_unverifiable_is_held_to_its_first_digest(server, cache, caplog):
    source = Source("release", NAME)
    path = get(cache, source, allow_unverified=True)
    assert get(cache, source) == path  # said once
    path.write_bytes(b"other")
    with pytest.raises(VerificationError, match=f"{path}: SHA-256 .*expected {SHA256}"):
        get(cache, source, local_files_only=True)
    with pytest.raises(VerificationError, match="--allow-unverified"):
        get(cache, source)


def test_unverifiable_without_its_record_is_not_used(server, cache):
    source = Source("release", NAME)
    path = get(cache, source, allow_unverified=True)
    release.record_path(path).unlink()
    with pytest.raises(VerificationError, match="no digest of it is recorded"):
        get(cache, source, local_files_only=True)


def test_unverifiable_is_never_patched_together(server, cache):
    (cache / "audiotag").mkdir()
    (cache / "audiotag" / (NAME + ".part")).write_bytes(b"x" * 1000)
    assert get(cache, Source("release", NAME), allow_unverified=True).read_bytes() == CONTENT


def test_real_entry_without_digest_is_refused(hub, cache):
    with pytest.raises(VerificationError, match=r"dymn20_as_mAP_493\.pt is not fetched: no digest"):
        fetch("dymn20_as", Access(cache_dir=cache))
    with pytest.raises(InvalidInputError, match="did you mean dymn20_as"):
        fetch("dymn20", Access(cache_dir=cache))
    assert hub.requests == []


# disks


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_full_disk(server, cache):
    (cache / "audiotag").mkdir()
    (cache / "audiotag" / (NAME + ".part")).symlink_to("/dev/full")
    with pytest.raises(DownloadError, match=rf"{NAME}: cannot be stored .No space left.*free some space, or choose"):
        get(cache)
    assert NAME not in here(cache)


def test_read_only_cache(server, cache, monkeypatch):
    """With a file in it, it serves; without, the message says what to do."""
    path = get(cache)

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("mkdir", "unlink", "replace"):
        monkeypatch.setattr(os, name, refuse)
    assert get(cache) == path
    other = Source("release", "other.pt", sha256=SHA256)
    server.releases["other.pt"] = CONTENT
    with pytest.raises(DownloadError, match=r"other\.pt: cannot be stored \(Read-only.*choose a writable"):
        get(cache.parent / "elsewhere", other)


def test_cache_that_is_a_file(server, tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(DownloadError, match="cannot be stored"):
        get(tmp_path / "cache")


# several at once

CLIENT = """
import sys
import threading
import time
from audiotag.checkpoints.release import fetch_file
from audiotag.checkpoints.manifest import Source
from pathlib import Path
url, sha256, path = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
fetch_file(url, Source("release", "weights.pt", sha256=sha256), Path(path))
print(sha256)
"""


def test_eight_processes_download_once(server, cache):
    server.faults = [Fault(delay_s=0.3, cut_after=1_000_000), Fault(delay_s=0.3)]  # long enough for all to queue
    path = cache / "audiotag" / NAME
    command = [sys.executable, "-c", CLIENT, server.release_url + NAME, SHA256, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    clients = [subprocess.Popen(command, **pipes) for _ in range(8)]
    for client in clients:
        assert client.stdout.readline() == "ready\n"
    for client in clients:
        client.stdin.write("\n")
        client.stdin.flush()
    answers = [client.communicate(timeout=60)[0].strip() for client in clients]
    assert answers == [SHA256] * 8 and all(client.returncode == 0 for client in clients)
    assert path.read_bytes() == CONTENT
    assert [headers.get("range") for headers in gets(server)] == [None, "bytes=1000000-"]


def test_threads_download_once(server, cache):
    server.faults = [Fault(delay_s=0.1)]
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: get(cache), range(8)))
    assert len(set(paths)) == 1 and len(gets(server)) == 1


def test_killed_download_releases_the_lock(server, cache):
    server.faults = [Fault(delay_s=30)]
    path = cache / "audiotag" / NAME
    command = [sys.executable, "-c", CLIENT, server.release_url + NAME, SHA256, str(path)]
    client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    client.stdin.write("\n")
    client.stdin.flush()
    while not gets(server):
        assert client.poll() is None
    client.kill()
    client.wait()
    assert get(cache).read_bytes() == CONTENT


def test_progress_is_for_terminals(server, cache, capfd, monkeypatch):
    path = get(cache)
    assert capfd.readouterr() == ("", "")
    path.unlink()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    get(cache)
    out, err = capfd.readouterr()
    assert out == "" and "3.00M/3.00M" in err


def test_missing_built_in_file():
    data = known(Source("package", "data/not-there.safetensors", sha256="0" * 64))
    with pytest.raises(CheckpointError, match=r"not-there\.safetensors: missing from this installation; reinstall"):
        get(None, data.entries["thing"].sources[0])


def test_package_file_that_differs(monkeypatch):
    with pytest.raises(VerificationError, match=r"class_labels_indices\.csv: SHA-256 .*expected 000.*reinstall"):
        get(None, Source("package", "data/class_labels_indices.csv", sha256="0" * 64))
    with pytest.raises(VerificationError, match="no digest"):
        get(None, Source("package", "data/class_labels_indices.csv"))


# servers that lie or dawdle, and addresses that are none


@pytest.fixture
def names_nobody(monkeypatch):
    """Host names are encoded as the real look-up does, and then found by nobody."""

    def look_up(host, *rest, **named):
        host.encode("idna")
        raise socket.gaierror(-2, "Name or service not known")

    original = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *a, **k: (original if host == "127.0.0.1" else look_up)(host, *a, **k)
    )


@pytest.fixture
def raw(monkeypatch):
    """A server that answers every request with the bytes it is given, a pause between them, and hangs up."""
    made = []

    def serve(*pieces, pause_s=0.0):
        def answer():
            while True:
                try:
                    connection = listening.accept()[0]
                except OSError:
                    return
                with connection, contextlib.suppress(OSError):
                    connection.recv(65536)
                    for piece in pieces:
                        connection.sendall(piece)
                        time.sleep(pause_s)

        listening = socket.create_server(("127.0.0.1", 0))
        made.append(listening)
        threading.Thread(target=answer, daemon=True).start()
        monkeypatch.setenv("AUDIOTAG_RELEASE_URL", f"http://127.0.0.1:{listening.getsockname()[1]}/")

    yield serve
    for listening in made:
        listening.close()


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"Content-Length: \xb2\r\n\r\nx",
        OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\nx",
        OK + b"Content-Length: -5\r\n\r\nx",
        CHUNKED + b"-5\r\nx\r\n",
        CHUNKED + b"zz\r\nx\r\n",
        CHUNKED + b"\xb2\r\nx\r\n",
        CHUNKED + b"f" * 70_000,
        CHUNKED + b"5\r\nab",
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        OK + b"X: y\r\n" * 500 + b"\r\n",
        OK + b"X: " + b"y" * 70_000,
        b"HTTP/1.1 302 Found\r\nLocation: http://[::1\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://x..y/\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:99999/\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1x/\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: \xff\xfe\r\n\r\n",
    ],
    ids=lambda answer: repr(answer[-40:]),
)
def test_whatever_a_server_says_is_our_error(raw, names_nobody, cache, answer):
    raw(answer)
    with pytest.raises((DownloadError, VerificationError), match=NAME):
        get(cache, Source("release", NAME, sha256=SHA256))
    assert NAME not in here(cache)


@pytest.mark.parametrize(
    "base",
    [
        "http://[::1",
        "http://x..y",
        "http://\u00e4..b",
        "http://127.0.0.1:99999",
        "http://127.0.0.1/mod\u00e8les",
        "http://a b",
    ],
)
def test_whatever_the_variable_says_is_our_error(hub, names_nobody, cache, monkeypatch, base):
    monkeypatch.setenv("AUDIOTAG_RELEASE_URL", base)
    with pytest.raises(DownloadError, match=r"weights\.pt"):
        get(cache)


def test_a_file_of_no_stated_length_is_not_kept_without_a_digest(server, cache):
    server.faults = [Fault(no_length=True, cut_after=1_000_000)]
    with pytest.raises(DownloadError, match="does not say how long the file is, so that a cut one would not show"):
        get(cache, Source("release", NAME), allow_unverified=True)
    assert here(cache) == []
    server.faults = [Fault(no_length=True)]
    assert get(cache).read_bytes() == CONTENT  # a digest tells


def test_chunks_tell_their_end(raw, cache):
    raw(CHUNKED + b"5\r\nabcde\r\n", b"0\r\n\r\n")
    assert get(cache, Source("release", NAME), allow_unverified=True).read_bytes() == b"abcde"


def test_a_server_that_trickles_is_given_up(raw, cache, monkeypatch):
    monkeypatch.setattr(release, "TIMEOUT_S", 0.3)
    monkeypatch.setattr(release, "PAUSES_S", (0.01,))
    raw(OK + b"Content-Length: 3000000\r\n\r\n", *[b"x"] * 1000, pause_s=0.05)
    start = time.monotonic()
    with pytest.raises(DownloadError, match=r"no more than \d+ bytes in 0\.3 s, after 2 attempts"):
        get(cache)
    assert time.monotonic() - start < 10


TRICKLED = {
    "a header": [OK + b"X: ", *[b"y"] * 1000],
    "headers": [OK, *[b"X: y\r\n"] * 1000],
    "the status": [b"HTTP/1.1 200 ", *[b"y"] * 1000],
    "the length of a chunk": [CHUNKED, *[b"0"] * 1000],
    "trailers": [CHUNKED + b"5\r\nabcde\r\n0\r\n", *[b"X: y\r\n"] * 1000],
    "headers of another place": [b"HTTP/1.1 302 Found\r\n", *[b"X: y\r\n"] * 1000],
}


@pytest.mark.parametrize("what", TRICKLED)
def test_headers_that_trickle_hold_no_lock(raw, cache, monkeypatch, what):
    """Every piece comes within the socket's timeout, so that nothing but a bound on the whole ends the wait."""
    monkeypatch.setattr(release, "TIMEOUT_S", 0.3)
    monkeypatch.setattr(release, "PAUSES_S", (0.01,))
    raw(*TRICKLED[what], pause_s=0.05)
    start = time.monotonic()
    with pytest.raises(DownloadError, match=r"no more than \d+ bytes in 0\.3 s, after 2 attempts"):
        get(cache, Source("release", NAME, sha256=SHA256))
    assert time.monotonic() - start < 5
    with filelock.FileLock(cache / "audiotag" / (NAME + ".lock"), timeout=0):
        pass


def test_a_server_that_is_slow_to_begin_is_waited_for(raw, cache, monkeypatch):
    monkeypatch.setattr(release, "TIMEOUT_S", 0.3)
    raw(b"", OK + b"Content-Length: 5\r\n\r\n", b"abcde", pause_s=0.2)
    assert get(cache, Source("release", NAME), allow_unverified=True).read_bytes() == b"abcde"


def test_waiting_for_another_download_is_said(server, cache, monkeypatch, caplog):
    monkeypatch.setattr(release, "WAIT_NOTE_S", 0.05)
    server.faults = [Fault(delay_s=0.5)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: get(cache), range(2)))
    said = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert [r.getMessage() for r in said] == [
        f"{cache / 'audiotag' / NAME}: waiting for another process that is downloading it"
    ]


def test_a_server_cannot_write_to_the_terminal(raw, cache):
    raw(b"HTTP/1.1 404 \x1b[2J\x1b]0;pwned\x07\r\n\r\n")
    with pytest.raises(DownloadError, match=r"404 \\x1b\[2J") as caught:
        get(cache)
    assert "\x1b" not in str(caught.value)

"""What a hostile or broken client may try, against a real server process, each over plain sockets."""

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import soundfile

from .tiny import RATE, sound

httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")
websockets = pytest.importorskip("websockets.sync.client")

from websockets.exceptions import InvalidStatus  # noqa: E402

from .serving import SLOW_S, serving  # noqa: E402

LIMITS = {
    "max_seconds": 30,
    "max_bytes": 3_000_000,
    "max_channels": 4,
    "max_rate_hz": 96_000,
    "max_connections": 40,
    "head_s": 0.6,
    "idle_s": 0.8,
    "write_s": 0.8,
    "keep_alive_s": 0.8,
    "min_bytes_per_s": 50_000,
}


LATE_S = 14  # of the clients' 15; a body would have 20 by default


@pytest.fixture(scope="module")
def server():
    with serving(LIMITS) as running:
        yield running


@pytest.fixture
def client(server):
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client


def wav(samples, rate=RATE, **options):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **{"format": "WAV", **options})
    return file.getvalue()


def raw(server, data, timeout=15.0):
    """Everything that comes back for bytes, until the connection is closed, and how long that took."""
    since = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port), timeout=timeout) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)
        return rest(connection), time.monotonic() - since


def rest(connection):
    found = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            found += part
    return found


def answers(server):
    with contextlib.suppress(OSError):
        alive(server)
        return True
    return False


def alive(server):
    assert json.loads(server.get("/readyz")) == {"status": "ready"}


def in_time(condition, seconds=15.0):
    """Whether a condition comes true, however busy the machine is."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def metric(server, name):
    return float(server.get("/metrics").decode().split(f"\naudiotag_{name} ")[1].split()[0])


# -- decoded size --------------------------------------------------------------------------------------------


def test_a_small_opus_of_very_long_silence_is_stopped_while_decoding(server, client):
    minutes = wav(np.zeros(48_000 * 300, np.int16), 48_000, format="OGG", subtype="OPUS")
    assert len(minutes) < 300_000
    # Its last page says how long it is; without it only decoding can tell.
    claims = client.post("/v1/tag", content=minutes)
    assert claims.status_code == 413 and "at most 30 s" in claims.json()["detail"]
    since = time.monotonic()
    cut = client.post("/v1/tag", content=minutes[: len(minutes) - 200])
    assert cut.status_code == 413, cut.text
    assert time.monotonic() - since < 5
    alive(server)


def test_a_header_that_lies_about_the_length_is_not_believed(client):
    data = bytearray(wav(np.zeros(RATE * 40, np.int16)))
    data[40:44] = (1000).to_bytes(4, "little")  # the data chunk claims 1,000 bytes
    assert client.post("/v1/tag", content=bytes(data)).status_code in (200, 413)
    data[40:44] = (0xFFFFFFFF).to_bytes(4, "little")
    assert client.post("/v1/tag", content=bytes(data)).status_code == 413


def test_channels_and_rates_are_bounded(client):
    many = client.post("/v1/tag", content=wav(np.zeros((4_000, 5), np.int16)))
    assert many.status_code == 413 and "5 channels" in many.json()["detail"]
    fast = client.post("/v1/tag", content=wav(np.zeros(4_000, np.int16), 192_000))
    assert fast.status_code == 413 and "192000 Hz" in fast.json()["detail"]
    assert client.post("/v1/tag", content=wav(np.zeros((4_000, 4), np.int16), 96_000)).status_code == 200


# -- bodies and heads ----------------------------------------------------------------------------------------


def test_a_body_that_is_too_large_is_refused_early(server):
    head = f"POST /v1/tag HTTP/1.1\r\nHost: {server.host}\r\nContent-Length: 4000000\r\n\r\n".encode()
    answer, took = raw(server, head)
    assert b"413" in answer.splitlines()[0] and b"problem+json" in answer and took < LATE_S


def test_a_chunked_body_that_is_too_large_is_refused_and_the_answer_arrives(server):
    head = f"POST /v1/tag HTTP/1.1\r\nHost: {server.host}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    chunk = b"%x\r\n%s\r\n" % (500_000, bytes(500_000))
    answer, took = raw(server, head + 8 * chunk + b"0\r\n\r\n")
    assert b"413" in answer.splitlines()[0] and took < LATE_S


@pytest.mark.parametrize("sent", [b"", b"POST /v1/tag HT", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: "])
def test_a_head_that_never_ends_is_closed(server, sent):
    answer, took = raw(server, sent)
    assert 0.4 < took < 8  # 10 by default
    assert not answer or b"408" in answer.splitlines()[0]


def test_a_head_that_drips_is_closed(server):
    since = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port), timeout=15) as connection, contextlib.suppress(OSError):
        connection.sendall(b"GET / HTTP/1.1\r\n")
        while time.monotonic() - since < 9:
            connection.sendall(b"X: y\r\n")
            time.sleep(0.1)
    assert time.monotonic() - since < 8  # 10 by default


def test_a_second_head_on_the_same_connection_that_never_ends_is_closed(server):
    one = f"GET /livez HTTP/1.1\r\nHost: {server.host}\r\n\r\n".encode()
    answer, took = raw(server, one + b"GET /livez HTTP/1.1\r\nHo")
    assert answer.startswith(b"HTTP/1.1 200") and took < 8


def test_an_idle_connection_is_closed(server):
    answer, took = raw(server, f"GET /livez HTTP/1.1\r\nHost: {server.host}\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 200") and took < 4


@pytest.mark.parametrize("line", [b"X: " + b"a" * 70_000, b"\r\n".join(b"X%d: y" % i for i in range(9_000))])
def test_a_head_that_is_too_large_is_refused(server, line):
    answer, took = raw(server, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + line + b"\r\n\r\n")
    assert took < 8 and (not answer or answer.split()[1] in (b"400", b"431"))
    alive(server)


@pytest.mark.parametrize(
    "sent", [b"\x16\x03\x01\x02\x00\x01\x00", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x00" * 300 + b"\r\n\r\n"]
)
def test_what_is_no_http_is_refused(server, sent):
    answer, took = raw(server, sent)
    assert took < 8 and (not answer or b" 4" in answer.splitlines()[0])


def test_a_body_that_stalls_gets_408(server):
    head = f"POST /v1/tag HTTP/1.1\r\nHost: {server.host}\r\nContent-Length: 100000\r\n\r\n".encode()
    answer, took = raw(server, head + b"RIFF")
    assert b"408" in answer.splitlines()[0] and 0.5 < took < LATE_S


def test_a_body_that_drips_gets_408(server):
    since = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port), timeout=15) as connection:
        connection.sendall(f"POST /v1/tag HTTP/1.1\r\nHost: {server.host}\r\nContent-Length: 100000\r\n\r\n".encode())
        stop = threading.Event()

        def drip():
            with contextlib.suppress(OSError):
                while not stop.wait(0.05):
                    connection.sendall(b"x")

        threading.Thread(target=drip, daemon=True).start()
        answer = connection.recv(65536)
        stop.set()
    assert b"408" in answer.splitlines()[0] and time.monotonic() - since < LATE_S


def test_a_form_that_stalls_gets_408(server):
    head = (
        f"POST /v1/tag HTTP/1.1\r\nHost: {server.host}\r\nContent-Length: 100000\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        '--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF'
    )
    answer, took = raw(server, head.encode())
    assert b"408" in answer.splitlines()[0] and took < LATE_S


def test_an_answer_that_is_never_read_is_given_up(server):
    """A client that asks for much, reads nothing and stays must not hold a connection for ever."""
    assert in_time(lambda: metric(server, "requests_in_hand") == 0)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", server.port))
    with connection, contextlib.suppress(OSError):
        connection.settimeout(16)
        ask = f"GET /v1/labels HTTP/1.1\r\nHost: {server.host}\r\n\r\n".encode() * 100
        since = time.monotonic()
        while time.monotonic() - since < 15:
            connection.sendall(ask)
            time.sleep(0.05)
        pytest.fail("the connection is still open")
    alive(server)
    assert in_time(lambda: metric(server, "requests_in_hand") == 0)


def test_many_idle_connections_leave_the_service_usable(server):
    held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(80)]
    try:
        # Those beyond the limit are closed at once, the others when their head does not come.
        assert in_time(lambda: answers(server), LATE_S)
    finally:
        for connection in held:
            connection.close()


@pytest.mark.parametrize(
    "form",
    [
        b"--x\r\nContent-Disposition: form-data; name=file; filename=a\r\n\r\n" + b"\x00" * 50 + b"\r\n--x--\r\n",
        b'--x\r\nContent-Disposition: form-data; name="top"\r\n\r\n' + b"1" * 100_000 + b"\r\n--x--\r\n",
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx\r\n' * 300 + b"--x--\r\n",
        b'--x\r\nContent-Disposition: form-data; name="f"\r\n\r\nx\r\n' * 3000 + b"--x--\r\n",
        b"--x\r\n" + b"A: b\r\n" * 3000 + b"\r\nx\r\n--x--\r\n",
        os.urandom(5000),
    ],
    ids=["no audio", "long field", "many files", "many fields", "many headers", "noise"],
)  # fmt: skip
def test_strange_forms_are_refused(client, form):
    answer = client.post("/v1/tag", content=form, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert answer.status_code in (200, 400, 413, 415, 422)
    if answer.status_code == 200:
        assert all("error" in record for record in answer.json()["results"])


def test_names_of_files_are_shown_and_never_used(client, tmp_path):
    secret = tmp_path / "secret.wav"
    secret.write_bytes(wav(sound(1)))
    for name in (
        str(secret),
        f"../../../..{secret}",
        "-",
        "a\x1b[31m\x00b.wav",
        "x" * 5000,
        "http://127.0.0.1:9/x.wav",
    ):
        answer = client.post("/v1/events", files=[("file", (name, b"no audio at all, " * 9))])
        if answer.status_code == 400:  # a form with such a name is malformed
            assert len(name) > 1000
            continue
        record = answer.json()["results"][0]
        assert record["error_type"] == "AudioError" and "not audio" in record["error"]
        assert "/" not in record["source"] and "\x1b" not in record["source"] and len(record["source"]) <= 200


# -- who asks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "192.0.2.1", "", "a@localhost", "localhost/x",
     "[::1", "localhost:x", "127.0.0.1, evil.example", "0x7f.1"],
)  # fmt: skip
def test_a_foreign_host_is_refused_everywhere(server, host):
    for path in ("/", "/livez", "/v1/labels", "/page/main.js"):
        answer, _ = raw(server, f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        assert answer.split()[1] in (b"421", b"400"), (host, path, answer[:60])


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1234", "127.0.0.1", "127.1.2.3:80", "[::1]:8000", "localhost."]
)
def test_this_machines_own_names_are_known(server, host):
    answer, _ = raw(server, f"GET /livez HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 200")


def test_two_hosts_or_none_are_refused(server):
    for lines in ("Host: localhost\r\nHost: evil.example\r\n", ""):
        answer, _ = raw(server, f"GET /livez HTTP/1.1\r\n{lines}Connection: close\r\n\r\n".encode())
        assert answer.split()[1] in (b"400", b"421")
    answer, _ = raw(server, b"GET /livez HTTP/1.0\r\n\r\n")
    assert answer.split()[1] == b"421"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "file://"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_a_foreign_page_may_neither_post_nor_stream(server, client, headers):
    answer = client.post("/v1/tag", content=wav(sound(1)), headers=headers)
    assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers
    with (
        pytest.raises(InvalidStatus) as refused,
        websockets.connect(f"ws://{server.host}/v1/stream", additional_headers=headers),
    ):
        pass
    assert refused.value.response.status_code == 403


def test_the_page_itself_may_post(server, client):
    answer = client.post(
        "/v1/tag", content=wav(sound(1)), headers={"Origin": server.url, "Sec-Fetch-Site": "same-origin"}
    )
    assert answer.status_code == 200


def test_no_answer_allows_other_origins(client):
    answer = client.options(
        "/v1/tag", headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    )
    assert "access-control-allow-origin" not in answer.headers


def test_every_answer_keeps_the_page_to_itself(client):
    for answer in (client.get("/"), client.get("/livez"), client.get("/nothing"), client.post("/v1/tag")):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff" and "server" not in answer.headers
    page = client.get("/").text
    assert "<script>" not in page and " on" + "click" not in page and 'style="' not in page
    assert client.get("/page/../app.py").status_code == 404 and client.get("/page/%2e%2e/app.py").status_code == 404


def test_an_address_is_not_fetched(client):
    for body in (
        b"http://127.0.0.1:9/a.wav",
        b"file:///etc/passwd",
        b"#EXTM3U\nhttp://127.0.0.1:9/a.ts\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
    ):
        assert client.post("/v1/tag", content=body * 40).status_code == 415
    assert client.post("/v1/tag", params={"url": "http://127.0.0.1:9/"}, content=b"x").status_code == 422


# -- the token -----------------------------------------------------------------------------------------------

TOKEN = "correct horse, battery ünd staple"


@pytest.fixture(scope="module")
def locked():
    with serving({}, {"token": TOKEN, "origins": ["https://app.example"], "hosts": ["sounds.example.org"]}) as running:
        yield running


def test_the_token_is_wanted_for_all_but_page_and_probes(locked):
    for path in ("/", "/page/main.js", "/livez", "/readyz", "/openapi.json"):
        assert httpx.get(locked.url + path).status_code == 200, path
    for path in ("/v1/models", "/v1/labels", "/metrics", "/docs"):
        answer = httpx.get(locked.url + path)
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer", path
    shown = {"Authorization": b"Bearer " + TOKEN.encode()}
    assert httpx.get(locked.url + "/v1/models", headers=shown).status_code == 200
    for wrong in (TOKEN[:-1], TOKEN + "x", "x", TOKEN.upper()):
        headers = {"Authorization": b"Bearer " + wrong.encode()}
        assert httpx.post(locked.url + "/v1/tag", content=wav(sound(1)), headers=headers).status_code == 401
    basic = {"Authorization": b"Basic " + TOKEN.encode()}
    assert httpx.get(locked.url + "/v1/models", headers=basic).status_code == 401


def test_a_token_in_an_address_is_refused(locked):
    shown = {"Authorization": b"Bearer " + TOKEN.encode()}
    for name in ("token", "access_token", "api_key"):
        answer = httpx.post(f"{locked.url}/v1/tag?{name}=x", content=b"x", headers=shown)
        assert answer.status_code == 400 and "Authorization" in answer.json()["detail"]


def test_a_stream_shows_its_token_in_a_header_or_as_a_subprotocol(locked):
    import base64

    url = f"ws://{locked.host}/v1/stream"
    named = base64.urlsafe_b64encode(TOKEN.encode()).decode().rstrip("=")
    for given in (
        {"additional_headers": {"Authorization": "Bearer wrong"}},
        {"subprotocols": ["audiotag.v1", "bearer.d3Jvbmc"]},
        {"subprotocols": ["audiotag.v1", "bearer.!"]},
        {},
    ):
        with pytest.raises(InvalidStatus) as refused, websockets.connect(url, **given):
            pass
        assert refused.value.response.status_code == 401
    with websockets.connect(url, subprotocols=["audiotag.v1", f"bearer.{named}"]) as ws:
        assert ws.subprotocol == "audiotag.v1"  # and the token is not sent back


def test_the_comparison_is_of_digests_in_constant_time(monkeypatch):
    import hmac

    from audiotag.service.guards import Access

    seen = []
    compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: (seen.append((len(a), len(b))), compare(a, b))[1])
    access = Access(token="secret")
    assert access.knows_token("secret") and not access.knows_token("s") and not access.knows_token(None)
    assert seen == [(32, 32)] * 3


def test_cors_is_for_the_named_origin_alone(locked):
    ask = {
        "Origin": "https://app.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    answer = httpx.options(locked.url + "/v1/tag", headers=ask)
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    other = httpx.options(locked.url + "/v1/tag", headers={**ask, "Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers
    shown = {"Authorization": b"Bearer " + TOKEN.encode(), "Origin": b"https://app.example"}
    answer = httpx.post(locked.url + "/v1/tag", content=wav(sound(1)), headers=shown)
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "https://app.example"


def test_a_name_behind_a_proxy_is_known_where_it_was_given(locked):
    assert httpx.get(locked.url + "/livez", headers={"Host": "sounds.example.org"}).status_code == 200
    assert httpx.get(locked.url + "/livez", headers={"Host": "other.example.org"}).status_code == 421


# -- clients that go, and a service that stops ----------------------------------------------------------------


@pytest.fixture(scope="module")
def slow():
    with serving({"grace_s": 20}, slow=True) as running:
        yield running


def test_a_client_that_goes_away_stops_costing(slow):
    long = wav(np.zeros(RATE * 400, np.int16))  # 40 windows, 8 s of work
    head = f"POST /v1/tag HTTP/1.1\r\nHost: {slow.host}\r\nContent-Length: {len(long)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", slow.port)) as connection:
        connection.sendall(head + long)
        assert in_time(lambda: metric(slow, "windows_total") > 0)
    assert in_time(lambda: metric(slow, "cancelled_total") == 1 and metric(slow, "requests_in_hand") == 0)
    time.sleep(2 * SLOW_S)  # a run that was under way
    first = metric(slow, "windows_total")
    time.sleep(3 * SLOW_S)
    assert metric(slow, "windows_total") == first < 30
    assert metric(slow, "held_bytes") == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM there")
def test_sigterm_finishes_what_there_is_and_refuses_what_is_new(slow):  # the last that needs `slow`
    server = slow
    long = wav(sound(100))
    answers = []
    asking = threading.Thread(
        target=lambda: answers.append(httpx.post(server.url + "/v1/tag", content=long, timeout=30))
    )
    asking.start()
    with websockets.connect(f"ws://{server.host}/v1/stream") as ws:
        ws.send(json.dumps({"type": "start", "sample_rate": 16_000}))
        assert json.loads(ws.recv(5))["type"] == "ready"
        ws.send(np.round(sound(3)[::2] * 20_000).astype("<i2").tobytes())
        time.sleep(2 * SLOW_S)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(SLOW_S)
        refused = httpx.post(server.url + "/v1/tag", content=b"x")
        assert refused.status_code == 503 and refused.headers["retry-after"]
        assert httpx.get(server.url + "/readyz").json() == {"status": "draining"}
        assert httpx.get(server.url + "/livez").status_code == 200
        messages = []
        with contextlib.suppress(websockets_closed()):
            while True:
                messages.append(json.loads(ws.recv(10)))
    assert messages[-1] == {"type": "done", "reason": "stopping", "position_s": 3.0}
    assert [m["end_s"] for m in messages if m["type"] == "scores"] == [1.0, 2.0, 3.0]
    asking.join(20)
    assert answers[0].status_code == 200 and answers[0].json()["duration_s"] == 100
    assert server.process.wait(15) in (0, -signal.SIGTERM)


def websockets_closed():
    from websockets.exceptions import ConnectionClosed

    return ConnectionClosed


def test_off_loopback_the_command_wants_a_token(tmp_path):
    from audiotag.cli import main

    environment = {k: v for k, v in os.environ.items() if k != "AUDIOTAG_TOKEN"}
    run = subprocess.run(
        [sys.executable, "-m", "audiotag", "serve", "--host", "0.0.0.0", "--port", "0"],
        capture_output=True, text=True, timeout=60, env=environment,
    )  # fmt: skip
    assert run.returncode == 2 and "AUDIOTAG_TOKEN" in run.stderr and "--no-auth" in run.stderr
    assert main(["serve", "--cors", "*", "--port", "0"]) == 2
    assert main(["serve", "--port", "70000"]) == 2
    assert main(["serve", "--max-seconds", "-1", "--port", "0"]) == 2

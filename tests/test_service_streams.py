"""Live streams over a real WebSocket: what comes out is what `Tagger.stream` gives for the same samples."""

import base64
import contextlib
import json
import time

import numpy as np
import pytest

from audiotag import Tagger

from .tiny import sound, tiny_checkpoint

pytest.importorskip("uvicorn", reason="the extra serve is not installed")
client = pytest.importorskip("websockets.sync.client")

from websockets.exceptions import ConnectionClosed, InvalidStatus  # noqa: E402

from .serving import serving  # noqa: E402


@pytest.fixture(scope="module")
def tagger():
    return Tagger(tiny_checkpoint(), device="cpu", runtime="torch")


@pytest.fixture(scope="module")
def server():
    with serving({"max_streams": 3, "idle_s": 3.0, "max_frame_bytes": 200_000}) as running:
        yield running


NAN = np.full(50, np.nan, "<f4").tobytes()


def connect(server, **options):
    return client.connect(f"ws://{server.host}/v1/stream", compression=None, max_size=None, **options)


def run(server, samples, chunk, start, dtype="<i2"):
    """Every message for samples (n,) or (n, channels) sent in chunks."""
    with connect(server) as ws:
        ws.send(json.dumps({"type": "start", **start}))
        messages = [json.loads(ws.recv(10))]
        assert messages[0]["type"] == "ready", messages
        for at in range(0, len(samples), chunk):
            ws.send(samples[at : at + chunk].astype(dtype).tobytes())
        ws.send(json.dumps({"type": "stop"}))
        while messages[-1]["type"] not in ("done", "error"):
            messages.append(json.loads(ws.recv(20)))
    return messages


@pytest.mark.parametrize(
    ("rate", "channels", "form", "chunk", "options"),
    [
        (16_000, 1, "pcm_s16le", 1_600, {"hop": 1.0}),
        (44_100, 1, "pcm_f32le", 30_000, {"hop": 0.5, "on": 0.55, "off": 0.5, "max_gap": 0.0}),
        (32_000, 2, "pcm_s16le", 4_000, {"hop": 2.0, "include": "Animal", "min_duration": 1.0}),
    ],
)
def test_scores_and_events_are_the_streams(server, tagger, rate, channels, form, chunk, options):
    rng = np.random.default_rng(5)
    samples = np.resize(sound(17, 7), (17 * rate, channels)) * rng.uniform(0.5, 1, channels)
    samples = samples.astype(np.float32) if form == "pcm_f32le" else np.round(samples * 20_000).astype(np.int16)
    dtype = {"pcm_s16le": "<i2", "pcm_f32le": "<f4"}[form]
    start = {"sample_rate": rate, "channels": channels, "format": form, "scores": "all", "top": 3, **options}
    messages = run(server, samples, chunk, start, dtype)

    names = {"hop": "hop_s", "max_gap": "max_gap_s", "min_duration": "min_duration_s"}
    stream = tagger.stream(sample_rate=rate, channels=channels, **{names.get(k, k): v for k, v in options.items()})
    windows = [
        w for at in range(0, len(samples), chunk) for w in stream.push(samples[at : at + chunk].T)
    ] + stream.flush()

    scores = [m for m in messages if m["type"] == "scores"]
    real = [w for w in windows if w.end_s > w.start_s]
    assert [(m["start_s"], m["end_s"]) for m in scores] == [(w.start_s, w.end_s) for w in real]
    rows = np.stack([np.frombuffer(base64.b64decode(m["scores"]), "<f4") for m in scores])
    np.testing.assert_allclose(rows, [w.scores for w in real], atol=2e-6)
    assert [t["label"] for t in scores[-1]["tags"]] == [
        t.label for t in real[-1].top(3, include=options.get("include"))
    ]
    for kind, found in (
        ("onset", [o for w in windows for o in w.started]),
        ("offset", [e for w in windows for e in w.ended]),
    ):
        sent = [m for m in messages if m["type"] == kind]
        expected = [e.to_dict() for e in found]
        keys = {"onset_s", "offset_s", "label", "index", "mid"}
        assert [{k: m[k] for k in keys & m.keys()} for m in sent] == [
            {k: e[k] for k in keys & e.keys()} for e in expected
        ]
        assert expected
    assert messages[-1] == {"type": "done", "reason": "stop", "position_s": 17.0}


def test_a_picture_has_a_column_for_every_frame(server):
    samples = np.round(sound(13, 1)[::2] * 20_000)
    messages = run(server, samples, 1_600, {"sample_rate": 16_000, "picture": True})
    strips = [m["logmel"] for m in messages if m["type"] == "picture"]
    assert sum(len(base64.b64decode(s["levels"])) // s["mels"] for s in strips) == 1300
    ends = np.cumsum([len(base64.b64decode(s["levels"])) // s["mels"] * s["column_s"] for s in strips])
    np.testing.assert_allclose([s["start_s"] for s in strips[1:]], ends[:-1])


def test_an_empty_stream_is_done(server):
    assert [m["type"] for m in run(server, np.empty(0), 1, {"sample_rate": 8_000})] == ["ready", "done"]


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        ([b"\x00\x00"], "first message"),
        (["nonsense"], "object with a type"),
        (["[" * 100_000], "object with a type"),
        ([{"type": "stop"}], "first message"),
        ([{"type": "start"}], "sample_rate"),
        ([{"type": "start", "sample_rate": 10}], "sample_rate"),
        ([{"type": "start", "sample_rate": 500_000}], "at most 384000"),
        ([{"type": "start", "sample_rate": 16_000, "channels": 99}], "at most 16"),
        ([{"type": "start", "sample_rate": 16_000, "channels": "2"}], "channels"),
        ([{"type": "start", "sample_rate": 16_000, "format": "mp3"}], "pcm_s16le"),
        ([{"type": "start", "sample_rate": 16_000, "format": ["x"]}], "pcm_s16le"),
        ([{"type": "start", "sample_rate": 16_000, "hop": 0.001}], "at least 0.1"),
        ([{"type": "start", "sample_rate": 16_000, "on": 3}], "on"),
        ([{"type": "start", "sample_rate": 16_000, "include": "Unicorn"}], "Unicorn"),
        ([{"type": "start", "sample_rate": 16_000, "include": {"a": 1}}], "include"),
        ([{"type": "start", "sample_rate": 16_000, "volume": 11}], "volume"),
        ([{"type": "start", "sample_rate": 16_000, "top": True}], "top"),
        ([{"type": "start", "sample_rate": 16_000}, b"\x00\x00\x00"], "whole frames"),
        ([{"type": "start", "sample_rate": 16_000}, {"type": "pause"}], "pause"),
        ([{"type": "start", "sample_rate": 16_000, "format": "pcm_f32le"}, NAN], "NaN"),
        ([{"type": "start", "sample_rate": 16_000}], "nothing came"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_and_ends_the_stream(server, sent, says):
    with connect(server) as ws:
        for message in sent:
            ws.send(json.dumps(message) if isinstance(message, dict) else message)
        with pytest.raises(ConnectionClosed):
            while True:
                last = json.loads(ws.recv(10))
        assert last["type"] == "error" and says in last["detail"], last
        assert ws.close_code in (1008, 1011)


def test_too_many_streams_are_refused_and_a_place_is_free_again(server):
    time.sleep(0.3)
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(connect(server))
        with pytest.raises(InvalidStatus) as refused, connect(server):
            pass
        answer = refused.value.response
        assert answer.status_code == 429 and answer.headers["Retry-After"]
        assert json.loads(answer.body)["status"] == 429
    for _ in range(50):
        with contextlib.suppress(InvalidStatus), connect(server):
            return
        time.sleep(0.05)
    pytest.fail("no place came free")


def test_a_message_that_is_too_long_ends_the_connection(server):
    with connect(server) as ws:
        ws.send(json.dumps({"type": "start", "sample_rate": 16_000}))
        ws.recv(10)
        with pytest.raises(ConnectionClosed):
            ws.send(bytes(300_000))
            while True:
                ws.recv(10)
        assert ws.close_code == 1009


def test_a_file_sent_at_once_is_taken_at_the_networks_pace(server):
    """Far more than may wait: the client is made to wait, nothing is lost and nothing ends."""
    samples = np.round(np.resize(sound(10), 90 * 32_000)[::2] * 20_000)
    messages = run(server, samples, 50_000, {"sample_rate": 16_000, "hop": 2.0, "scores": "top"})
    assert messages[-1] == {"type": "done", "reason": "stop", "position_s": 90.0}
    assert len([m for m in messages if m["type"] == "scores"]) == 45

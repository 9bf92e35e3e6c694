"""The HTTP interface of a real server process, against the Tagger, the command and other people's clients."""

import io
import json
import sys

import numpy as np
import pytest
import soundfile

from audiotag import Tagger
from audiotag.cli import main

from .tiny import RATE, sound, tiny_checkpoint

httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")

from .serving import serving  # noqa: E402


@pytest.fixture(scope="module")
def tagger():
    return Tagger(tiny_checkpoint(), device="cpu", runtime="torch")


@pytest.fixture(scope="module")
def server():
    with serving({"max_seconds": 60, "max_bytes": 8 << 20}) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def wav(samples, rate=RATE, **options):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=options.pop("format", "WAV"), **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def clip():
    return wav(sound(12.5, 3))


def close(a, b):
    """Equal JSON; numbers to 1e-6, for other batches' and threads' last bits."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(close, a, b))
    return a == pytest.approx(b, abs=1e-6) if isinstance(a, float) else a == b


def test_threads_switch_sooner_while_the_command_serves_and_not_after(monkeypatch, capsys):
    before, during = sys.getswitchinterval(), []

    class Stub:
        def run(self, sockets):
            during.append(sys.getswitchinterval())
            sockets[0].close()

    monkeypatch.setattr("audiotag.service.server.make_server", lambda service: Stub())
    assert main(["serve", "--port", "0"]) == 0
    assert during == [pytest.approx(0.0005)] and sys.getswitchinterval() == before
    assert "serving at http://127.0.0.1:" in capsys.readouterr().err


# -- results -------------------------------------------------------------------------------------------------


def test_tags_are_the_taggers(client, tagger, clip):
    answer = client.post("/v1/tag", content=clip, params={"top": 5, "hop": 2.5})
    assert answer.status_code == 200
    expected = tagger.predict(clip, hop_s=2.5).to_dict(k=5)
    assert close(answer.json(), {**expected, "source": "upload"})


@pytest.mark.parametrize(
    ("command", "options", "arguments"),
    [
        ("tag", {"threshold": "0.6", "windows": "true", "aggregate": "mean"},
         "--threshold 0.6 --windows --aggregate mean"),
        ("tag", {"include": ["Animal", "Music"], "exclude": "Dog", "roll-up": "1", "top": "all"},
         "--include Animal --include Music --exclude Dog --roll-up --top all"),
        ("events", {"on": "0.6", "off": "0.5", "min_duration": "1", "max-gap": "2", "hop": "0.5", "window": "3"},
         "--on 0.6 --off 0.5 --min-duration 1 --max-gap 2 --hop 0.5 --window 3"),
        ("events", {"on": "0.55", "median": "3"}, "--on 0.55 --median 3"),
        ("embed", {"layer": ["stem", "hidden"], "per": "window", "hop": "5"},
         "--layer stem --layer hidden --per window --hop 5"),
    ],
)  # fmt: skip
def test_options_and_json_are_the_commands(client, tagger, clip, tmp_path, command, options, arguments):
    from audiotag.cli import main

    folder = tagger.save_pretrained(tmp_path / "tiny")
    path = tmp_path / "clip.wav"
    path.write_bytes(clip)
    out = tmp_path / "out.jsonl"
    argv = [
        command,
        str(path),
        "--model",
        str(folder),
        "--runtime",
        tagger.runtime,
        *arguments.split(),
        "--format",
        "jsonl",
        "-o",
        str(out),
        "--quiet",
    ]
    assert main(argv) == 0
    expected = json.loads(out.read_text())
    answer = client.post(f"/v1/{command}", params=options, content=clip)
    assert answer.status_code == 200, answer.text
    assert close(answer.json(), {**expected, "source": "upload"})


def test_several_files_and_errors_in_their_place(client, clip):
    files = [("file", ("a.wav", clip)), ("file", ("../../etc/passwd", b"root:x:0:0" * 50)), ("file", ("b.wav", clip))]
    results = client.post("/v1/tag", files=files, data={"top": "2"}).json()["results"]
    assert [record["source"] for record in results] == ["a.wav", "passwd", "b.wav"]
    assert results[1]["error_type"] == "AudioError" and "not audio" in results[1]["error"]
    assert results[0]["tags"] == results[2]["tags"] and len(results[0]["tags"]) == 2


def test_lines_tell_progress_and_end_with_the_records(client, clip):
    files = [("file", ("a.wav", clip)), ("file", ("b.wav", b"noise" * 100))]
    answer = client.post("/v1/events", files=files, headers={"Accept": "application/x-ndjson"})
    lines = [json.loads(line) for line in answer.text.splitlines()]
    progress = [line["progress"] for line in lines if "progress" in line]
    assert progress and progress[-1] == {"source": "a.wav", "done_s": 12.5, "duration_s": 12.5}
    records = [line for line in lines if "progress" not in line]
    whole = client.post("/v1/events", files=files).json()["results"]
    assert close(records, whole)


def test_analysis_has_scores_waveform_and_log_mel(client, tagger, clip):
    import base64

    lines = [json.loads(line) for line in client.post("/v1/analyze", content=clip, params={"hop": 1}).text.splitlines()]
    windows = [line["windows"] for line in lines if "windows" in line]
    rows = np.concatenate([np.frombuffer(base64.b64decode(w["scores"]), "<f4").reshape(-1, 527) for w in windows])
    prediction = tagger.predict(clip, hop_s=1.0)
    np.testing.assert_allclose(rows, prediction.window_scores, atol=1e-6)
    assert [start for w in windows for start in w["start_s"]] == prediction.window_start_s.tolist()
    strips = [strip for w in windows for strip in w["strips"]]
    levels = np.concatenate(
        [
            np.frombuffer(base64.b64decode(s["logmel"]["levels"]), np.uint8).reshape(-1, s["logmel"]["mels"])
            for s in strips
            if "logmel" in s
        ]
    )
    # The log-mel of the whole recording at once is within a level, but for frames at windows' ends.
    import torch

    from audiotag.frontend.logmel import LogMel

    samples = soundfile.read(io.BytesIO(clip), dtype="float32")[0]
    whole = LogMel()(torch.from_numpy(samples)[None])[0, 0].numpy().T
    expected = np.clip((whole + 1.5) * 255 / 4, 0, 255)
    assert levels.shape == (1250, 128)
    assert np.mean(np.abs(levels - expected) < 0.51) > 0.97
    extremes = np.concatenate(
        [
            np.frombuffer(base64.b64decode(s["waveform"]["extremes"]), np.int8).reshape(-1, 2)
            for s in strips
            if "waveform" in s
        ]
    )
    column = round(strips[0]["waveform"]["column_s"] * RATE)
    lows = np.array([samples[i : i + column].min() for i in range(0, len(samples), column)])
    np.testing.assert_allclose(extremes[:, 0] / 127, np.clip(lows, -1, 1), atol=0.5 / 127 + 1e-6)
    record = lines[-1]
    assert record["duration_s"] == 12.5 and record["tags"] and "events" in record


@pytest.mark.parametrize(
    ("form", "kind"), [("csv", "events"), ("audacity", "events"), ("webvtt", "events"), ("csv", "tags")]
)
def test_other_formats_are_the_commands(client, tagger, clip, tmp_path, form, kind):
    from audiotag.cli import main

    command = {"tags": "tag", "events": "events"}[kind]
    folder = tagger.save_pretrained(tmp_path / "tiny")
    path = tmp_path / "clip.wav"
    path.write_bytes(clip)
    out = tmp_path / "out.txt"
    assert (
        main(
            [
                command,
                str(path),
                "--model",
                str(folder),
                "--runtime",
                "torch",
                "--format",
                form,
                "-o",
                str(out),
                "--quiet",
            ]
        )
        == 0
    )
    answer = client.post(f"/v1/{command}", params={"format": form}, content=clip)
    assert answer.text.replace("upload", str(path)) == out.read_bytes().decode()


# -- Hugging Face's client -----------------------------------------------------------------------------------


def test_hugging_faces_client(server, tagger, clip, tmp_path):
    from huggingface_hub import InferenceClient

    path = tmp_path / "clip.wav"
    path.write_bytes(clip)
    hf = InferenceClient(provider="hf-inference", api_key="hf_unused")
    url = f"{server.url}/v1/audio/classification"
    expected = tagger.predict(clip).top(7)
    for given in (clip, path, str(path)):
        found = hf.audio_classification(given, model=url)
        assert [(e.label, pytest.approx(e.score, abs=1e-6)) for e in found] == [
            (t.label, t.score) for t in expected[:5]
        ]
    found = hf.audio_classification(clip, model=url, top_k=7)
    assert [e.label for e in found] == [t.label for t in expected]
    logits = hf.audio_classification(clip, model=url, top_k=7, function_to_apply="none")
    assert [1 / (1 + np.exp(-e.score)) for e in logits] == pytest.approx([t.score for t in expected], abs=1e-5)
    shares = hf.audio_classification(clip, model=url, top_k=527, function_to_apply="softmax")
    assert sum(e.score for e in shares) == pytest.approx(1, abs=1e-4) and shares[0].label == expected[0].label


# -- facts ---------------------------------------------------------------------------------------------------


def test_the_description_is_valid_and_names_every_path(client):
    validate = pytest.importorskip("openapi_spec_validator").validate
    plain = client.get("/openapi.json").json()
    validate(plain)
    for path, methods in plain["paths"].items():
        for method in methods:
            assert client.request(method, path).status_code not in (404, 405), path
    names = {p["name"] for p in plain["paths"]["/v1/events"]["post"]["parameters"]}
    assert {"on", "off", "min-duration", "max-gap", "median", "include", "exclude", "window", "hop"} <= names


def test_models_labels_and_health(client, tagger):
    model = client.get("/v1/models").json()["data"][0]
    assert (model["id"], model["n_labels"], model["window_s"]) == ("tiny", 527, 10.0)
    labels = client.get("/v1/labels").json()
    assert [label["name"] for label in labels] == list(tagger.labels.names)
    assert {label["name"] for label in client.get("/v1/labels?search=dog").json()} == {
        label.display_name for label in tagger.labels.find("dog")
    }
    assert client.get("/livez").json()["status"] == "alive"
    assert client.get("/readyz").json() == {"status": "ready"}


def test_metrics_count(client, clip):
    def value(name):
        from prometheus_client.parser import text_string_to_metric_families as families

        return {s.name: s.value for f in families(client.get("/metrics").text) for s in f.samples if not s.labels}[name]

    windows, seconds = value("audiotag_windows_total"), value("audiotag_audio_seconds_total")
    client.post("/v1/tag", content=clip, params={"hop": 1})
    assert value("audiotag_windows_total") - windows == 4
    assert value("audiotag_audio_seconds_total") - seconds == pytest.approx(12.5)
    assert value("audiotag_waiting_seconds") == 0


# -- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "request_", "status", "says"),
    [
        ("/v1/tag", {"params": {"treshold": "0.5"}}, 422, "did you mean threshold"),
        ("/v1/tag", {"params": {"threshold": "2"}}, 422, "in [0, 1]"),
        ("/v1/tag", {"params": {"top": "0"}}, 422, "positive"),
        ("/v1/tag", {"params": {"hop": "x"}}, 422, "number"),
        ("/v1/tag", {"params": {"hop": "11"}}, 422, "hop_s"),
        ("/v1/tag", {"params": {"include": "Unicorn"}}, 422, "Unicorn"),
        ("/v1/tag", {"params": {"top": ["1", "2"]}}, 422, "twice"),
        ("/v1/tag", {"params": {"format": "raven"}}, 422, "one of"),
        ("/v1/embed", {"params": {"layer": "nothing"}}, 422, "layer"),
        ("/v1/events", {"params": {"off": "0.5", "on": "0.2"}}, 422, "off"),
        ("/v1/tag", {"content": b""}, 422, "empty"),
        ("/v1/tag", {"content": b"\x00" * 5000}, 415, "not audio"),
        ("/v1/tag", {"headers": {"Content-Type": "application/json"}, "content": b"{}"}, 415, "application/json"),
        ("/v1/tag", {"headers": {"Content-Encoding": "gzip"}, "content": b"x"}, 415, "compressed"),
        ("/v1/tag", {"headers": {"Content-Type": "multipart/form-data"}, "content": b"x"}, 400, "form"),
        ("/v1/tag", {"headers": {"Content-Type": "multipart/form-data; boundary=x"}, "content": b"--y"}, 400, "form"),
        ("/v1/tag", {"files": {"other": b"x"}}, 422, "called file"),
        ("/v1/audio/classification", {"json": {"inputs": "!"}}, 400, "base64"),
        ("/v1/audio/classification", {"json": ["x"]}, 400, "inputs"),
        ("/v1/audio/classification", {"json": {"inputs": "AAAA", "parameters": {"top_k": 0}}}, 422, "top_k"),
        ("/v1/nothing", {}, 404, "nothing"),
    ],
)  # fmt: skip
def test_refusals_are_problems_that_say_what_to_do(client, path, request_, status, says):
    answer = client.post(path, **{"content": b"x", **request_} if not {"files", "json"} & set(request_) else request_)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    assert answer.json()["status"] == status and says in answer.json()["detail"]


def test_damaged_audio_is_used_with_a_warning_or_refused(client):
    flac = wav(sound(8), format="FLAC")
    answer = client.post("/v1/tag", content=flac[: len(flac) // 2]).json()
    assert answer["duration_s"] < 8 and "truncated" in answer["warnings"][0]


def test_a_method_that_is_not_for_a_path(client):
    answer = client.get("/v1/tag")
    assert answer.status_code == 405 and answer.headers["content-type"] == "application/problem+json"

"""`audiotag listen`: pipes, a microphone that is none, interrupts, and what each line says."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import types

import numpy as np
import pytest

from audiotag import Tagger
from audiotag.checkpoints.save import save_checkpoint
from audiotag.cli import command as cli
from audiotag.cli import live_input

from .tiny import RATE, sound, tiny_checkpoint

HOP_S = 0.5


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_checkpoint(tiny_checkpoint(), tmp_path_factory.mktemp("checkpoint") / "tiny"))


@pytest.fixture(scope="module")
def expected(model):
    """What a stream says of `pcm`, as lines of JSON."""
    tagger = Tagger.from_pretrained(model, device="cpu")

    def lines(pcm, **options):
        stream = tagger.stream(sample_rate=RATE, hop_s=HOP_S, **options)
        return [
            {"type": kind, "time_s": w.end_s, **event.to_dict()}
            for w in stream.push(pcm) + stream.flush()
            for kind, events in (("begin", w.started), ("end", w.ended))
            for event in events
        ]

    return lines


@pytest.fixture(scope="module")
def pcm():
    return np.round(sound(2.2, 20) * 32_767).astype(np.int16)


class Pipe(io.RawIOBase):
    """A pipe that gives what it holds in pieces of odd lengths."""

    def __init__(self, data, piece=9_999):
        self._data, self._piece = data, piece

    def readable(self):
        return True

    def readinto(self, buffer):
        n = min(self._piece, len(buffer), len(self._data))
        buffer[:n], self._data = self._data[:n], self._data[n:]
        return n


def listen(monkeypatch, capsys, model, data, *options):
    """Exit code, stdout and stderr of the command with `data` on standard input."""
    stdin = io.TextIOWrapper(io.BufferedReader(Pipe(data)))
    monkeypatch.setattr(sys, "stdin", stdin)
    code = cli.main(["listen", "--model", model, "--device", "cpu", "--rate", str(RATE), "--hop", str(HOP_S), *options])
    out, err = capsys.readouterr()
    return code, out, err


def records(text):
    return [json.loads(line) for line in text.splitlines()]


def test_events_as_json_lines(monkeypatch, capsys, model, expected, pcm):
    code, out, err = listen(monkeypatch, capsys, model, pcm.tobytes(), "--format", "jsonl", "--on", "0.6")
    assert (code, records(out)) == (0, expected(pcm, on=0.6))
    assert {r["type"] for r in records(out)} == {"begin", "end"}
    assert err == "audiotag: listening to standard input at 32000 Hz; Ctrl-C ends\n"


def test_options_reach_the_stream(monkeypatch, capsys, model, expected, pcm):
    options = ["--on", "0.6", "--off", "0.1", "--max-gap", "0", "--min-duration", "1", "--include", "Animal"]
    code, out, _ = listen(monkeypatch, capsys, model, pcm.tobytes(), "--format", "jsonl", *options, "--exclude", "Dog")
    same = {"on": 0.6, "off": 0.1, "max_gap_s": 0, "min_duration_s": 1, "include": "Animal", "exclude": "Dog"}
    assert (code, records(out)) == (0, expected(pcm, **same))
    assert 0 < len(records(out)) < len(expected(pcm, on=0.6))


def test_float_samples_and_channels(monkeypatch, capsys, model, expected, pcm):
    stereo = np.stack([pcm // 2 * 2, np.zeros_like(pcm)])
    floats = (stereo.T / np.float32(32_768)).astype("<f4").tobytes()
    options = ["--format", "jsonl", "--on", "0.6", "--channels", "2"]
    for data, more in ((stereo.T.tobytes(), []), (floats, ["--sample-format", "f32le"])):
        code, out, _ = listen(monkeypatch, capsys, model, data, *options, *more)
        assert (code, records(out)) == (0, expected(pcm // 2, on=0.6))


def test_text_for_people(monkeypatch, capsys, model, expected, pcm):
    _, out, _ = listen(monkeypatch, capsys, model, pcm.tobytes(), "--on", "0.6")
    lines, events = out.splitlines(), expected(pcm, on=0.6)
    assert len(lines) == len(events)
    for line, event in zip(lines, events, strict=True):
        verb = {"begin": "begins", "end": "ends"}[event["type"]]
        assert line.split()[:2] == [f"0:{event['time_s']:04.1f}", verb] and event["label"] in line
        assert f"{event['peak' if verb == 'ends' else 'score']:.2f}" in line


def test_top_of_every_window(monkeypatch, capsys, model, pcm):
    options = ["--format", "jsonl", "--top", "2", "--on", "1", "--include", "Music"]
    _, out, _ = listen(monkeypatch, capsys, model, pcm.tobytes(), *options)
    tagger = Tagger.from_pretrained(model, device="cpu")
    found = records(out)
    assert [(r["type"], r["start_s"], r["end_s"]) for r in found] == [
        ("window", 0, end) for end in (0.5, 1, 1.5, 2, 2.2)
    ]
    for r in found:
        best = tagger.predict(pcm[: round(r["end_s"] * RATE)]).top(2, include="Music")
        assert [t["label"] for t in r["tags"]] == [t.label for t in best]
        assert [t["score"] for t in r["tags"]] == pytest.approx([t.score for t in best], abs=1e-5)
    _, out, _ = listen(monkeypatch, capsys, model, pcm.tobytes(), *options[2:])
    assert len(out.splitlines()) == 5 and found[0]["tags"][0]["label"] in out.splitlines()[0]


def test_times_of_day(monkeypatch, capsys, model, pcm):
    _, out, _ = listen(monkeypatch, capsys, model, pcm.tobytes(), "--clock", "--format", "jsonl", "--on", "0.6")
    from datetime import datetime, timedelta

    for record in records(out):
        moment = datetime.fromisoformat(record["clock"])
        assert abs(datetime.now().astimezone() - moment) < timedelta(minutes=1)
    _, out, _ = listen(monkeypatch, capsys, model, pcm.tobytes(), "--clock", "--on", "0.6")
    datetime.strptime(out.split()[0], "%H:%M:%S")


@pytest.mark.parametrize(
    ("data", "options", "code", "message"),
    [
        (b"", [], 1, "no audio came from standard input"),
        (b"RIFF\0\0\0\0WAVEfmt ", [], 1, "is a WAV file, not raw PCM"),
        (b"\0" * 1001, [], 0, "its last 1 of 2 bytes were left out"),
        (b"\0" * 999, ["--channels", "2", "--sample-format", "f32le"], 0, "its last 7 of 8 bytes were left out"),
        (np.float32([0, np.nan]).tobytes(), ["--sample-format", "f32le"], 1, "sample 1 (at 0.000 s) is NaN"),
        (b"\0\0", ["--include", "Spech"], 2, "near names: 'Speech'"),
        (b"\0\0", ["--on", "1.5"], 2, "on must be a number in [0, 1]"),
        (b"\0\0", ["--rate", "10"], 2, "whole number of Hz"),
        (b"\0\0", ["--channels", "0"], 2, "channels must be"),
        (b"\0\0", ["--hop", "11"], 2, "hop_s must be"),
        (b"\0\0", ["--top", "-1"], 2, "--top must not be negative"),
    ],
)
def test_what_goes_wrong_is_said(monkeypatch, capsys, model, data, options, code, message):
    found, out, err = listen(monkeypatch, capsys, model, data, *options)
    assert (found, out if code else "") == (code, "")
    assert message in err and "Traceback" not in err


def test_a_bad_sample_still_ends_what_was_open(monkeypatch, capsys, model, expected, pcm):
    good = (pcm / np.float32(32_768)).astype("<f4")[: 9_999 * 5]
    data = good.tobytes() + np.float32([np.nan]).tobytes()
    options = ["--sample-format", "f32le", "--format", "jsonl", "--on", "0.6"]
    stdin = io.TextIOWrapper(io.BufferedReader(Pipe(data, piece=9_999 * 4)))
    monkeypatch.setattr(sys, "stdin", stdin)
    code = cli.main(["listen", "--model", model, "--device", "cpu", "--rate", str(RATE), "--hop", str(HOP_S), *options])
    out, err = capsys.readouterr()
    assert code == 1 and "NaN" in err
    assert records(out) == expected(good, on=0.6)


def test_a_terminal_is_no_input(monkeypatch, capsys, model):
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(isatty=lambda: True))
    assert cli.main(["listen", "--model", model]) == 2
    assert "pipe raw PCM" in capsys.readouterr().err


def start(model, *options):
    """The command in a process of its own, once it listens."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "audiotag",
            "listen",
            "--model",
            model,
            "--device",
            "cpu",
            "--rate",
            str(RATE),
            *options,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert b"listening" in process.stderr.readline()
    return process


@pytest.mark.skipif(os.name == "nt", reason="no such signals")
def test_ctrl_c_ends_events_and_the_command(model, expected, pcm):
    process = start(model, "--hop", str(HOP_S), "--format", "jsonl", "--on", "0.6")
    try:
        process.stdin.write(pcm.tobytes())
        process.stdin.flush()
        first = process.stdout.readline()  # comes while the input is still open: nothing is held back
        process.send_signal(signal.SIGINT)
        out, err = process.stdout.read(), process.stderr.read()
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
    found = records(first.decode() + out.decode())
    assert err == b""
    assert found[0] == expected(pcm, on=0.6)[0]
    begun, ended = ([r["label"] for r in found if r["type"] == kind] for kind in ("begin", "end"))
    assert sorted(begun) == sorted(ended)


@pytest.mark.skipif(os.name == "nt", reason="pipes break otherwise there")
def test_a_reader_that_goes_away_ends_the_command(model, pcm):
    process = start(model, "--hop", str(HOP_S), "--top", "1")
    try:
        process.stdin.write(pcm.tobytes())
        process.stdin.flush()
        assert process.stdout.readline()
        process.stdout.close()
        for _ in range(100):
            try:
                process.stdin.write(pcm.tobytes())
                process.stdin.flush()
            except BrokenPipeError:
                break
        assert process.wait(timeout=60) == 0
        assert process.stderr.read() == b""
    finally:
        process.kill()
        process.stderr.close()


# -- a microphone --------------------------------------------------------------------------------------------


class PortAudioError(Exception):
    pass


def fake_sounddevice(blocks, at_end, overflow=False):
    """A sounddevice whose microphone plays `blocks` from a thread of its own and then calls `at_end`."""
    module = types.ModuleType("sounddevice")
    module.PortAudioError = PortAudioError
    module.asked = []

    def query_devices(device, kind):
        if device == "broken":
            raise ValueError("No input device matching 'broken'")
        module.asked.append((device, kind))
        return {"name": "Fake", "default_samplerate": float(RATE)}

    class InputStream:
        def __init__(self, *, samplerate, blocksize, device, channels, dtype, callback):
            if device == 7:
                raise PortAudioError("device busy")
            module.asked.append((samplerate, channels, dtype))
            self.active, self._callback = True, callback

        def __enter__(self):
            self._thread = threading.Thread(target=self._play)
            self._thread.start()

        def _play(self):
            status = types.SimpleNamespace(input_overflow=overflow)
            for block in blocks:
                buffer = block.copy()
                self._callback(buffer, len(buffer), None, status)
                buffer[:] = np.nan  # PortAudio uses it again
            at_end(self)

        def __exit__(self, *exception):
            self._thread.join()

    module.query_devices, module.InputStream = query_devices, InputStream
    return module


def listen_to_microphone(monkeypatch, capsys, model, module, *options):
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    code = cli.main(["listen", "--model", model, "--device", "cpu", "--hop", str(HOP_S), "--format", "jsonl", *options])
    out, err = capsys.readouterr()
    return code, out, err


def unplug(microphone):
    microphone.active = False


def test_a_microphone(monkeypatch, capsys, model, expected, pcm):
    stereo = np.repeat((pcm / np.float32(32_768))[:, None], 2, axis=1)
    blocks = np.array_split(stereo, 44)
    module = fake_sounddevice(blocks, unplug)
    code, out, err = listen_to_microphone(monkeypatch, capsys, model, module, "--mic", "--channels", "2", "--on", "0.6")
    assert code == 1 and "stopped sending" in err and "lost" not in err
    assert records(out) == expected(pcm, on=0.6)
    assert module.asked == [(None, "input"), (RATE, 2, "float32")]


@pytest.mark.skipif(os.name == "nt", reason="no such signals")
def test_sigterm_at_a_microphone(monkeypatch, capsys, model, pcm):
    told, say = threading.Event(), live_input.tell

    def heard(text):
        say(text)
        if "lost" in text:
            told.set()

    def terminate(microphone):
        told.wait(60)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(live_input, "tell", heard)
    blocks = np.array_split((pcm / np.float32(32_768))[:, None], 44)
    module = fake_sounddevice(blocks, terminate, overflow=True)
    before = signal.getsignal(signal.SIGTERM)
    code, _, err = listen_to_microphone(monkeypatch, capsys, model, module, "--mic", "Fake", "--rate", "48000")
    assert code == 0 and "audio was lost" in err
    assert module.asked == [("Fake", "input"), (48_000, 1, "float32")]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("device", "message"), [("broken", "'broken' cannot be found"), ("7", "microphone 7 cannot be opened: device busy")]
)
def test_a_microphone_that_cannot_be_had(monkeypatch, capsys, model, device, message):
    code, out, err = listen_to_microphone(monkeypatch, capsys, model, fake_sounddevice([], unplug), "--mic", device)
    assert (code, out) == (1, "") and message in err


def test_without_sounddevice_the_extra_is_named(monkeypatch, capsys, model):
    code, _, err = listen_to_microphone(monkeypatch, capsys, model, None, "--mic")
    assert code == 1 and "audiotag-dymn[mic]" in err

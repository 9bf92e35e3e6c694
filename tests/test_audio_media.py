"""What PyAV reads: containers and mp3; and what happens where it is not installed."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from audiotag.audio.recording import load_audio, open_audio
from audiotag.errors import AudioError

TARGET = 32_000
CONTAINERS = [
    ("mp4", "aac", 44_100),
    ("mov", "pcm_s16le", 44_100),
    ("webm", "libopus", 48_000),
    ("matroska", "flac", 44_100),
    ("asf", "wmav2", 44_100),
    ("avi", "ac3", 48_000),
    ("adts", "aac", 44_100),
    ("mpegts", "mp2", 48_000),
]


def tone(rate: int, seconds: float = 3.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * 1000 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encode(container: str, codec: str, rate: int) -> bytes:
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout="stereo")
        stream.bit_rate = 128_000
        # each channel differs, so that their average is one that neither has
        samples = np.stack([tone(rate), np.zeros_like(tone(rate))])
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
        frame.sample_rate = rate
        fifo, to_encoder = av.AudioFifo(), av.AudioResampler(stream.codec_context.format, "stereo", rate)
        for converted in to_encoder.resample(frame):
            fifo.write(converted)
        while (part := fifo.read(stream.codec_context.frame_size or 1024, partial=True)) is not None:
            output.mux(stream.encode(part))
        output.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.parametrize(("container", "codec", "rate"), CONTAINERS)
def test_containers_are_read_from_paths_and_bytes(container: str, codec: str, rate: int, tmp_path: Path) -> None:
    data = encode(container, codec, rate)
    path = tmp_path / "a.bin"
    path.write_bytes(data)
    samples = load_audio(path, target_rate_hz=TARGET)
    np.testing.assert_array_equal(samples, load_audio(data, target_rate_hz=TARGET))
    assert abs(len(samples) / TARGET - 3) < 0.1
    spectrum = np.abs(np.fft.rfft(samples[TARGET : 2 * TARGET])) / (TARGET / 2)
    assert spectrum.argmax() == 1000 and spectrum.max() == pytest.approx(0.25, rel=0.05)


def test_sixteen_channels_of_a_container_are_averaged() -> None:
    av = pytest.importorskip("av")
    samples = np.zeros((16, TARGET), np.float32)
    samples[3], samples[15] = tone(TARGET, 1.0), 0.25
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        stream = output.add_stream("pcm_f32le", rate=TARGET, layout="hexadecagonal")
        for begin in range(0, TARGET, 1000):
            piece = np.ascontiguousarray(samples[:, begin : begin + 1000].T).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(piece, format="flt", layout="hexadecagonal")
            frame.sample_rate = TARGET
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    with open_audio(file.getvalue(), target_rate_hz=TARGET) as stream:
        assert stream.channels == 16
        read = np.concatenate(list(stream.blocks()))
    np.testing.assert_allclose(read, samples.mean(axis=0), rtol=0, atol=1e-6)


def test_a_truncated_container_says_how_much_was_there() -> None:
    data = encode("matroska", "flac", 44_100)
    with open_audio(data[: len(data) // 2], target_rate_hz=TARGET) as stream:
        samples = np.concatenate(list(stream.blocks()))
    assert 0.5 * TARGET < len(samples) < 2.9 * TARGET
    assert "truncated or damaged" in stream.warnings[0] and "of 3.0" in stream.warnings[0]


def test_a_container_whose_file_fails_is_an_error_and_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    data = encode("matroska", "pcm_s16le", 44_100)

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > len(data) // 2:
                raise OSError("the disk went away")
            return super().read(size)

    with pytest.raises(AudioError, match=r"<file>: .*the disk went away"):
        load_audio(Failing(data), target_rate_hz=TARGET)
    assert capfd.readouterr().err == ""


def test_a_part_of_a_container() -> None:
    data = encode("matroska", "pcm_s16le", TARGET)
    with open_audio(data, target_rate_hz=TARGET) as stream:
        part = np.concatenate(list(stream.section(TARGET, TARGET * 3 // 2)))
    np.testing.assert_array_equal(part, load_audio(data, target_rate_hz=TARGET)[TARGET : TARGET * 3 // 2])


def test_a_container_that_lost_its_index_is_an_error() -> None:
    data = encode("mp4", "aac", 44_100)
    with pytest.raises(AudioError, match=r"not audio that can be decoded .*is it whole"):
        open_audio(data[: len(data) // 2], target_rate_hz=TARGET)


def test_a_silent_video_is_an_error() -> None:
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        stream = output.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        output.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        output.mux(stream.encode(None))
    with pytest.raises(AudioError, match="without a sound track"):
        open_audio(file.getvalue(), target_rate_hz=TARGET)


def test_a_playlist_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "list.m4a").write_text(f"ffconcat version 1.0\nfile {tmp_path / 'other.wav'}\n")
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n")
    for path in tmp_path.iterdir():
        with pytest.raises(AudioError, match="not audio that can be decoded"):
            open_audio(path, target_rate_hz=TARGET)


def test_without_pyav_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "recording.m4a"
    path.write_bytes(encode("mp4", "aac", 44_100))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(AudioError, match="pip install av") as caught:
        open_audio(path, target_rate_hz=TARGET)
    assert str(caught.value).startswith(f"{path}: ")


def mp3(seconds: float = 20.0) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, tone(TARGET, seconds), TARGET, format="MP3")
    return file.getvalue()


def test_without_pyav_mp3_is_read_and_what_is_left_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    data = mp3(120.0)
    with_pyav = load_audio(data, target_rate_hz=TARGET)
    monkeypatch.setitem(sys.modules, "av", None)
    np.testing.assert_allclose(load_audio(data, target_rate_hz=TARGET), with_pyav, rtol=0, atol=1e-5)
    with open_audio(data + data, target_rate_hz=TARGET) as stream:
        samples = sum(len(block) for block in stream.blocks())
    assert samples == len(with_pyav) or "left out by libsndfile" in stream.warnings[0]
    assert samples < 1.5 * len(with_pyav), "libsndfile reads joined files now; the warning can go"


def test_what_was_decoded_is_kept_whatever_pyav_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    av = pytest.importorskip("av")
    data = mp3()

    class Failing:
        def __init__(self, container: Any) -> None:
            self._container = container

        def __getattr__(self, name: str) -> Any:
            return getattr(self._container, name)

        def demux(self, stream: Any) -> Iterator[Any]:
            for number, packet in enumerate(self._container.demux(stream)):
                if number == 300:
                    raise IndexError("tuple index out of range")
                yield packet

    opened = av.open
    monkeypatch.setattr(av, "open", lambda *args, **options: Failing(opened(*args, **options)))
    with open_audio(data, target_rate_hz=TARGET) as stream:
        samples = np.concatenate(list(stream.blocks()))
    assert 9 < len(samples) / TARGET < 12
    assert "tuple index out of range" in stream.warnings[0]


@pytest.mark.parametrize("length", [100, 3000, 300_000])
def test_chance_frames_in_other_files_are_no_recording(length: int) -> None:
    """Sync bits and valid headers strewn over noise, as machine code has them."""
    data = bytearray(np.random.Generator(np.random.PCG64(length)).bytes(length))
    data[0:4] = data[length // 2 : length // 2 + 4] = b"\xff\xfb\x90\x64"
    with pytest.raises(AudioError, match="not audio that can be decoded"):
        load_audio(bytes(data), target_rate_hz=TARGET)


def test_pyav_is_imported_only_when_needed() -> None:
    import subprocess

    program = (
        "import io, sys, numpy, soundfile\n"
        "from audiotag.audio.recording import load_audio\n"
        "file = io.BytesIO()\n"
        "soundfile.write(file, numpy.zeros(100), 44100, format='FLAC')\n"
        "load_audio(file.getvalue(), target_rate_hz=32000)\n"
        "print([name for name in ('av', 'torch', 'torchaudio') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

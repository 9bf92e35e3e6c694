"""Containers that need PyAV: read where it is installed, explained where it is not."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest

from audiotag.audio.ffmpeg import recognise
from audiotag.audio.recording import load_audio, open_audio
from audiotag.errors import AudioError, MissingDependencyError

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
    with open_audio(data, target_rate_hz=TARGET, start_s=1.0, stop_s=1.5) as stream:
        part = np.concatenate(list(stream.blocks()))
    np.testing.assert_array_equal(part, load_audio(data, target_rate_hz=TARGET)[TARGET : TARGET * 3 // 2])


def test_a_container_that_lost_its_index_is_an_error() -> None:
    data = encode("mp4", "aac", 44_100)
    with pytest.raises(AudioError, match="MP4"):
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


@pytest.mark.parametrize(
    ("head", "word"),
    [
        (b"\0\0\0\x20ftypM4A ", "MP4"),
        (b"\x1a\x45\xdf\xa3", "WebM"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "wma"),
        (b"#!AMR\n", "AMR"),
        (b"\xff\xf1\x50\x80", "AAC"),
        ((b"\x47" + bytes(187)) * 3, "transport"),
    ],
)
def test_without_pyav_the_error_names_the_extra(
    head: bytes, word: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    path = tmp_path / "recording.m4a"
    path.write_bytes(head + bytes(1000))
    with pytest.raises(MissingDependencyError) as caught:
        open_audio(path, target_rate_hz=TARGET)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and word in message and 'pip install "audiotag-dymn[media]"' in message


def test_text_and_pictures_are_no_containers() -> None:
    for head in (
        b"hello, world",
        b"<html>",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0",
        b"PK\x03\x04",
        b"%PDF-1.7",
        b"",
    ):
        assert recognise(head) is None


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

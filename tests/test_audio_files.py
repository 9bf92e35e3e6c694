"""Audio files: every format against soundfile's own reading of the whole, and every kind of damage."""

from __future__ import annotations

import bz2
import gzip
import io
import os
import socket
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr

from audiotag.audio.arrays import mix
from audiotag.audio.libsndfile import BLOCK_VALUES, IN_ONE_GO
from audiotag.audio.recording import load_audio, open_audio
from audiotag.audio.source import SourceFile
from audiotag.errors import AudioError, InvalidInputError

TARGET = 32_000
FORMATS = [
    ("WAV", "PCM_U8"),
    ("WAV", "PCM_16"),
    ("WAV", "PCM_24"),
    ("WAV", "PCM_32"),
    ("WAV", "FLOAT"),
    ("WAV", "DOUBLE"),
    ("WAV", "ULAW"),
    ("WAVEX", "PCM_24"),
    ("RF64", "PCM_16"),
    ("W64", "PCM_16"),
    ("AIFF", "PCM_16"),
    ("AU", "PCM_16"),
    ("CAF", "PCM_16"),
    ("FLAC", "PCM_16"),
    ("FLAC", "PCM_24"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
]


def sound(seconds: float = 2.0, rate: int = 48_000, channels: int = 2) -> np.ndarray:
    generator = np.random.Generator(np.random.PCG64(11))
    time_s = np.arange(round(seconds * rate)) / rate
    return 0.4 * np.sin(2 * np.pi * 440 * time_s)[:, None] + generator.uniform(-0.1, 0.1, (len(time_s), channels))


def encode(kind: str, subtype: str | None = None, samples: np.ndarray | None = None, rate: int = 48_000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, sound(rate=rate) if samples is None else samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def by_soundfile(data: bytes) -> np.ndarray:
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float64", always_2d=True)
    return soxr.resample(samples.mean(axis=1).astype(np.float32), rate, TARGET, quality="HQ")


def read(source: Any) -> tuple[np.ndarray, list[str]]:
    with open_audio(source, target_rate_hz=TARGET) as stream:
        return np.concatenate(list(stream.blocks())), stream.warnings


class OneWay(io.RawIOBase):
    """A file that can only be read forwards, a little at a time, as a pipe is."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(min(1000, len(buffer)))
        buffer[: len(data)] = data
        return len(data)


@pytest.mark.parametrize(("kind", "subtype"), FORMATS)
def test_every_format_from_every_source_is_what_soundfile_reads(kind: str, subtype: str, tmp_path: Path) -> None:
    data = encode(kind, subtype)
    path = tmp_path / "misleading.raw"
    path.write_bytes(data)
    expected = by_soundfile(data)
    # mpg123 restores a decoder's state differently after the seek that soundfile makes; all else is bit-exact
    tolerance = 1e-5 if kind == "MP3" else 1e-6
    with open(path, "rb") as file:
        for source in (path, str(path), data, bytearray(data), file, io.BytesIO(data), OneWay(data), {"bytes": data}):
            samples, warnings = read(source)
            np.testing.assert_allclose(samples, expected, rtol=0, atol=tolerance)
            assert warnings == []
        assert not file.closed


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("seconds", [1, 5, 12])
def test_a_whole_ogg_file_of_any_length_has_no_warning(subtype: str, seconds: int, tmp_path: Path) -> None:
    path = tmp_path / "a.ogg"
    with soundfile.SoundFile(path, "w", 48_000, 2, subtype, format="OGG") as file:
        for _ in range(seconds):  # libvorbis cannot take much at once
            file.write(sound(1))
    for source in (path, path.read_bytes(), io.BytesIO(path.read_bytes())):
        samples, warnings = read(source)
        assert len(samples) == seconds * TARGET and warnings == []


def test_what_is_known_before_decoding() -> None:
    with open_audio(encode("FLAC"), target_rate_hz=TARGET) as stream:
        assert (stream.name, stream.source_rate_hz, stream.channels) == ("<bytes>", 48_000, 2)
        assert stream.duration_s == pytest.approx(2.0)


def test_a_dictionary_with_bytes_keeps_the_name_of_its_path() -> None:
    with open_audio({"bytes": encode("FLAC"), "path": "dog.flac"}, target_rate_hz=TARGET) as stream:
        assert stream.name == "dog.flac"


def test_one_channel_at_the_target_rate_comes_in_blocks_that_keep_their_values() -> None:
    samples = sound(3 * BLOCK_VALUES / TARGET, TARGET, 1)
    data = encode("WAV", "FLOAT", samples, TARGET)
    with open_audio(data, target_rate_hz=TARGET) as stream:
        blocks = list(stream.blocks())
    assert len(blocks) > 2
    np.testing.assert_array_equal(np.concatenate(blocks), samples[:, 0].astype(np.float32))


@pytest.mark.parametrize("kind", sorted(IN_ONE_GO))
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_samples_keep_their_values_and_take_few_calls(
    kind: str, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, original = [0], SourceFile.readinto

    def counted(self: SourceFile, buffer: Any) -> Any:
        calls[0] += 1
        return original(self, buffer)

    monkeypatch.setattr(SourceFile, "readinto", counted)
    samples = np.random.default_rng(0).uniform(-1, 1, (10 * TARGET + 13, channels))
    samples[:2] = [[1.0], [-1.0]]
    data = encode(kind, "PCM_16", samples, TARGET)
    found, warnings = read(data)
    expected, _ = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    np.testing.assert_array_equal(found, expected[:, 0] if channels == 1 else mix(expected.T))
    assert warnings == [] and calls[0] < 50  # RF64's header takes 30; 8 KB a call would be 80 or 240


@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_what_came_before_a_disk_failed_is_used_and_the_rest_reported(
    subtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libsndfile, which reads the descriptor itself, says so of a read that has filled part of what it was given."""
    samples = sound(2, TARGET, 1)
    path = tmp_path / "a.wav"
    path.write_bytes(encode("WAV", subtype, samples, TARGET))
    original = soundfile.SoundFile.read

    def failing(self: soundfile.SoundFile, *args: Any, out: np.ndarray) -> np.ndarray:
        original(self, out=out[:12_345])
        raise soundfile.LibsndfileError(2, "")

    monkeypatch.setattr(soundfile.SoundFile, "read", failing)
    found, warnings = read(path)
    np.testing.assert_allclose(found, samples[:12_345, 0], rtol=0, atol=1e-4)
    assert len(warnings) == 1 and "0.386 s of 2.000 s could be read" in warnings[0]


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_a_part_of_a_file(kind: str) -> None:
    data = encode(kind, rate=TARGET)
    with open_audio(data, target_rate_hz=TARGET) as stream:
        part = np.concatenate(list(stream.section(16_000, 40_000)))
    assert len(part) == 24_000
    np.testing.assert_allclose(part, load_audio(data, target_rate_hz=TARGET)[16_000:40_000], rtol=0, atol=2e-3)


def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    peaks = []
    for minutes in (1, 30):
        path = tmp_path / f"{minutes}.wav"
        path.write_bytes(encode("WAV", "PCM_U8", np.zeros((1, 1)), 8000)[:44])
        size = minutes * 60 * 8000
        with open(path, "r+b") as file:  # a sparse file: the header of an endless stream, then silence
            file.seek(4)
            file.write((size + 36).to_bytes(4, "little"))
            file.seek(40)
            file.write(size.to_bytes(4, "little"))
            file.truncate(44 + size)
        tracemalloc.start()
        with open_audio(path, target_rate_hz=TARGET) as stream:
            assert sum(len(block) for block in stream.blocks()) == size * 4
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] and peaks[1] < 20e6


# -- mp3 -----------------------------------------------------------------------------------------------------------


def frames_of(data: bytes) -> bytes:
    """An mp3 file without the frame that counts the others: from the second sync bits on."""
    tag = max(data.find(b"Xing"), data.find(b"Info"))
    assert 0 < tag < 200
    return data[data.index(data[:2], tag) :]


@pytest.fixture(scope="module")
def quiet_then_loud() -> np.ndarray:
    """Half a second that encodes to little, then noise that needs the highest bit rate."""
    samples = np.zeros((144_000, 2))
    samples[24_000:] = np.random.Generator(np.random.PCG64(2)).uniform(-0.9, 0.9, (120_000, 2))
    return samples


def test_a_variable_bit_rate_mp3_without_a_count_is_read_to_its_end(quiet_then_loud: np.ndarray) -> None:
    data = frames_of(encode("MP3", samples=quiet_then_loud))
    with open_audio(data, target_rate_hz=48_000) as stream:
        assert stream.duration_s is None
        samples = np.concatenate(list(stream.blocks()))
    assert 144_000 - 1152 <= len(samples) <= 144_000 + 3 * 1152
    assert np.abs(samples[-48_000:-4000]).max() > 0.5


def test_mp3_files_joined_end_to_end_are_read_to_their_end() -> None:
    data = encode("MP3")
    samples, warnings = read(data + data + b"TAG" + bytes(125))
    assert 2 * 64_000 <= len(samples) <= 2 * 64_000 + 5000
    assert warnings == []


def test_mp3_files_joined_though_one_is_mono_are_read_to_their_end() -> None:
    samples, warnings = read(encode("MP3") + encode("MP3", samples=sound(channels=1)))
    assert 2 * 64_000 <= len(samples) <= 2 * 64_000 + 5000
    assert warnings == []


def test_mp3_files_joined_though_their_rates_differ_are_reported() -> None:
    samples, warnings = read(encode("MP3", samples=sound(10)) + encode("MP3", samples=sound(2, 44_100), rate=44_100))
    assert 10 * TARGET <= len(samples) <= 10.1 * TARGET
    assert len(warnings) == 1 and "not all at 48000 Hz" in warnings[0]


@pytest.mark.parametrize(
    "junk", [b"\0" * 700, b"RIFF\0\0\0\0WAVEfmt ", b"\xff" * 50, b"ID3\x03\0\0\0\0\x02\x7f" + bytes(383)]
)
def test_mp3_behind_stray_bytes_is_found(junk: bytes) -> None:
    data = encode("MP3")
    samples, expected = (load_audio(source, target_rate_hz=48_000) for source in (junk + data, data))
    lag = len(samples) - len(expected)  # where the encoder's note is not found, its delay and padding are left in
    assert 0 <= lag < 0.07 * 48_000
    start = int(np.argmax(np.correlate(samples[: 9000 + lag], expected[:9000], "valid")))
    np.testing.assert_allclose(samples[start:][:90_000], expected[:90_000], rtol=0, atol=1e-5)


def test_a_damaged_mp3_is_read_and_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(encode("MP3", samples=sound(10)))
    for place in np.random.Generator(np.random.PCG64(5)).integers(2000, len(data), 1500):
        data[place] ^= 0x55
    samples, warnings = read(bytes(data))
    assert len(samples) > 3 * TARGET and warnings
    assert capfd.readouterr() == ("", "")


def damaged_dump() -> bytes:
    """A MIDI sample dump whose checksums are wrong."""
    data = bytearray(encode("SDS", "PCM_16", sound(1, channels=1)))
    data[300::100] = bytes(0x55 ^ byte for byte in data[300::100])
    return bytes(data)


def damaged_alac() -> bytes:
    """ALAC in CAF, the sizes of whose packets are wrong."""
    data = bytearray(encode("CAF", "ALAC_16", sound(1, TARGET, 1), TARGET))
    sizes = data.index(b"pakt") + 36
    data[sizes : sizes + 6] = b"\x80" * 6
    return bytes(data)


@pytest.mark.parametrize("damaged", [damaged_dump, damaged_alac])
def test_decoders_that_print_to_stdout_are_not_used(damaged: Callable[[], bytes]) -> None:
    program = (
        "import sys; from audiotag.audio.recording import load_audio; from audiotag.errors import AudioError\n"
        "try: load_audio(sys.stdin.buffer, target_rate_hz=32000)\n"
        "except AudioError: pass\n"
    )
    done = subprocess.run([sys.executable, "-c", program], input=damaged(), capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


@pytest.mark.parametrize("subtype", ["ALAC_16", "ALAC_24"])
@pytest.mark.parametrize("seconds", [0.05, 1.0, 2.0, 2.01, 2.62])
def test_alac_is_what_soundfile_reads(subtype: str, seconds: float) -> None:
    data = encode("CAF", subtype, sound(seconds, TARGET), TARGET)
    np.testing.assert_allclose(read(data)[0], by_soundfile(data), rtol=0, atol=1e-6)


# -- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "length_known"),
    [
        ("WAV", True),
        ("AIFF", True),
        ("AU", True),
        ("W64", True),
        ("RF64", True),
        ("FLAC", True),
        ("MP3", True),
        ("OGG", False),
    ],
)
def test_what_a_truncated_file_still_holds_is_used_and_the_rest_reported(kind: str, length_known: bool) -> None:
    data = encode(kind, samples=sound(10))
    samples, warnings = read(data[: len(data) * 6 // 10])
    whole = by_soundfile(data)
    assert 0.4 * len(whole) < len(samples) < 0.7 * len(whole)
    settled = len(samples) - 4000  # a resampler's last output sees the silence after the cut
    np.testing.assert_allclose(samples[:settled], whole[:settled], rtol=0, atol=1e-5)
    assert len(warnings) == 1 and warnings[0].startswith("<bytes>: truncated or damaged")
    seconds = len(samples) / TARGET
    assert f"{seconds:.2f}" in warnings[0] or f"{seconds - 0.005:.2f}" in warnings[0] or f"{seconds:.1f}" in warnings[0]
    assert ("of 10.0" in warnings[0]) == length_known


def test_a_wav_written_to_a_pipe_is_whole() -> None:
    data = bytearray(encode("WAV"))
    for field in (data.index(b"RIFF"), data.index(b"data")):
        data[field + 4 : field + 8] = b"\xff\xff\xff\xff"
    samples, warnings = read(bytes(data))
    np.testing.assert_allclose(samples, by_soundfile(encode("WAV")), rtol=0, atol=1e-6)
    assert warnings == []


def test_a_damaged_piece_of_flac_is_silence_and_the_rest_is_kept() -> None:
    whole = encode("FLAC", samples=sound(10, TARGET), rate=TARGET)
    data = bytearray(whole)
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(3000)
    samples, warnings = read(bytes(data))
    expected = by_soundfile(whole)
    assert len(samples) == len(expected)
    lost = np.flatnonzero(np.abs(samples - expected) > 1e-6)
    assert lost[0] > 4.5 * TARGET and lost[-1] < 5.5 * TARGET and lost[-1] - lost[0] < TARGET // 2
    assert not samples[lost].any()
    assert len(warnings) == 1 and f"damaged at {lost[0] / TARGET:.2f}" in warnings[0] and "silence" in warnings[0]


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3", "AIFF", "CAF", "W64"])
def test_files_cut_to_their_first_bytes_are_refused_or_reported(kind: str) -> None:
    data = encode(kind)
    refused = 0
    for length in range(1, 250, 3):
        try:
            _, warnings = read(data[:length])
        except AudioError as error:
            assert str(error).startswith("<bytes>: ")
            refused += 1
        else:
            assert warnings
    assert refused >= 10


@pytest.mark.parametrize(("offset", "value"), [(24, 0), (24, 7), (24, 4_000_000_000), (22, 0), (22, 1000)])
def test_headers_that_cannot_be_are_refused(offset: int, value: int) -> None:
    data = bytearray(encode("WAV"))
    width = 2 if offset == 22 else 4
    data[offset : offset + width] = value.to_bytes(width, "little")
    with pytest.raises(AudioError, match="<bytes>: "):
        read(bytes(data))


def test_nan_in_a_float_file_is_refused_with_its_place() -> None:
    samples = sound()
    samples[70_000, 1] = np.nan
    with pytest.raises(AudioError, match=r"<bytes>: sample 70000 \(at 1\.458 s\) is NaN"):
        read(encode("WAV", "FLOAT", samples))


def test_a_file_without_samples_is_refused() -> None:
    with pytest.raises(AudioError, match="holds no samples"):
        read(encode("WAV", samples=np.zeros((0, 1))))


# -- what is not a recording -----------------------------------------------------------------------------------------


@pytest.fixture
def odd_paths(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("These are words, not sound.\n" * 100)
    (tmp_path / "page.mp3").write_text("<!DOCTYPE html><html>404 Not Found</html>")
    (tmp_path / "zeros.flac").write_bytes(bytes(100_000))
    (tmp_path / "folder.wav").mkdir()
    return {path.name: path for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty.wav", r"is empty \(0 bytes\)"),
        ("text.wav", "not audio that can be decoded"),
        ("page.mp3", "not audio that can be decoded"),
        ("zeros.flac", "not audio that can be decoded"),
        ("folder.wav", "is a folder"),
    ],
)
def test_paths_that_are_no_recordings(odd_paths: dict[str, Path], name: str, message: str) -> None:
    with pytest.raises(AudioError, match=message) as caught:
        open_audio(odd_paths[name], target_rate_hz=TARGET)
    assert str(caught.value).startswith(f"{odd_paths[name]}: ")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files as Linux shows them")
def test_no_file_is_left_open_or_closed_twice(odd_paths: dict[str, Path], tmp_path: Path) -> None:
    good = tmp_path / "good.flac"
    good.write_bytes(encode("FLAC"))

    def is_open() -> set[str]:
        return {os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}

    with open(tmp_path / "bystander", "wb") as bystander:
        for path in (*odd_paths.values(), good, *odd_paths.values()):
            with suppress(AudioError):
                read(path)
            with suppress(AudioError):
                open_audio(path, target_rate_hz=TARGET).close()
            os.fstat(bystander.fileno())
        assert [name for name in is_open() if str(tmp_path) in name] == [bystander.name]


def test_missing_files_and_addresses() -> None:
    with pytest.raises(AudioError, match=r"nowhere.wav: no such file \(looked from .+\)"):
        open_audio("nowhere.wav", target_rate_hz=TARGET)
    with pytest.raises(AudioError, match="download it first"):
        open_audio("https://example.org/dog.wav", target_rate_hz=TARGET)
    with pytest.raises(AudioError, match="cannot be opened"):
        open_audio("a\0b.wav", target_rate_hz=TARGET)


def test_a_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "locked.wav"
    path.write_bytes(encode("WAV"))
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(AudioError, match="not permitted"):
        open_audio(path, target_rate_hz=TARGET)


@pytest.fixture
def special(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    if os.name != "posix":
        pytest.skip("POSIX file types")
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(tmp_path)  # a socket's path may not be long
        listening.bind("socket")
        yield {"fifo": str(tmp_path / "fifo"), "socket": str(tmp_path / "socket"), "device": "/dev/zero"}


@pytest.mark.parametrize("kind", ["fifo", "socket", "device"])
def test_what_is_no_regular_file_is_refused_at_once(special: dict[str, str], kind: str) -> None:
    with pytest.raises(AudioError, match="not a regular file"):
        open_audio(special[kind], target_rate_hz=TARGET)


# -- file objects ----------------------------------------------------------------------------------------------------


def test_a_file_object_is_read_from_where_it_stands() -> None:
    data = encode("FLAC")
    file = io.BytesIO(b"header" + data)
    file.seek(6)
    np.testing.assert_array_equal(read(file)[0], read(data)[0])
    with pytest.raises(AudioError, match=r"seek\(0\) first"):
        open_audio(file, target_rate_hz=TARGET)


@pytest.mark.parametrize("file", [io.StringIO("text"), io.StringIO("")])
def test_text_files_are_refused(file: io.StringIO) -> None:
    with pytest.raises(InvalidInputError, match="'rb'"):
        open_audio(file, target_rate_hz=TARGET)


def test_a_closed_file_is_refused() -> None:
    file = io.BytesIO(encode("WAV"))
    file.close()
    with pytest.raises(AudioError, match="closed file"):
        open_audio(file, target_rate_hz=TARGET)


@pytest.mark.parametrize("limit", [0, 20, 50_000])
@pytest.mark.parametrize("seekable", [True, False])
def test_a_failing_file_is_named_and_nothing_is_printed(
    limit: int, seekable: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    class Failing(io.BytesIO):
        def seekable(self) -> bool:
            return seekable

        def read(self, size: int | None = -1) -> bytes:
            if size and self.tell() + size > limit:
                raise OSError("the disk went away")
            return super().read(size)

    with pytest.raises(AudioError, match=r"<file>: .*the disk went away"):
        read(Failing(encode("WAV")))
    assert capfd.readouterr().err == ""


def broken_gzip(data: bytes) -> Any:
    packed = bytearray(gzip.compress(data))
    packed[10] ^= 0xFF
    return gzip.open(io.BytesIO(packed))


def broken_bz2(data: bytes) -> Any:
    return bz2.open(io.BytesIO(bz2.compress(data)[:4] + bytes(100)))


def broken_zip(data: bytes) -> Any:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.wav", data)
    broken = bytearray(packed.getvalue())
    broken[40:60] = bytes(20)
    return zipfile.ZipFile(io.BytesIO(broken)).open("a.wav")


@pytest.mark.parametrize("broken", [broken_gzip, broken_bz2, broken_zip])
@pytest.mark.parametrize("start", [0, 1])
def test_packed_files_that_fail_at_once_are_an_audio_error(broken: Any, start: int) -> None:
    file = broken(encode("WAV"))
    if start:  # one that is not at its beginning, and so is copied
        file.tell = lambda: 1
    with pytest.raises(AudioError, match=r"cannot be read: \S"):
        open_audio(file, target_rate_hz=TARGET)


@pytest.mark.parametrize("seekable", [True, False])
def test_a_file_that_has_nothing_yet_is_not_at_its_end(seekable: bool) -> None:
    data = encode("WAV")

    class NonBlocking(io.BytesIO):
        def seekable(self) -> bool:
            return seekable

        def read(self, size: int | None = -1) -> Any:
            return None if size and self.tell() > len(data) // 2 else super().read(min(size or 0, 4096))

    with pytest.raises(AudioError, match="non-blocking"):
        read(NonBlocking(data))


def test_memoryviews_of_any_layout_are_their_bytes() -> None:
    data = encode("FLAC")
    doubled = np.repeat(np.frombuffer(data, np.uint8), 2)
    expected, _ = read(data)
    for view in (memoryview(data), memoryview(doubled)[::2], memoryview(data).cast("b")):
        np.testing.assert_array_equal(read(view)[0], expected)
    released = memoryview(data)
    released.release()
    with pytest.raises(InvalidInputError, match="released"):
        read(released)

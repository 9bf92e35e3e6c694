"""Damaged audio files, each one reproducible from a seed and a case number."""

from __future__ import annotations

import io
import random
from functools import cache
from typing import NamedTuple

import av
import numpy as np
import soundfile

# name of the seed file: (format of libsndfile or ffmpeg, encoding, rate in Hz, channels)
SEEDS = {
    "pcm16.wav": ("WAV", "PCM_16", 44100, 2),
    "pcm24.wav": ("WAVEX", "PCM_24", 48000, 1),
    "float.wav": ("WAV", "FLOAT", 22050, 2),
    "adpcm.wav": ("WAV", "IMA_ADPCM", 16000, 1),
    "pcm16.flac": ("FLAC", "PCM_16", 44100, 2),
    "pcm24.flac": ("FLAC", "PCM_24", 32000, 1),
    "vorbis.ogg": ("OGG", "VORBIS", 44100, 2),
    "opus.opus": ("OGG", "OPUS", 48000, 1),
    "stereo.mp3": ("MP3", "MPEG_LAYER_III", 44100, 2),
    "mono.mp3": ("MP3", "MPEG_LAYER_III", 16000, 1),
    "alac.caf": ("CAF", "ALAC_16", 32000, 2),
    "dump.sds": ("SDS", "PCM_16", 16000, 1),
    "stereo.m4a": ("ipod", "aac", 44100, 2),
    "mono.mkv": ("matroska", "aac", 48000, 1),
    "stereo.aac": ("adts", "aac", 32000, 2),
}
EXTENSIONS = ("wav", "flac", "ogg", "opus", "mp3", "aiff", "raw", "vox", "m4a", "txt")
SECONDS = 2.0
HEADER_BYTES = 200
EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


class Case(NamedTuple):
    """One damaged file: the name to give it, what was done to which seed, and its contents."""

    name: str
    story: str
    data: bytes


@cache
def seed_file(name: str) -> bytes:
    """A sound file of two seconds: tones, noise and silence, so that every part of an encoder is used."""
    kind, subtype, rate_hz, channels = SEEDS[name]
    random_numbers = np.random.Generator(np.random.PCG64(len(name)))
    time_s = np.arange(int(SECONDS * rate_hz)) / rate_hz
    tone = 0.3 * np.sin(2 * np.pi * (200 + 900 * time_s) * time_s)
    noise = 0.1 * random_numbers.standard_normal((channels, len(time_s)))
    sound = np.where(time_s % 0.7 < 0.6, tone + noise, 0.0).T
    file = io.BytesIO()
    if subtype == "aac":
        with av.open(file, "w", format=kind) as container:
            stream = container.add_stream("aac", rate=rate_hz, layout="stereo" if channels == 2 else "mono")
            for begin in range(0, len(sound), 1024):
                piece = np.ascontiguousarray(sound[begin : begin + 1024].T, np.float32)
                frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=stream.layout.name)
                frame.sample_rate, frame.pts = rate_hz, begin
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return file.getvalue()
    soundfile.write(file, sound, rate_hz, format=kind, subtype=subtype)
    return file.getvalue()


def case(seed: int, number: int) -> Case:
    """Case ``number`` of the run with ``seed``: one to three mutations of one seed file."""
    rng = random.Random(f"{seed}/{number}")
    name = rng.choice(sorted(SEEDS))
    data = bytearray(seed_file(name))
    steps = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        mutation = rng.choice(MUTATIONS)
        mutation(data, rng)
        steps.append(mutation.__name__.strip("_"))
    given = name
    if rng.random() < 0.2:
        given = f"{name.rpartition('.')[0]}.{rng.choice(EXTENSIONS)}"
        steps.append(f"named {given}")
    return Case(given, f"{name}: {', '.join(steps)}", bytes(data))


def _flip_header_bits(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 8)):
        if data:
            data[rng.randrange(min(HEADER_BYTES, len(data)))] ^= 1 << rng.randrange(8)


def _flip_body_bits(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 10, 100, 3000))):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _overwrite_bytes(data: bytearray, rng: random.Random) -> None:
    begin, length = rng.randrange(len(data) + 1), rng.choice((1, 16, 400, 20_000))
    length = min(length, len(data) - begin)
    data[begin : begin + length] = rng.randbytes(length) if rng.random() < 0.5 else bytes(length)


def _set_header_field(data: bytearray, rng: random.Random) -> None:
    width, order = rng.choice((1, 2, 4)), rng.choice(("little", "big"))
    begin = rng.randrange(max(1, min(HEADER_BYTES, len(data)) - width))
    data[begin : begin + width] = (rng.choice(EXTREMES) & (256**width - 1)).to_bytes(width, order)


def _cut_end(data: bytearray, rng: random.Random) -> None:
    del data[rng.choice((rng.randrange(len(data) + 1), rng.randrange(min(HEADER_BYTES, len(data)) + 1))) :]


def _cut_start(data: bytearray, rng: random.Random) -> None:
    del data[: rng.choice((1, 4, 44, rng.randrange(len(data) + 1)))]


def _cut_middle(data: bytearray, rng: random.Random) -> None:
    begin = rng.randrange(len(data) + 1)
    del data[begin : begin + rng.choice((1, 3, 512, 10_000))]


def _swap_parts(data: bytearray, rng: random.Random) -> None:
    length = rng.choice((2, 64, 4096))
    if len(data) > 2 * length:
        first, second = (rng.randrange(len(data) - length) for _ in range(2))
        one, other = data[first : first + length], data[second : second + length]
        data[first : first + length], data[second : second + length] = other, one


def _insert_bytes(data: bytearray, rng: random.Random) -> None:
    begin = rng.randrange(len(data) + 1)
    data[begin:begin] = rng.randbytes(rng.choice((1, 7, 4096)))


def _repeat_part(data: bytearray, rng: random.Random) -> None:
    begin = rng.randrange(len(data) + 1)
    data[begin:begin] = data[begin : begin + rng.choice((32, 5000))] * rng.choice((1, 3, 200))


def _lengthen(data: bytearray, rng: random.Random) -> None:
    length = rng.choice((1, 100, 200_000))
    data += rng.choice((bytes(length), rng.randbytes(length), bytes(data), seed_file(rng.choice(sorted(SEEDS)))))


def _other_header(data: bytearray, rng: random.Random) -> None:
    length = rng.choice((4, 12, 44, HEADER_BYTES))
    data[:length] = seed_file(rng.choice(sorted(SEEDS)))[:length]


MUTATIONS = (
    _flip_header_bits,
    _flip_body_bits,
    _overwrite_bytes,
    _set_header_field,
    _cut_end,
    _cut_start,
    _cut_middle,
    _swap_parts,
    _insert_bytes,
    _repeat_part,
    _lengthen,
    _other_header,
)

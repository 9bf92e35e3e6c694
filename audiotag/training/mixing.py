"""Endless fresh clips out of pieces of audio: drawn by rarity, mixed, filtered, put into rooms and under noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InvalidInputError
from .bank import LOGITS_FILE, SHORTEST_SAMPLES, PieceBank, read_split, read_table

COMMON_LIMITS_HZ = (4_000.0, 5_512.5, 8_000.0, 8_000.0, 11_025.0)  # half of usual rates; 16 kHz is the most usual
TURN_TABLE = 4096  # samples of one turn of a made machine


def rarity_weights(scores: np.ndarray, *, smoothing: float = 1.0) -> np.ndarray:
    """Compute sampling probabilities that give every label about the same presence.

    Parameters
    ----------
    scores : ndarray
        (pieces, labels), in [0, 1]: labels, or a teacher's scores.
    smoothing : float
        Added to each label's total score, so that a label hardly ever present does not dominate.

    Returns
    -------
    ndarray
        (pieces,), float64, summing to 1: sum_c score_c / (total_c + smoothing), normalised.
    """
    if scores.ndim != 2 or not len(scores):
        raise InvalidInputError(f"scores must be (pieces, labels) with at least one piece, got {scores.shape}")
    weights = (scores / (scores.sum(0, dtype=np.float64) + smoothing)).sum(1)
    return weights / weights.sum()


@dataclass(frozen=True)
class MixConfig:
    """How fresh clips are made from pieces; probabilities in [0, 1], levels in dB."""

    second_piece: float = 0.6  # share of clips with another piece mixed in
    third_piece: float = 0.1
    level_difference_db: float = 10.0  # of the mixed-in piece, uniform in +- this
    gain_db: tuple[float, float] = (-14.0, 6.0)
    repeat: float = 0.7  # a short piece is repeated (else followed by other pieces)
    speed: float = 0.4  # share of tracks played faster or slower
    speed_range: tuple[float, float] = (0.75, 1.33)
    coloured: float = 0.35  # share of clips with a tilted spectrum, a band limit, or both
    lowest_band_limit_hz: float = 3_000.0
    tilt_db: float = 12.0  # from one end of the spectrum to the other, at most
    noise: float = 0.2  # share of clips with coloured noise under them
    noise_level_db: tuple[float, float] = (-30.0, 6.0)  # against the clip's own level
    synthetic: float = 0.04  # silence, noise, tones
    quiet: float = 0.03  # scaled far down
    clipped: float = 0.02
    padded: float = 0.0  # share of short tracks followed by digital silence, then repeated
    excerpt: float = 0.0  # share of long tracks of which a few seconds are repeated
    common_limits: float = 0.0  # share of band limits that are half a usual sampling rate
    room: float = 0.0  # share of clips heard in a made room
    decay_s: tuple[float, float] = (0.1, 1.5)  # of a room, to -60 dB
    machine: float = 0.0  # share of clips with a made machine or traffic under them
    scene: float = 0.0  # share of clips in which four to eight tracks sound together
    texture: float = 0.0  # share of clips with a track's spectrum as steady noise under them
    equalised: float = 0.0  # share of coloured clips with a random smooth frequency response
    response_db: float = 10.0  # of it, at most
    tiled: float = 0.0  # share of clips that are a shorter one repeated, as a tagger does with short audio


class Mixer:
    """Draws clips: `clips(rng, count, samples)` gives (count, samples) float32, the same for the same generator."""

    def __init__(
        self, bank: PieceBank, weights: np.ndarray, config: MixConfig = MixConfig(), *, sample_rate_hz: int = 32_000
    ) -> None:
        if len(weights) != len(bank):
            raise InvalidInputError(f"weights must be one per piece: got {len(weights)} for {len(bank)} pieces")
        if not np.any((weights > 0) & (bank.length >= SHORTEST_SAMPLES)):
            raise InvalidInputError(f"no piece with a weight above 0 is as long as {SHORTEST_SAMPLES} samples")
        self.bank, self.config, self.sample_rate_hz = bank, config, sample_rate_hz
        self.cumulative = np.cumsum(weights / weights.sum())

    def clips(self, rng: np.random.Generator, count: int, samples: int) -> np.ndarray:
        return np.stack([self._clip(rng, samples) for _ in range(count)])

    def _clip(self, rng: np.random.Generator, samples: int) -> np.ndarray:
        if self.config.tiled and rng.random() < self.config.tiled:
            part = samples // 2 if rng.random() < 0.5 else int(rng.integers(samples // 10, samples))
            return np.resize(self._untiled(rng, part), samples)
        return self._untiled(rng, samples)

    def _untiled(self, rng: np.random.Generator, samples: int) -> np.ndarray:
        c = self.config
        if rng.random() < c.synthetic:
            return synthetic_clip(rng, samples, self.sample_rate_hz)
        x = self._track(rng, samples)
        for share in (c.second_piece, c.third_piece):
            if rng.random() < share:
                other = self._track(rng, samples)
                level = _rms(x) / max(_rms(other), 1e-6) if _rms(x) > 1e-5 else 1.0
                x = x + other * level * _db(rng.uniform(-c.level_difference_db, c.level_difference_db))
        if rng.random() < c.scene:
            for _ in range(int(rng.integers(2, 7))):
                other = self._track(rng, samples)
                x = x + other * (max(_rms(x), 1e-4) / max(_rms(other), 1e-6) * _db(rng.uniform(-15, 3)))
        if rng.random() < c.texture:
            noise = steady(rng, self._track(rng, samples))
            x = x + noise * (max(_rms(x), 1e-4) * _db(rng.uniform(-12, 9)) / max(_rms(noise), 1e-9))
        if rng.random() < c.coloured:
            x = self._coloured(rng, x)
        if rng.random() < c.noise:
            noise = coloured_noise(rng, samples, rng.uniform(0.0, 1.6))
            x = x + noise * (_rms(x) * _db(rng.uniform(*c.noise_level_db)) / max(_rms(noise), 1e-9))
        if rng.random() < c.machine:
            noise = machine_noise(rng, samples, self.sample_rate_hz)
            x = x + noise * (_rms(x) * _db(rng.uniform(*c.noise_level_db)) / max(_rms(noise), 1e-9))
        if rng.random() < c.room:
            x = in_room(rng, x, float(np.exp(rng.uniform(*np.log(c.decay_s)))), self.sample_rate_hz)
        peak = float(np.abs(x).max())
        if peak > 1:
            x = x / peak
        gain = _db(rng.uniform(*c.gain_db))
        if rng.random() < c.quiet:
            gain *= _db(rng.uniform(-50, -20))
        if rng.random() < c.clipped:
            gain *= _db(rng.uniform(6, 24))
        return np.clip(x * gain, -1, 1).astype(np.float32)

    def _coloured(self, rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
        """Do what other microphones, rooms and rates do to a spectrum; most audio has been through a low-pass."""
        c = self.config
        spectrum = np.fft.rfft(x)
        place = np.linspace(-0.5, 0.5, len(spectrum), dtype=np.float32)
        spectrum *= 10 ** (place * rng.uniform(-c.tilt_db, c.tilt_db) / 20)
        if rng.random() < 0.5:
            spectrum *= power_law(len(spectrum), rng.uniform(-0.3, 0.8))
        if rng.random() < c.equalised:
            octaves = np.log2(np.arange(1, len(spectrum) + 1, dtype=np.float32))
            points = rng.uniform(-c.response_db, c.response_db, 12)
            spectrum *= 10 ** (np.interp(octaves, np.linspace(7, octaves[-1], 12), points).astype(np.float32) / 20)
        if rng.random() < 0.6:
            limit_hz = rng.uniform(c.lowest_band_limit_hz, self.sample_rate_hz / 2)
            if rng.random() < c.common_limits:
                limit_hz = float(rng.choice(COMMON_LIMITS_HZ))
            spectrum[int(limit_hz / (self.sample_rate_hz / 2) * len(spectrum)) :] = 0
        return np.fft.irfft(spectrum, len(x)).astype(np.float32)

    def _piece(self, rng: np.random.Generator) -> np.ndarray:
        while True:
            piece = self.bank[min(int(np.searchsorted(self.cumulative, rng.random())), len(self.bank) - 1)]
            if len(piece) < SHORTEST_SAMPLES:
                continue
            if rng.random() < self.config.speed:
                rate = np.exp(rng.uniform(*np.log(self.config.speed_range)))
                places = np.arange(0, len(piece) - 1, rate)
                piece = np.interp(places, np.arange(len(piece)), piece).astype(np.float32)
            return piece

    def _track(self, rng: np.random.Generator, samples: int) -> np.ndarray:
        """Fill the clip with one piece: cut if long, else repeated or strung together with others, at a random turn."""
        piece = self._piece(rng)
        c = self.config
        if len(piece) >= samples // 2 and rng.random() < c.excerpt:
            part = int(rng.integers(samples // 8, samples // 2 + 1))
            at = int(rng.integers(0, len(piece) - part + 1))
            return np.resize(piece[at : at + part], samples)
        if len(piece) >= samples:
            at = int(rng.integers(0, len(piece) - samples + 1))
            return piece[at : at + samples]
        if rng.random() < c.padded:
            period = int(rng.integers(len(piece), samples + 1))
            if len(piece) < samples // 2 and rng.random() < 0.5:
                period = samples // 2
            padded = np.zeros(period, np.float32)
            padded[: len(piece)] = piece
            return np.roll(np.resize(padded, samples), int(rng.integers(0, samples)))
        if rng.random() < self.config.repeat:
            return np.roll(np.resize(piece, samples), int(rng.integers(0, samples)))
        parts, total = [piece], len(piece)
        while total < samples:
            parts.append(self._piece(rng))
            total += len(parts[-1])
        return np.roll(np.concatenate(parts)[:samples], int(rng.integers(0, samples)))


def split_mixer(
    folders: Sequence[str | Path], split: str, config: MixConfig = MixConfig(), *, sample_rate_hz: int = 32_000
) -> Mixer:
    """Make a mixer of the pieces of one split of some banks, drawn by rarity where their logits are stored."""
    picks, logits = read_split(folders, split), read_table(folders, LOGITS_FILE)
    pieces = PieceBank.open(*folders).subset(picks)
    weights = np.full(len(pieces), 1.0)
    if logits is not None:
        weights = rarity_weights(1 / (1 + np.exp(-logits[picks].astype(np.float32))))
    return Mixer(pieces, np.where(pieces.length > 0, weights, 0.0), config, sample_rate_hz=sample_rate_hz)


def synthetic_clip(rng: np.random.Generator, samples: int, sample_rate_hz: int) -> np.ndarray:
    """Make silence, near-silence, coloured noise or a tone: what every tagger meets and no sound library holds."""
    kind = rng.integers(0, 4)
    if kind == 0:
        return (rng.standard_normal(samples) * rng.choice([0.0, 1e-5, 1e-4])).astype(np.float32)
    if kind == 1:
        noise = coloured_noise(rng, samples, rng.uniform(0.0, 1.6))
        return noise / np.abs(noise).max() * np.float32(_db(rng.uniform(-50, 0)))
    t = np.arange(samples) / sample_rate_hz
    hz = np.exp(rng.uniform(np.log(60), np.log(10_000)))
    phase = 2 * np.pi * hz * t
    wave = np.sin(phase) if kind == 2 else np.sign(np.sin(phase)) * 0.5
    return (wave * _db(rng.uniform(-40, 0))).astype(np.float32)


def machine_noise(rng: np.random.Generator, samples: int, sample_rate_hz: int) -> np.ndarray:
    """Harmonics of a drifting rotation over coloured noise that comes and goes: an engine, float32, of any level."""
    t = np.linspace(0, samples / sample_rate_hz, samples, dtype=np.float32)
    base_hz = float(np.exp(rng.uniform(np.log(15), np.log(300))))
    drift = 1 + 0.1 * rng.random() * np.sin(2 * np.pi * (rng.uniform(0.02, 1) * t + rng.random()))
    turns = np.cumsum(base_hz / sample_rate_hz * drift, dtype=np.float64)
    count = int(rng.integers(3, 40))
    spectrum = np.zeros(TURN_TABLE // 2 + 1, np.complex64)
    loudness = np.arange(1, count + 1) ** -rng.uniform(0.3, 1.5) * rng.random(count)
    spectrum[1 : count + 1] = loudness * np.exp(2j * np.pi * rng.random(count))
    table = np.fft.irfft(spectrum, TURN_TABLE).astype(np.float32)
    hum = table[(turns % 1 * TURN_TABLE).astype(np.int32)]
    noise = coloured_noise(rng, samples, rng.uniform(0.2, 1.4))
    beat = 0.5 + 0.5 * np.sin(2 * np.pi * (float(np.exp(rng.uniform(np.log(0.1), np.log(15)))) * t + rng.random()))
    noise *= (1 - rng.random() + rng.random() * beat ** rng.integers(1, 9)).astype(np.float32)
    return hum / max(_rms(hum), 1e-9) + noise / max(_rms(noise), 1e-9) * np.float32(_db(rng.uniform(-12, 12)))


def steady(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    """Make noise that has the spectrum of `x` at all times, louder and softer at a slow random pace."""
    spectrum = np.fft.rfft(x)
    spectrum *= np.exp(2j * np.pi * rng.random(len(spectrum), dtype=np.float32)).astype(np.complex64)
    noise = np.fft.irfft(spectrum, len(x)).astype(np.float32)
    paces = rng.uniform(-1, 1, int(rng.integers(2, 40)))
    level = np.interp(np.linspace(0, len(paces) - 1, len(x)), np.arange(len(paces)), paces) * rng.uniform(0, 10)
    return noise * (10 ** (level / 20)).astype(np.float32)


def in_room(rng: np.random.Generator, x: np.ndarray, decay_s: float, sample_rate_hz: int) -> np.ndarray:
    """Add an echo of noise to `x` that begins within 30 ms and decays by 60 dB in `decay_s`; `x` wraps around."""
    length = min(len(x), round(decay_s * sample_rate_hz))
    echo = rng.standard_normal(length, dtype=np.float32)
    echo *= np.exp(np.linspace(0, -np.log(1000), length, dtype=np.float32))
    echo *= np.float32(_db(rng.uniform(-14, 6)) / np.sqrt(np.sum(np.square(echo)) + 1e-12))
    response = np.zeros(len(x), np.float32)
    delay = int(rng.integers(0, round(0.03 * sample_rate_hz)))
    echo = echo[: len(x) - delay]
    response[delay : delay + len(echo)] = echo
    response[0] += 1
    return np.fft.irfft(np.fft.rfft(x) * np.fft.rfft(response), len(x)).astype(np.float32)


def power_law(bins: int, exponent: float) -> np.ndarray:
    """Compute amplitudes f^-exponent of a spectrum's bins, flat below 0.002 of the band and 1 at a tenth of it."""
    place = np.maximum(np.arange(bins, dtype=np.float32) / bins, 0.002) / 0.1
    return place ** np.float32(-exponent)


def coloured_noise(rng: np.random.Generator, samples: int, exponent: float) -> np.ndarray:
    """Make noise with amplitudes f^-exponent (0 white, 0.5 pink, 1 brown), float32, of any level."""
    spectrum = np.fft.rfft(rng.standard_normal(samples, dtype=np.float32))
    return np.fft.irfft(spectrum * power_law(len(spectrum), exponent), samples).astype(np.float32)


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def _db(level: float) -> float:
    return float(10 ** (level / 20))

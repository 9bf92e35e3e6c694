"""From anything that holds sound to mono float32 at the network's rate, in pieces: the one way audio comes in."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..checks import check_rate, is_tensor
from ..errors import AudioError, InvalidInputError
from .arrays import ArrayReader, check_samples, tensor_to_array
from .ffmpeg import MediaReader
from .libsndfile import SoundFileReader
from .opening import open_file, open_path
from .resample import Resampler

if TYPE_CHECKING:
    import torch
from .source import read_error

# One recording in any of the forms that `open_audio` reads.
AudioInput: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | np.ndarray | torch.Tensor | "
    "tuple[np.ndarray | torch.Tensor, int] | Mapping[str, Any]"
)

# What opens one kind of source; its ``blocks(start, stop)`` gives mono float32 at its ``rate_hz``.
Reader: TypeAlias = ArrayReader | SoundFileReader | MediaReader

LOUD = 16.0  # the highest sample that a mix of floating-point tracks may have; int8 values as floats reach 127
CONTEXT_S = 1  # decoded before and behind a section


class AudioStream:
    """An opened recording; made by `open_audio`, read once with `blocks`, closed by ``with`` or `close`.

    Attributes
    ----------
    name : str
        The path, or ``"<bytes>"``, ``"<array>"`` and the like; for messages.
    source_rate_hz, channels : int
        As the recording has them.
    target_rate_hz : int
        Rate of what `blocks` gives.
    duration_s : float or None
        Its length as far as the header tells; None where only decoding can tell.
    warnings : list of str
        What the recording lacks, such as the end of a truncated file, or what else to look at, such as floats far
        beyond full scale. Complete when `blocks` has ended.
    """

    def __init__(self, reader: Reader, name: str, target_rate_hz: int) -> None:
        self.name = name
        self.source_rate_hz = reader.rate_hz
        self.channels = reader.channels
        self.target_rate_hz = target_rate_hz
        self._reader = reader
        self._spent = False
        self._warnings = reader.warnings
        self.duration_s = None if reader.frames is None else reader.frames / reader.rate_hz

    @property
    def warnings(self) -> list[str]:
        """What is not as it should be, each with the recording's name."""
        return [f"{self.name}: {text}" for text in self._warnings]

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield mono float32 blocks at ``target_rate_hz``, in [-1, 1] for integer sources, of any length, never empty.

        Concatenated they equal soxr's HQ resampling of the whole recording. A block may be a view of the array that
        was given: copy before changing it.

        Raises
        ------
        AudioError
            Nothing could be decoded, it makes no sample at ``target_rate_hz``, or one is NaN, infinite or beyond 1e10.
        InvalidInputError
            The stream was closed or read before.
        """
        yield from self._resampled(0, None)

    def section(self, start: int, stop: int | None = None) -> Iterator[np.ndarray]:
        """Yield samples ``start`` to ``stop`` of what `blocks` gives, read from near there.

        Positions are samples at ``target_rate_hz``; None is the end. Reading begins a second or more before and ends a
        second behind, so that the resampler's filter and the decoder have settled: the samples are those of `blocks`
        but for rounding, and bit for bit where nothing is resampled and the format seeks exactly.

        Raises
        ------
        AudioError
            As `blocks`, and where the recording cannot be read from there on.
        """
        unit_hz = math.gcd(self.source_rate_hz, self.target_rate_hz)  # both rates have a sample at each of its ticks
        per_unit = self.target_rate_hz // unit_hz
        unit = max(0, start // per_unit - unit_hz * CONTEXT_S)
        begin, end = unit * (self.source_rate_hz // unit_hz), None
        if stop is not None:
            end = -(-stop * self.source_rate_hz // self.target_rate_hz) + self.source_rate_hz * CONTEXT_S
        position = unit * per_unit
        for block in self._resampled(begin, end):
            first = max(0, start - position)
            wanted = block[first:] if stop is None else block[first : max(first, stop - position)]
            position += len(block)
            if len(wanted):
                yield wanted

    def _resampled(self, start: int, stop: int | None) -> Iterator[np.ndarray]:
        if self._spent:
            raise InvalidInputError(f"{self.name}: this stream was read or closed; open_audio it again")
        self._spent, reader = True, self._reader
        try:
            resampler = Resampler(reader.rate_hz, self.target_rate_hz)
            position, peak, given = start, 0.0, 0
            for block in reader.blocks(start, stop):
                peak = max(peak, check_samples(block, position, self.source_rate_hz, self.name))
                position += len(block)
                resampled = resampler.push(block)
                if len(resampled):
                    given += len(resampled)
                    yield resampled
            if position == start:
                since = f" from {start / self.source_rate_hz:g} s on" if start else ""
                why = "".join(f" ({text})" for text in self._warnings[:1])
                raise AudioError(f"{self.name}: no samples could be read{since}{why}; at least 1 sample is needed")
            rest = resampler.finish()
            if not given + len(rest):
                raise AudioError(
                    f"{self.name}: {position - start} samples at {self.source_rate_hz} Hz make none at "
                    f"{self.target_rate_hz} Hz; at least 1 is needed"
                )
            if len(rest):
                yield rest
            if peak > LOUD:
                self._warnings.append(
                    f"samples reach {peak:g}, where full scale is 1; give floats within [-1, 1], or integers as int16"
                )
        finally:
            reader.close()

    def close(self) -> None:
        """Release the file; harmless to repeat."""
        self._spent = True
        self._reader.close()

    def __enter__(self) -> AudioStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open_audio(
    source: Any,
    *,
    target_rate_hz: int,
    sample_rate_hz: int | None = None,
) -> AudioStream:
    """Open a recording, whatever holds it, to be read as mono float32 at ``target_rate_hz``.

    Parameters
    ----------
    source
        A path; the bytes of an audio file; a binary file object, read from where it stands; a numpy array or torch
        tensor (samples,) or (channels, samples) of floats or integers of up to 32 bits; ``(array, rate)``;
        ``{"array": ..., "sampling_rate": ...}`` or ``{"bytes": ..., "path": ...}`` as Hugging Face datasets give;
        what torchcodec gives: a decoder with ``get_all_samples()``, or samples with ``data`` and ``sample_rate``;
        or an object with ``open_stream(target_rate_hz)``, which returns what this function does.
    target_rate_hz
        Rate of the result, in Hz.
    sample_rate_hz
        Rate of an array that brings none; None takes it to be at ``target_rate_hz``. Files bring their own.

    Raises
    ------
    AudioError
        The recording is missing, unreadable, empty, or not audio.
    InvalidInputError
        An argument is of a type, shape or range that cannot be audio.
    """
    target_rate_hz = check_rate(target_rate_hz, what="target_rate_hz")
    if hasattr(source, "open_stream"):
        return source.open_stream(target_rate_hz)
    if sample_rate_hz is not None:
        sample_rate_hz = check_rate(sample_rate_hz)
    reader, name = _open_reader(source, sample_rate_hz, target_rate_hz)
    return AudioStream(reader, name, target_rate_hz)


def load_audio(source: Any, *, target_rate_hz: int, sample_rate_hz: int | None = None) -> np.ndarray:
    """Read the whole recording as float32 (samples,), mono, at ``target_rate_hz``; see `open_audio`."""
    with open_audio(source, target_rate_hz=target_rate_hz, sample_rate_hz=sample_rate_hz) as stream:
        blocks = list(stream.blocks())
    return np.concatenate(blocks)


def _open_reader(source: Any, rate_hz: int | None, target_rate_hz: int) -> tuple[Reader, str]:
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        if not path:
            raise InvalidInputError("a path must not be empty; name a file")
        return open_path(Path(os.fsdecode(path))), os.fsdecode(path)
    if isinstance(source, (bytes, bytearray, memoryview)):
        try:
            data = io.BytesIO(source.tobytes() if isinstance(source, memoryview) else source)
        except ValueError as error:
            raise InvalidInputError(f"<bytes>: cannot be read: {error}") from error
        return open_file(data, "<bytes>"), "<bytes>"
    if isinstance(source, Mapping):
        return _open_mapping(source, rate_hz, target_rate_hz)
    if isinstance(source, tuple):
        if len(source) != 2 or _is_number(source[0]) or not _is_number(source[1]):
            kinds = ", ".join(type(part).__name__ for part in source)
            raise InvalidInputError(f"a tuple must be (array, sample_rate), in this order, got ({kinds})")
        return _open_array(source[0], check_rate(source[1], what="the rate in (array, rate)"))
    if hasattr(source, "read"):
        name = getattr(source, "name", None)
        name = name if isinstance(name, str) and name else "<file>"
        return open_file(source, name), name
    if hasattr(source, "get_all_samples"):
        try:
            source = source.get_all_samples()
        except Exception as error:  # torchcodec's own types
            raise read_error("<decoder>", error) from error
    if hasattr(source, "sample_rate") and hasattr(source, "data"):
        return _open_array(source.data, check_rate(source.sample_rate))
    return _open_array(source, rate_hz or target_rate_hz)


def _open_mapping(source: Mapping, rate_hz: int | None, target_rate_hz: int) -> tuple[Reader, str]:
    if source.get("array") is not None:
        if source.get("sampling_rate") is None and rate_hz is None:
            raise InvalidInputError('a dictionary with "array" needs "sampling_rate" too, in Hz')
        rate = source.get("sampling_rate")
        rate_hz = rate_hz if rate is None else check_rate(rate, what='"sampling_rate"')
        assert rate_hz is not None
        return _open_array(source["array"], rate_hz)
    if source.get("bytes") is not None:
        reader, _ = _open_reader(source["bytes"], rate_hz, target_rate_hz)
        return reader, str(source.get("path") or "<bytes>")
    if source.get("path") is not None:
        return _open_reader(source["path"], rate_hz, target_rate_hz)
    raise InvalidInputError(
        'a dictionary must hold {"array", "sampling_rate"}, "bytes" or "path", as Hugging Face datasets give, '
        f"got keys {sorted(map(str, source))}"
    )


def _open_array(array: Any, rate_hz: int) -> tuple[Reader, str]:
    if is_tensor(array):
        return ArrayReader(tensor_to_array(array, "<tensor>"), rate_hz, "<tensor>"), "<tensor>"
    if not isinstance(array, np.ndarray) and (isinstance(array, list) or not hasattr(array, "__array__")):
        hint = "; make it a numpy array first" if isinstance(array, list) else ""
        raise InvalidInputError(
            "audio must be a path, bytes, a binary file object, a numpy array, a torch tensor, (array, rate) or a "
            f"dictionary, got {type(array).__name__}{hint}"
        )
    return ArrayReader(np.asanyarray(array), rate_hz, "<array>"), "<array>"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating))

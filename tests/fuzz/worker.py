"""Reads cases in a process of its own: takes case numbers on stdin, answers each with one line of JSON on stdout."""

from __future__ import annotations

import ctypes
import io
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

from mutate import case

from audiotag.audio.recording import open_audio
from audiotag.errors import AudiotagError

TARGET_RATE_HZ = 32_000
_LIBC = ctypes.CDLL(None)


class _Pipe(io.RawIOBase):
    """A file object that can only be read forwards."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:
        return self._file.readinto(buffer)


def _limit_memory(megabytes: int) -> None:
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    limit = used + megabytes * 1_000_000
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main(seed: int, megabytes: int) -> None:
    # What native libraries print, on stdout too, must not mix with the answers, so it is counted in a file.
    noise = tempfile.TemporaryFile()  # noqa: SIM115
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(noise.fileno(), 1)
    os.dup2(noise.fileno(), 2)
    with tempfile.TemporaryDirectory() as folder, noise:
        _limit_memory(megabytes)
        for line in sys.stdin:
            number = int(line)
            before = os.fstat(2).st_size
            started = time.process_time()
            answer = {"case": number, **_read(seed, number, Path(folder))}
            answer["seconds"] = time.process_time() - started
            _LIBC.fflush(None)  # what is still in the C library's buffers
            answer["noise"] = os.pread(2, 500, before).decode(errors="replace")
            print(json.dumps(answer), file=answers, flush=True)


def _read(seed: int, number: int, folder: Path) -> dict[str, object]:
    damaged = case(seed, number)
    path = folder / damaged.name
    path.write_bytes(damaged.data)
    source = (path, damaged.data, _Pipe(damaged.data))[number % 3]
    outcome: dict[str, object] = {"story": damaged.story}
    try:
        with open_audio(source, target_rate_hz=TARGET_RATE_HZ) as stream:
            outcome["samples"] = sum(len(block) for block in stream.blocks())
            outcome["warnings"] = stream.warnings
    except AudiotagError as error:
        outcome["refused"] = f"{type(error).__name__}: {error}"
    except Exception as error:
        outcome["failed"] = f"{type(error).__name__}: {error}"
    finally:
        path.unlink()
    return outcome


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))

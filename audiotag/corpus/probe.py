"""Lengths of recordings, by their headers, found in a process of its own: a bad header may kill it.

``python -m audiotag.corpus.probe`` is started by `Prober`; it imports no torch.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from ..errors import AudiotagError
from .items import Entry
from .pipe import Child, Ended, Served

THREADS = 16  # files looked into at once: most of it is waiting for them
SILENT_S = 120.0
RATE_HZ = 32_000  # any would do


class Prober:
    """The process that looks into headers, started when it is needed."""

    def __init__(self) -> None:
        self._child: Child | None = None

    def seconds(self, entries: list[Entry]) -> dict[Entry, float]:
        """Find the lengths in seconds of those recordings whose headers tell.

        What the process dies of, or hangs in, has none.
        """
        found: dict[Entry, float] = {}
        left = dict(enumerate(entries))
        while left:
            begun: set[int] = set()
            try:
                child = self._started()
                child.send(left)
                while left:
                    message = child.receive(SILENT_S)
                    if message is None:
                        raise Ended("it hangs")
                    number, seconds = message
                    if seconds is None:
                        begun.add(number)
                        continue
                    entry = left.pop(number)
                    if seconds:
                        found[entry] = seconds
            except Ended:
                self.close()
                suspects = begun & set(left) or set(left)
                for number in suspects:
                    del left[number]
        return found

    def _started(self) -> Child:
        if self._child is None:
            self._child = Child("audiotag.corpus.probe")
        return self._child

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def __enter__(self) -> Prober:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def main() -> None:
    """Answer with the length of each recording that the parent sends."""
    served = Served()

    def look(number: int, entry: Entry) -> None:
        served.send((number, None))
        seconds = 0.0
        with suppress(AudiotagError), entry.open(RATE_HZ) as stream:
            seconds = stream.duration_s or 0.0
        served.send((number, seconds))

    with ThreadPoolExecutor(THREADS) as pool:
        while True:
            for number, entry in served.receive().items():
                pool.submit(look, number, entry)


if __name__ == "__main__":
    main()

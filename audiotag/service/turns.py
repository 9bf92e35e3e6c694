"""Turns between threads, first come first served: on a CPU, decoding and the network are faster one after the other."""

from __future__ import annotations

import threading
from collections import deque


class Turns:
    """A lock that is handed to whoever waits the longest, and that a waiter gives up on after a while.

    A plain lock is mostly taken again by the thread that has just let go of it, so that a clip could not be decoded
    before a long recording's waiting windows are through.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._taken = False
        self._waiting: deque[threading.Event] = deque()

    def acquire(self, timeout: float | None = None, *, first: bool = False) -> bool:
        """Wait for the turn and return whether it came in time. `first`: before all others that wait."""
        with self._guard:
            if not self._taken:
                self._taken = True
                return True
            mine = threading.Event()
            self._waiting.insert(0 if first else len(self._waiting), mine)
        if mine.wait(timeout):
            return True
        with self._guard:
            if mine.is_set():  # it came just now
                return True
            self._waiting.remove(mine)
            return False

    def release(self) -> None:
        """Hand the turn to the next that waits."""
        with self._guard:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._taken = False

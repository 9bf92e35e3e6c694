"""Messages between a process and a child of its own: pickles with their length, over the child's stdin and stdout."""

from __future__ import annotations

import os
import pickle
import queue
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from typing import IO, Any

LENGTH = struct.Struct("<Q")


def send(file: IO[bytes], message: Any) -> None:
    """Write one message.

    Raises
    ------
    OSError
        The other process is gone.
    """
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    file.write(LENGTH.pack(len(data)) + data)
    file.flush()


def receive(file: IO[bytes]) -> Any:
    """Read the next message; raises EOFError when the other process is gone."""
    head = file.read(LENGTH.size)
    if len(head) < LENGTH.size:
        raise EOFError
    (length,) = LENGTH.unpack(head)
    data = file.read(length)
    if len(data) < length:
        raise EOFError
    return pickle.loads(data)


class Ended(Exception):
    """Raised where the child is gone; the argument says how, in words."""


class Child:
    """A Python process that runs a module and exchanges messages.

    Whatever C libraries do to it, this process lives on. It ends when this process does, for its input then ends.

    Parameters
    ----------
    module : str
        Its ``main`` makes a `Served`. Numeric libraries have one thread in it.
    """

    def __init__(self, module: str) -> None:
        paths = [os.getcwd() if path == "" else path for path in sys.path]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            environment[name] = "1"
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C is for this process, which then ends the child
        )
        assert self._process.stdout is not None
        self._messages: queue.Queue[Any] = queue.Queue()
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def _read(self, file: IO[bytes]) -> None:
        try:
            while True:
                self._messages.put(receive(file))
        except Exception:  # at the end, or where a library has written in between: no answer can be trusted any more
            self._messages.put(Ended)

    def send(self, message: Any) -> None:
        """Send the child a message; where it is gone, `receive` says so."""
        assert self._process.stdin is not None
        with suppress(OSError):
            send(self._process.stdin, message)

    def receive(self, timeout_s: float) -> Any:
        """Receive the child's next message; None if there is none in time.

        Raises
        ------
        Ended
            There will be none.
        """
        try:
            message = self._messages.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if message is Ended:
            self._messages.put(Ended)
            raise Ended(self._how())
        return message

    def _how(self) -> str:
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return "it closed its output"
        if code < 0:
            import signal

            try:
                return f"it was ended by {signal.Signals(-code).name}"
            except ValueError:
                return f"it was ended by signal {-code}"
        return f"it exited with code {code}"

    def rss_bytes(self) -> int:
        """Return the bytes of memory that the child holds, where the system tells (Linux), else 0."""
        try:
            with open(f"/proc/{self.pid}/statm", "rb") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError, IndexError, AttributeError):
            return 0

    def close(self) -> None:
        """End the child at once."""
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout):
            if file is not None:
                with suppress(OSError):
                    file.close()


class Served:
    """The child's end of the pipe; a thread reads the parent's messages, and ends the process when they end."""

    def __init__(self) -> None:
        # what libraries print must not get between the messages
        self._out = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)
        self._in = os.fdopen(os.dup(0), "rb")
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        self._lock = threading.Lock()
        self._messages: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            while True:
                self._messages.put(receive(self._in))
        except (EOFError, OSError):
            os._exit(0)  # nobody waits for an answer

    def receive(self) -> Any:
        """Receive the parent's next message."""
        return self._messages.get()

    def send(self, message: Any) -> None:
        """Send the parent a message; threads may share this."""
        with self._lock:
            send(self._out, message)

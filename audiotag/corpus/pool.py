"""Parts on the processors of one machine, without Ray: a worker, and so a child process, for each."""

from __future__ import annotations

import threading
from collections.abc import Generator
from queue import Empty, Queue
from typing import Any

from .worker import Model, Work, Worker

POLL_S = 0.2


def run_parts(parts: list[int], work: Work, model: Model, *, workers: int) -> Generator[dict[str, Any], None, None]:
    """Do parts and yield what each worker says of its own; closing the iterator ends the processes."""
    waiting: Queue[int] = Queue()
    for part in parts:
        waiting.put(part)
    done: Queue[Any] = Queue()
    stop = threading.Event()

    def serve(worker: Worker) -> None:
        try:
            while not stop.is_set():
                done.put(worker(waiting.get_nowait()))
        except Empty:
            pass
        except BaseException as error:
            done.put(error)
        finally:
            worker.stop()

    made = [Worker(work, model) for _ in range(min(workers, len(parts)))]
    threads = [threading.Thread(target=serve, args=(worker,), daemon=True) for worker in made]
    for thread in threads:
        thread.start()
    try:
        left = len(parts)
        while left:
            try:
                found = done.get(timeout=POLL_S)  # a timeout lets Ctrl-C through on every platform
            except Empty:
                continue
            if isinstance(found, BaseException):
                raise found
            left -= 1
            yield found
    finally:
        stop.set()
        for worker in made:
            worker.stop()

"""The process that decodes and runs the network, apart from the worker: a file that kills it kills nothing else.

``python -m audiotag.corpus.child`` is started by `worker.Worker`. Asked for a part of the plan, it answers with a
message when it begins an item, while it works on it, and when it is done.
"""

from __future__ import annotations

import itertools
import logging
import sys
import time
from typing import Any

from ..errors import AudiotagError
from .items import ChangedError, Item, items
from .messages import Beat, Begun, Done, Finished, Job, Ready, Setup
from .options import CHANGED, ERROR
from .pipe import Served

BEAT_S = 0.5
AHEAD = 4  # threads that read ahead, where reading means waiting or the network has a device of its own


def main() -> None:
    """Load the model, then do jobs until the parent ends."""
    served = Served()
    logging.basicConfig(level=logging.ERROR)
    setup: Setup = served.receive()
    from ..tagger import Tagger

    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
    tagger = Tagger.from_pretrained(setup.model, runtime=setup.runtime, device=setup.device, dtype=setup.dtype)
    served.send(Ready())
    while True:
        work(served, setup, tagger, served.receive())


def work(served: Any, setup: Setup, tagger: Any, job: Job) -> None:
    """Do a job, telling `served` how it goes."""
    options, grid = setup.options, setup.options.grid(tagger)
    places: dict[str, int] = {}
    numbers = itertools.count()
    beat = [time.monotonic()]

    def wanted(id_: str) -> bool:
        number = next(numbers)
        if not job.wanted(id_):
            return False
        places[id_] = number
        return True

    def opened(item: Item) -> None:
        served.send(Begun(places[item.id], options.failure(item, "")))
        if job.again:
            item.entry.check_version()

    def progress(item: Item, done_s: float, expected_s: float | None) -> None:
        now = time.monotonic()
        if now - beat[0] > BEAT_S:
            beat[0] = now
            served.send(Beat())

    remote = any(entry.root for entry in job.entries)
    workers = AHEAD if remote or tagger.device != "cpu" else 1
    sources = items(job.entries, setup.analysis, grid, opened, wanted)
    for item, result in options.analyse(tagger, sources, workers=workers, progress=progress):
        failed = isinstance(result, AudiotagError)
        status = CHANGED if isinstance(result, ChangedError) else ERROR
        row = options.failure(item, str(result), status) if failed else options.row(item, result)
        served.send(Done(places.pop(item.id), row))
    served.send(Finished())


if __name__ == "__main__":
    main()

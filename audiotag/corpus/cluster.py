"""Parts on a Ray cluster: Ray Data hands them to a pool of actors, each a worker, and moves them when nodes die.

Only numbers of parts travel, and what there is to say of them: the plan, the audio and the output are in storage.
A part is committed by the worker itself, so Ray may run it as often as it likes.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from queue import Empty, Queue
from typing import Any

from ..checks import imported
from ..errors import AudiotagError, InvalidInputError
from .storage import pyarrow
from .worker import Model, Work, Worker

POLL_S = 1.0
TELL_S = 60.0
PARTS_AT_ONCE = 10_000  # of one pipeline, which keeps something in memory for each
SUMMARY_COLUMN = "summary"


class ClusterError(AudiotagError, RuntimeError):
    """Raised where the cluster cannot do the work."""


@dataclass(frozen=True)
class Cluster:
    """Choice of a cluster, and of how much of it to use.

    Attributes
    ----------
    address : str, optional
        ``local`` starts one in this process's machine; ``auto`` is the one there is; None: ``auto`` where
        ``RAY_ADDRESS`` says which, else ``local``. Otherwise as `ray.init` takes it.
    actors : (int, int or None)
        Fewest and most actors; most None: as many as the cluster has room for.
    gpus_per_actor : float
        0: the network runs on one processor core.
    start_s : float
        How long to wait for a cluster that has no room for a single actor.
    """

    address: str | None = None
    actors: tuple[int, int | None] = (1, None)
    gpus_per_actor: float = 0.0
    start_s: float = 900.0


def ray_module() -> Any:
    """Import ray, with ray.data.

    Raises
    ------
    MissingDependencyError
        It is not installed.
    """
    return imported(
        'Ray is not installed: pip install "audiotag-dymn[ray]"; or give --shard 1/1, which uses the processors of '
        "this machine without it",
        "ray",
        "ray.data",
    )


class RayWorker:
    """A worker as `ray.data.Dataset.map_batches` wants it: batches of one part in, of one summary out."""

    def __init__(self, work: Any, model: Any) -> None:
        ray = ray_module()
        self._worker = Worker(ray.get(work), ray.get(model))
        self._counters = _counters()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        found = [self._worker(int(part)) for part in batch["part"]]
        for done in found:
            for name, counter in self._counters.items():
                if done[name]:
                    counter.inc(done[name])
        return {SUMMARY_COLUMN: [json.dumps(done) for done in found]}

    def __del__(self) -> None:
        worker = getattr(self, "_worker", None)
        if worker is not None:
            worker.stop()


def _counters() -> dict[str, Any]:
    """Make this actor's counters, for Ray's dashboard and whatever collects its metrics."""
    from ray.util.metrics import Counter

    about = {
        "files": "recordings done",
        "rows": "rows committed",
        "failed": "rows with an error",
        "audio_s": "seconds of audio worked through",
    }
    return {name: Counter(f"audiotag_corpus_{name}", description=text) for name, text in about.items()}


def run_parts(
    parts: list[int], work: Work, model: Model, cluster: Cluster, tell: Callable[[str], None]
) -> Generator[dict[str, Any], None, None]:
    """Do parts on a cluster; yields what workers say of theirs, as they are done.

    Raises
    ------
    InvalidInputError
        A cluster of our own has too few processors or GPUs.
    ClusterError
        The cluster stays too small, or Ray gives up.
    """
    ray = ray_module()
    started = _connect(ray, cluster)
    try:
        room = _wait_for_room(ray, cluster, tell, local=started)
        for begin in range(0, len(parts), PARTS_AT_ONCE):
            some = parts[begin : begin + PARTS_AT_ONCE]
            results: Queue[Any] = Queue()
            stop = threading.Event()
            given = (ray, some, work, model, cluster, room, results, stop)
            threading.Thread(target=_feed, args=given, daemon=True).start()
            try:
                yield from _results(ray, len(some), results, cluster, tell)
            finally:
                stop.set()
    finally:
        if started:
            ray.shutdown()


def _connect(ray: Any, cluster: Cluster) -> bool:
    """Connect to the cluster; returns whether it was started for that."""
    if ray.is_initialized():
        return False
    address = cluster.address or ("auto" if os.environ.get("RAY_ADDRESS") else "local")
    # Ray tells of every pool of actors that it may not be restarted in every case
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        ray.init(address=address, **quiet, **({"include_dashboard": False} if address == "local" else {}))
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ClusterError(f"--address {address}: {error}") from error
    return address == "local"


def _room(ray: Any, cluster: Cluster) -> int:
    """Count the actors that the living nodes could hold if they had nothing else to do."""
    count = 0
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        has = node["Resources"]
        fits = has.get("CPU", 0.0)
        if cluster.gpus_per_actor:
            fits = min(fits, has.get("GPU", 0.0) / cluster.gpus_per_actor)
        count += int(fits + 1e-6)
    return count


def _too_small(ray: Any, cluster: Cluster) -> str:
    has = ray.cluster_resources()
    need = "1 CPU" + (f" and {cluster.gpus_per_actor:g} GPU" if cluster.gpus_per_actor else "")
    return (
        f"the cluster has {has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs, on {len(ray.nodes())} nodes; "
        f"an actor needs {need} on one node, and at least {cluster.actors[0]} must run"
    )


def _wait_for_room(ray: Any, cluster: Cluster, tell: Callable[[str], None], *, local: bool) -> int:
    began = told = time.monotonic()
    first = True
    while (room := _room(ray, cluster)) < cluster.actors[0]:
        now = time.monotonic()
        if local:
            raise InvalidInputError(f"{_too_small(ray, cluster)}; lower --actors, and add --resume")
        if now - began > cluster.start_s:
            raise ClusterError(f"{_too_small(ray, cluster)}; waited {cluster.start_s:g} s; what is done stays")
        if first or now - told > TELL_S:
            tell(f"waiting: {_too_small(ray, cluster)}")
            first, told = False, now
        time.sleep(POLL_S)
    return room


def _feed(
    ray: Any,
    parts: list[int],
    work: Work,
    model: Model,
    cluster: Cluster,
    room: int,
    results: Queue[Any],
    stop: threading.Event,
) -> None:
    """Run the pipeline and put summaries, then None or what went wrong, into `results`."""
    try:
        for row in _dataset(ray, parts, work, model, cluster, room).iter_rows():
            results.put(json.loads(row[SUMMARY_COLUMN]))
            if stop.is_set():
                return
        results.put(None)
    except BaseException as error:
        results.put(error)


def _dataset(ray: Any, parts: list[int], work: Work, model: Model, cluster: Cluster, room: int) -> Any:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # ours shows hours of audio
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    fewest, most = cluster.actors
    size = min(max(room, fewest), len(parts), most or len(parts))
    pool: dict[str, Any] = {"min_size": min(fewest, len(parts)), "initial_size": size}
    if most is not None:
        pool["max_size"] = max(most, fewest)
    resources: dict[str, Any] = {"num_cpus": 1}
    if cluster.gpus_per_actor:
        resources["num_gpus"] = cluster.gpus_per_actor
    # blocks of our own, so that no task has to run before an actor can, nor takes a processor from it
    blocks = [pyarrow().table({"part": [part]}) for part in parts]
    return ray.data.from_arrow(blocks).map_batches(
        RayWorker,
        fn_constructor_args=(ray.put(work), ray.put(model)),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(**pool),
        **resources,
    )


def _reason(error: BaseException) -> str:
    """Find what went wrong in a worker in the tracebacks that Ray wraps around it."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    named = re.findall(r"^(?:[a-z_]\w*\.)*([A-Z]\w*(?:Error|Exception)): (.+)$", text, re.MULTILINE)
    inner = [(kind, what) for kind, what in named if kind not in ("RayTaskError", "UserCodeException")]
    if not inner:
        return f"Ray gave up: {text}"
    kind, what = inner[0]
    return what if kind in ("OutputError", "WorkerError", "InvalidInputError") else f"{kind}: {what}"


def _results(
    ray: Any, count: int, results: Queue[Any], cluster: Cluster, tell: Callable[[str], None]
) -> Generator[dict[str, Any], None, None]:
    """Yield what `_feed` puts into `results`; where nothing comes, `tell` why that may be."""
    heard = told = time.monotonic()
    came = 0
    while True:
        try:
            found = results.get(timeout=POLL_S)
        except Empty:
            now = time.monotonic()
            if now - told > TELL_S and now - heard > TELL_S:
                told = now
                if _room(ray, cluster) == 0:
                    tell(f"waiting: {_too_small(ray, cluster)}")
                    if now - heard > cluster.start_s:
                        raise ClusterError(f"{_too_small(ray, cluster)}; waited; what is done stays") from None
                elif not came:
                    free, has = (of().get("CPU", 0) for of in (ray.available_resources, ray.cluster_resources))
                    tell(f"no part is done yet; of the cluster's {has:g} CPUs, {has - free:g} are taken")
            continue
        if found is None:
            if came != count:
                raise ClusterError(f"Ray ended with {came} of {count} parts done; --resume goes on")
            return
        if isinstance(found, BaseException):
            raise ClusterError(f"{_reason(found)}; what is done stays, --resume goes on") from found
        heard, came = time.monotonic(), came + 1
        yield found

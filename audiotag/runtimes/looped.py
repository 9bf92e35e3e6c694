"""What the runtimes without torch share: the log-mel in numpy, and a graph of one window run for each of a batch.

Two forms of the graph are kept. One window alone has every thread for itself, which gives the shortest wait. Several
are dealt out to requests of one thread each, which is the most work per second: no thread ever waits for another.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..config import FrontendConfig, NetworkConfig
from ..errors import AudiotagError, MissingDependencyError
from ..frontend.numpy_logmel import NumpyLogMel
from ..networks.table import tap_channels
from .protocol import SCORES

HEAD_OUTPUTS = (SCORES, "embedding", "hidden")  # of the graph that is used nearly always
MAX_REQUESTS = 8
WINDOWS_PER_REQUEST = 4  # in a batch, so that the threads' ends differ little
KEPT_FORMS = 6

# Runs a batch (B, 1, mels, frames), float32 and contiguous; the outputs that it was made for, each (B, n).
Run = Callable[[np.ndarray], dict[str, np.ndarray]]

_left_behind: list[Any] = []  # of before a fork: ending them would wait for threads that a child does not have


class Form(NamedTuple):
    """What a compiled graph is for."""

    outputs: tuple[str, ...]
    frames: int | None
    requests: int  # 1: one that has all threads


def allowed_cores() -> int:
    """Count the cores that this process may use, as its affinity and a container's quota say."""
    cores = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores.append(math.ceil(int(quota) / int(period)))  # "max", no number: no quota
    return max(1, min(cores))


def usable_cores() -> int:
    """Count the cores for this process's threads: those it may use, and no more than ``OMP_NUM_THREADS`` says."""
    with contextlib.suppress(ValueError):
        return max(1, min(allowed_cores(), int(os.environ.get("OMP_NUM_THREADS", ""))))
    return allowed_cores()


class LoopedRuntime(ABC):
    """A `audiotag.runtimes.protocol.Runtime` on a graph of one window; subclasses compile it.

    Threads may share it, it may be pickled, and a forked child compiles anew.

    Parameters
    ----------
    state : mapping of str to ndarray
        The checkpoint's state dict, float32; held, not copied.
    network : NetworkConfig
    frontend : FrontendConfig
    threads : int, optional
        None: as many as there are cores for this process.
    """

    name: str
    device = "cpu"
    dtype = "float32"
    any_length = False  # whether one compiled graph takes any number of frames

    def __init__(
        self,
        state: Mapping[str, np.ndarray],
        network: NetworkConfig,
        frontend: FrontendConfig,
        *,
        threads: int | None = None,
    ) -> None:
        self._state, self._network, self._frontend = state, network, frontend
        self.threads = threads or usable_cores()
        self.default_batch = 1 if self.threads == 1 else WINDOWS_PER_REQUEST * min(self.threads, MAX_REQUESTS)
        self._log_mel = NumpyLogMel(frontend, self.threads)
        self._sizes = {SCORES: network.n_labels, **tap_channels(network)}
        self._usual = tuple(name for name in HEAD_OUTPUTS if name in self._sizes)
        self._start()

    def _start(self) -> None:
        self._forms: OrderedDict[Form, Run] = OrderedDict()
        self._lock = threading.Lock()
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_forms", "_lock", "_process")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def prepare(self, frames: int) -> None:
        """Make the graph for one window ready, so that what is wrong shows now.

        Raises
        ------
        MissingDependencyError
            The library does not run this network on this machine.
        """
        try:
            self._form(Form(self._usual, None if self.any_length else frames, 1))
        except AudiotagError:
            raise
        except Exception as error:  # whatever the library raises
            raise MissingDependencyError(
                f'runtime "{self.name}" does not run this network here ({type(error).__name__}: {str(error)[:300]}); '
                f"update {self.name}, or choose another runtime"
            ) from error

    def log_mel(self, waveforms: np.ndarray) -> np.ndarray:
        """Compute log-mel (B, 1, mels, frames) of waveforms (B, samples), float32, at the checkpoint's rate."""
        return self._log_mel(waveforms)

    def concatenate(self, parts: Sequence[np.ndarray], axis: int) -> np.ndarray:
        """Join log-mel arrays along an axis."""
        return np.concatenate(parts, axis)

    def run(self, logmel: np.ndarray, outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Run the network on log-mel (B, 1, mels, frames); see `audiotag.runtimes.protocol.Runtime.run`."""
        logmel = np.ascontiguousarray(logmel, np.float32)
        found = {"logmel": logmel.mean((1, 3))} if "logmel" in outputs else {}
        wanted = [name for name in outputs if name != "logmel"]
        if not wanted:
            return found
        if not len(logmel):
            return found | {name: np.empty((0, self._sizes[name]), np.float32) for name in wanted}
        graph = self._usual if set(wanted) <= set(self._usual) else (SCORES, *tap_channels(self._network))
        requests = 1 if len(logmel) == 1 else min(self.threads, MAX_REQUESTS)
        form = Form(graph, None if self.any_length else logmel.shape[3], requests)
        rows = self._form(form)(logmel)
        return found | {name: rows[name] for name in wanted}

    def _form(self, form: Form) -> Run:
        """Return the compiled graph, made when it is first needed."""
        if self._process != os.getpid():
            _left_behind.append(self._forms)
            self._start()
        with self._lock:
            if form not in self._forms:
                self._forms[form] = self._compile(form)
                while len(self._forms) > KEPT_FORMS:
                    self._forms.popitem(last=False)
            self._forms.move_to_end(form)
            return self._forms[form]

    @abstractmethod
    def _compile(self, form: Form) -> Run:
        """Make the graph ready to run."""


def dealt(logmel: np.ndarray, requests: int) -> list[range]:
    """Return which windows of a batch each request runs."""
    n = min(requests, len(logmel))
    return [range(i, len(logmel), n) for i in range(n)]


def stacked(rows: Sequence[Sequence[np.ndarray]], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return outputs by name, (B, n), of the outputs (1, n) of every window."""
    return {name: np.concatenate([row[i] for row in rows]) for i, name in enumerate(names)}

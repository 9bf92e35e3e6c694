"""The OpenVINO runtime: the quickest network on x86 and ARM processors; what it compiled is kept for the next start."""

from __future__ import annotations

import contextlib
import ctypes
import json
import queue
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..config import FrontendConfig, NetworkConfig
from ..errors import MissingDependencyError
from .compiled import CompiledFiles, state_digest
from .graph import INPUT, network_model
from .looped import Form, LoopedRuntime, Run, stacked

MIN_VERSION = "2024.0"


def load_library() -> Any:
    """Import OpenVINO.

    Raises
    ------
    MissingDependencyError
        It is not installed, does not import, is too old, or has nothing that runs on this CPU.
    """
    try:
        import openvino

        version = openvino.get_version()
        if _numbers(version) < _numbers(MIN_VERSION):
            raise ImportError(f"needs openvino >= {MIN_VERSION}, found {version}")
        with _signal_stack_kept():
            openvino.Core().get_property("CPU", "FULL_DEVICE_NAME")
    except Exception as error:  # a broken installation may raise anything
        raise MissingDependencyError(
            f'runtime "openvino" cannot be used here ({type(error).__name__}: {error}); '
            "pip install -U openvino, or choose another runtime"
        ) from error
    return openvino


class _SignalStack(ctypes.Structure):
    """``stack_t`` of Linux's ``sigaltstack``."""

    _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


@contextlib.contextmanager
def _signal_stack_kept() -> Iterator[None]:
    """Give the thread back the stack for signals that it had before the block.

    OpenVINO's CPU plugin sets one of its own for the thread that loads it, because signal frames are large while AMX
    tiles are in use, which float32 never does. It frees it with the last network, whichever thread lets that go; the
    next signal in the first thread would then end the process.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    libc, before = ctypes.CDLL(None), _SignalStack()
    known = libc.sigaltstack(None, ctypes.byref(before)) == 0
    try:
        yield
    finally:
        if known:
            libc.sigaltstack(ctypes.byref(before), None)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("-")[0].split(".")[:2] if part.isdigit())


class OpenVINORuntime(LoopedRuntime):
    """Runs a network in OpenVINO on the CPU, always in float32; see `LoopedRuntime` for the parameters.

    Parameters
    ----------
    cache : bool
        Keep compiled networks on disk, see `audiotag.runtimes.compiled`.

    Raises
    ------
    MissingDependencyError
        OpenVINO cannot be used.
    """

    name = "openvino"

    def __init__(
        self,
        state: Mapping[str, np.ndarray],
        network: NetworkConfig,
        frontend: FrontendConfig,
        *,
        threads: int | None = None,
        cache: bool = True,
    ) -> None:
        load_library()
        super().__init__(state, network, frontend, threads=threads)
        self._files = CompiledFiles("openvino") if cache else None
        self._digest = ""

    def _compile(self, form: Form) -> Run:
        return _requests(self._compiled(load_library(), form), form)

    @_signal_stack_kept()
    def _compiled(self, openvino: Any, form: Form) -> Any:
        """Return the compiled network, from the disk if it was kept there."""
        core = openvino.Core()
        # By itself OpenVINO takes bfloat16 where the CPU has it, which moves scores by hundredths; pinned threads of
        # two processes would share cores.
        options = {
            "INFERENCE_PRECISION_HINT": "f32",
            "NUM_STREAMS": str(form.requests),
            "INFERENCE_NUM_THREADS": str(self.threads if form.requests == 1 else form.requests),
            "PERFORMANCE_HINT": "LATENCY" if form.requests == 1 else "THROUGHPUT",
            "ENABLE_CPU_PINNING": "NO",
        }
        key = ""
        if self._files is not None:
            self._digest = self._digest or state_digest(self._state)
            cpu = [core.get_property("CPU", name) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
            described = [self._digest, repr(self._network), self._frontend.n_mels, form, options, cpu]
            key = json.dumps([openvino.get_version(), *described], default=str)
            kept = self._files.read(key)
            if kept is not None:
                try:
                    return core.import_model(kept, "CPU", options)
                except Exception:  # whatever it dislikes about the file, compiling anew is the answer
                    self._files.forget(key)
        model = core.read_model(
            network_model(
                self._state, self._network, mels=self._frontend.n_mels, frames=form.frames, outputs=form.outputs
            )
        )
        compiled = core.compile_model(model, "CPU", options)
        if self._files is not None:
            self._files.write(key, bytes(compiled.export_model().getbuffer()))
        return compiled


def _requests(compiled: Any, form: Form) -> Run:
    """Run windows on requests of the compiled network; a request serves one thread at a time."""
    idle: queue.LifoQueue[Any] = queue.LifoQueue()
    names = list(form.outputs)

    def take() -> Any:
        try:
            return idle.get_nowait()
        except queue.Empty:
            return compiled.create_infer_request()

    def outputs(request: Any) -> list[np.ndarray]:
        return [request.get_tensor(name).data.copy() for name in names]

    def run(logmel: np.ndarray) -> dict[str, np.ndarray]:
        rows: list[Any] = [None] * len(logmel)
        taken = [take() for _ in range(min(form.requests, len(logmel)))]
        try:
            for i, window in enumerate(logmel):
                request = taken[i % len(taken)]
                if i >= len(taken):
                    request.wait()
                    rows[i - len(taken)] = outputs(request)
                request.start_async({INPUT: window[np.newaxis]}, share_inputs=True)
            for i in range(max(0, len(logmel) - len(taken)), len(logmel)):
                taken[i % len(taken)].wait()
                rows[i] = outputs(taken[i % len(taken)])
        finally:
            for request in taken:
                request.wait()  # at an interruption, before its input is gone
                idle.put(request)
        return stacked(rows, names)

    return run

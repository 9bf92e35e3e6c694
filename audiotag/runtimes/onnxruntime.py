"""The onnxruntime runtime: the quickest to start and the smallest to install, with wheels for nearly every machine."""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ..config import FrontendConfig, NetworkConfig
from ..errors import MissingDependencyError
from .compiled import CompiledFiles, state_digest
from .graph import INPUT, network_model
from .looped import Form, LoopedRuntime, Run, dealt, stacked

MIN_VERSION = "1.16"
PROVIDERS = ["CPUExecutionProvider"]
ONLY_FATAL = 4  # its log level: what goes wrong is raised, too


def load_library() -> Any:
    """Import onnxruntime.

    Raises
    ------
    MissingDependencyError
        It is not installed, does not import, or is too old.
    """
    try:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        version = onnxruntime.__version__
    except Exception as error:  # a broken installation may raise anything
        raise MissingDependencyError(
            f'runtime "onnxruntime" cannot be used here ({type(error).__name__}: {error}); '
            "pip install onnxruntime, or choose another runtime"
        ) from error
    if _numbers(version) < _numbers(MIN_VERSION):
        raise MissingDependencyError(
            f'runtime "onnxruntime" needs onnxruntime >= {MIN_VERSION}, found {version}; pip install -U onnxruntime'
        )
    return onnxruntime


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


class OnnxRuntime(LoopedRuntime):
    """Runs a network in onnxruntime on the CPU; see `LoopedRuntime` for the parameters.

    Parameters
    ----------
    cache : bool
        Keep optimised networks on disk where that saves time, see `audiotag.runtimes.compiled`.

    Raises
    ------
    MissingDependencyError
        onnxruntime cannot be used.
    """

    name = "onnxruntime"
    any_length = True  # at no loss of speed

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
        # The blocked layout doubles MN's speed; around kernels that are computed it costs more than it gives. A graph
        # in it depends on the CPU, and is small: only the others are kept.
        self._blocked = network.architecture != "dymn"
        self._files = CompiledFiles("onnxruntime") if cache and not self._blocked else None

    def _compile(self, form: Form) -> Run:
        session = self._session(load_library(), form)
        names = list(form.outputs)

        def one(window: np.ndarray) -> list[np.ndarray]:
            return session.run(names, {INPUT: window})

        if form.requests == 1:
            return lambda logmel: stacked([one(window[np.newaxis]) for window in logmel], names)
        pool = ThreadPoolExecutor(form.requests - 1, thread_name_prefix="audiotag-onnxruntime")

        def run(logmel: np.ndarray) -> dict[str, np.ndarray]:
            rows: list[Any] = [None] * len(logmel)

            def work(windows: range) -> None:
                for i in windows:
                    rows[i] = one(logmel[i : i + 1])

            shares = dealt(logmel, form.requests)
            others = [pool.submit(work, share) for share in shares[1:]]
            work(shares[0])
            for other in others:
                other.result()
            return stacked(rows, names)

        return run

    def _session(self, onnxruntime: Any, form: Form) -> Any:
        """Return the optimised network, from the disk if it was kept there."""
        level = onnxruntime.GraphOptimizationLevel
        optimise = level.ORT_ENABLE_ALL if self._blocked else level.ORT_ENABLE_EXTENDED

        def session(model: bytes, level: Any, kept: str = "") -> Any:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = self.threads if form.requests == 1 else 1
            options.inter_op_num_threads = 1
            options.log_severity_level = ONLY_FATAL
            # Threads that spin between windows would take the cores from the log-mel and from other programs.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            options.graph_optimization_level = level
            options.optimized_model_filepath = kept
            return onnxruntime.InferenceSession(model, options, providers=PROVIDERS)

        def graph() -> bytes:
            return network_model(
                self._state, self._network, mels=self._frontend.n_mels, frames=form.frames, outputs=form.outputs
            )

        if self._files is None:
            return session(graph(), optimise)
        described = [state_digest(self._state), repr(self._network), self._frontend.n_mels, form.outputs, form.frames]
        key = json.dumps([onnxruntime.__version__, platform.machine(), *described], default=str)
        optimised = self._files.read(key)
        if optimised is not None:
            try:
                return session(optimised, level.ORT_DISABLE_ALL)
            except Exception:  # whatever it dislikes about the file, optimising anew is the answer
                self._files.forget(key)
        model = graph()
        try:
            with tempfile.TemporaryDirectory(prefix="audiotag-") as folder:
                kept = Path(folder) / "model.onnx"
                made = session(model, optimise, str(kept))
                self._files.write(key, kept.read_bytes())
            return made
        except Exception:  # a disk that cannot be written; what is wrong with the network shows again
            return session(model, optimise)

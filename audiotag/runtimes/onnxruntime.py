"""The onnxruntime runtime: the quickest to start and the smallest to install, with wheels for nearly every machine."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ..config import FrontendConfig, NetworkConfig
from ..errors import MissingDependencyError
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
    ) -> None:
        load_library()
        super().__init__(state, network, frontend, threads=threads)

    def _compile(self, form: Form) -> Run:
        onnxruntime = load_library()
        model = network_model(
            self._state, self._network, mels=self._frontend.n_mels, frames=form.frames, outputs=form.outputs
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads if form.requests == 1 else 1
        options.inter_op_num_threads = 1
        options.log_severity_level = ONLY_FATAL
        # Threads that spin between windows would take the cores from the log-mel and from other programs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # The blocked layout doubles MN's speed; around kernels that are computed it costs more than it gives.
        level = onnxruntime.GraphOptimizationLevel
        dynamic = self._network.architecture == "dymn"
        options.graph_optimization_level = level.ORT_ENABLE_EXTENDED if dynamic else level.ORT_ENABLE_ALL
        session = onnxruntime.InferenceSession(model, options, providers=PROVIDERS)
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

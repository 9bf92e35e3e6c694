"""From a checkpoint to what runs its network: which runtime, and what a choice of "auto" is.

The rule of "auto" (README, "Runtimes", has the measurements it rests on):

1. The environment variable ``AUDIOTAG_RUNTIME``, where it is set.
2. torch, where a GPU, another device, another precision or compiling is asked for, or torch has a CUDA GPU here.
3. Of what is installed and works, the quickest network (``prefer="speed"``): OpenVINO on x86-64 processors, then
   onnxruntime, then torch; or the quickest start (``prefer="start"``): onnxruntime, OpenVINO, torch.

A runtime that is installed and does not work is passed over with a warning.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.load import Checkpoint, build
from ..checks import one_of
from ..errors import InvalidInputError, MissingDependencyError
from ..frontend.mel import n_frames
from ..runtimes.protocol import Runtime

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

AUTO = "auto"
RUNTIMES = ("torch", "openvino", "onnxruntime")
PREFERENCES = ("speed", "start")
VARIABLE = "AUDIOTAG_RUNTIME"
GPU_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # of NVIDIA's driver, of Windows' for Linux, of AMD's


def open_runtime(
    checkpoint: Checkpoint,
    *,
    runtime: str = AUTO,
    prefer: str = "speed",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    compile: bool = False,
) -> Runtime:
    """Make a checkpoint's network ready to run; arguments as for `Tagger.from_pretrained`.

    Raises
    ------
    InvalidInputError
        `runtime`, `device` or `dtype` cannot be used here, or not together.
    MissingDependencyError
        The runtime that is asked for is not installed or does not work, or none is.
    """
    one_of(runtime, (AUTO, *RUNTIMES), "runtime")
    one_of(prefer, PREFERENCES, "prefer")
    makers = _makers(checkpoint, device, dtype, compile)
    needs_torch = _needs_torch(device, dtype, compile)
    if runtime == AUTO:
        runtime = one_of(os.environ.get(VARIABLE) or AUTO, (AUTO, *RUNTIMES), VARIABLE)
        if needs_torch:
            runtime = "torch"
    if runtime != AUTO:
        if needs_torch and runtime != "torch":
            raise InvalidInputError(
                f'runtime "{runtime}" runs in float32 on the CPU, but {needs_torch} was asked for; '
                'leave it out, or use runtime "torch"'
            )
        return makers[runtime]()
    failures = []
    for name in _candidates(prefer):
        if _spec(name) is None:
            continue
        try:
            return makers[name]()
        except MissingDependencyError as error:
            log.warning("%s; going on with another runtime", error)
            failures.append(name)
    tried = f" ({', '.join(failures)} did not work)" if failures else ""
    raise MissingDependencyError(
        f"nothing that runs a network is installed{tried}: pip install onnxruntime, openvino or torch"
    )


def _makers(
    checkpoint: Checkpoint, device: str | torch.device | None, dtype: str | torch.dtype | None, compile: bool
) -> dict[str, Callable[[], Runtime]]:
    config = checkpoint.config

    def with_torch() -> Runtime:
        try:
            from ..runtimes.torch import TorchRuntime
            from .devices import usable_device, usable_dtype
        except Exception as error:  # a broken installation may raise anything
            raise MissingDependencyError(
                f'runtime "torch" cannot be used here ({type(error).__name__}: {error}); pip install "torch>=2.4", '
                "or choose another runtime"
            ) from error
        where, precision = usable_device(device), usable_dtype(dtype)
        return TorchRuntime(build(checkpoint), config.frontend, device=where, dtype=precision, compile=compile)

    def without_torch(kind: Any) -> Runtime:
        runtime = kind(checkpoint.state, config.network, config.frontend)
        runtime.prepare(n_frames(config.window_samples, config.frontend))
        return runtime

    def with_openvino() -> Runtime:
        from ..runtimes.openvino import OpenVINORuntime

        return without_torch(OpenVINORuntime)

    def with_onnxruntime() -> Runtime:
        from ..runtimes.onnxruntime import OnnxRuntime

        return without_torch(OnnxRuntime)

    return {"torch": with_torch, "openvino": with_openvino, "onnxruntime": with_onnxruntime}


def _needs_torch(device: Any, dtype: Any, compile: bool) -> str:
    """Say which of the arguments only torch has; empty where none is."""
    if device is not None and str(device) != "cpu":
        return f"device {str(device)!r}"
    if dtype is not None and str(dtype).removeprefix("torch.") != "float32":
        return f"dtype {str(dtype)!r}"
    return "compile=True" if compile else ""


def _candidates(prefer: str) -> Iterator[str]:
    """List runtimes in the order in which "auto" tries them."""
    if _torch_has_a_gpu():
        yield "torch"
    if prefer == "start" or platform.machine().lower() not in ("x86_64", "amd64"):
        yield from ("onnxruntime", "openvino", "torch")
    else:
        yield from ("openvino", "onnxruntime", "torch")


def _spec(package: str) -> ModuleSpec | None:
    """Find where a package is installed, without importing it; None where it is not, or its import is barred."""
    try:
        return find_spec(package)
    except (ImportError, ValueError):
        return None


def _torch_has_a_gpu() -> bool:
    """Whether torch has a CUDA GPU, without importing it (seconds) where there can be none."""
    loaded: Any = sys.modules.get("torch")
    if loaded is None:
        spec = _spec("torch")
        if spec is None or spec.origin is None or not _has_gpu_driver():
            return False
        version = Path(spec.origin).with_name("version.py")
        if version.is_file() and not _for_gpus(version.read_text(encoding="utf-8", errors="replace")):
            return False
        try:
            import torch as loaded
        except Exception:  # it is reported where it is wanted
            return False
    return bool(loaded.cuda.is_available())


def _has_gpu_driver() -> bool:
    if sys.platform == "win32":
        return (Path(os.environ.get("SYSTEMROOT", r"C:\Windows")) / "System32" / "nvcuda.dll").exists()
    return any(os.path.exists(path) for path in GPU_FILES)


def _for_gpus(version_file: str) -> bool:
    """Whether torch's ``version.py`` says that it was built for CUDA or ROCm."""
    lines = [line.partition(":")[0].strip() for line in version_file.splitlines() if "= None" not in line]
    return any(name in ("cuda", "hip") or name.startswith(("cuda =", "hip =")) for name in lines)

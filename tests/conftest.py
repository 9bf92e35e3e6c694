"""What every test may rely on: no network beyond loopback, no cache but a temporary one, a Hub on loopback."""

import ctypes
import ipaddress
import os
import shutil
import socket
import sys
import tempfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from .hub import Server

# huggingface_hub reads its environment when it is first imported, so this comes before any test's imports.
HUB = Server()
HOME = tempfile.mkdtemp(prefix="audiotag-tests-")
for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_", "AUDIOTAG_"))]:
    del os.environ[name]
os.environ.update(
    HF_HOME=HOME,
    HF_ENDPOINT=HUB.url,
    HF_HUB_DISABLE_XET="1",  # its protocol is not the loopback Hub's
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    AUDIOTAG_RELEASE_URL=HUB.release_url,
    AUDIOTAG_RUNTIME="torch",  # but where the fixture `runtime` says otherwise
    no_proxy="*",
    OMP_NUM_THREADS="1",  # but where a test says otherwise: networks are tiny here, and pytest has a process per core
)


class BeyondLoopback(Exception):
    """Not an OSError: nothing may take it for an ordinary failure of the network and go on."""


def is_loopback(host):
    if isinstance(host, bytes):
        host = host.decode()
    if host in ("localhost", None, ""):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def guarded(original, host_of):
    def guard(*args, **kwargs):
        host = host_of(*args)
        if not is_loopback(host):
            raise BeyondLoopback(f"a test reached for {host!r}")
        return original(*args, **kwargs)

    return guard


def address_host(sock, address):
    return address[0] if sock.family in (socket.AF_INET, socket.AF_INET6) else "localhost"


socket.socket.connect = guarded(socket.socket.connect, address_host)
socket.socket.connect_ex = guarded(socket.socket.connect_ex, address_host)
socket.getaddrinfo = guarded(socket.getaddrinfo, lambda host, *_: host)


def pytest_sessionstart(session):
    HUB.start()


def pytest_sessionfinish(session, exitstatus):
    HUB.shutdown()
    HUB.server_close()
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture
def hub():
    """The loopback Hub and release server, empty."""
    HUB.clear()
    yield HUB
    HUB.clear()


@pytest.fixture(scope="module", params=["torch", "onnxruntime", "openvino"])
def runtime(request):
    """Each runtime in turn, as what "auto" chooses; those that are not installed are skipped."""
    if find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUDIOTAG_RUNTIME", request.param)
        yield request.param


@pytest.fixture(autouse=True)
def signal_stack():
    """No test leaves its thread another stack for signals: once that is freed, the next signal ends the whole run."""
    before = stack_for_signals()
    yield
    assert stack_for_signals() == before


def stack_for_signals():
    """Address and size of this thread's alternate stack, on Linux."""
    if not sys.platform.startswith("linux"):
        return None
    stack = (ctypes.c_size_t * 3)()  # start, flags (an int and padding), size
    assert ctypes.CDLL(None).sigaltstack(None, stack) == 0
    return stack[0], stack[2]


@pytest.fixture
def cache(tmp_path):
    """An empty cache folder, to be given as ``cache_dir``."""
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


@pytest.fixture
def offline(monkeypatch):
    """As if HF_HUB_OFFLINE=1 had been set before huggingface_hub was imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="session")
def shared_dir():
    """The folder of reference data beside a checkout, for checks that can do without it."""
    folder = Path(__file__).parents[2] / "shared"
    if not (folder / "reference").is_dir():
        pytest.skip("no reference data in ../shared")
    return folder


@pytest.fixture(scope="session")
def tiny():
    """A tiny MN with facts."""
    from .tiny import tiny_checkpoint

    card = {"licence": "MIT", "trained_on": "noise", "mean_average_precision": 0.25}
    return replace(tiny_checkpoint("mn"), card=card)


@pytest.fixture(scope="session")
def folder(tiny, tmp_path_factory):
    """The tiny MN as a folder for the Hub."""
    from audiotag.checkpoints.save import save_checkpoint

    return save_checkpoint(tiny, tmp_path_factory.mktemp("made") / "tiny")

"""A real server process around a tiny checkpoint, with the limits a test wants; run as a module it is that server."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parent.parent
SLOW_S = 0.2  # what a window takes with slow=True


class Running:
    """A server: its address, its process, and what it wrote to stderr."""

    def __init__(self, process, lines):
        self.process, self.lines = process, lines
        self.url = self.host = None

    @property
    def port(self):
        return int(self.host.rpartition(":")[2])

    def stop(self, sig=signal.SIGTERM, timeout=20):
        self.process.send_signal(sig)
        return self.process.wait(timeout)

    def get(self, path, **headers):
        request = urllib.request.Request(self.url + path, headers=headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.read()


@contextlib.contextmanager
def serving(limits=None, access=None, *, slow=False):
    """A server on loopback, ready. `limits` and `access`: fields of `Limits` and `Access`."""
    settings = {"limits": limits or {}, "access": access or {}, "slow": slow}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.serving", json.dumps(settings)],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines = []
    running = Running(process, lines)
    try:
        first = process.stderr.readline()
        assert first.startswith("http://"), first + process.stderr.read()
        threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True).start()
        running.url = first.strip()
        running.host = running.url.removeprefix("http://")
        for _ in range(400):
            with contextlib.suppress(OSError):
                running.get("/readyz")
                break
            time.sleep(0.05)
        else:
            raise AssertionError("the server did not get ready: " + "".join(lines))
        yield running
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def main():
    from audiotag import Tagger
    from audiotag.service.guards import Access
    from audiotag.service.limits import Limits
    from audiotag.service.server import bound_socket, make_server
    from audiotag.service.state import Service

    from .tiny import tiny_checkpoint

    settings = json.loads(sys.argv[1])

    def load():
        tagger = Tagger(tiny_checkpoint(), device="cpu", runtime="torch")
        if settings["slow"]:
            scores = tagger.engine.scores
            tagger.engine.scores = lambda logmel: (time.sleep(SLOW_S), scores(logmel))[1]
        return tagger

    access = {name: tuple(value) if isinstance(value, list) else value for name, value in settings["access"].items()}
    service = Service(load, Limits(**settings["limits"]), Access(**access))
    listening = bound_socket("127.0.0.1", 0)
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", file=sys.stderr, flush=True)
    make_server(service).run([listening])


if __name__ == "__main__":
    main()

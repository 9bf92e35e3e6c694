"""The state of a running service: one checkpoint, its worker, and the requests in hand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from .bodies import Store
from .guards import Access
from .limits import Limits
from .metrics import Metrics
from .problems import Problem
from .worker import Worker

if TYPE_CHECKING:
    from ..tagger import Tagger


class Service:
    """A running service: one checkpoint, its worker, and the count of requests in hand.

    Parameters
    ----------
    load : callable
        Makes the tagger, on the worker's thread.
    limits : Limits
    access : Access
    """

    def __init__(self, load: Callable[[], Tagger], limits: Limits | None = None, access: Access | None = None) -> None:
        self.limits, self.access = limits or Limits(), access or Access()
        self.metrics = Metrics()
        self.worker = Worker(load, self.limits, self.metrics.ran)
        self.store = Store(self.limits)
        self.draining = asyncio.Event()
        self.n_requests = self.n_streams = 0
        gauge = self.metrics.gauge
        gauge("waiting_seconds", "Seconds of audio taken in and not yet analysed.", lambda: self.worker.waiting_s)
        gauge("requests_in_hand", "Requests being answered.", lambda: self.n_requests)
        gauge("streams_open", "Live streams open.", lambda: self.n_streams)
        gauge("held_bytes", "Bytes of bodies being held.", lambda: self.store.held)
        gauge("ready", "Whether new requests are taken.", lambda: float(self.state() == "ready"))

    def state(self) -> str:
        """Tell the state: ``ready``, ``loading``, ``draining``, ``stuck`` or ``failed``."""
        if self.worker.failure is not None:
            return "failed"
        if self.draining.is_set():
            return "draining"
        if not self.worker.loaded:
            return "loading"
        return "stuck" if self.worker.stuck else "ready"

    def tagger(self) -> Tagger:
        """Return the tagger, if new work is taken.

        Raises
        ------
        Problem
            503
        """
        state, tagger = self.state(), self.worker.tagger
        if state != "ready" or tagger is None:
            raise Problem(503, f"the service is {state}", retry_after_s=5 if state == "loading" else 30)
        return tagger

    @property
    def in_hand(self) -> int:
        """Number of requests and streams that are being worked on."""
        return self.n_requests + self.n_streams

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count a request as in hand while the context lasts."""
        self.tagger()
        if self.n_requests >= self.limits.max_requests:
            raise Problem(429, f"{self.n_requests} requests are in hand; come again later", retry_after_s=2)
        self.n_requests += 1
        try:
            yield
        finally:
            self.n_requests -= 1

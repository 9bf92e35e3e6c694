"""Counters for Prometheus; prometheus-client writes the format, whose escapes and types are easily wrong."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LATENCIES_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """The counters of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests answered.", "route", "status")
        self.latency = Histogram(
            "audiotag_request_seconds",
            "From a request's head to the end of its answer.",
            ["route"],
            buckets=LATENCIES_S,
            registry=self.registry,
        )
        self.windows = self._counter("windows", "Windows run through the network.")
        self.audio = self._counter("audio_seconds", "Seconds of audio analysed.")
        self.busy = self._counter("network_busy_seconds", "Seconds the network was running.")
        self.streams = self._counter("streams", "Live streams, by how they ended.", "end")
        self.cancelled = self._counter("cancelled", "Requests whose client went away before the answer.")

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(f"audiotag_{name}", about, labels, registry=self.registry)

    def gauge(self, name: str, about: str, value: Callable[[], float]) -> None:
        """Add a gauge whose value is asked of a function."""
        Gauge(f"audiotag_{name}", about, registry=self.registry).set_function(value)

    def ran(self, n_windows: int, seconds: float, took_s: float) -> None:
        """Count a run of the network; from the worker's thread."""
        self.windows.inc(n_windows)
        self.audio.inc(max(0.0, seconds))
        self.busy.inc(took_s)

    def text(self) -> bytes:
        """Write all counters in Prometheus's text format."""
        return generate_latest(self.registry)

"""What a server has done, for Prometheus: counters and histograms of requests, and the engine's figures when asked."""

import time
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from louiskv.engine import Engine, Figures, Piece

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)
BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
# Names of figures that are told as they are, with what they mean.
GAUGES = {
    "waiting": ("queue_length", "Requests whose prompt is not begun"),
    "taking_in": ("prompts_taken_in", "Requests whose prompt is being taken in"),
    "running": ("running_rows", "Answers that are being decoded"),
    "rows": ("rows", "Rows that the batch has, idle ones included"),
    "resident_bytes": ("resident_bytes", "Bytes of keys and values on the device"),
    "index_bytes": ("index_bytes", "Bytes of the indices on the device"),
    "host_bytes": ("host_bytes", "Bytes of keys and values on the host"),
    "kept": ("kept_conversations", "Conversations that can be gone on with"),
    "kept_bytes": ("kept_bytes", "Bytes of kept conversations, wherever they are"),
    "retrieval_rate": ("retrieval_rate", "Share of (step, answer, layer, KV head) that retrieved"),
}
COUNTERS = {
    "prompt_tokens": ("prompt_tokens", "Tokens of prompts that were computed"),
    "cached_tokens": ("cached_prompt_tokens", "Tokens of prompts that were there from earlier turns"),
    "output_tokens": ("output_tokens", "Tokens of answers"),
    "fetched_bytes": ("fetched_bytes", "Bytes copied from the host to the device"),
}


class Metrics:
    """The metrics of one server; nothing of them is shared with another in the same process."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry, "namespace": "louiskv"}
        self.requests = Counter("requests", "Requests by path and status", ["path", "status"], **own)
        self.answers = Counter("answers", "Answers by how they ended", ["finish_reason"], **own)
        self.first = Histogram("time_to_first_token_seconds", "From request to first token", buckets=SECONDS, **own)
        self.between = Histogram("time_between_tokens_seconds", "From token to token", buckets=BETWEEN, **own)
        self.whole = Histogram("answer_seconds", "From request to the end of the answer", buckets=SECONDS, **own)
        self.registry.register(_OfEngine(engine))

    def count(self, path: str, status: str) -> None:
        """Count a request."""
        self.requests.labels(path, status).inc()

    def timing(self) -> "Timing":
        """A clock for one answer."""
        return Timing(self)

    def text(self) -> bytes:
        """All of it as Prometheus reads it; this may wait for a turn of the engine."""
        return generate_latest(self.registry)


class Timing:
    """The clock of one answer."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics, self._begin = metrics, time.perf_counter()
        self._last: float | None = None

    def note(self, piece: Piece) -> None:
        """Note when a piece has come."""
        now, metrics = time.perf_counter(), self._metrics
        if piece.token_ids:
            if self._last is None:
                metrics.first.observe(now - self._begin)
            else:
                metrics.between.observe(now - self._last)
            self._last = now
        if piece.finish_reason is not None:
            metrics.answers.labels(piece.finish_reason).inc()
            metrics.whole.observe(now - self._begin)


class _OfEngine:
    """The engine's figures at the time of asking."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def describe(self) -> Iterable[Metric]:
        """Names only, so that registering does not ask the engine."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Ask the engine."""
        figures: Figures = self._engine.figures()
        for name, (told, meaning) in GAUGES.items():
            yield GaugeMetricFamily(f"louiskv_{told}", meaning, value=getattr(figures, name))
        for name, (told, meaning) in COUNTERS.items():
            yield CounterMetricFamily(f"louiskv_{told}", meaning, value=getattr(figures, name))

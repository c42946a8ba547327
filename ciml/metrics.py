"""Metrics for Prometheus: how they are declared, and how a process shows them.

Two kinds of numbers. *Totals* are computed from a manifest: a worker that dies, a bundle that is tried again and a new
process change nothing in them. *Timings* are histograms of the process that takes the time. A scrape asks nobody: it
shows what the service's own loop saw last, so it waits for no store and no broker; the time of that look is beside it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from ciml import __version__
from ciml.errors import EngineError

__all__ = ["BUILD", "LAST_OBSERVED", "Board", "Family", "Metric", "registry_of", "serve_metrics"]

disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each, which nobody reads

Type = Literal["counter", "gauge", "histogram", "summary"]


@dataclass(frozen=True)
class Metric:
    """A metric as docs/metrics.md has it.

    Attributes:
      name: in full, with ``_total`` where it is a counter; the unit is in it.
      type: Prometheus' own word.
      help: one line.
      labels: their names. Values are of a closed set, or bounded where they are made; none is a run's.
      buckets: upper bounds of a histogram, ascending, without infinity.
    """

    name: str
    type: Type
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    def of(self, values: Mapping[Any, float]) -> Family:
        """Return a counter or gauge with a value for each tuple of label values."""
        kind = CounterMetricFamily if self.type == "counter" else GaugeMetricFamily
        family = kind(self.name, self.help, labels=self.labels)
        for labels, value in sorted(values.items()):
            family.add_metric(labels, value)
        return family

    def alone(self, value: float | None) -> Family:
        """Return one value without labels; none at all for None, which is what is not known."""
        return self.of({} if value is None else {(): value})

    def distribution(self, values: Mapping[Any, tuple[Sequence[int], float]]) -> Family:
        """A histogram: for each tuple of label values the number in each bucket (one more than bounds), and the sum."""
        family = HistogramMetricFamily(self.name, self.help, labels=self.labels)
        bounds = [*(str(float(bound)) for bound in self.buckets), "+Inf"]
        for labels, (counts, total) in sorted(values.items()):
            sums = [sum(counts[: place + 1]) for place in range(len(bounds))]
            family.add_metric(labels, list(zip(bounds, map(float, sums), strict=True)), total)
        return family

    def sums(self, values: Mapping[Any, tuple[int, float]]) -> Family:
        """Return a summary: for each tuple of label values how many there were, and their sum."""
        family = SummaryMetricFamily(self.name, self.help, labels=self.labels)
        for labels, (count, total) in sorted(values.items()):
            family.add_metric(labels, count, total)
        return family

    def histogram(self, registry: CollectorRegistry | None = None) -> Histogram:
        """Return a histogram of this process."""
        return Histogram(self.name, self.help, self.labels, registry=registry, buckets=self.buckets)

    def counter(self, registry: CollectorRegistry | None = None) -> Counter:
        """Return a counter of this process."""
        return Counter(self.name, self.help, self.labels, registry=registry)


BUILD = Metric("ciml_build_info", "gauge", "The version of ciml; always 1.", ("version",))
LAST_OBSERVED = Metric(
    "ciml_last_look_timestamp_seconds", "gauge", "When the service last saw its manifest and its topic, epoch seconds."
)


class Board(Collector):
    """What a service saw last, in parts that are replaced whole. Safe to use from threads."""

    def __init__(self) -> None:
        self._parts: dict[str, tuple[Family, ...]] = {}
        self._lock = threading.Lock()

    def put(self, part: str, families: Iterable[Family]) -> None:
        """Replace a part."""
        made = tuple(families)
        with self._lock:
            self._parts[part] = made

    def observed(self, families: Iterable[Family]) -> None:
        """Replace what comes of a whole look at manifest and topic, and notes its time."""
        self.put("look", [*families, LAST_OBSERVED.alone(time.time())])

    def describe(self) -> list[Family]:
        """Nothing: what there will be is not known when it is registered."""
        return []

    def collect(self) -> Iterator[Family]:
        with self._lock:
            parts = list(self._parts.values())
        for families in parts:
            yield from families


def registry_of(*collectors: Collector) -> CollectorRegistry:
    """Return a registry with these, ciml's version, and the process's own memory, CPU time and open files."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    build = Board()
    build.put("build", [BUILD.of({(__version__,): 1})])
    for collector in (build, *collectors):
        registry.register(collector)
    return registry


@contextmanager
def serve_metrics(registry: CollectorRegistry, port: int | None, address: str = "127.0.0.1") -> Iterator[str]:
    """Answer ``GET /metrics`` within the ``with``.

    Args:
      registry: what is shown.
      port: 0 lets the system choose; None for not at all.
      address: to listen on. There is no authentication: keep it on a private one.

    Yields:
      The URL; "" for a port of None.

    Raises:
      EngineError: it cannot listen there.
    """
    if port is None:
        yield ""
        return
    try:
        server, thread = start_http_server(port, address, registry)
    except OSError as error:
        said = error.strerror or error
        raise EngineError(
            f"metrics: cannot listen on {address}:{port}: {said}; choose another --metrics-port"
        ) from None
    shown = f"[{address}]" if ":" in address else address
    try:
        yield f"http://{shown}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)

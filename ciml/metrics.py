"""Metrics for Prometheus: their declarations in ``metrics.toml``, their values, and the endpoint of a process.

A *family*, in Prometheus' client library, is a metric with its present values, one for each tuple of label values.

There are two kinds of numbers. *Totals* are computed from a manifest: a killed worker, a retried bundle and a restart
change nothing in them. *Timings* are histograms of the measuring process. A scrape reads neither store nor broker: it
returns the values of the service's last iteration, and the time of that iteration.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import accumulate
from typing import Any, Literal

import msgspec
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    Summary,
    disable_created_metrics,
    make_asgi_app,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from ciml.errors import EngineError
from ciml.limits import MAX_HEADER_S, MAX_METRICS_CONNECTIONS
from ciml.version import __version__, commit

__all__ = [
    "BUILD",
    "LAST_OBSERVED",
    "Board",
    "Family",
    "Metric",
    "manifest_families",
    "metric",
    "registry_of",
    "serve_metrics",
]

disable_created_metrics()  # type: ignore[no-untyped-call]  # an unused extra series for each

Type = Literal["counter", "gauge", "histogram", "summary"]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Metric:
    """A metric of ``metrics.toml``, as documented in docs/metrics.md.

    Attributes:
      name: in full: with the unit, and ``_total`` for a counter.
      type: Prometheus' metric type.
      help: one line.
      labels: their names. Values are from a closed set, or bounded where they are created; never a run id.
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

    def single(self, value: float | None) -> Family:
        """Return one value without labels; no value for None, which means unknown."""
        return self.of({} if value is None else {(): value})

    def distribution(self, values: Mapping[Any, tuple[Sequence[int], float]]) -> Family:
        """Return a histogram with counts for each tuple of label values.

        Args:
          values: (the count of each bucket, one more than bounds; the sum of the observed values) by label values.
        """
        family = HistogramMetricFamily(self.name, self.help, labels=self.labels)
        bounds = [*(str(float(bound)) for bound in self.buckets), "+Inf"]
        for labels, (counts, total) in sorted(values.items()):
            cumulative_counts = map(float, accumulate(counts))
            family.add_metric(labels, list(zip(bounds, cumulative_counts, strict=True)), total)
        return family

    def histogram(self, registry: CollectorRegistry | None = None) -> Histogram:
        """Return a histogram of this process."""
        return Histogram(self.name, self.help, self.labels, registry=registry, buckets=self.buckets)

    def counter(self, registry: CollectorRegistry | None = None) -> Counter:
        """Return a counter of this process."""
        return Counter(self.name, self.help, self.labels, registry=registry)

    def summary(self, registry: CollectorRegistry | None = None) -> Summary:
        """Return a summary of this process."""
        return Summary(self.name, self.help, self.labels, registry=registry)

    def gauge(self, registry: CollectorRegistry | None = None) -> Gauge:
        """Return a gauge of this process; of several processes the latest value counts."""
        return Gauge(self.name, self.help, self.labels, registry=registry, multiprocess_mode="mostrecent")


@cache
def _catalogue() -> Mapping[str, Mapping[str, Any]]:
    import tomllib

    return tomllib.loads(files("ciml").joinpath("metrics.toml").read_text(encoding="utf-8"))


def metric(name: str, buckets: tuple[float, ...] = ()) -> Metric:
    """Return the metric of this name in ``metrics.toml``.

    Args:
      name: in full.
      buckets: the bounds of a histogram that are not in the file, because the code computes with them too.
    """
    table = {"name": name, "buckets": buckets, **_catalogue()[name]}
    return msgspec.convert(table, Metric)


#: The metrics of every process, and of every manifest.
BUILD = metric("ciml_build_info")
LAST_OBSERVED = metric("ciml_last_look_timestamp_seconds")
VERSION = metric("ciml_manifest_version")
COMMITTED = metric("ciml_manifest_commit_timestamp_seconds")
SINCE_CHECKPOINT = metric("ciml_manifest_deltas_since_checkpoint")


class Board(Collector):
    """The latest values of a service, in parts that are replaced as a whole. Safe to use from threads."""

    def __init__(self) -> None:
        self._parts: dict[str, tuple[Family, ...]] = {}
        self._lock = threading.Lock()

    def put(self, part: str, families: Iterable[Family]) -> None:
        """Replace a part."""
        values = tuple(families)  # computed outside of the lock
        with self._lock:
            self._parts[part] = values

    def put_observed(self, families: Iterable[Family]) -> None:
        """Replace the values read from manifest and topic, and set the time of the read."""
        self.put("observed", [*families, LAST_OBSERVED.single(time.time())])

    def describe(self) -> list[Family]:
        """Return nothing: the families are unknown at registration."""
        return []

    def collect(self) -> Iterator[Family]:
        with self._lock:
            parts = list(self._parts.values())
        for families in parts:
            yield from families


def manifest_families(manifest: str, version: int, time_us: int, restored: int) -> Iterator[Family]:
    """Yield the metrics of a manifest with checkpoints.

    Args:
      manifest: its name.
      version: of its last delta.
      time_us: of its last commit, epoch microseconds; 0 if there is none.
      restored: version of its last checkpoint.
    """
    yield VERSION.of({(manifest,): version})
    yield COMMITTED.of({(manifest,): time_us / 1e6} if time_us else {})
    yield SINCE_CHECKPOINT.of({(manifest,): version - restored})


def registry_of(*collectors: Collector) -> CollectorRegistry:
    """Return a registry with these collectors, ciml's version, and the process's memory, CPU time and open files."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    build = Board()
    build.put("build", [BUILD.of({(__version__, commit() or ""): 1})])
    for collector in (build, *collectors):
        registry.register(collector)
    return registry


@contextmanager
def serve_metrics(registry: CollectorRegistry, port: int | None, address: str = "127.0.0.1") -> Iterator[str]:
    """Answer ``GET /metrics`` while the context is open.

    Args:
      registry: the metrics to serve.
      port: 0 for a free port; None to serve nothing.
      address: address to listen on. There is no authentication: use a private one.

    Yields:
      The URL; "" for port None.

    Raises:
      EngineError: it cannot listen on the port.
    """
    if port is None:
        yield ""
        return
    from ciml.http.intake import ConnectionLimiter  # most processes serve nothing
    from ciml.http.server import listen, serve_in_thread

    try:
        listener = listen(address, port)
    except EngineError as error:
        raise EngineError(f"metrics: {error}; choose another --metrics-port") from None
    limits_s = (MAX_HEADER_S, MAX_HEADER_S, MAX_HEADER_S)
    limiter = ConnectionLimiter(MAX_METRICS_CONNECTIONS, *limits_s, "MAX_METRICS_CONNECTIONS")
    host = f"[{address}]" if ":" in address else address
    with serve_in_thread(_application(registry), listener, limiter, "metrics"):
        yield f"http://{host}:{listener.getsockname()[1]}/metrics"


def _application(registry: CollectorRegistry) -> Callable[..., Awaitable[None]]:
    """Return the ASGI application that answers scrapes. If a collector fails, the server answers 500."""
    scrape = make_asgi_app(registry)

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        try:
            await scrape(scope, receive, send)
        except Exception as error:  # noqa: BLE001  # of any collector; Prometheus asks again after seconds
            _log.warning("a scrape of the metrics failed: %s: %s", type(error).__name__, error)

    return answer

"""Metrics of receivers, of the process that receives."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from ciml.metrics import Metric

DELIVERIES = Metric(
    "ciml_deliveries_total", "counter", "Deliveries of CI systems, by what became of them.",
    ("receiver", "source", "outcome"),
)  # fmt: skip
SECONDS = Metric(
    "ciml_delivery_seconds", "histogram", "Time from a delivery's header to its acknowledgement.",
    ("receiver", "source"),
    (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)  # fmt: skip
CONNECTED = Metric(
    "ciml_source_connected", "gauge", "Whether the receiver is connected to a source: 1 or 0.", ("receiver", "source")
)

METRICS = (DELIVERIES, SECONDS, CONNECTED)

#: The source of deliveries that belong to none.
UNKNOWN = "_unknown"


class ReceiverMetrics:
    """The metrics of a receiver. Sources are those of its configuration, and outcomes a closed set.

    Attributes:
      collectors: for the metrics endpoint of this process.
    """

    def __init__(self, receiver: str) -> None:
        self._receiver = receiver
        self._deliveries: Counter = DELIVERIES.counter()
        self._seconds: Histogram = SECONDS.histogram()
        self._connected: Gauge = CONNECTED.gauge()
        self.collectors = (self._deliveries, self._seconds, self._connected)

    def count(self, source: str, outcome: str) -> None:
        """Count a delivery."""
        self._deliveries.labels(self._receiver, source, outcome).inc()

    def acknowledged(self, source: str, seconds: float) -> None:
        """Count a delivery that Kafka has acknowledged, with its time."""
        self.count(source, "accepted")
        self._seconds.labels(self._receiver, source).observe(seconds)

    def connected(self, source: str, is_so: bool) -> None:
        """Set whether a source that the receiver connects to is connected."""
        self._connected.labels(self._receiver, source).set(float(is_so))

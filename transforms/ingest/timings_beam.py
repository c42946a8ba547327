"""Timings of stages: histograms of this process, and Beam counters where the process belongs to a runner.

Prometheus cannot use Beam's own distributions: its Flink runner exports them as gauges whose value is an object, which
Flink's reporter omits. Counters work: two of them, number and sum, give the mean over any time.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from apache_beam.metrics import Metrics

from ciml.metrics import Metric

#: Namespace of all Beam counters of ciml. In Flink they are ``ciml.<name>_count`` and ``ciml.<name>_ms``.
NAMESPACE = "ciml"

_FETCH = Metric(
    "ciml_telemetry_fetch_seconds",
    "histogram",
    "Time to fetch a log, or to find it unavailable.",
    (),
    (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0),
)
_COMMIT = Metric(
    "ciml_commit_seconds",
    "histogram",
    "Time to commit settled batches, including other committers' deltas.",
    ("manifest",),
    (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)

METRICS = (_FETCH, _COMMIT)


class Timing:
    """Durations of one operation, on any thread.

    Args:
      metric: the histogram.
      name: name of the Beam counters.
    """

    def __init__(self, metric: Metric, name: str) -> None:
        self.histogram = metric.histogram()
        self._name = name

    def observe(self, seconds: Iterable[float], *labels: str) -> None:
        """Record durations, s. Call it from the thread that processes the bundle: Beam knows no other."""
        found = list(seconds)
        mine = self.histogram.labels(*labels) if labels else self.histogram
        for each in found:
            mine.observe(each)
        name = "_".join((self._name, *labels))
        Metrics.counter(NAMESPACE, f"{name}_count").inc(len(found))
        Metrics.counter(NAMESPACE, f"{name}_ms").inc(round(sum(found) * 1000))

    @contextmanager
    def timed(self, *labels: str) -> Iterator[None]:
        """Measure the block, where it succeeds."""
        began = time.perf_counter()
        yield
        self.observe([time.perf_counter() - began], *labels)


FETCH = Timing(_FETCH, "telemetry_fetch")
COMMIT = Timing(_COMMIT, "commit")

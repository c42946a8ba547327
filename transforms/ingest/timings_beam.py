"""Timings of stages: as histograms of this process, and as counters of Beam's where the process is a runner's.

Beam's own distributions are no use to Prometheus: its Flink runner makes a gauge of them whose value is an object, and
Flink's reporter leaves that out. Counters pass: two of them, the number and the sum, give the mean over any time.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from apache_beam.metrics import Metrics

from ciml.metrics import Metric

#: Of all counters of ciml in Beam. In Flink they are ``ciml.<name>_count`` and ``ciml.<name>_ms``.
NAMESPACE = "ciml"

_FETCH = Metric(
    "ciml_telemetry_fetch_seconds",
    "histogram",
    "Time to fetch a log, or to find that it is not there.",
    (),
    (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0),
)
_COMMIT = Metric(
    "ciml_commit_seconds",
    "histogram",
    "Time to commit what was settled, other committers' deltas included.",
    ("manifest",),
    (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)

METRICS = (_FETCH, _COMMIT)


class Timing:
    """Seconds of one thing, wherever it is done.

    Args:
      metric: a histogram.
      name: of Beam's counters.
    """

    def __init__(self, metric: Metric, name: str) -> None:
        self.histogram = metric.histogram()
        self._name = name

    def observe(self, seconds: Iterable[float], *labels: str) -> None:
        """Take in times. To be called from the thread that works on the bundle: Beam knows no other."""
        found = list(seconds)
        mine = self.histogram.labels(*labels) if labels else self.histogram
        for each in found:
            mine.observe(each)
        name = "_".join((self._name, *labels))
        Metrics.counter(NAMESPACE, f"{name}_count").inc(len(found))
        Metrics.counter(NAMESPACE, f"{name}_ms").inc(round(sum(found) * 1000))

    @contextmanager
    def timed(self, *labels: str) -> Iterator[None]:
        """Measure the block, where it ends well."""
        began = time.perf_counter()
        yield
        self.observe([time.perf_counter() - began], *labels)


FETCH = Timing(_FETCH, "telemetry_fetch")
COMMIT = Timing(_COMMIT, "commit")

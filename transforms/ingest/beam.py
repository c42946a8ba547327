"""The stages of an ingest as Beam transforms: each maps batches to batches by calling its function.

`FETCH` and `COMMIT` measure stages: by histograms of this process, and by Beam counters if a runner executes it. Beam's
own distributions do not reach Prometheus: its Flink runner exports them as gauges whose value is an object, which
Flink's reporter omits. Two counters, number and sum, give the mean over any time.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import apache_beam as beam
from apache_beam.metrics import Metrics

from ciml.events.cloudevents import decode_message
from ciml.events.records import Batch
from ciml.metrics import Metric, metric
from ciml.storage import Store as ObjectStore
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.transforms.guard import guarded_messages, guarded_runs, keep_error
from ciml.transforms.ingest.decode import ALL_JOBS, ReadEvent, decode
from ciml.transforms.ingest.run_stages import take_logs
from ciml.trust import PolicySource, evaluate_batch

#: Namespace of all Beam counters of ciml. In Flink they are ``ciml.<name>_count`` and ``ciml.<name>_ms``.
NAMESPACE = "ciml"

#: The guard of a stage, which splits a failing batch: `ciml.transforms.guard`.
Guard = Callable[[str, Callable[[Batch], Batch], Batch], Batch]

#: Label of the guarded stages. Savepoints of a job name its steps, so labels never change.
_GUARDED = "ParDo(_Call)"


class Timing:
    """Durations of one operation, on any thread.

    Args:
      duration: the histogram.
      name: name of the Beam counters.
    """

    def __init__(self, duration: Metric, name: str) -> None:
        self.histogram = duration.histogram()
        self._name = name

    def observe(self, seconds: Iterable[float], *labels: str) -> None:
        """Record durations, s. Call it in the thread that processes the bundle: Beam counts in no other."""
        durations = list(seconds)
        histogram = self.histogram.labels(*labels) if labels else self.histogram
        for duration in durations:
            histogram.observe(duration)
        name = "_".join((self._name, *labels))
        Metrics.counter(NAMESPACE, f"{name}_count").inc(len(durations))
        Metrics.counter(NAMESPACE, f"{name}_ms").inc(round(sum(durations) * 1000))

    @contextmanager
    def timed(self, *labels: str) -> Iterator[None]:
        """Measure the block if it succeeds."""
        start_s = time.perf_counter()
        yield
        self.observe([time.perf_counter() - start_s], *labels)


_FETCH_SECONDS = metric("ciml_telemetry_fetch_seconds")
_COMMIT_SECONDS = metric("ciml_commit_seconds")
FETCH = Timing(_FETCH_SECONDS, "telemetry_fetch")
COMMIT = Timing(_COMMIT_SECONDS, "commit")


class BatchCoder(beam.coders.Coder):
    """A batch as bytes.

    Its size is estimated, because Beam requests samples of it between any two stages. The exact size would require to
    encode the logs and tables of hundreds of runs.
    """

    def encode(self, value: Batch) -> bytes:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)

    def decode(self, encoded: bytes) -> Batch:
        return cast(Batch, pickle.loads(encoded))  # noqa: S301  # what `encode` made, in the same job

    def estimate_size(self, value: Batch) -> int:
        return 1000 * (len(value.messages) + len(value.pending_runs) + len(value.settled))

    def is_deterministic(self) -> bool:
        return False

    def to_type_hint(self) -> type[Batch]:
        return Batch


beam.coders.registry.register_coder(Batch, BatchCoder)


class _Stage(beam.PTransform):
    """One function over each batch, as a step with a label."""

    def __init__(self, label: str, function: Callable[..., Batch], *arguments: Any) -> None:
        super().__init__()
        self._stage = label >> beam.Map(function, *arguments).with_output_types(Batch)

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        return batches | self._stage


class Decode(_Stage):
    """`ciml.transforms.ingest.decode.decode`; a message for which it fails does not affect others."""

    def __init__(
        self,
        selection: Sequence[str] = ALL_JOBS,
        names: Mapping[str, str] | None = None,
        read_event: ReadEvent = decode_message,
    ) -> None:
        super().__init__(_GUARDED, _guarded, guarded_messages, "decode", decode, tuple(selection), names, read_event)


class Judge(_Stage):
    """`ciml.trust.evaluate_batch`; a run for which it fails does not affect others."""

    def __init__(self, source: PolicySource) -> None:
        super().__init__(_GUARDED, _guarded, guarded_runs, "trust", evaluate_batch, source)


class TakeLogs(_Stage):
    """`ciml.transforms.ingest.run_stages.take_logs`, at the arrival time of the batch.

    Fetch, parse and store are one stage: between stages a batch would hold all its logs or all its telemetry.
    """

    def __init__(self, policy: FetchPolicy, raw: ObjectStore) -> None:
        super().__init__("ParDo(_Take)", _take, policy, raw)


def _guarded(batch: Batch, guard: Guard, stage: str, function: Callable[..., Batch], *arguments: Any) -> Batch:
    with keep_error():
        return guard(stage, lambda part: function(part, *arguments), batch)


def _take(batch: Batch, policy: FetchPolicy, raw: ObjectStore) -> Batch:
    seconds: list[float] = []
    try:
        with keep_error():
            return take_logs(batch, policy, raw, int(time.time() * 1e6), seconds)
    finally:
        FETCH.observe(seconds)

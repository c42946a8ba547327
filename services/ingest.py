"""The ingest service: CI events from a topic to raw runs (`ciml.pipelines.ingest.pipeline`), and its metrics."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from ciml.events.records import PendingRun
from ciml.metrics import Family, manifest_families, metric
from ciml.pipelines.ingest.committer import IngestConfig, IngestProcessor
from ciml.pipelines.kafka.plan import PartitionRead
from ciml.runs.state import RawState
from ciml.services.decide import ServiceProgress
from ciml.services.service import TopicService

if TYPE_CHECKING:
    import apache_beam as beam
    from prometheus_client.registry import Collector

EVENTS = metric("ciml_events_total")
RUNS = metric("ciml_runs_total")
OUTPUTS = metric("ciml_outputs_total")
OUTPUT_BYTES = metric("ciml_output_bytes_total")
OUTPUT_DROPPED_BYTES = metric("ciml_output_dropped_bytes_total")
TRUST_CHANGES = metric("ciml_trust_changes_total")
IGNORED = metric("ciml_ignored_total")
DEAD_LETTERS = metric("ciml_dead_letter_total")
OPEN_DEAD_LETTERS = metric("ciml_dead_letters_open")
DEFERRED = metric("ciml_deferred_logs")
NEXT_TRY = metric("ciml_deferred_next_try_timestamp_seconds")

_OVERDUE_US = 300_000_000  # the age from which a due retry counts as overdue: its worker died


class _Work(NamedTuple):
    """A work item: what to read, and the deferred runs to retry."""

    reads: Sequence[PartitionRead]
    due: Sequence[PendingRun] = ()


class IngestService(TopicService[RawState]):
    """Ingests CI events. Its work is also to retry deferred runs that are due."""

    stall_s = 240.0  # a batch whose logs all time out takes less
    renew_s = 3600.0  # a Python source's state grows with every rest (docs/kafka.md); a new job begins without it

    def __init__(self, config: IngestConfig) -> None:
        super().__init__(f"ciml-ingest-{config.topic}", IngestProcessor(config))

    def plan(self, ends: Mapping[int, int] | None = None, *, bounded: bool = True) -> _Work | None:
        with self.committing.state() as state:
            work = _Work(self.reads(state, ends, bounded=bounded), state.due(_now_us()) if bounded else ())
        return work if work.reads or work.due else None

    def build(self, pipeline: beam.Pipeline, work: _Work) -> object:
        from ciml.pipelines.ingest.pipeline import build_ingest

        return build_ingest(pipeline, self.processor.config, work.reads, work.due)

    def problems(self) -> Mapping[str, str]:
        config: IngestConfig = self.processor.config
        return config.fetch.problems()

    def timings(self) -> Sequence[Collector]:
        from ciml.transforms.ingest.beam import FETCH

        return (FETCH.histogram, *super().timings())

    def counts(self, state: RawState) -> dict[str, int]:
        return state.totals()

    def progress(self, state: RawState) -> ServiceProgress:
        progress = super().progress(state)
        due_us = state.next_due_us()
        is_overdue = due_us is not None and due_us < _now_us() - _OVERDUE_US
        return replace(
            progress,
            overdue_us=due_us if is_overdue else None,
            waiting=bool(state.deferred),
            facts={**progress.facts, "deferred": len(state.deferred)},
        )

    def families(self, state: RawState) -> Iterable[Family]:
        return raw_families(state)


def raw_families(state: RawState) -> Iterator[Family]:
    """Yield the metrics of a state.

    Labels come from closed sets, except ``source``, which has at most 52 values.
    """
    by_kind: defaultdict[str, Counter[tuple[str]]] = defaultdict(Counter)
    for (kind, reason), number in state.counts.items():
        by_kind[kind][reason,] += number
    closed = Counter({(reason,): number for reason, number in state.closed.items()})
    yield EVENTS.of(state.recorded)
    for family, counts in ((RUNS, state.trust), (TRUST_CHANGES, state.trust_changes)):
        yield family.of({(str(trusted).lower(), rule): number for (trusted, rule), number in counts.items()})
    yield OUTPUTS.of({(outcome,): number for outcome, number in state.outputs.items()})
    for family, size in zip((OUTPUT_BYTES, OUTPUT_DROPPED_BYTES), state.output_bytes, strict=True):
        yield family.single(size)
    yield IGNORED.of(by_kind["ignored"])
    yield DEAD_LETTERS.of(closed + by_kind["dead_letter"])
    yield OPEN_DEAD_LETTERS.of({**dict.fromkeys(closed, 0), **by_kind["dead_letter"]})
    yield DEFERRED.of(by_kind["deferred"])
    due_us = state.next_due_us()
    yield NEXT_TRY.single(None if due_us is None else due_us / 1e6)
    yield from manifest_families("raw", state.version, state.time_us, state.restored)


def _now_us() -> int:
    return int(time.time() * 1e6)

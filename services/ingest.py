"""The ingest service: CI events from a topic to raw runs. See `ciml.pipelines.ingest.pipeline`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from ciml.events.records import PendingRun
from ciml.metrics import Family
from ciml.pipelines.ingest.committer import IngestConfig, IngestProcessor
from ciml.pipelines.kafka.plan import PartitionRead
from ciml.runs.metrics import raw_families
from ciml.runs.state import RawState
from ciml.services.decide import ServiceProgress
from ciml.services.service import TopicService

if TYPE_CHECKING:
    import apache_beam as beam
    from prometheus_client.registry import Collector

_OVERDUE_US = 300_000_000  # a retry whose worker died is repeated after this


class _Work(NamedTuple):
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
        return replace(
            progress,
            overdue_us=due_us if due_us is not None and due_us < _now_us() - _OVERDUE_US else None,
            waiting=bool(state.deferred),
            facts={**progress.facts, "deferred": len(state.deferred)},
        )

    def families(self, state: RawState) -> Iterable[Family]:
        return raw_families(state)


def _now_us() -> int:
    return int(time.time() * 1e6)

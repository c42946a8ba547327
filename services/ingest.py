"""The ingest service: CI events from a topic to raw runs. See `ciml.pipelines.ingest.pipeline`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ciml.events.records import PendingRun
from ciml.metrics import Family
from ciml.pipelines.ingest.committer import IngestConfig, committer
from ciml.pipelines.kafka.broker import Listing
from ciml.pipelines.kafka.plan import PartitionRead, bases
from ciml.runs.metrics import raw_families
from ciml.runs.state import RawState
from ciml.services.service import Progress, TopicService
from ciml.transforms.fetch.policy import FetchPolicy

if TYPE_CHECKING:
    import apache_beam as beam
    from prometheus_client.registry import Collector

_OVERDUE_US = 300_000_000  # a retry whose worker died is repeated after this


class _Work(NamedTuple):
    reads: Sequence[PartitionRead]
    due: Sequence[PendingRun] = ()


class IngestService(TopicService[RawState]):
    """Ingests CI events."""

    stall_s = 240.0  # a batch whose logs all time out takes less
    renew_s = 3600.0  # a Python source's state grows with every rest (docs/kafka.md); a new job begins without it

    def __init__(self, config: IngestConfig) -> None:
        name = f"ciml-ingest-{config.topic}"
        super().__init__(name, config, config.topic, committer(config.raw), config.cycle_messages)

    def plan(self, ends: Mapping[int, int] | None = None, *, bounded: bool = True) -> _Work | None:
        with self.committing.state() as state:
            work = _Work(self.reads(state, ends, bounded=bounded), state.due(_now_us()) if bounded else ())
        return work if work.reads or work.due else None

    def build(self, pipeline: beam.Pipeline, work: _Work) -> object:
        from ciml.pipelines.ingest.pipeline import build_ingest

        return build_ingest(pipeline, self.config, work.reads, work.due)

    def problems(self) -> Mapping[str, str]:
        fetch: FetchPolicy = self.config.fetch
        return fetch.problems()

    def cover_bases(self, listing: Listing) -> None:
        # Computed from the state at the commit: once another process has begun to read, missing offsets are losses.
        committer(self.config.raw).commit_found(lambda state: bases(state, listing))

    def timings(self) -> Sequence[Collector]:
        from ciml.transforms.ingest.beam import FETCH

        return (FETCH.histogram, *super().timings())

    def progress(self, state: RawState) -> Progress:
        due = state.next_due_us()
        facts = {
            "version": state.version,
            "last_commit_us": state.time_us or None,
            "counts": state.totals(),
            "deferred": len(state.deferred),
        }
        overdue_us = due if due is not None and due < _now_us() - _OVERDUE_US else None
        return Progress(state.version, overdue_us=overdue_us, waiting=bool(state.deferred), facts=facts)

    def families(self, state: RawState) -> Iterable[Family]:
        return raw_families(state)


def _now_us() -> int:
    return int(time.time() * 1e6)

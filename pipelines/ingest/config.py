"""What an ingest is made of. Loads no Beam: a supervisor reads it too."""

from __future__ import annotations

from dataclasses import dataclass, field

from ciml.kafka.options import ReadOptions
from ciml.storage.open import Store as ObjectStore
from pipelines.ingest.committer import committer
from pipelines.kafka.client import KafkaOptions
from pipelines.kafka.publish import Projections, projection, render_letters, render_runs
from transforms.fetch.policy import FetchPolicy
from transforms.ingest.decode import ALL_JOBS
from transforms.ingest.trust import TrustPolicy


@dataclass(frozen=True)
class IngestConfig:
    """What an ingest is made of.

    Attributes:
      raw: the raw store.
      kafka: how to reach the broker.
      topic: where events come from.
      runs_topic: where committed runs are announced; "" for nowhere.
      dead_letters_topic: where dead letters are told, open and closed; "" for nowhere.
      selection: globs of the jobs to take.
      names: (CloudEvent source, the run ids' source) pairs.
      trust: the policy that judges runs.
      fetch: from where logs may be fetched, and when again.
      read: how partitions are read.
      cycle_messages: the most messages of a partition that one micro-batch takes: what a kill costs at most.
      commit_s: the longest that a settled batch waits for others before it is committed, on Flink.
      commit_batches: how many do not wait any longer.
    """

    raw: ObjectStore
    kafka: KafkaOptions
    topic: str = "ci-events"
    runs_topic: str = "runs"
    selection: tuple[str, ...] = ALL_JOBS
    names: tuple[tuple[str, str], ...] = ()
    trust: TrustPolicy = field(default_factory=TrustPolicy.load)
    fetch: FetchPolicy = field(default_factory=FetchPolicy)
    read: ReadOptions = field(default_factory=ReadOptions)
    cycle_messages: int = 2000
    commit_s: float = 2.0
    commit_batches: int = 20
    dead_letters_topic: str = ""

    def projection(self) -> Projections | None:
        """What announces runs and dead letters, in this process."""
        topics = ((self.runs_topic, render_runs), (self.dead_letters_topic, render_letters))
        log = committer(self.raw).log
        found = [projection(log, topic, render, self.kafka) for topic, render in topics if topic]
        return Projections(found) if found else None

"""Configuration of an ingest. Does not import Beam, since supervisors read it too."""

from __future__ import annotations

from dataclasses import dataclass, field

from ciml.kafka.options import KafkaOptions, ReadOptions
from ciml.pipelines.ingest.committer import committer
from ciml.pipelines.kafka.publish import Projections, projection, render_dead_letters, render_runs
from ciml.storage.open import Store as ObjectStore
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.transforms.ingest.decode import ALL_JOBS
from ciml.transforms.ingest.trust import TrustPolicy


@dataclass(frozen=True)
class IngestConfig:
    """Configuration of an ingest.

    Attributes:
      raw: the raw store.
      kafka: connection to the broker.
      topic: topic of the events.
      runs_topic: topic for announcements of committed runs; "" for none.
      dead_letters_topic: topic for opened and closed dead letters; "" for none.
      selection: globs of the jobs to take.
      names: (CloudEvent source, the run ids' source) pairs.
      trust: the trust policy.
      fetch: allowed log sources and retry delays.
      read: how partitions are read.
      cycle_messages: most messages of a partition in a micro-batch, which a kill loses at most.
      commit_s: longest wait of a settled batch for others before the commit, on Flink.
      commit_batches: number of waiting batches that triggers a commit.
      maintains: whether the committing stage also maintains the manifest, where no supervisor does.
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
    maintains: bool = False

    def projection(self) -> Projections | None:
        """Return the process's projections for runs and dead letters."""
        topics = ((self.runs_topic, render_runs), (self.dead_letters_topic, render_dead_letters))
        log = committer(self.raw).log
        found = [projection(log, topic, render, self.kafka) for topic, render in topics if topic]
        return Projections(found) if found else None

"""What a service that follows a topic shows: its manifest, its lag, and what a supervisor knows of its job."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

from ciml.metrics import Board, Family, Metric
from ciml.raw.metrics import raw_families
from ciml.raw.state import RawState
from pipelines.kafka.broker import Listing
from pipelines.kafka.plan import Coverage
from services.decide import Health
from services.progress import lag_by_partition
from serving.predict.log import PredictionState
from serving.predict.metrics import prediction_families

LAG = Metric("ciml_lag_messages", "gauge", "Offsets that are not covered.", ("topic", "partition"))
COVERED = Metric(
    "ciml_covered_messages_total", "counter", "Offsets that are covered: its rate is the throughput.",
    ("topic", "partition"),
)  # fmt: skip
HEALTH = Metric("ciml_ingest_health", "gauge", "1 for the health that ciml ingest status tells.", ("health",))
RESUBMISSIONS = Metric(
    "ciml_ingest_resubmissions_total", "counter", "Jobs that the supervisor submitted in the place of another."
)
RESTARTS = Metric("ciml_ingest_job_restarts", "gauge", "Restarts of the present job by its engine.")
JOB_STARTED = Metric(
    "ciml_ingest_job_start_timestamp_seconds", "gauge", "When the present job was submitted, epoch seconds."
)
CHECKPOINT_BYTES = Metric("ciml_ingest_checkpoint_bytes", "gauge", "Size of the job's last whole checkpoint.")
CHECKPOINT_TIME = Metric(
    "ciml_ingest_checkpoint_timestamp_seconds", "gauge", "When the job's last whole checkpoint was made, epoch seconds."
)

METRICS = (LAG, COVERED, HEALTH, RESUBMISSIONS, RESTARTS, JOB_STARTED, CHECKPOINT_BYTES, CHECKPOINT_TIME)


class IngestBoard(Board):
    """What an ingest shows."""

    def see(self, state: RawState, listing: Listing) -> None:
        """Takes in a look at the raw manifest and the topic."""
        self.observed([*raw_families(state), *_topic_families(state, listing)])

    def see_status(self, status: Mapping[str, Any]) -> None:
        """Takes in what a supervisor tells; see `services.supervisor.Supervisor`."""
        self.put("status", _status_families(status))


class PredictBoard(Board):
    """What a predict shows."""

    def see(self, state: PredictionState, listing: Listing) -> None:
        """Takes in a look at the predictions' manifest and the topic."""
        self.observed([*prediction_families(state), *_topic_families(state, listing)])


def _topic_families(state: Coverage, listing: Listing) -> Iterable[Family]:
    lag, topic = lag_by_partition(state, listing), listing.topic
    yield LAG.of({(topic, str(partition)): behind for partition, behind in lag.items()})
    yield COVERED.of({(topic, str(partition)): state.covered(topic, partition).count() for partition in lag})


def _status_families(status: Mapping[str, Any]) -> Iterator[Family]:
    job, point = status.get("job") or {}, status.get("checkpoint") or {}
    yield HEALTH.of({(health,): health == status.get("health") for health in get_args(Health)})
    yield RESUBMISSIONS.alone(status.get("resubmitted", 0))
    yield RESTARTS.alone(job.get("restarts"))
    yield JOB_STARTED.alone(_seconds(job.get("submitted_us")))
    yield CHECKPOINT_BYTES.alone(point.get("bytes"))
    yield CHECKPOINT_TIME.alone(_seconds(point.get("time_us")))


def _seconds(time_us: int | None) -> float | None:
    return None if time_us is None else time_us / 1e6

"""Metrics of services: the lag of their topic, and the supervisor's view of their job."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

from prometheus_client.registry import Collector

from ciml.manifest.coverage import TopicState
from ciml.metrics import Family, metric
from ciml.pipelines.kafka.broker import Listing
from ciml.services.decide import Health

LAG = metric("ciml_lag_messages")
COVERED = metric("ciml_covered_messages_total")
HEALTH = metric("ciml_ingest_health")
RESUBMISSIONS = metric("ciml_ingest_resubmissions_total")
RESTARTS = metric("ciml_ingest_job_restarts")
JOB_STARTED = metric("ciml_ingest_job_start_timestamp_seconds")
CHECKPOINT_BYTES = metric("ciml_ingest_checkpoint_bytes")
CHECKPOINT_TIME = metric("ciml_ingest_checkpoint_timestamp_seconds")
SERVICE_HEALTH = metric("ciml_service_health")
SERVICE_RESUBMISSIONS = metric("ciml_service_resubmissions_total")
STATUS_AGE = metric("ciml_status_age_seconds")
PROBLEMS = metric("ciml_service_problems")


def topic_families(state: TopicState, listing: Listing) -> Iterable[Family]:
    """Yield the metrics of a topic whose offsets a manifest covers."""
    lag = lag_by_partition(state, listing)
    topic = listing.topic
    yield from lag_families(topic, lag)
    yield COVERED.of({(topic, str(partition)): state.covered(topic, partition).count() for partition in lag})


def lag_families(topic: str, lag: Mapping[Any, int]) -> Iterator[Family]:
    """Yield the lag of a topic's partitions if it is known."""
    if lag:
        yield LAG.of({(topic, str(partition)): behind for partition, behind in lag.items()})


def status_families(kind: str, status: Mapping[str, Any]) -> Iterator[Family]:
    """Yield the metrics of a supervisor's status; see `ciml.services.supervisor.Supervisor`."""
    yield PROBLEMS.of({(kind,): len(status.get("problems") or {})})
    if kind != "ingest":
        yield SERVICE_HEALTH.of({(kind, health): health == status.get("health") for health in get_args(Health)})
        yield SERVICE_RESUBMISSIONS.of({(kind,): status.get("resubmitted", 0)})
        if kind == "live":  # only its worker knows the position
            yield from lag_families(status["topic"], status.get("lag") or {})
        return
    job = status.get("job") or {}
    point = status.get("checkpoint") or {}
    yield HEALTH.of({(health,): health == status.get("health") for health in get_args(Health)})
    yield RESUBMISSIONS.single(status.get("resubmitted", 0))
    yield RESTARTS.single(job.get("restarts"))
    yield JOB_STARTED.single(_seconds(job.get("submitted_us")))
    yield CHECKPOINT_BYTES.single(point.get("bytes"))
    yield CHECKPOINT_TIME.single(_seconds(point.get("time_us")))


class StatusAges(Collector):
    """The ages of a status, computed at the scrape: they grow even while the supervisor waits for an answer."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._read_us: Mapping[str, int] = {}

    def update(self, status: Mapping[str, Any]) -> None:
        """Set the status."""
        self._read_us = read_times(status)

    def describe(self) -> list[Family]:
        return []

    def collect(self) -> Iterator[Family]:
        now = time.time()
        yield STATUS_AGE.of({(self._kind, figures): now - us / 1e6 for figures, us in self._read_us.items()})


def read_times(status: Mapping[str, Any]) -> dict[str, int]:
    """Return when the figures of a status were read, epoch microseconds."""
    reported = {"status": status["updated_us"]} if "updated_us" in status else {}
    return {**reported, **status.get("read_us", {})}


def lag_by_partition(state: TopicState, listing: Listing) -> dict[int, int]:
    """Return the number of uncovered offsets of each partition of a topic."""
    return {
        partition: sum(end - start for start, end in state.covered(listing.topic, partition).missing(first, last))
        for partition, (first, last) in sorted(listing.bounds.items())
    }


def _seconds(time_us: int | None) -> float | None:
    return None if time_us is None else time_us / 1e6

"""The interface of a service: a long-running process that plans work items, runs them, and reports its progress.

`TopicService` runs a topic processor (`ciml.pipelines.processor`). A receiver (`ciml.services.receivers`) has no plan:
it works in its own threads until it is closed. `ciml.services.driver.drive` runs a service in the foreground, and
`ciml.services.supervisor.Supervisor` watches one. A new kind of service is a subclass of `Service` with its options in
`ciml.services.options`.
"""

# ruff: noqa: B027  # optional hooks
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Self, TypeVar, cast

from ciml.errors import CimlError, EngineError
from ciml.manifest.coverage import TopicState
from ciml.metrics import Board, Family, metric
from ciml.pipelines.kafka.broker import Listing, list_again, list_topic, make_topic
from ciml.pipelines.kafka.plan import PartitionRead, is_older, plan
from ciml.pipelines.kafka.reader import close_readers
from ciml.services.decide import ServiceProgress

if TYPE_CHECKING:
    import apache_beam as beam
    from prometheus_client.registry import Collector

    from ciml.pipelines.kafka.publish import Projections
    from ciml.pipelines.processor import BatchProcessor, Processor

LAG = metric("ciml_lag_messages")
COVERED = metric("ciml_covered_messages_total")

#: When to end: never, at the present end of the input, or after this many seconds without new input and deferred work.
Until = None | Literal["end"] | float


class NotReadyError(EngineError):
    """The service cannot work yet but needs no repair: for example, no model is served."""


class Service(ABC):
    """A long-running process. Methods raise `EngineError` if a broker, a store or a server does not answer.

    Attributes:
      needs_flink: why it cannot run unbounded without Flink; "" if it can.
      excludes_flink: why it cannot run on Flink or Dataflow; "" if it can.
      flink: options of its job on Flink; see `ciml.pipelines.flink.submit.flink_options`.
      poll_s: pause while there is nothing to do.
      retry_s: first and longest pause after an error; it doubles each time.
      stall_s: time without a commit, with messages to read, after which a job is replaced.
      renew_s: age at which a job is replaced in any case.
      name: prefix of the name of its job on Flink, in the foreground.
      board: its metrics.
    """

    needs_flink: ClassVar[str] = ""
    excludes_flink: str = ""
    flink: ClassVar[Mapping[str, Any]] = {}
    poll_s: float = 1.0
    retry_s: tuple[float, float] = (1.0, 1.0)
    stall_s: float = 240.0
    renew_s: float = float("inf")

    def __init__(self, name: str) -> None:
        self.name = name
        self.board = Board()

    @abstractmethod
    def observe(self) -> ServiceProgress:
        """Query input and manifest, and update the metrics.

        Raises:
          IntegrityError: if continuing would lose or mix data.
        """

    def plan(self, ends: Mapping[int, int] | None = None, *, bounded: bool = True) -> Any | None:
        """Return the next work item, or None. ``ends``: offsets at which to stop, by partition.

        A receiver plans none: it works by itself from `open` to `close`.
        """
        return None

    def run(self, work: Any) -> None:
        """Run a work item in this process, to its end."""

    def build(self, pipeline: beam.Pipeline, work: Any) -> object:
        """Wire the work item of ``plan(bounded=False)``, for a service that runs on Flink."""
        raise CimlError("this service has no pipeline")

    def open(self) -> None:
        """Create what reading requires, such as topics; begin to receive. A supervisor never calls it."""

    def ready(self) -> str:
        """Return a phrase for people, such as the served version. Raises `NotReadyError` while it cannot work."""
        return ""

    def facts(self) -> dict[str, Any]:
        """Return facts of its manifest as JSON: ``version``, ``last_commit_us``, ``counts`` by kind, and others."""
        return {}

    def problems(self) -> Mapping[str, str]:
        """Return problems that delay only a part of the work, by their subject.

        For example, the credential of a log host. A start rejects them; a running service continues without.
        """
        return {}

    def check(self) -> None:
        """Check, before a start, what only the worker uses, such as credentials. Raises `CimlError`."""

    def timings(self) -> Sequence[Collector]:
        """Return the metrics that only the process which runs the work has; a supervisor exports its worker's."""
        return ()

    def publish(self) -> None:
        """Publish commits that were not published because a process died or the broker did not answer."""

    def maintain(self) -> None:
        """Maintain the manifest if that is due."""

    def close(self) -> None:
        """Finish what has been received, and close connections."""

    def impatient(self) -> Self:
        """Return the service with short timeouts, for a supervisor."""
        return self


S = TypeVar("S", bound=TopicState)


class TopicService(Service, Generic[S]):
    """The service of a topic processor: it plans reads of the topic by the processor's manifest.

    Args:
      name: see `Service`.
      processor: the processor.

    Attributes:
      creates_topic: whether it creates the topic, which the service that writes it may do later.
      committing: the manifest.
    """

    creates_topic: ClassVar[bool] = False

    def __init__(self, name: str, processor: Processor[Any, S, Any]) -> None:
        super().__init__(name)
        self.processor = processor
        self.topic = processor.topic
        self.committing = processor.replica()
        self._opened: Listing | None = None
        self._seen: Listing | None = None
        self._publisher: Projections | None = None

    def counts(self, state: S) -> dict[str, int]:
        """Return numbers of committed records by kind, for people."""
        return {}

    @abstractmethod
    def families(self, state: S) -> Iterable[Family]:
        """Return the metrics of the manifest."""

    def progress(self, state: S) -> ServiceProgress:
        """Return the progress according to the manifest alone: version, facts and deferred work."""
        facts = {"version": state.version, "last_commit_us": state.time_us or None, "counts": self.counts(state)}
        return ServiceProgress(state.version, facts=facts)

    def plan(self, ends: Mapping[int, int] | None = None, *, bounded: bool = True) -> Any | None:
        with self.committing.state() as state:
            return self.reads(state, ends, bounded=bounded) or None

    def build(self, pipeline: beam.Pipeline, work: Any) -> object:
        from ciml.pipelines.processor_beam import build_processor

        return build_processor(pipeline, cast("BatchProcessor[Any, Any, Any]", self.processor), work)

    def run(self, work: Any) -> None:
        from ciml.transforms.beam import run_here

        run_here(partial(self.build, work=work))

    def open(self) -> None:
        self._opened = self._seen = self._list()
        self.processor.cover_expired(self._opened)
        self.publish()

    def observe(self) -> ServiceProgress:
        self._seen = self._list()
        with self.committing.state() as state:
            listing = self._listing_for(state)
            lag = lag_by_partition(state, listing)
            covered = {(self.topic, str(partition)): state.covered(self.topic, partition).count() for partition in lag}
            families = (*self.families(state), *lag_families(self.topic, lag), COVERED.of(covered))
            self.board.put_observed(families)
            plan(state, listing, bounded=False)  # raises IntegrityError
            positions = {
                partition: state.covered(self.topic, partition).first_missing(first)
                for partition, (first, _) in listing.bounds.items()
            }
            ends = {partition: end for partition, (_, end) in listing.bounds.items()}
            return replace(self.progress(state), positions=positions, ends=ends, lag=lag)

    def facts(self) -> dict[str, Any]:
        with self.committing.state() as state:
            return dict(self.progress(state).facts)

    def timings(self) -> Sequence[Collector]:
        from ciml.transforms.ingest.beam import COMMIT

        return (COMMIT.histogram,)

    def reads(self, state: S, ends: Mapping[int, int] | None = None, *, bounded: bool = True) -> list[PartitionRead]:
        """Return the next reads, by the last listing of the topic."""
        listing = self._listing_for(state)
        until = None if ends is None else replace(listing, bounds={part: (0, end) for part, end in ends.items()})
        max_messages = self.processor.config.cycle_messages if bounded else None
        return plan(state, listing, bounded=bounded, most=max_messages, until=until)

    def publish(self) -> None:
        if self._publisher is None:
            self._publisher = self.processor.publisher()
        self._publisher.announce()

    def maintain(self) -> None:
        self.committing.maintain()

    def close(self) -> None:
        close_readers()
        if self._publisher is not None:
            self._publisher.close()

    def impatient(self) -> Self:
        config = self.processor.config
        self.processor = self.processor.with_config(replace(config, kafka=replace(config.kafka, timeout_s=5.0)))
        return self

    def _list(self) -> Listing:
        """List the topic, which must exist once it was read."""
        kafka = self.processor.config.kafka
        if self._seen is None and self.creates_topic:
            make_topic(kafka, self.topic, 1, {"retention.ms": "-1", "cleanup.policy": "delete"})
        return list_again(kafka, self._opened) if self._opened else list_topic(kafka, self.topic)

    def _listing_for(self, state: S) -> Listing:
        """Return the last listing of the topic; list it again if another process has committed beyond it."""
        if self._seen is None or is_older(self._seen, state):
            self._seen = self._list()
        return self._seen


def lag_families(topic: str, lag: Mapping[Any, int]) -> Iterator[Family]:
    """Yield the lag of a topic's partitions if it is known."""
    if lag:
        yield LAG.of({(topic, str(partition)): behind for partition, behind in lag.items()})


def lag_by_partition(state: TopicState, listing: Listing) -> dict[int, int]:
    """Return the number of uncovered offsets of each partition of a topic."""
    return {
        partition: sum(end - start for start, end in state.covered(listing.topic, partition).missing(first, last))
        for partition, (first, last) in sorted(listing.bounds.items())
    }

"""What a service is: a long-running process that plans its next work, does it, and reports how far it is.

`services.driver.drive` runs one in the foreground, `services.supervisor.Supervisor` watches one. A new kind of service
is a module with a subclass of `Service` (of `TopicService` where a manifest covers a topic) and a line in `KINDS`.
"""

# ruff: noqa: B027  # what most services have none of
from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, Self, TypeVar

from ciml.errors import CimlError, EngineError
from ciml.manifest.checkpoints import Restorable
from ciml.metrics import Board, Family
from pipelines.kafka.broker import Listing
from pipelines.kafka.client import close_readers, list_again, list_topic
from pipelines.kafka.plan import Coverage, PartitionRead, is_older, plan
from services.metrics import lag_by_partition, topic_families

if TYPE_CHECKING:
    import apache_beam as beam

    from ciml.manifest.replica import LogReplica
    from pipelines.kafka.publish import Projection, Projections

#: When to end: never; when the input's end, as it is now, is reached; or after so many seconds without anything new
#: (and without deferred work that waits for its next try).
Until = None | Literal["end"] | float

#: Each kind of service and its class, imported when it is used.
KINDS = {
    "ingest": "services.ingest:IngestService",
    "predict": "services.predict:PredictService",
    "live": "services.live:LiveService",
    "trainer": "services.trainer:TrainerService",
}


class NotReadyError(EngineError):
    """Nothing can be done yet, and it will come by itself: no model is served, for example."""


@dataclass(frozen=True)
class Progress:
    """How far a service is.

    Attributes:
      version: of its manifest; it grows with each commit.
      positions: the first offset that is not covered, by partition.
      lag: how many offsets are not covered, by partition.
      overdue_us: the time for which the log that is waited for longest was due, where that is long ago.
      ends: where each partition ends now.
      waiting: whether something is waited for that will come by itself.
      facts: see `Service.facts`.
    """

    version: int
    positions: Mapping[int, int] = field(default_factory=dict)
    lag: Mapping[int, int] = field(default_factory=dict)
    overdue_us: int | None = None
    ends: Mapping[int, int] = field(default_factory=dict)
    waiting: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def behind(self) -> int:
        """How many offsets are not covered."""
        return sum(self.lag.values())


class Service(ABC):
    """A long-running process. Methods raise `EngineError` when a broker, a store or a server does not answer.

    Attributes:
      submits: whether its supervisor submits its job to Flink itself; else a worker process drives all of it.
      needs_flink: why it cannot run for ever without Flink; "" where it can.
      flink: options of its job on Flink; see `pipelines.flink.submit.flink_options`.
      poll_s: how long to rest when there is nothing to do.
      retry_s: how long to wait after an error: at first, and at most; it doubles from the one to the other.
      stall_s: a job that commits nothing for so long, with something to read, is replaced.
      renew_s: a job is replaced after so long in any case.
      name: how the name of its job on Flink begins, in the foreground.
      board: its metrics.
    """

    submits: ClassVar[bool] = False
    needs_flink: ClassVar[str] = ""
    flink: ClassVar[Mapping[str, Any]] = {}
    poll_s: float = 1.0
    retry_s: tuple[float, float] = (1.0, 1.0)
    stall_s: float = 240.0
    renew_s: float = float("inf")

    def __init__(self, name: str, board: Board | None = None) -> None:
        self.name, self.board = name, board or Board()

    @classmethod
    @abstractmethod
    def of(cls, **arguments: Any) -> Self:
        """The service that these arguments of its command mean. Raises `CimlError` where they mean none."""

    @abstractmethod
    def observe(self) -> Progress:
        """Look at its input and at what it made of it, and show both on the board.

        Raises:
          IntegrityError: it must not go on.
        """

    @abstractmethod
    def plan(self, ends: Mapping[int, int] | None = None, *, bounded: bool = True) -> Any | None:
        """The work that is next; None where there is none. ``ends``: where to stop, by partition."""

    @abstractmethod
    def run(self, work: Any) -> None:
        """Do the work in this process, to its end."""

    def build(self, pipeline: beam.Pipeline, work: Any) -> object:
        """Wire the work of ``plan(bounded=False)``, for a service that runs on Flink."""
        raise CimlError("this service has no pipeline")

    def open(self) -> None:
        """Make what has to be there before anything is read."""

    def ready(self) -> str:
        """One phrase about what the work is done with. Raises `NotReadyError` where it cannot be done yet."""
        return ""

    def facts(self) -> dict[str, Any]:
        """What its manifest says, as JSON: ``version``, ``last_commit_us``, ``counts`` by kind, and its own."""
        return {}

    def publish(self) -> None:
        """Publish what is committed and was not published: its process died, or the broker was away."""

    def maintain(self) -> None:
        """Maintain the manifest, where that is due."""

    def close(self) -> None:
        """Close connections."""

    def impatient(self) -> Self:
        """As a supervisor looks at it: it has no time to wait for an answer."""
        return self


class _Manifest(Restorable, Coverage, Protocol):
    """The state of a manifest that covers offsets."""


S = TypeVar("S", bound=_Manifest)


class TopicService(Service, Generic[S]):
    """A service whose manifest covers the offsets of a topic.

    Args:
      name: see `Service`.
      config: of its pipeline; with ``kafka``, and ``projection`` for what publishes its commits.
      topic: that it reads.
      committing: its manifest.
      most: the most messages of a partition that bounded work takes.
    """

    submits = True

    def __init__(self, name: str, config: Any, topic: str, committing: LogReplica[S], most: int) -> None:
        super().__init__(name)
        self.config, self.topic, self.committing, self._most = config, topic, committing, most
        self._opened: Listing | None = None
        self._seen: Listing | None = None
        self._publisher: Projection | Projections | None = None

    @abstractmethod
    def cover_bases(self, listing: Listing) -> None:
        """Commit what a topic had lost before it was first read, so that a later loss is one."""

    @abstractmethod
    def progress(self, state: S) -> Progress:
        """What the manifest alone says: version, facts, and what is waited for."""

    @abstractmethod
    def families(self, state: S) -> Iterable[Family]:
        """The metrics of the manifest."""

    def run(self, work: Any) -> None:
        from functools import partial

        from pipelines.flink.submit import run_here

        run_here(partial(self.build, work=work))

    def open(self) -> None:
        self._opened = self._seen = self._list()
        self.cover_bases(self._opened)
        self.publish()

    def observe(self) -> Progress:
        self._seen = self._list()
        with self.committing.state() as state:
            listing = self._listing_for(state)
            self.board.observed([*self.families(state), *topic_families(state, listing)])
            plan(state, listing, bounded=False)  # raises what must not go on
            positions = {
                partition: state.covered(self.topic, partition).first_missing(first)
                for partition, (first, _) in listing.bounds.items()
            }
            ends = {partition: end for partition, (_, end) in listing.bounds.items()}
            lag = lag_by_partition(state, listing)
            return replace(self.progress(state), positions=positions, ends=ends, lag=lag)

    def facts(self) -> dict[str, Any]:
        with self.committing.state() as state:
            return dict(self.progress(state).facts)

    def reads(self, state: S, ends: Mapping[int, int] | None = None, *, bounded: bool = True) -> list[PartitionRead]:
        """What is to be read next, as far as the topic was last listed."""
        listing = self._listing_for(state)
        until = None if ends is None else replace(listing, bounds={part: (0, end) for part, end in ends.items()})
        return plan(state, listing, bounded=bounded, most=self._most if bounded else None, until=until)

    def publish(self) -> None:
        if self._publisher is None:
            self._publisher = self.config.projection()
        if self._publisher is not None:
            self._publisher.announce()

    def maintain(self) -> None:
        self.committing.maintain()

    def close(self) -> None:
        close_readers()
        if self._publisher is not None:
            self._publisher.close()

    def impatient(self) -> Self:
        self.config = replace(self.config, kafka=replace(self.config.kafka, timeout_s=5.0))
        return self

    def _list(self) -> Listing:
        """The topic as it is now. Once it was read it may not be missing."""
        return (
            list_again(self.config.kafka, self._opened) if self._opened else list_topic(self.config.kafka, self.topic)
        )

    def _listing_for(self, state: S) -> Listing:
        """The topic as it was last listed; listed again where another has read on since."""
        if self._seen is None or is_older(self._seen, state):
            self._seen = self._list()
        return self._seen


def class_of(kind: str) -> type[Service]:
    """The class of a kind. Raises `CimlError` for an unknown one."""
    if kind not in KINDS:
        raise CimlError(f"unknown kind of service {kind!r}; choose from {', '.join(KINDS)}")
    module, _, name = KINDS[kind].partition(":")
    found: type[Service] = getattr(importlib.import_module(module), name)
    return found

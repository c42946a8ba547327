"""The kernel of topic processors: what a topic's messages become is committed with their offsets, then published.

    messages ─► read ─► results ─► reconcile with the manifest's state ─► commit ─► render ─► topics

A processor is three functions:

- ``read`` makes a result of a batch of messages, and may query stores and servers. An ingest reads in several stages,
  others in one (`BatchProcessor`).
- ``reconcile`` returns the delta that results add to the present state. A result may come twice, or too late.
- ``render``, for each topic that is written, returns the messages of a delta.

Everything before a commit may happen twice; publication reads the committed deltas. docs/semantics.md states what
follows from this. `ciml.pipelines.processor_beam` runs processors as pipelines. This module does not import Beam, since
supervisors use it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, Self, TypeVar, cast

from ciml.events.records import Batch, OffsetRange
from ciml.kafka import KafkaOptions, ReadOptions
from ciml.manifest.coverage import TopicState
from ciml.manifest.log import Delta
from ciml.manifest.replica import LogReplica
from ciml.pipelines.kafka.broker import Listing, check_still_that_topic
from ciml.pipelines.kafka.plan import expired_offsets
from ciml.pipelines.kafka.publish import Projections, Render, Share, projection
from ciml.pipelines.processes import Shared


class Result(Protocol):
    """The result of a processor for a batch.

    Attributes:
      covers: the offsets of the batch; None for work that is not of the topic, such as retries.
    """

    @property
    def covers(self) -> OffsetRange | None: ...


@dataclass(frozen=True, kw_only=True)
class ProcessorConfig:
    """Configuration of all processors.

    Attributes:
      kafka: connection to the broker.
      cycle_messages: most messages of a partition in a micro-batch, which a kill loses at most.
    """

    kafka: KafkaOptions
    cycle_messages: int = 2000


@dataclass(frozen=True, kw_only=True)
class PipelineConfig(ProcessorConfig):
    """Configuration of the processors that run as Beam pipelines.

    Attributes:
      read: how partitions are read.
      commit_s: time after which a result is committed even if it is the only one, on Flink.
      commit_batches: number of uncommitted results that triggers a commit.
      maintains: whether the committing stage also maintains the manifest, where no supervisor does.
    """

    read: ReadOptions = field(default_factory=ReadOptions)
    commit_s: float = 2.0
    commit_batches: int = 20
    maintains: bool = False


class Output(NamedTuple):
    """A topic that a processor writes.

    Attributes:
      topic: its name; "" for none.
      render: returns the messages of a delta.
      share: see `ciml.pipelines.kafka.publish.Projection`.
    """

    topic: str
    render: Render
    share: Share | None = None


C = TypeVar("C", bound=ProcessorConfig)
S = TypeVar("S", bound=TopicState)
R = TypeVar("R", bound=Result)


class Processor(ABC, Generic[C, S, R]):
    """A topic processor.

    Args:
      config: of the processor.

    Attributes:
      name: of its manifest, in metrics; also the key of its results in pipelines.
    """

    name: ClassVar[str]

    def __init__(self, config: C) -> None:
        self.config = config

    @property
    @abstractmethod
    def topic(self) -> str:
        """The topic that it reads."""

    @abstractmethod
    def replica(self) -> LogReplica[S]:
        """Return this process's replica of the manifest; see `shared_replica`."""

    @abstractmethod
    def empty_result(self, covers: OffsetRange) -> R:
        """Return the result of offsets that hold no messages."""

    @abstractmethod
    def reconcile(self, state: S, results: Sequence[R], now_us: int) -> Delta | None:
        """Return the delta that results add to the state; None if all of them were committed before."""

    def outputs(self) -> Sequence[Output]:
        """Return the topics that it writes."""
        return ()

    def with_config(self, config: C) -> Self:
        """Return the same processor with another configuration."""
        processor = copy(self)
        processor.config = config
        return processor

    def commit(self, results: Iterable[R]) -> int | None:
        """Commit results. Return the version, or None if all of them were committed before.

        Raises:
          EngineError: if the store does not answer. The outcome is unknown; retrying is safe.
          IntegrityError: see `reconcile`. Nothing is committed.
        """
        present = list(results)
        return self._append(lambda state: present)

    def check_topics(self, results: Iterable[R]) -> None:
        """Check, between the reading of batches and their commit, that they are of the topic as it is now.

        A consumer does not notice that a topic was deleted and created again, and continues in the new one at its old
        offset.

        Raises:
          EngineError: if the broker does not answer.
          IntegrityError: if the topic was created again.
        """
        topics = {(result.covers.topic, result.covers.topic_id) for result in results if result.covers}
        for topic, topic_id in sorted(topics):
            check_still_that_topic(self.config.kafka, topic, topic_id)

    def cover_expired(self, listing: Listing) -> None:
        """Cover the offsets that expired before their partition was first read, so that later losses are noticed.

        They are computed from the state at the commit: once another process has begun to read a partition, its missing
        offsets are losses.
        """
        self._append(lambda state: [self.empty_result(covers) for covers in expired_offsets(state, listing)])

    def _append(self, results_for: Callable[[S], Sequence[R]]) -> int | None:
        replica = self.replica()

        def build(state: S) -> Delta | None:
            results = results_for(state)
            return self.reconcile(state, results, int(replica.log.clock() * 1e6)) if results else None

        return replica.append(build)

    def publisher(self) -> Projections:
        """Return the projections of the manifest onto the topics; this process caches their connections and cursors."""
        log = self.replica().log
        kafka = self.config.kafka
        return Projections(
            [projection(log, topic, render, kafka, share) for topic, render, share in self.outputs() if topic]
        )


P = TypeVar("P", bound=PipelineConfig)


class PipelineProcessor(Processor[P, S, R], ABC):
    """A processor whose results travel between the workers of a pipeline. Their encoding is stored in savepoints."""

    @abstractmethod
    def encode(self, result: R) -> bytes:
        """Return a result as bytes."""

    @abstractmethod
    def decode(self, data: bytes) -> R:
        """Return the inverse of `encode`."""


class BatchProcessor(PipelineProcessor[P, S, R], ABC):
    """A processor whose pipeline reads in one stage, by `read`.

    Attributes:
      labels: of the two first stages. Savepoints name stages by their labels.
    """

    labels: ClassVar[tuple[str, str]]

    @abstractmethod
    def read(self, batch: Batch) -> R:
        """Return the result of a batch of messages. One bad message affects no other."""


L = TypeVar("L", bound=LogReplica[Any])

_replicas = Shared[LogReplica[Any]]()


def shared_replica(root: str, part: str, make: Callable[[], L]) -> L:
    """Return the process's replica of a manifest; it is cached, since a long manifest takes time to load.

    Args:
      root: of the manifest.
      part: tells replicas of one manifest apart, such as those of two models.
      make: makes it.
    """
    return cast(L, _replicas.get((root, part), make))

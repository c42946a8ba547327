"""The real readers of partitions, driven as a runner drives them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from apache_beam.io.watermark_estimators import ManualWatermarkEstimator

from ciml.events.records import Batch
from ciml.kafka.connect import make_client
from pipelines.kafka import source as kafka
from pipelines.kafka.client import KafkaOptions, admin, borrow, check_topic
from pipelines.kafka.end_offsets import end_of
from pipelines.kafka.source import FOREVER, FindPartitions, OffsetTracker, PartitionRead, ReadOptions, Restriction
from tests.simulation.broker import TOPIC
from tests.simulation.fakes import standing_in
from tests.simulation.scheduler import Violation

_KAFKA = KafkaOptions("simulated:9092")
_OPTIONS = ReadOptions(batch_messages=3, stall_s=30.0)
_QUESTIONS = (borrow, end_of, check_topic)


class Tracker:
    """A restriction as Beam shows it to a DoFn.

    Attributes:
      rest: what is left for later where a pause was asked for; None where none was.
    """

    def __init__(self, start: int, stop: int = FOREVER) -> None:
        self._tracker = OffsetTracker(Restriction(start, stop))
        self.current_restriction = self._tracker.current_restriction
        self.try_claim = self._tracker.try_claim
        self.check_done = self._tracker.check_done
        self.rest: Restriction | None = None

    def defer_remainder(self, *_: Any) -> None:
        split = self._tracker.try_split(0)
        self.rest = split[1] if split else None


def read_bounded(read: PartitionRead) -> Iterator[Batch]:
    """All batches of a bounded read."""
    tracker = Tracker(read.start, FOREVER if read.end is None else read.end)
    yield from kafka.ReadBounded(_KAFKA, _OPTIONS).process(read, tracker)
    tracker.check_done()


def read_slice(read: PartitionRead, position: int) -> tuple[list[Batch], int]:
    """What a slice of an unbounded read gives from a position on, and the position after it."""
    tracker, watermark = Tracker(position), ManualWatermarkEstimator(None)
    found = [each.value for each in kafka.ReadUnbounded(_KAFKA, _OPTIONS).process(read, tracker, watermark)]
    tracker.check_done()
    return found, tracker.rest.start if tracker.rest else tracker.current_restriction().stop


def find_partitions(topic_id: str, known: int) -> list[PartitionRead]:
    """The partitions that a topic has beyond those that are known."""
    tracker, watermark = Tracker(known), ManualWatermarkEstimator(None)
    topic = kafka.KnownTopic(TOPIC, topic_id, known)
    return [each.value for each in FindPartitions(_KAFKA, _OPTIONS).process(topic, tracker, watermark)]


@contextmanager
def reading_by(client: Any) -> Iterator[None]:
    """Within it, questions to the broker go to what ``client()`` returns; and there is no way to a real one."""

    def ask(name: str) -> Any:
        return lambda *rest: getattr(client(), name)(*rest)

    def refuse(*_: Any) -> Any:
        raise Violation("a question to a real broker")

    questions = {real.__name__: (real, ask(real.__name__)) for real in _QUESTIONS}
    with standing_in({**questions, "make_client": (make_client, refuse), "admin": (admin, refuse)}):
        yield

"""The real readers of partitions, driven as a runner drives them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from apache_beam.io.watermark_estimators import ManualWatermarkEstimator

from ciml.events.records import Batch
from ciml.kafka import KafkaOptions, ReadOptions
from ciml.kafka.connect import admin, make_client
from ciml.pipelines.kafka import source as kafka
from ciml.pipelines.kafka.broker import check_topic, end_of
from ciml.pipelines.kafka.plan import PartitionRead
from ciml.pipelines.kafka.reader import borrow
from ciml.pipelines.kafka.source import FOREVER, FindPartitions, OffsetTracker, Restriction
from tests.simulation.broker import TOPIC
from tests.simulation.fakes import substituted
from tests.simulation.scheduler import Violation

_KAFKA = KafkaOptions("simulated:9092")
_OPTIONS = ReadOptions(batch_messages=3, stall_s=30.0)
_REQUESTS = (borrow, end_of, check_topic)


class Tracker:
    """A restriction as Beam shows it to a DoFn.

    Attributes:
      rest: the deferred remainder if a pause was requested, else None.
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
    """Yield all batches of a bounded read."""
    tracker = Tracker(read.start, FOREVER if read.end is None else read.end)
    yield from kafka.ReadBounded(_KAFKA, _OPTIONS).process(read, tracker)
    tracker.check_done()


def read_slice(read: PartitionRead, position: int) -> tuple[list[Batch], int]:
    """Return the batches of a slice of an unbounded read from a position on, and the position after it."""
    tracker, watermark = Tracker(position), ManualWatermarkEstimator(None)
    found = [each.value for each in kafka.ReadUnbounded(_KAFKA, _OPTIONS).process(read, tracker, watermark)]
    tracker.check_done()
    return found, tracker.rest.start if tracker.rest else tracker.current_restriction().stop


def find_partitions(topic_id: str, known: int) -> list[PartitionRead]:
    """Return the partitions of a topic beyond the known ones."""
    tracker, watermark = Tracker(known), ManualWatermarkEstimator(None)
    topic = kafka.KnownTopic(TOPIC, topic_id, known)
    return [each.value for each in FindPartitions(_KAFKA, _OPTIONS).process(topic, tracker, watermark)]


@contextmanager
def reading_by(client: Any) -> Iterator[None]:
    """Send requests to the broker to the result of ``client()``; a connection to a real broker is a violation."""

    def ask(name: str) -> Any:
        return lambda *rest: getattr(client(), name)(*rest)

    def reject(*_: Any) -> Any:
        raise Violation("a request to a real broker")

    requests = {real.__name__: (real, ask(real.__name__)) for real in _REQUESTS}
    with substituted({**requests, "make_client": (make_client, reject), "admin": (admin, reject)}):
        yield

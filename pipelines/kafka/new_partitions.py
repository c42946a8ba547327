"""Finds partitions that are added to a topic while it is read."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from ciml.errors import EngineError
from ciml.kafka.options import KafkaOptions, ReadOptions
from ciml.pipelines.kafka.broker import check_topic
from ciml.pipelines.kafka.plan import PartitionRead
from ciml.pipelines.kafka.tracker import (
    FOREVER,
    WATERMARK,
    Claim,
    OffsetTracker,
    Restriction,
    is_drained,
    left,
    observe,
    put_off,
)
from ciml.pipelines.kafka.watermark import Observation
from ciml.transforms.ingest.errors import keep_error


@dataclass(frozen=True, slots=True)
class KnownTopic:
    """A topic whose partitions 0 to ``partitions`` - 1 are read already. Kafka never removes partitions."""

    topic: str
    topic_id: str
    partitions: int


class FindPartitions(beam.DoFn, RestrictionProvider):
    """`KnownTopic` -> `PartitionRead` of each partition added later, from its beginning; unbounded.

    Its restriction is the range of future partition numbers. It also detects a deleted or recreated topic while no
    message arrives.
    """

    def __init__(self, kafka: KafkaOptions, options: ReadOptions) -> None:
        self._kafka, self._options = kafka, options

    def initial_restriction(self, element: KnownTopic) -> Restriction:
        return Restriction(element.partitions, FOREVER)

    def create_tracker(self, restriction: Restriction) -> OffsetTracker:
        return OffsetTracker(restriction)

    def restriction_size(self, element: KnownTopic, restriction: Restriction) -> int:
        return left(restriction, None)

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        element: KnownTopic,
        tracker: Any = beam.DoFn.RestrictionParam(),  # noqa: B008
        watermark: Any = beam.DoFn.WatermarkEstimatorParam(WATERMARK),  # noqa: B008
    ) -> Iterator[TimestampedValue]:
        with keep_error():
            yield from self._find(element, tracker, watermark)

    def _find(self, element: KnownTopic, tracker: Any, watermark: Any) -> Iterator[TimestampedValue]:
        if is_drained(tracker):
            return
        known = tracker.current_restriction().start
        asked = time.time()
        try:
            found = max(check_topic(self._kafka, element.topic, element.topic_id), default=-1) + 1
        except EngineError:  # the broker is unreachable: the readers wait for it too
            put_off(tracker, self._options.find_s)
            return
        if found > known:
            if not tracker.try_claim(Claim(known, found)):
                return
            # Messages of a new partition are no older than the last listing without it, less the slack, which is the
            # present watermark.
            since = watermark.current_watermark() or Timestamp.of(asked - self._options.slack_s)
            for number in range(known, found):
                yield TimestampedValue(PartitionRead(element.topic, element.topic_id, number, 0, None), since)
        observe(watermark, Observation(asked, None, True), self._options.slack_s)
        put_off(tracker, self._options.find_s)

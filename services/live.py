"""The live service: windows and examples of running jobs, by the pipeline of `ciml.pipelines.live`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from confluent_kafka.admin import OffsetSpec

from ciml.pipelines.kafka.broker import Listing, list_again, list_topic, make_topic, offsets_of
from ciml.pipelines.kafka.plan import PartitionRead
from ciml.pipelines.kafka.reader import close_readers
from ciml.pipelines.live import MAX_MESSAGE_BYTES, LiveConfig, build_live, forget_ended_job, reached_offsets
from ciml.services.decide import ServiceProgress
from ciml.services.service import Service, lag_families

if TYPE_CHECKING:
    import apache_beam as beam


class LiveService(Service):
    """Publishes windows and examples of running jobs. Flink holds its state; a bounded pass reads the runs again.

    Args:
      config: of the pipeline.
      since_s: age of the first messages to read, seconds: more than a run takes. None for the whole topic.
    """

    needs_flink = (
        "live windows need Flink for the state of the runs: start it (ciml up flink), or make one pass "
        "(ciml live --once)"
    )
    #: A checkpoint holds the samples of all running jobs, so it is large.
    flink = {"checkpointing_interval": 10_000}  # noqa: RUF012 - never changed
    poll_s = 0.5
    stall_s = 120.0
    renew_s = 3600.0  # a new job reads from ``since_s`` ago again

    def __init__(self, config: LiveConfig, since_s: float | None) -> None:
        super().__init__(f"ciml-live-{config.topic}")
        self.config = config
        self._since_s = since_s
        self._listing: Listing | None = None
        self._starts: dict[int, int] = {}  # first offset of the present job, by partition
        self._messages_read = 0
        self._is_done = False

    def open(self) -> None:
        self._listing = make_topics(self.config)

    def observe(self) -> ServiceProgress:
        """Return the progress of this process's job; of another process's job, only the topic's ends."""
        topic = self.config.topic
        kafka = self.config.kafka
        self._listing = list_again(kafka, self._listing) if self._listing else make_topics(self.config)
        offsets = reached_offsets(topic)
        positions = {part: max(start, offsets.get(part, start)) for part, start in self._starts.items()}
        ends = {partition: end for partition, (_, end) in self._listing.bounds.items()}
        lag = {} if self._is_done else {part: max(ends.get(part, 0) - offset, 0) for part, offset in positions.items()}
        self.board.put_observed(lag_families(topic, lag))
        read = self._messages_read or sum(offset - self._starts[part] for part, offset in positions.items())
        return ServiceProgress(
            read, {} if self._is_done else positions, lag, ends=ends, facts={"counts": {"messages read": read}}
        )

    def plan(self, ends: Mapping[int, int] | None = None, *, bounded: bool = True) -> list[PartitionRead] | None:
        if bounded and self._is_done:
            return None
        listing = list_again(self.config.kafka, self._listing) if self._listing else make_topics(self.config)
        reads = plan_live(self.config, listing, self._since_s, bounded=bounded)
        self._is_done = bounded and not reads
        forget_ended_job(self.config.topic)
        self._starts = {read.partition: read.start for read in reads}
        return reads or None

    def build(self, pipeline: beam.Pipeline, work: list[PartitionRead]) -> object:
        build_live(pipeline, self.config, work, time.time)
        return None

    def run(self, work: list[PartitionRead]) -> None:
        """Read the runs from their first samples; publish complete ones as ended, others as running."""
        from functools import partial

        from ciml.transforms.beam import run_here

        run_here(partial(self.build, work=work))
        self._messages_read = sum((read.end or 0) - read.start for read in work)
        self._is_done = True

    def close(self) -> None:
        close_readers()

    def impatient(self) -> Self:
        self.config = replace(self.config, kafka=replace(self.config.kafka, timeout_s=5.0))
        return self


def plan_live(config: LiveConfig, listing: Listing, since_s: float | None, *, bounded: bool) -> list[PartitionRead]:
    """Return the reads: each partition from its first message of the last ``since_s`` seconds; None for all messages.

    Raises:
      EngineError: if the broker does not answer.
    """
    starts = {partition: first for partition, (first, _) in listing.bounds.items()}
    if since_s is not None:
        spec = OffsetSpec.for_timestamp(round((time.time() - since_s) * 1000))
        offsets = offsets_of(config.kafka, config.topic, listing.bounds, spec)
        # -1: the partition has no message that young.
        starts = {part: offsets[part] if offsets[part] >= 0 else end for part, (_, end) in listing.bounds.items()}
    return [
        PartitionRead(listing.topic, listing.topic_id, partition, starts[partition], end if bounded else None)
        for partition, (_, end) in sorted(listing.bounds.items())
        if not bounded or starts[partition] < end
    ]


def make_topics(config: LiveConfig) -> Listing:
    """Create missing topics; return the listing of the samples' topic."""
    make_topic(config.kafka, config.topic)
    listing = list_topic(config.kafka, config.topic)
    for topic in (config.windows_topic, config.examples_topic, config.dead_letters_topic):
        if topic:
            make_topic(config.kafka, topic, len(listing.bounds), {"max.message.bytes": str(MAX_MESSAGE_BYTES)})
    return listing

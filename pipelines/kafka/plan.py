"""Plans the reads of a topic from the offsets that the manifest covers and the offsets that the broker holds.

Offsets that the broker has removed are lost, which stops the plan, unless nothing of their partition is covered. Such a
partition is taken for a new one: coverage has no entry for one that was listed, but empty, so if its first messages
expire before they are read, this is not noticed.
"""

from __future__ import annotations

from dataclasses import dataclass

from ciml.errors import EngineError, IntegrityError
from ciml.events.records import OffsetRange
from ciml.manifest.coverage import ADOPT_COMMAND, OtherTopicError, TopicState, check_topic_id
from ciml.pipelines.kafka.broker import Listing


@dataclass(frozen=True, slots=True)
class PartitionRead:
    """A range of a partition to read: [start, end) (``end`` None: unbounded) without its covered offsets."""

    topic: str
    topic_id: str
    partition: int
    start: int
    end: int | None
    covered: tuple[tuple[int, int], ...] = ()

    @property
    def where(self) -> str:
        return f"{self.topic}[{self.partition}]"


def plan(
    state: TopicState, listing: Listing, *, bounded: bool, most: int | None = None, until: Listing | None = None
) -> list[PartitionRead]:
    """Return the uncovered offsets of a topic by partition.

    Args:
      state: of the manifest that commits the messages.
      listing: the topic, listed after the state was updated (see `is_older`).
      bounded: end at the topic's present end, and omit partitions without new messages.
      most: with ``bounded``, largest number of offsets of a partition.
      until: with ``bounded``, an earlier listing whose ends limit the read.

    Raises:
      IntegrityError: if the topic was recreated, is shorter than the covered offsets, or lost unread offsets. Nothing
        is skipped.
      EngineError: if the listing is empty.
    """
    if not listing.bounds:
        raise EngineError(f"Kafka lists no partitions of topic {listing.topic}")
    check_topic_id(listing.topic, state.topic_id(listing.topic), listing.topic_id)
    reads = []
    for partition, (_, end) in sorted(listing.bounds.items()):
        start = _start_of(state, listing, partition)
        stop = None
        if bounded:
            stop = end if until is None else min(end, until.bounds.get(partition, (0, 0))[1])
            if most is not None:
                stop = min(stop, start + most)
            if start >= stop:
                continue
        covered = tuple(span for span in state.covered(listing.topic, partition) if span[0] > start)
        reads.append(PartitionRead(listing.topic, listing.topic_id, partition, start, stop, covered))
    return reads


def _start_of(state: TopicState, listing: Listing, partition: int) -> int:
    """Return the first offset to read.

    Raises:
      IntegrityError: unread offsets have expired; `OtherTopicError`, the topic ends before covered ones.
    """
    first, end = listing.bounds[partition]
    covered = state.covered(listing.topic, partition)
    start = covered.first_missing(0)
    where = f"{listing.topic}[{partition}]"
    if covered and start < first:
        lost = ", ".join(f"{begin} to {stop}" for begin, stop in covered.missing(0, first))
        raise IntegrityError(
            f"{where}: offsets {lost} expired before they were read: the topic's retention is shorter than ciml's "
            "downtime. To record them as lost and continue: ciml ingest accept-loss"
        )
    last = covered.end
    if last > end:
        raise OtherTopicError(
            f"{where} ends at {end}, but was read up to {last}: it is not the topic that was read before. To "
            f"continue with it from its first message: {ADOPT_COMMAND} {listing.topic} --data-path DATA"
        )
    return max(start, first)


def is_older(listing: Listing, state: TopicState) -> bool:
    """Return whether a listing is outdated: offsets beyond it are covered, since another process committed them.

    A recreated topic looks the same until it is listed again.
    """
    return any(state.covered(listing.topic, part).end > end for part, (_, end) in listing.bounds.items())


def expired_offsets(state: TopicState, listing: Listing) -> list[OffsetRange]:
    """Return the offsets that expired before their partition was first read; the caller covers them before it reads."""
    return [
        OffsetRange(listing.topic, listing.topic_id, partition, 0, first)
        for partition, (first, _) in sorted(listing.bounds.items())
        if first > 0 and not state.covered(listing.topic, partition)
    ]


def lost_offsets(state: TopicState, listing: Listing) -> list[OffsetRange]:
    """Return the offsets that expired before they were read, including those of `expired_offsets`.

    Raises:
      IntegrityError: if the topic was recreated, which is not a loss but another topic.
    """
    check_topic_id(listing.topic, state.topic_id(listing.topic), listing.topic_id)
    return [
        OffsetRange(listing.topic, listing.topic_id, partition, start, end)
        for partition, (first, _) in sorted(listing.bounds.items())
        for start, end in state.covered(listing.topic, partition).missing(0, first)
    ]

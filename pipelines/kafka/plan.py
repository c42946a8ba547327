"""Where reading starts: decided by what a manifest covers and what the broker still has, and by nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ciml.errors import EngineError, IntegrityError
from ciml.events.records import Batch, OffsetRange
from ciml.manifest.offsets import RangeSet
from ciml.raw.accounting import check_topic_id
from pipelines.kafka.broker import Listing


@dataclass(frozen=True, slots=True)
class PartitionRead:
    """What is to be read of a partition: [start, end) (``end`` None: for ever) without what is covered within it."""

    topic: str
    topic_id: str
    partition: int
    start: int
    end: int | None
    covered: tuple[tuple[int, int], ...] = ()

    @property
    def where(self) -> str:
        return f"{self.topic}[{self.partition}]"


class Coverage(Protocol):
    """What a manifest's state says of offsets. See `ciml.raw.accounting.RawState`."""

    topic_ids: dict[str, str]

    def covered(self, topic: str, partition: int) -> RangeSet: ...


def is_older(listing: Listing, state: Coverage) -> bool:
    """Return whether something is covered that a listing does not show: somebody else read and committed it since.

    A topic that is not the one that was read looks the same, until it is listed again.
    """
    return any(_last(state.covered(listing.topic, part)) > end for part, (_, end) in listing.bounds.items())


def _last(covered: RangeSet) -> int:
    return max((stop for _, stop in covered), default=0)


def plan(
    state: Coverage, listing: Listing, *, bounded: bool, most: int | None = None, until: Listing | None = None
) -> list[PartitionRead]:
    """What of a topic is not covered yet, partition by partition.

    Args:
      state: of the manifest that commits what is read.
      listing: what the broker has, as asked after the state was brought up to date (see `is_older`).
      bounded: whether to end at the topic's present end. Partitions with nothing new are then left out.
      most: with ``bounded``, the most offsets of a partition to take at once.
      until: with ``bounded``, an earlier listing, beyond whose ends nothing is read.

    Raises:
      IntegrityError: the topic was made anew, is shorter than what is covered, or no longer holds an offset that was
        never read. Nothing is skipped.
      EngineError: the listing is empty.
    """
    if not listing.bounds:
        raise EngineError(f"Kafka lists no partitions of the topic {listing.topic}")
    check_topic_id(listing.topic, state.topic_ids.get(listing.topic, ""), listing.topic_id)
    reads: list[PartitionRead] = []
    for partition, (first, end) in sorted(listing.bounds.items()):
        covered = state.covered(listing.topic, partition)
        start = covered.first_missing(0)
        where = f"{listing.topic}[{partition}]"
        if start < first and not (start == 0 and not covered):
            gone = ", ".join(f"{lost} to {before}" for lost, before in covered.missing(0, first))
            raise IntegrityError(
                f"{where}: offsets {gone} were never read, and the topic does not hold them any more: its retention is "
                "shorter than ciml was away. To go on without them, which is then on record: ciml ingest accept-loss"
            )
        start = max(start, first)
        last = _last(covered)
        if last > end:
            raise IntegrityError(
                f"{where} ends at {end}, and is covered up to {last}: it is not the topic that was read. Read it under "
                "another name, or start with another --data-path"
            )
        if bounded:
            stop = end if until is None else min(end, until.bounds.get(partition, (0, 0))[1])
            stop = stop if most is None else min(stop, start + most)
            if start >= stop:
                continue
        inside = tuple(part for part in covered if part[0] > start)
        reads.append(
            PartitionRead(listing.topic, listing.topic_id, partition, start, stop if bounded else None, inside)
        )
    return reads


def bases(state: Coverage, listing: Listing) -> list[Batch]:
    """Empty batches that cover what was gone from a topic before it was first read. To be committed before reading."""
    return [
        Batch(OffsetRange(listing.topic, listing.topic_id, partition, 0, first))
        for partition, (first, _) in sorted(listing.bounds.items())
        if first > 0 and not state.covered(listing.topic, partition)
    ]


def losses(state: Coverage, listing: Listing) -> list[Batch]:
    """Empty batches that cover what a topic lost before it was read, where a person has said that this is accepted.

    Raises:
      IntegrityError: the topic was made anew: that is no loss, it is another topic.
    """
    check_topic_id(listing.topic, state.topic_ids.get(listing.topic, ""), listing.topic_id)
    return [
        Batch(OffsetRange(listing.topic, listing.topic_id, partition, start, end))
        for partition, (first, _) in sorted(listing.bounds.items())
        for start, end in state.covered(listing.topic, partition).missing(0, first)
    ]

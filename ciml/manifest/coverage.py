"""The offsets of topics that a manifest covers: sets of offsets, in the state and in deltas.

A topic that is created again begins a new *generation* once an operator adopts it (`TopicState.next_generation`).
The offsets of the first generation are stored under the topic's name. Those of later ones are stored under
``topic@2``, ``topic@3``, …, names that Kafka allows for no topic. So offsets and origins of different generations never
mix.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from ciml.errors import IntegrityError
from ciml.events.records import OffsetRange
from ciml.manifest.checkpoints import Restorable

#: The command that continues with a topic that is not the one that was read before. Each error of that kind names it.
ADOPT_COMMAND = "ciml topics adopt"


class RangeSet:
    """Whole numbers from 0, kept as disjoint, non-adjacent ranges. Empty ranges are ignored."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in ranges:
            self.add(start, end)

    def add(self, start: int, end: int) -> None:
        """Add [start, end); merge ranges that overlap or touch."""
        if end <= start:
            return
        first = bisect_left(self._ends, start)  # the first range that ends at start or after it
        last = bisect_right(self._starts, end)  # one past the last range that starts at end or before it
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def missing(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return the parts of [start, end) that are not in the set, in order."""
        gaps: list[tuple[int, int]] = []
        index = bisect_right(self._ends, start)
        while start < end:
            if index == len(self._starts) or self._starts[index] >= end:
                gaps.append((start, end))
                break
            if self._starts[index] > start:
                gaps.append((start, self._starts[index]))
            start = self._ends[index]
            index += 1
        return gaps

    def first_missing(self, start: int = 0) -> int:
        """Return the smallest number from ``start`` on that is not in the set."""
        index = bisect_right(self._ends, start)
        is_inside = index < len(self._starts) and self._starts[index] <= start
        return self._ends[index] if is_inside else start

    def __contains__(self, number: int) -> bool:
        return self.first_missing(number) != number

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._starts, self._ends, strict=True))

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RangeSet) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"RangeSet({list(self)})"

    @property
    def end(self) -> int:
        """One past the largest element; 0 without one."""
        return self._ends[-1] if self._ends else 0

    def count(self) -> int:
        """Return the number of elements."""
        return sum(self._ends) - sum(self._starts)


#: The covered offsets by topic and partition.
Covered = dict[tuple[str, int], RangeSet]
_NOTHING = RangeSet()


class TopicState(Restorable):
    """The state of a manifest that covers offsets of topics: subclasses apply deltas.

    Attributes:
      version: the last delta applied, 0 at first.
      topic_ids: the broker's UUID of each generation when it was first read ("" if the broker has none).
      time_us: commit time of the last delta, epoch microseconds.
      restored, records, torn: see `ciml.manifest.checkpoints.Restorable`.
      counters: names of attributes with counts by two keys, which checkpoints store.
      mappings: names of attributes with values by one key, which checkpoints store.
    """

    counters: ClassVar[tuple[str, ...]] = ()
    mappings: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        self.version = self.time_us = self.restored = self.records = 0
        self.torn = False
        self.topic_ids: dict[str, str] = {}
        self._covered: Covered = {}

    def covered(self, topic: str, partition: int) -> RangeSet:
        """Return the offsets of a partition that are settled, of the present generation. Do not change them."""
        return self.covered_of(self.generation(topic), partition)

    def covered_of(self, generation: str, partition: int) -> RangeSet:
        """Return the offsets of a generation's partition that are settled. The caller must not change them."""
        return self._covered.get((generation, partition), _NOTHING)

    def generation(self, topic: str) -> str:
        """Return the name of a topic's present generation."""
        return self._generations(topic)[-1]

    def generation_of(self, topic: str, topic_id: str) -> str:
        """Return the name of the last generation that had this id, by default of the present one."""
        names = self._generations(topic)
        return next((name for name in reversed(names) if self.topic_ids.get(name) == topic_id), names[-1])

    def topic_id(self, topic: str) -> str:
        """Return the id of a topic's present generation; "" if it was never read, or its broker has no ids."""
        return self.topic_ids.get(self.generation(topic), "")

    def next_generation(self, topic: str, topic_id: str) -> dict[str, Any]:
        """Return the offsets of a delta that begins the next generation of a topic: nothing of it is covered."""
        name = f"{topic}@{len(self._generations(topic)) + 1}"
        return {name: {"id": topic_id, "partitions": {}}}

    def _generations(self, topic: str) -> list[str]:
        names = [topic]
        while (name := f"{topic}@{len(names) + 1}") in self.topic_ids:
            names.append(name)
        return names

    def partitions(self) -> Iterator[tuple[str, int, RangeSet]]:
        """Yield (topic, partition, covered offsets) of all partitions ever read, in order."""
        for (topic, partition), ranges in sorted(self._covered.items(), key=lambda item: item[0]):
            yield topic, partition, ranges

    def cover(self, offsets: Mapping[str, Any], *shares: Covered) -> None:
        """Apply the offsets of a delta.

        Args:
          offsets: as `NewCoverage.to_json` returns them.
          shares: what to apply them to, instead of the state's own coverage; for manifests that several readers share.

        Raises:
          IntegrityError: a topic was created again.
        """
        for topic, entry in offsets.items():
            topic_id = self.topic_ids.get(topic, "")
            check_topic_id(topic, topic_id, entry["id"])
            self.topic_ids[topic] = topic_id or entry["id"]
            for partition, ranges in entry["partitions"].items():
                for share in shares or (self._covered,):
                    covered = share.setdefault((topic, int(partition)), RangeSet())
                    for start, end in ranges:
                        covered.add(start, end)

    def coverage(self) -> dict[str, Any]:
        """Return the time, the covered offsets, the topics' ids and all counts as entries of a checkpoint's state."""
        return {
            "time_us": self.time_us,
            "covered": coverage_json(self._covered),
            **{name: counts_json(getattr(self, name)) for name in self.counters},
            **{name: dict(sorted(getattr(self, name).items())) for name in ("topic_ids", *self.mappings)},
        }

    def restore_coverage(self, version: int, value: Mapping[str, Any]) -> None:
        """Set the version, and what `coverage` returned at that version."""
        self.version = self.restored = version
        self.time_us = value.get("time_us", 0)
        self._covered = coverage_of(value.get("covered", ()))
        for name in self.counters:
            getattr(self, name).update(counts_of(value.get(name, ())))
        for name in ("topic_ids", *self.mappings):
            getattr(self, name).update(value.get(name, {}))


def coverage_json(covered: Covered) -> list[list[Any]]:
    """Return covered offsets as JSON: ``[topic, partition, ranges]``, in order."""
    return [
        [topic, partition, [*map(list, ranges)]]
        for (topic, partition), ranges in sorted(covered.items(), key=lambda item: item[0])
    ]


def coverage_of(value: Iterable[Any]) -> Covered:
    """Return the inverse of `coverage_json`."""
    return {(topic, partition): RangeSet(ranges) for topic, partition, ranges in value}


def counts_json(counts: Mapping[tuple[Any, Any], int]) -> list[list[Any]]:
    """Return counts by two keys as JSON, for the value of a checkpoint: ``[key, key, number]``, in order."""
    return [[*key, number] for key, number in sorted(counts.items())]


def counts_of(value: Iterable[Any]) -> Counter[tuple[Any, Any]]:
    """Return the inverse of `counts_json`."""
    return Counter({(first, second): number for first, second, number in value})


class NewCoverage:
    """The offsets that a delta under construction covers.

    Args:
      state: the state that the delta follows; not changed.
    """

    def __init__(self, state: TopicState) -> None:
        self._state = state
        self._offsets: dict[str, dict[int, RangeSet]] = {}
        self._topic_ids: dict[str, str] = {}

    def add(self, covers: OffsetRange) -> RangeSet:
        """Cover a range; return its offsets that neither the state nor this delta covered.

        Raises:
          IntegrityError: the topic was created again.
        """
        generation = self._state.generation_of(covers.topic, covers.topic_id)
        topic_id = self._topic_ids.get(generation) or self._state.topic_ids.get(generation, "")
        check_topic_id(covers.topic, topic_id, covers.topic_id)
        self._topic_ids[generation] = topic_id or covers.topic_id
        covered_here = self._offsets.setdefault(generation, {}).setdefault(covers.partition, RangeSet())
        uncovered = self._state.covered_of(generation, covers.partition).missing(covers.start, covers.end)
        new_offsets = RangeSet(part for start, end in uncovered for part in covered_here.missing(start, end))
        for start, end in new_offsets:
            covered_here.add(start, end)
        return new_offsets

    def to_json(self) -> dict[str, Any]:
        """Return the offsets of the delta: by topic its id and its ranges by partition; {} for nothing new."""
        return {
            topic: {"id": self._topic_ids[topic], "partitions": parts}
            for topic, partitions in self._offsets.items()
            if (parts := {str(number): [*map(list, ranges)] for number, ranges in partitions.items() if ranges})
        }


class OtherTopicError(IntegrityError):
    """A topic is not the one that was read before; `ADOPT_COMMAND` continues with it."""


def check_topic_id(topic: str, stored: str, reported: str) -> None:
    """Raise `OtherTopicError` if a topic differs from the one read before ("" is unknown and matches any)."""
    if stored and reported and stored != reported:
        raise OtherTopicError(
            f"topic {topic} was deleted and created again: its offsets were read under the id {stored}, but the broker "
            f"reports {reported}. To continue with the new topic, without the unread messages of the old one: "
            f"{ADOPT_COMMAND} {topic} --data-path DATA"
        )

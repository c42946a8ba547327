"""Sets of offsets of a partition, as sorted ranges [start, end): those that a manifest covers."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


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
        found: list[tuple[int, int]] = []
        index = bisect_right(self._ends, start)
        while start < end:
            if index == len(self._starts) or self._starts[index] >= end:
                found.append((start, end))
                break
            if self._starts[index] > start:
                found.append((start, self._starts[index]))
            start = self._ends[index]
            index += 1
        return found

    def first_missing(self, start: int = 0) -> int:
        """Return the smallest number from ``start`` on that is not in the set."""
        index = bisect_right(self._ends, start)
        inside = index < len(self._starts) and self._starts[index] <= start
        return self._ends[index] if inside else start

    def __contains__(self, number: int) -> bool:
        index = bisect_right(self._ends, number)
        return index < len(self._starts) and self._starts[index] <= number

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._starts, self._ends, strict=True))

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RangeSet) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"RangeSet({list(self)})"

    def count(self) -> int:
        """Return the number of elements."""
        return sum(self._ends) - sum(self._starts)

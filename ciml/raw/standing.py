"""Memories with limits, kept apart by standing: what is believed less never displaces what is believed more."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Generic, TypeVar

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")

#: How far a run or an event is believed: its sender was not proved, was proved, or the trust policy trusts it.
STANDINGS = UNPROVED, PROVED, TRUSTED = (0, 1, 2)


def standing_of(trusted: bool, proved: bool) -> int:
    """Return the standing of a run or an event, one of `STANDINGS`."""
    return TRUSTED if trusted else PROVED if proved else UNPROVED


class StandingMap(Generic[_Key, _Value]):
    """A map that keeps the last entries of each standing.

    Each standing has the whole limit for itself, so the entries of one are the same whatever is added to the others.

    Args:
      limit: the most entries of one standing; a further one displaces the one that was put first.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: tuple[OrderedDict[_Key, _Value], ...] = tuple(OrderedDict() for _ in STANDINGS)

    def get(self, key: _Key) -> _Value | None:
        """Return the value of a key; None without one."""
        return next((entries[key] for entries in self._entries if key in entries), None)

    def standing(self, key: _Key) -> int | None:
        """Return the standing under which a key was put; None without it."""
        return next((standing for standing in STANDINGS if key in self._entries[standing]), None)

    def put(self, key: _Key, value: _Value, standing: int) -> tuple[_Key, _Value] | None:
        """Put an entry last among those of its standing; return the entry that it displaces, None without one."""
        self.pop(key)
        entries = self._entries[standing]
        entries[key] = value
        return entries.popitem(last=False) if len(entries) > self._limit else None

    def replace(self, key: _Key, value: _Value) -> None:
        """Replace the value of a present key; its standing and its place stay."""
        entries = next(entries for entries in self._entries if key in entries)
        entries[key] = value

    def pop(self, key: _Key) -> _Value | None:
        """Remove a key; return its value, None without one."""
        return next((entries.pop(key) for entries in self._entries if key in entries), None)

    def lists(self) -> list[list[tuple[_Key, _Value]]]:
        """Return the entries of each standing, in the order in which they were put."""
        return [list(entries.items()) for entries in self._entries]

    def restore(self, lists: Iterable[Iterable[tuple[_Key, _Value]]]) -> None:
        """Replace all entries by those of `lists`."""
        self._entries = tuple(OrderedDict(entries) for entries in lists)

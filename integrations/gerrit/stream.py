"""The lines of Gerrit's stream, and the events that Kafka has acknowledged lately."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from ciml.limits import MAX_KNOWN_DELIVERIES

#: The time of a vote in the stream is later than the vote's own time, by at most this.
_VOTE_DELAY_S = 60.0
_VOTES = ("comment-added", "vote-deleted")


class Lines:
    """Splits a stream into lines. A line over the limit is skipped without being stored, whatever its length.

    Args:
      max_bytes: limit of a line.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._parts = list[bytes]()
        self._size = 0

    def feed(self, chunk: bytes) -> list[bytes | None]:
        """Return the lines that end in the chunk, without line ends and empty lines. A line over the limit is None."""
        lines: list[bytes | None] = []
        *ended, unfinished = chunk.split(b"\n")
        for part in ended:
            self._add(part)
            line = b"".join(self._parts).strip() if self._size <= self._max_bytes else None
            if line != b"":
                lines.append(line)
            self._parts = []
            self._size = 0
        self._add(unfinished)
        return lines

    def _add(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._max_bytes:
            self._parts = []
        elif part:
            self._parts.append(part)


def parse_line(line: bytes) -> Mapping[str, Any]:
    """Return the event in a line. If the line has none, the event is empty, and the adapter rejects it."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return event if type(event) is dict else {}


def is_inner_ref(event: Mapping[str, Any]) -> bool:
    """Return whether an event reports a ref that is not a branch. Gerrit updates several of them with each comment."""
    update = event.get("refUpdate")
    name = update.get("refName") if isinstance(update, Mapping) else ""
    return event.get("type") == "ref-updated" and not str(name).startswith("refs/heads/")


class StoredEvents:
    """The latest events that Kafka has acknowledged, of the types that the REST API also reports."""

    def __init__(self) -> None:
        self._created_s: OrderedDict[bytes, float] = OrderedDict()  # time of an event by the digest of each key

    def add(self, event: Mapping[str, Any]) -> None:
        for key in map(_digest, _keys_of(event)):
            self._created_s[key] = _created_s(event)
            self._created_s.move_to_end(key)
        while len(self._created_s) > MAX_KNOWN_DELIVERIES:
            self._created_s.popitem(last=False)

    def __contains__(self, event: Mapping[str, Any]) -> bool:
        keys = _keys_of(event)
        return bool(keys) and all(self._has(_digest(key), event) for key in keys)

    def _has(self, key: bytes, event: Mapping[str, Any]) -> bool:
        created_s = self._created_s.get(key)
        if created_s is None or event.get("type") not in _VOTES:
            return created_s is not None
        return 0 <= created_s - _created_s(event) <= _VOTE_DELAY_S  # else it is another vote with the same value


def _keys_of(event: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Return a key for each vote of an event, or one key if it is of another type. A malformed event has none."""
    try:
        change = event["change"]
        patchset = event["patchSet"]
        kind = event["type"]
        about = (kind, str(change["project"]), str(change["number"]), str(patchset["number"]))
        if kind not in _VOTES:
            return [about]
        who = event["author" if kind == "comment-added" else "reviewer"]
        name = str(who.get("username") or who.get("email") or who.get("name"))
        return [(*about, name, str(vote["type"]), str(vote["value"])) for vote in event.get("approvals", ())]
    except (KeyError, TypeError, AttributeError):
        return []


def _digest(key: tuple[Any, ...]) -> bytes:
    """Return a short form of a key: a name may have a megabyte."""
    return hashlib.blake2b(repr(key).encode(errors="surrogatepass"), digest_size=16).digest()


def _created_s(event: Mapping[str, Any]) -> float:
    return epoch_s(event, "eventCreatedOn") or 0.0


def epoch_s(values: Mapping[str, Any], name: str) -> float | None:
    """Return a value in epoch seconds; None if it is not a time."""
    when = values.get(name)
    return float(when) if isinstance(when, int | float) and 0 <= when < 1e11 else None

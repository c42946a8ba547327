"""Limits of a source's deliveries: one delivery is accepted once within a window, and so many in a second."""

from __future__ import annotations

from collections import OrderedDict


class Replays:
    """The deliveries that were acknowledged lately.

    A delivery that was not acknowledged is none of them, so that its sender may send it again. A restart forgets all:
    exactness comes from the ids of events in ingest, and this only keeps copies out of the topic.

    Args:
      window_s: for which a delivery is remembered, seconds.
      most: the most deliveries; one more forgets the oldest.
    """

    def __init__(self, window_s: float, most: int) -> None:
        self._window_s, self._most = window_s, most
        self._known: OrderedDict[bytes, float] = OrderedDict()

    def has(self, key: bytes, now_s: float) -> bool:
        """Return whether the delivery was acknowledged within the window."""
        added_s = self._known.get(key)
        return added_s is not None and added_s >= now_s - self._window_s

    def __len__(self) -> int:
        return len(self._known)

    def add(self, key: bytes, now_s: float) -> None:
        """Remember an acknowledged delivery, and forget those before the window."""
        self._known[key] = now_s
        self._known.move_to_end(key)
        while len(self._known) > self._most or self._known[next(iter(self._known))] < now_s - self._window_s:
            self._known.popitem(last=False)


class Bucket:
    """A token bucket.

    Args:
      rate: tokens a second.
      burst: the most tokens; it starts with them.
    """

    def __init__(self, rate: float, burst: int) -> None:
        self._rate, self._burst = rate, burst
        self._tokens, self._seen_s = float(burst), 0.0  # full at any first time

    def take(self, now_s: float) -> float:
        """Take a token; return 0, or the seconds until there is one."""
        self._tokens = min(self._burst, self._tokens + (now_s - self._seen_s) * self._rate)
        self._seen_s = now_s
        if self._tokens < 1.0:
            return (1.0 - self._tokens) / self._rate
        self._tokens -= 1.0
        return 0.0

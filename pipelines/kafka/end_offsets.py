"""Cached end offsets of partitions, from which backlog and idleness are computed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from confluent_kafka.admin import OffsetSpec

from ciml.errors import EngineError
from ciml.kafka.options import KafkaOptions
from ciml.pipelines.kafka.broker import offsets_of

_TIMEOUT_S = 3.0  # a reader waits for the answer
_FORGET_S = 600.0


class Ends(NamedTuple):
    """The end of a partition at a time.

    Attributes:
      asked_s: epoch seconds just before the query: messages appended until then are below the end.
    """

    asked_s: float
    end: int


Ask = Callable[[Iterable[int]], Mapping[int, int]]


@dataclass
class TopicEnds:
    """The ends of a topic's partitions: one query for all recently used partitions, cached.

    Attributes:
      ask: returns the ends of partitions; raises `EngineError` without an answer.
    """

    ask: Ask
    clock: Callable[[], float] = time.time
    _wanted: dict[int, float] = field(default_factory=dict)
    _known: dict[int, Ends] = field(default_factory=dict)
    _failed_s: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, partition: int, age_s: float) -> Ends | None:
        """Return the end of a partition, at most ``age_s`` seconds old; None if the broker does not answer."""
        with self._lock:
            now = self.clock()
            self._wanted[partition] = now
            known = self._known.get(partition)
            if known is not None and 0 <= now - known.asked_s <= age_s:
                return known
            if 0 <= now - self._failed_s <= age_s:
                return None
            self._wanted = {each: since for each, since in self._wanted.items() if now - since < _FORGET_S}
            try:
                ends = self.ask(list(self._wanted))
            except EngineError:
                self._failed_s = now
                return None
            self._known = {each: Ends(now, end) for each, end in ends.items()}
            return self._known.get(partition)


_topics: dict[tuple[KafkaOptions, str], TopicEnds] = {}
_topics_lock = threading.Lock()


def end_of(options: KafkaOptions, topic: str, partition: int, age_s: float) -> Ends | None:
    """Return the end of a partition, at most ``age_s`` seconds old; None if the broker does not answer.

    Messages of open transactions count as unread.
    """
    key = (options, topic)
    with _topics_lock:
        if key not in _topics:
            _topics[key] = TopicEnds(
                lambda partitions: offsets_of(
                    options,
                    topic,
                    partitions,
                    OffsetSpec.latest(),
                    committed=False,
                    timeout_s=min(_TIMEOUT_S, options.timeout_s),
                )
            )
    return _topics[key].of(partition, age_s)

"""Where partitions end, asked seldom: what says how much is unread, and that nothing is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from confluent_kafka.admin import OffsetSpec

from ciml.errors import EngineError
from ciml.kafka.options import KafkaOptions
from pipelines.kafka.broker import offsets_of

_TIMEOUT_S = 3.0  # a reader waits for the answer
_FORGET_S = 600.0


class Ends(NamedTuple):
    """An answer of the broker.

    Attributes:
      asked_s: epoch seconds right before the broker was asked: what was appended until then is below the end.
      end: the offset after the last message of a partition, committed or not.
    """

    asked_s: float
    end: int


Ask = Callable[[Iterable[int]], Mapping[int, int]]


@dataclass
class TopicEnds:
    """The ends of a topic's partitions: one question for all that were asked for lately, and its answer kept.

    Attributes:
      ask: from partitions to their ends; raises `EngineError` where there is no answer.
    """

    ask: Ask
    clock: Callable[[], float] = time.time
    _wanted: dict[int, float] = field(default_factory=dict)
    _known: dict[int, Ends] = field(default_factory=dict)
    _failed_s: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, partition: int, age_s: float) -> Ends | None:
        """Return the end of a partition, at most ``age_s`` old; None where the broker does not answer."""
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
    """Where a partition ends, as the broker said at most ``age_s`` seconds ago to this process; None without answer.

    Messages of transactions that are open count: they are unread.
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

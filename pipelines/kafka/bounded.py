"""Reads a range of a partition to its end. It needs no Beam."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

from ciml.errors import EngineError
from ciml.events.records import Message
from ciml.kafka.options import KafkaOptions, ReadOptions
from ciml.pipelines.kafka.broker import check_topic
from ciml.pipelines.kafka.plan import PartitionRead
from ciml.pipelines.kafka.reader import borrow

_ASK_S = 3.0


class Part(NamedTuple):
    """Consecutive offsets of a partition, from ``start`` up to ``end``, and their messages.

    The last part of a range may reach beyond the range's end: a message is fetched with those that follow it.
    """

    start: int
    end: int
    messages: list[Message]


def read_range(
    kafka: KafkaOptions, read: PartitionRead, start: int, end: Callable[[], int], options: ReadOptions
) -> Iterator[Part]:
    """Yield the parts of a range of a partition.

    Args:
      kafka: connection to the broker.
      read: names the partition.
      start: the first offset.
      end: returns the offset after the last one; it may become smaller while the range is read.
      options: largest number of messages of a part, and the longest wait for one.

    Raises:
      EngineError: the broker does not answer, or holds fewer messages than it said.
      IntegrityError: the topic was deleted or made again, or unread offsets expired.
    """
    position = start
    with borrow(kafka, read.topic, read.partition) as reader:
        reader.seek(position)
        moved = asked = time.monotonic()
        while position < (stop := end()):
            found = reader.read(min(options.batch_messages, stop - position), 0.5)
            if reader.position > position:
                moved = time.monotonic()
                yield Part(position, reader.position, found)
                position = min(reader.position, end())
                continue
            if time.monotonic() > asked + _ASK_S:  # a consumer learns late, or never, that a topic was deleted
                asked = time.monotonic()
                with suppress(EngineError):
                    check_topic(kafka, read.topic, read.topic_id)
            if time.monotonic() - moved > options.stall_s:
                raise EngineError(
                    f"{read.where} {position}: no message within {options.stall_s:.0f} s, although it ends at {stop}"
                )

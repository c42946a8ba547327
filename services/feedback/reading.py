"""Reads the topic `predictions` and commits what is to be said of it, with its offsets."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from ciml.errors import EngineError, RejectedInput
from ciml.events.json_input import parse_json
from ciml.events.records import Message, OffsetRange
from ciml.kafka.options import KafkaOptions
from ciml.manifest.coverage import NewCoverage
from ciml.manifest.log import Delta
from pipelines.kafka.broker import check_topic
from pipelines.kafka.plan import PartitionRead
from pipelines.kafka.reader import borrow
from services.feedback.config import Feedback
from services.feedback.policy import Item, judge
from services.feedback.state import FeedbackState

_log = logging.getLogger(__name__)

#: Messages of one commit: their verdicts take at most 16 MB.
_MESSAGES = 500
_STALL_S, _ASK_S = 60.0, 3.0


def batches(kafka: KafkaOptions, read: PartitionRead) -> Iterator[tuple[OffsetRange, list[Message]]]:
    """Yield the messages of a bounded read in parts, each with the offsets that it covers.

    Raises:
      EngineError: the broker does not answer, or holds fewer messages than it said.
      IntegrityError: the topic was deleted or made again, or unread offsets expired.
    """
    position, end = read.start, read.end or read.start
    with borrow(kafka, read.topic, read.partition) as reader:
        reader.seek(position)
        moved = asked = time.monotonic()
        while position < end:
            found = reader.read(min(_MESSAGES, end - position), 0.5)
            if reader.position > position:
                until, moved = min(reader.position, end), time.monotonic()
                yield (
                    OffsetRange(read.topic, read.topic_id, read.partition, position, until),
                    [message for message in found if message.offset < until],
                )
                position = until
                continue
            if time.monotonic() > asked + _ASK_S:  # a consumer learns late, or never, that a topic was deleted
                asked = time.monotonic()
                with suppress(EngineError):
                    check_topic(kafka, read.topic, read.topic_id)
            if time.monotonic() - moved > _STALL_S:
                raise EngineError(
                    f"{read.where} {position}: no message within {_STALL_S:.0f} s, although it ends at {end}"
                )


def taken(
    state: FeedbackState, covers: OffsetRange, messages: list[Message], feedback: Feedback, now_us: int
) -> Delta | None:
    """Return the delta that covers messages, and holds the verdicts that are to be said; None if all are covered."""
    offsets = NewCoverage(state)
    fresh = offsets.add(covers)
    if not fresh:
        return None
    items, silent = [], Counter[str]()
    muted = sorted(state.muted)
    for message in messages:
        if message.offset in fresh:
            found = decided(message, lambda record: judge(record, feedback, muted, now_us))
            if isinstance(found, Item):
                items.append(found.to_json())
            else:
                silent[found] += 1
    return {"time_us": now_us, "offsets": offsets.to_json(), "verdicts": items, "silent": dict(sorted(silent.items()))}


def decided(message: Message, decide: Callable[[dict[str, Any]], Item | str]) -> Item | str:
    """Return the decision on a message of the topic. One that cannot be read, or makes it fail, costs only itself."""
    try:
        record = parse_json(message.value or b"")
        return decide(record) if isinstance(record, dict) else "bad_record"
    except RejectedInput:
        return "bad_record"
    except Exception:  # noqa: BLE001
        _log.exception("the prediction at offset %d cannot be used", message.offset)
        return "bad_record"

"""Reads the topic `predictions` and commits what is to be said of it, with its offsets."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from ciml.errors import RejectedInput
from ciml.events.json_input import parse_json
from ciml.events.records import Message, OffsetRange
from ciml.kafka.options import KafkaOptions, ReadOptions
from ciml.manifest.coverage import NewCoverage
from ciml.manifest.log import Delta
from pipelines.kafka.bounded import read_range
from pipelines.kafka.plan import PartitionRead
from services.feedback.config import Feedback
from services.feedback.policy import Item, judge
from services.feedback.state import FeedbackState

_log = logging.getLogger(__name__)

#: A commit has 500 messages at most: their verdicts take at most 16 MB.
_READ = ReadOptions(batch_messages=500)


def batches(kafka: KafkaOptions, read: PartitionRead) -> Iterator[tuple[OffsetRange, list[Message]]]:
    """Yield the messages of a bounded read in parts, each with the offsets that it covers. Raises as `read_range`."""
    end = read.end or read.start
    for part in read_range(kafka, read, read.start, lambda: end, _READ):
        covers = OffsetRange(read.topic, read.topic_id, read.partition, part.start, min(part.end, end))
        yield covers, [message for message in part.messages if message.offset < end]


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

"""Kafka client without Beam: options, queries to a broker, and readers of one partition."""

from __future__ import annotations

from ciml.kafka.connect import NoTopicError, admin, as_engine_error
from ciml.kafka.options import KafkaOptions, read_properties
from pipelines.kafka.broker import (
    Listing,
    check_still_that_topic,
    check_topic,
    is_mock,
    list_again,
    list_topic,
    make_topic,
)
from pipelines.kafka.reader import Reader, borrow, close_readers

__all__ = [
    "KafkaOptions", "Listing", "NoTopicError", "Reader", "admin", "as_engine_error", "borrow",
    "check_still_that_topic", "check_topic", "close_readers", "is_mock", "list_again", "list_topic", "make_topic",
    "read_properties",
]  # fmt: skip

"""Kafka as ciml uses it, without Beam: options, questions to a broker, and readers of one partition."""

from __future__ import annotations

from pipelines.kafka_broker import (
    Listing,
    check_still_that_topic,
    check_topic,
    is_mock,
    list_again,
    list_topic,
    make_topic,
)
from pipelines.kafka_connect import NoTopicError, admin, as_engine_error
from pipelines.kafka_options import KafkaOptions, read_properties
from pipelines.kafka_reader import Reader, borrow, close_readers

__all__ = [
    "KafkaOptions", "Listing", "NoTopicError", "Reader", "admin", "as_engine_error", "borrow",
    "check_still_that_topic", "check_topic", "close_readers", "is_mock", "list_again", "list_topic", "make_topic",
    "read_properties",
]  # fmt: skip

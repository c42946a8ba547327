"""A real broker that compacts a topic removes the records of erased runs; without compaction, none is removed."""

from __future__ import annotations

import time
import uuid
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from ciml.errors import EngineError
from ciml.kafka import KafkaOptions
from ciml.pipelines.kafka.broker import make_topic
from ciml.services.stored import erase as erase_module
from ciml.services.stored.erase import is_compacted, write_tombstones

COMPACTED = {
    "cleanup.policy": "compact",
    "min.cleanable.dirty.ratio": "0.001",
    "segment.ms": "100",
    "delete.retention.ms": "100",
    "min.compaction.lag.ms": "0",
}
ERASED, OTHER = "zuul~alice~1", "zuul~bob~1"


def produce(kafka: str, topic: str, *keys: str) -> None:
    producer = Producer({"bootstrap.servers": kafka})
    for key in keys:
        producer.produce(topic, f"the run {key}".encode(), key.encode())
    assert producer.flush(30) == 0


def read(kafka: str, topic: str) -> list[tuple[str, bytes | None]]:
    """Read all records of the topic's one partition."""
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": "g", "enable.auto.commit": False})
    try:
        place = TopicPartition(topic, 0)
        first, end = consumer.get_watermark_offsets(place, timeout=30)
        consumer.assign([TopicPartition(topic, 0, first)])
        records: list[tuple[str, bytes | None]] = []
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for message in consumer.consume(1000, 1.0):
                assert message.error() is None
                records.append(((message.key() or b"").decode(), message.value()))
            (position,) = consumer.position([place])
            if position.offset >= end:
                return records
        raise AssertionError("the topic was not read to its end")
    finally:
        consumer.close()


@pytest.mark.engines
def test_records_of_erased_runs_leave_a_compacted_topic(kafka: str) -> None:
    topic = f"runs-{uuid.uuid4().hex[:8]}"
    options = KafkaOptions(kafka)
    make_topic(options, topic, 1, {"retention.ms": "-1", "cleanup.policy": "delete"})
    assert not is_compacted(options, topic)
    produce(kafka, topic, ERASED, OTHER, ERASED)
    write_tombstones(options, topic, [ERASED])
    assert [key for key, value in read(kafka, topic)] == [ERASED, OTHER, ERASED, ERASED]
    assert read(kafka, topic)[-1] == (ERASED, None)
    entries = [
        ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in COMPACTED.items()
    ]
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
    client = AdminClient({"bootstrap.servers": kafka})
    client.incremental_alter_configs([resource])[resource].result(30)
    assert is_compacted(options, topic)
    deadline = time.monotonic() + 120
    while ERASED in (left := [key for key, _ in read(kafka, topic)]):
        assert time.monotonic() < deadline, left
        produce(kafka, topic, f"later-{uuid.uuid4().hex}")  # the broker never compacts the segment that it writes to
        time.sleep(2)
    assert OTHER in left


def test_a_tombstone_that_is_not_delivered_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def __init__(self, _: Any) -> None:
            pass

        def produce(self, *_: Any, key: bytes = b"", on_delivery: Any, **__: Any) -> None:
            calls.append(on_delivery)

        def poll(self, _: float) -> int:
            return 0

        def flush(self, _: float) -> int:
            for number, delivered in enumerate(calls):
                delivered(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE) if number else None, None)
            return 0

    calls: list[Any] = []
    monkeypatch.setattr(erase_module, "Producer", Refusing)
    with pytest.raises(EngineError):
        write_tombstones(KafkaOptions("localhost:1"), "runs", [OTHER, ERASED])
    assert len(calls) == 2

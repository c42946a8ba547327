"""Removes the records of erased runs from topics: a tombstone for each run id, which is the key of its records."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import ConfigResource, ResourceType

from ciml.errors import EngineError
from ciml.kafka import KafkaOptions
from ciml.kafka.connect import admin, as_engine_error
from ciml.pipelines.kafka.publish import enqueue

#: The topics of ciml whose records have the run id as their key.
TOPICS = ("runs", "predictions")
_WAIT_S = 30.0


def write_tombstones(kafka: KafkaOptions, topic: str, run_ids: Collection[str]) -> None:
    """Write a tombstone for each run to a topic. The broker removes the records of its key when it compacts the topic.

    Raises:
      EngineError: the broker does not answer, or there is no such topic.
    """
    failures: list[KafkaError] = []

    def delivered(error: KafkaError | None, _: Any) -> None:
        if error is not None:
            failures.append(error)

    producer = Producer(
        {**kafka.common(), "enable.idempotence": True, "linger.ms": 5, "allow.auto.create.topics": False}
    )
    for run_id in run_ids:
        enqueue(producer, topic, None, run_id.encode(), on_delivery=delivered)
    if producer.flush(_WAIT_S):
        raise EngineError(f"topic {topic}: the broker did not accept all tombstones within {_WAIT_S:g} s")
    if failures:
        raise as_engine_error(kafka, topic, KafkaException(failures[0]))


def is_compacted(kafka: KafkaOptions, topic: str) -> bool:
    """Return whether a topic is compacted, so that tombstones remove records.

    Raises:
      EngineError: the broker does not answer, or there is no such topic.
    """
    resource = ConfigResource(ResourceType.TOPIC, topic)
    try:
        entries = admin(kafka).describe_configs([resource], request_timeout=_WAIT_S)[resource].result()
    except KafkaException as error:
        raise as_engine_error(kafka, topic, error) from None
    return "compact" in entries["cleanup.policy"].value

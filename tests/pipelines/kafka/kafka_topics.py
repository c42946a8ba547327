"""What tests do to topics, and events that need no logs."""

from __future__ import annotations

import contextlib

from apache_beam.utils.timestamp import Duration

from ciml.errors import EngineError
from ciml.events.cloudevents import STARTED, run_event
from ciml.events.records import RunFacts
from ciml.events.run_id import RunId
from ciml.kafka import KafkaOptions
from ciml.kafka.connect import admin
from ciml.pipelines.kafka.broker import list_topic
from ciml.pipelines.kafka.source import FOREVER, OffsetTracker, Restriction
from ciml.storage import Store
from tests.pipelines.ingest.ingesting import account, wait_for


def send_starts(broker: str, topic: str, partition: int, count: int, first: int = 0, together: int = 1000) -> None:
    """Events that need no log: each is settled as ignored. A broker gives those ``together`` that were sent so."""
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": broker, "batch.num.messages": together})
    for number in range(first, first + count):
        native = f"{partition}.{number}"
        facts = RunFacts(RunId("zuul", native).encode(), native, "job", "started", source="zuul")
        value, headers = run_event(STARTED, facts)
        producer.produce(topic, value, headers=headers, partition=partition)
    assert producer.flush(30) == 0


def add_partitions(options: KafkaOptions, topic: str, total: int) -> None:
    from confluent_kafka.admin import NewPartitions

    admin(options).create_partitions([NewPartitions(topic, total)])[topic].result()
    wait_for(lambda: len(list_topic(options, topic).bounds) == total)


def delete(options: KafkaOptions, topic: str) -> None:
    admin(options).delete_topics([topic])[topic].result()


def recreate(options: KafkaOptions, topic: str, partitions: int = 1) -> None:
    """Delete a topic and create it again; wait until the broker, which confirms both earlier, names the new one."""
    from confluent_kafka.admin import NewTopic

    def is_created() -> bool:
        return admin(options).create_topics([NewTopic(topic, partitions, 1)])[topic].exception() is None

    def is_listed() -> bool:
        with contextlib.suppress(EngineError):
            return list_topic(options, topic).topic_id != before
        return False

    before = list_topic(options, topic).topic_id
    delete(options, topic)
    wait_for(is_created)
    wait_for(is_listed)


def delete_records(options: KafkaOptions, topic: str, partition: int, before: int) -> None:
    """What retention does, at once."""
    from confluent_kafka import TopicPartition

    for future in admin(options).delete_records([TopicPartition(topic, partition, before)]).values():
        future.result()


def covered(raw: Store, topic: str) -> dict[int, list[tuple[int, int]]]:
    return {partition: list(ranges) for name, partition, ranges in account(raw)[0].partitions() if name == topic}


def settled(raw: Store) -> int:
    return sum(account(raw)[0].counts.values())


class Slice:
    """A restriction as Beam shows it to a reader. ``rests_s`` is the pause of the reader, None before one."""

    def __init__(self, start: int = 0) -> None:
        self._tracker = OffsetTracker(Restriction(start, FOREVER))
        self.current_restriction = self._tracker.current_restriction
        self.try_claim = self._tracker.try_claim
        self.rests_s: float | None = None

    def defer_remainder(self, pause: Duration = Duration(0)) -> None:  # noqa: B008
        self.rests_s = float(pause)
        self._tracker.try_split(0)

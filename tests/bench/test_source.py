"""The Kafka source with JSON decoding, as a ratio to a plain loop that reads and decodes the same messages."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import pytest

from ciml.events.records import Batch
from ciml.runs.state import RawState

pytestmark = [pytest.mark.bench, pytest.mark.engines]

MESSAGES = 200_000
SIZE = 500
ROUNDS = 5


class Decoded:
    """What the decoding stage saw, in this process: both runners here work in its threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.clear()

    def clear(self) -> None:
        with self._changed:
            self.count, self.total, self.first_s, self.last_s = 0, 0, 0.0, 0.0

    def add(self, count: int, total: int) -> None:
        with self._changed:
            self.last_s = time.perf_counter()
            self.first_s = self.first_s or self.last_s
            self.count += count
            self.total += total
            self._changed.notify_all()

    def wait(self, count: int, most_s: float = 120.0) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.count >= count, most_s), f"{self.count} of {count}"


decoded = Decoded()


def decode_json(batch: Batch) -> None:
    values = [json.loads(message.value or b"") for message in batch.messages]
    decoded.add(len(values), sum(value["number"] for value in values))


@pytest.fixture(scope="module")
def messages(kafka: str) -> Iterator[tuple[str, str]]:
    """(broker, topic) with the messages in one partition."""
    from confluent_kafka import Producer

    from ciml.kafka import KafkaOptions
    from ciml.kafka.connect import admin
    from ciml.pipelines.kafka.broker import make_topic

    topic = f"bench-{time.time_ns()}"
    make_topic(KafkaOptions(kafka), topic)
    producer = Producer({"bootstrap.servers": kafka, "linger.ms": 20, "queue.buffering.max.messages": MESSAGES + 1})
    empty = len(json.dumps({"number": 100_000, "what": "run", "fields": ["a", "b", "c"], "text": ""}))
    for number in range(MESSAGES):
        value = {"number": 100_000 + number, "what": "run", "fields": ["a", "b", "c"], "text": "x" * (SIZE - empty)}
        producer.produce(topic, json.dumps(value), partition=0)
    assert producer.flush(120) == 0
    yield kafka, topic
    admin(KafkaOptions(kafka)).delete_topics([topic])[topic].result()


def plain(broker: str, topic: str) -> float:
    """A loop over `Consumer.consume`; s from the first message to the last."""
    from confluent_kafka import Consumer, TopicPartition

    settings = {
        "group.id": "plain",
        "enable.auto.commit": False,
        "fetch.queue.backoff.ms": 10,
    }  # else it waits a second
    consumer = Consumer({"bootstrap.servers": broker, **settings})
    consumer.assign([TopicPartition(topic, 0, 0)])
    count = total = 0
    began = 0.0
    while count < MESSAGES:
        found = consumer.consume(1000, 10)
        began = began or time.perf_counter()
        values = [json.loads(message.value()) for message in found]
        count, total = count + len(values), total + sum(value["number"] for value in values)
    took = time.perf_counter() - began
    consumer.close()
    assert total == sum(range(100_000, 100_000 + MESSAGES))
    return took


def micro_batches(broker: str, topic: str) -> float:
    """One bounded pipeline; s from its first batch to its end."""
    import apache_beam as beam

    from ciml.kafka import KafkaOptions
    from ciml.pipelines.flink.submit import run_here
    from ciml.pipelines.kafka.broker import list_topic
    from ciml.pipelines.kafka.plan import plan
    from ciml.pipelines.kafka.reader import close_readers
    from ciml.pipelines.kafka.source import ReadFromKafka

    options = KafkaOptions(broker)
    decoded.clear()
    began = time.perf_counter()
    reads = plan(RawState(), list_topic(options, topic), bounded=True)
    run_here(lambda p: p | ReadFromKafka(options, reads) | beam.Map(decode_json))
    took = time.perf_counter() - began
    close_readers()
    assert (decoded.count, decoded.total) == (MESSAGES, sum(range(100_000, 100_000 + MESSAGES)))
    return took


def compare(what: str, ours: Callable[[], float], other: Callable[[], float], aim: float) -> None:
    """Turn about, so that whatever else the machine does meets both."""
    other(), ours()
    pairs = [(ours(), other()) for _ in range(ROUNDS)]
    ratio = median(theirs / mine for mine, theirs in pairs)
    mine, theirs = (median(times) for times in zip(*pairs, strict=True))
    print(
        f"\n{what}: {MESSAGES / mine:,.0f}/s; plain loop: {MESSAGES / theirs:,.0f}/s; "
        f"ratio {ratio:.2f} (aim {aim}; pairs: {', '.join(f'{b / a:.2f}' for a, b in pairs)})"
    )


def test_micro_batches_against_a_plain_loop(messages: tuple[str, str]) -> None:
    """The start of the pipeline is in: a micro-batch has one each."""
    compare("source and JSON, micro-batches", lambda: micro_batches(*messages), lambda: plain(*messages), 0.5)


def test_flink_against_a_plain_loop(messages: tuple[str, str], flink_jobs: str) -> None:
    """Steady state: from the first batch to the last; the start of the job, some seconds, is told apart."""
    starts: list[float] = []

    def on_flink() -> float:
        took, start = flink_seconds(*messages, flink_jobs)
        starts.append(start)
        return took

    compare("source and JSON, Flink (steady)", on_flink, lambda: plain(*messages), 0.2)
    print(f"start of the job: {median(starts):.1f} s")


def flink_seconds(broker: str, topic: str, endpoint: str) -> tuple[float, float]:
    """(s from the first batch to the last, s from the submission to the first batch)."""
    import apache_beam as beam

    from ciml.kafka import KafkaOptions
    from ciml.pipelines.flink.submit import FlinkJob, flink_options
    from ciml.pipelines.kafka.broker import list_topic
    from ciml.pipelines.kafka.plan import plan
    from ciml.pipelines.kafka.reader import close_readers
    from ciml.pipelines.kafka.source import ReadFromKafka

    options = KafkaOptions(broker)
    decoded.clear()
    reads = plan(RawState(), list_topic(options, topic), bounded=False)

    def build(pipeline: Any) -> None:
        pipeline | ReadFromKafka(options, reads) | beam.Map(decode_json)

    began = time.perf_counter()
    job = FlinkJob(build, flink_options(endpoint, "bench-source"))
    try:
        decoded.wait(MESSAGES)
    finally:
        job.cancel()
        close_readers()
    assert (decoded.count, decoded.total) == (MESSAGES, sum(range(100_000, 100_000 + MESSAGES)))
    return decoded.last_s - decoded.first_s, decoded.first_s - began

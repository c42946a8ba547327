"""The Kafka source, and ingest of real logs end to end, as ratios to loops of the same pure functions."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ciml.data_root import DataRoot
from ciml.engines.processes import free_ports
from ciml.events.cloudevents import finished_event
from ciml.events.records import Batch, Message, OffsetRange
from ciml.events.run_facts import facts_from_listing
from ciml.events.run_id import RunId
from ciml.kafka import KafkaOptions
from ciml.manifest.log import ManifestLog
from ciml.runs.state import RawState
from ciml.runs.writer import store
from ciml.transforms.fetch.fetch import Fetcher
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.transforms.ingest.decode import decode
from ciml.transforms.parse.logs import parse
from ciml.trust import TrustPolicy, evaluate_batch
from tests.bench.measuring import FOLDER, listed_runs, report_ratio

pytestmark = [pytest.mark.bench, pytest.mark.engines, pytest.mark.timeout(900)]

MESSAGES, SIZE = 200_000, 500
TOTAL = sum(range(100_000, 100_000 + MESSAGES))
EVENTS, BATCH = 6_000, 500


@contextmanager
def filled_topic(kafka: str, messages: Iterator[tuple[bytes, Any]]) -> Iterator[str]:
    """A topic with these values and headers in one partition."""
    from confluent_kafka import Producer

    from ciml.kafka.connect import admin
    from ciml.pipelines.kafka.broker import make_topic

    topic = f"bench-{time.time_ns()}"
    make_topic(KafkaOptions(kafka), topic)
    producer = Producer({"bootstrap.servers": kafka, "linger.ms": 20, "queue.buffering.max.messages": MESSAGES + 1})
    for value, headers in messages:
        producer.produce(topic, value, headers=headers, partition=0)
    assert producer.flush(120) == 0
    yield topic
    admin(KafkaOptions(kafka)).delete_topics([topic])[topic].result()


def compare(name: str, ours: Callable[[], float], other: Callable[[], float], count: int, aim: float) -> None:
    """Measure in turns, so that other load of the machine meets both."""
    other(), ours()
    report_ratio(name, [(ours(), other()) for _ in range(3)], "the loop", count, f" (aim {aim})")


# --- the source


class Decoded:
    """What the decoding stage saw, in this process: both runners here work in its threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.clear()

    def clear(self) -> None:
        self.count, self.total, self.first_s, self.last_s = 0, 0, 0.0, 0.0

    def add(self, batch: Batch) -> None:
        numbers = [json.loads(message.value or b"")["number"] for message in batch.messages]
        with self._changed:
            self.last_s = time.perf_counter()
            self.first_s = self.first_s or self.last_s
            self.count += len(numbers)
            self.total += sum(numbers)
            self._changed.notify_all()

    def wait(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.count >= MESSAGES, 120.0), self.count
        assert (self.count, self.total) == (MESSAGES, TOTAL)


decoded = Decoded()


def decode_json(batch: Batch) -> None:
    decoded.add(batch)


@pytest.fixture(scope="module")
def source(kafka: str) -> Iterator[tuple[str, str]]:
    """(broker, topic) with JSON messages."""
    empty = len(json.dumps({"number": 100_000, "what": "run", "fields": ["a", "b", "c"], "text": ""}))
    usual = {"what": "run", "fields": ["a", "b", "c"], "text": "x" * (SIZE - empty)}
    values = (json.dumps({"number": 100_000 + number, **usual}).encode() for number in range(MESSAGES))
    with filled_topic(kafka, ((value, []) for value in values)) as topic:
        yield kafka, topic


def consume(broker: str, topic: str) -> float:
    """A loop over `Consumer.consume`; return the seconds from the first message to the last."""
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
        numbers = [json.loads(message.value())["number"] for message in found]
        count, total = count + len(numbers), total + sum(numbers)
    took = time.perf_counter() - began
    consumer.close()
    assert total == TOTAL
    return took


@contextmanager
def reading(broker: str, topic: str, *, bounded: bool) -> Iterator[Callable[[Any], Any]]:
    """What builds a pipeline that reads and decodes the topic."""
    import apache_beam as beam

    from ciml.pipelines.kafka.broker import list_topic
    from ciml.pipelines.kafka.plan import plan
    from ciml.pipelines.kafka.reader import close_readers
    from ciml.pipelines.kafka.source import ReadFromKafka

    options = KafkaOptions(broker)
    decoded.clear()
    reads = plan(RawState(), list_topic(options, topic), bounded=bounded)
    yield lambda pipeline: pipeline | ReadFromKafka(options, reads) | beam.Map(decode_json)
    close_readers()
    decoded.wait()


def test_source_in_micro_batches(source: tuple[str, str]) -> None:
    """The start of the pipeline is included: a micro-batch has one each."""

    def ours() -> float:
        from ciml.transforms.beam import run_here

        began = time.perf_counter()
        with reading(*source, bounded=True) as build:
            run_here(build)
        return time.perf_counter() - began

    compare("source and JSON, micro-batches", ours, lambda: consume(*source), MESSAGES, 0.5)


def test_source_on_flink(source: tuple[str, str], flink_jobs: str) -> None:
    """Steady state: from the first batch to the last."""

    def ours() -> float:
        from ciml.pipelines.flink.submit import FlinkJob, flink_options

        with reading(*source, bounded=False) as build:
            job = FlinkJob(build, flink_options(flink_jobs, "bench-source"))
            try:
                decoded.wait()
            finally:
                job.cancel()
        return decoded.last_s - decoded.first_s

    compare("source and JSON, Flink (steady)", ours, lambda: consume(*source), MESSAGES, 0.2)


# --- ingest


@dataclass(frozen=True)
class Scene:
    """Events of real logs in one partition, and an HTTP server that has the logs, in a process of its own."""

    broker: str
    topic: str
    messages: list[Message]
    fetch: FetchPolicy


@pytest.fixture(scope="module")
def scene(kafka: str) -> Iterator[Scene]:
    port, builds, messages = free_ports(1)[0], listed_runs(), []
    command = [sys.executable, "-m", "ciml.engines.programs", "logs", str(FOLDER), str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for number in range(EVENTS):
        build = builds[number % len(builds)]
        native = f"{build['build_uuid']}.{number // len(builds)}"
        url = f"http://127.0.0.1:{port}/{build['log_path']}"
        mention = facts_from_listing(build, source="zuul").replace(
            run_id=RunId("zuul", native).encode(), build_uuid=native, pipeline="gate", event="", log_url=url,
        )  # fmt: skip
        value, headers = finished_event(mention, event_id=native)
        messages.append(Message(number, value, tuple(headers)))
    with filled_topic(kafka, ((one.value or b"", list(one.headers)) for one in messages)) as topic:
        fetch = FetchPolicy(threads=16).allowing(hosts=(f"http://127.0.0.1:{port}",))
        yield Scene(kafka, topic, messages, fetch)
    server.terminate()
    server.wait(10)


def loop(scene: Scene, folder: Path) -> float:
    """The pure functions, batch by batch, without a commit; return the seconds."""
    raw, trust, fetcher = DataRoot.open(str(folder)).raw, TrustPolicy.load(), Fetcher(scene.fetch)
    runs = 0
    began = time.perf_counter()
    for at in range(0, EVENTS, BATCH):
        covers = OffsetRange(scene.topic, "", 0, at, at + BATCH)
        batch = evaluate_batch(decode(Batch(covers, messages=scene.messages[at : at + BATCH])), trust)
        batch = store(parse(fetcher.fetch(batch, int(time.time() * 1e6))), raw)
        runs += sum(outcome.kind == "run" for outcome in batch.settled)
    took = time.perf_counter() - began
    fetcher.close()
    assert runs == EVENTS
    return took


def ingest(scene: Scene, folder: Path, endpoint: str = "") -> tuple[float, float]:
    """Ingest, with commits and starts: return (all seconds, those between the first commit and the last, scaled)."""
    import ciml.pipelines.flink.submit  # noqa: F401  (Beam; its import is not a batch's time)
    from ciml.pipelines.ingest.committer import IngestConfig
    from ciml.services.driver import drive
    from ciml.services.ingest import IngestService

    # Runs are not announced here: the loop announces nothing either.
    raw = DataRoot.open(str(folder)).raw
    config = IngestConfig(raw, scene.topic, "", kafka=KafkaOptions(scene.broker), fetch=scene.fetch)
    began = time.time()
    drive(IngestService(config), endpoint or None, until="end")
    took = time.time() - began
    commits = [(delta["time_us"] / 1e6, len(delta["runs"])) for _, delta in ManifestLog(raw).since(0)]
    assert len(commits) > 1
    assert sum(count for _, count in commits) == EVENTS
    return took, (commits[-1][0] - commits[0][0]) / (EVENTS - commits[0][1]) * EVENTS


@pytest.mark.parametrize("engine", ["micro-batches", "flink"])
def test_ingest_against_a_loop(scene: Scene, tmp_path: Path, engine: str, request: pytest.FixtureRequest) -> None:
    endpoint = request.getfixturevalue("flink_jobs") if engine == "flink" else ""
    loop(scene, tmp_path / "warm")
    whole = []
    steady = []
    for number in range(3):
        all_s, steady_s = ingest(scene, tmp_path / f"ours-{number}", endpoint)
        other = loop(scene, tmp_path / f"loop-{number}")
        whole.append((all_s, other))
        steady.append((steady_s, other))
    report_ratio(f"ingest, {engine}, commits and starts included", whole, "the loop", EVENTS)
    report_ratio(f"ingest, {engine}, from the first commit to the last", steady, "the loop", EVENTS)

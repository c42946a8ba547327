"""Ingest of real logs end to end, as a ratio to a loop in one process of the same pure functions, without a commit."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from ciml.data_root import DataRoot
from ciml.events.cloudevents import finished_event
from ciml.events.records import Batch, Message, OffsetRange
from ciml.events.run_facts import facts_from_listing
from ciml.events.run_id import RunId
from ciml.runs.writer import store
from ciml.transforms.fetch.fetch import Fetcher
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.transforms.ingest.decode import decode
from ciml.transforms.parse.logs import parse
from ciml.trust import TrustPolicy, evaluate_batch
from tests.bench.real_runs import FOLDER, listed_runs

pytestmark = [pytest.mark.bench, pytest.mark.engines, pytest.mark.timeout(900)]

EVENTS = 6_000
BATCH = 500
ROUNDS = 3


@dataclass(frozen=True)
class Scene:
    """Events of real logs in one partition, and an HTTP server that has the logs, in a process of its own."""

    broker: str
    topic: str
    messages: list[Message]
    fetch: FetchPolicy


@pytest.fixture(scope="module")
def scene(kafka: str) -> Iterator[Scene]:
    from confluent_kafka import Producer

    from ciml.engines.processes import free_ports
    from ciml.kafka import KafkaOptions
    from ciml.kafka.connect import admin
    from ciml.pipelines.kafka.broker import make_topic

    port = free_ports(1)[0]
    command = [sys.executable, "-m", "ciml.engines.programs", "logs", str(FOLDER), str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    topic = f"bench-{time.time_ns()}"
    make_topic(KafkaOptions(kafka), topic)
    producer = Producer({"bootstrap.servers": kafka, "linger.ms": 20})
    builds = listed_runs()
    messages = []
    for number in range(EVENTS):
        build = builds[number % len(builds)]
        native = f"{build['build_uuid']}.{number // len(builds)}"
        url = f"http://127.0.0.1:{port}/{build['log_path']}"
        mention = facts_from_listing(build, source="zuul").replace(
            run_id=RunId("zuul", native).encode(), build_uuid=native, pipeline="gate", event="", log_url=url,
        )  # fmt: skip
        value, headers = finished_event(mention, event_id=native)
        messages.append(Message(number, value, tuple(headers)))
        producer.produce(topic, value, headers=headers, partition=0)
        producer.poll(0)
    assert producer.flush(60) == 0
    fetch = FetchPolicy(threads=16).allowing(hosts=(f"http://127.0.0.1:{port}",))
    yield Scene(kafka, topic, messages, fetch)
    server.terminate()
    server.wait(10)
    admin(KafkaOptions(kafka)).delete_topics([topic])[topic].result()


def direct(scene: Scene, folder: Path) -> float:
    """The pure functions, batch by batch; seconds."""
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


def config(scene: Scene, folder: Path) -> Any:
    from ciml.kafka import KafkaOptions
    from ciml.pipelines.ingest.committer import IngestConfig

    # Runs are not announced here: the loop announces nothing either.
    return IngestConfig(
        DataRoot.open(str(folder)).raw, scene.topic, "", kafka=KafkaOptions(scene.broker), fetch=scene.fetch
    )


def micro_batches(scene: Scene, folder: Path) -> float:
    """All of it, commits and the start of each pipeline included; seconds."""
    import ciml.pipelines.flink.submit  # noqa: F401  (Beam; its import is not a batch's time)
    from ciml.services.driver import drive
    from ciml.services.ingest import IngestService

    ours = config(scene, folder)
    began = time.perf_counter()
    drive(IngestService(ours), until="end")
    took = time.perf_counter() - began
    assert len(commits(ours)) > 1
    return took


def commits(ours: Any) -> list[tuple[float, int]]:
    """(when, how many runs) of each commit; all runs are there, once."""
    from ciml.manifest.log import ManifestLog

    found = [(delta["time_us"] / 1e6, len(delta["runs"])) for _, delta in ManifestLog(ours.raw).since(0)]
    assert sum(count for _, count in found) == EVENTS
    return found


def on_flink(scene: Scene, folder: Path, endpoint: str) -> tuple[float, float]:
    """(seconds an event needs between the first commit and the last, times all events; seconds of all of it)."""
    from ciml.services.driver import drive
    from ciml.services.ingest import IngestService

    ours = config(scene, folder)
    began = time.time()
    drive(IngestService(ours), endpoint, until="end")
    found = commits(ours)
    steady = (found[-1][0] - found[0][0]) / (EVENTS - found[0][1]) * EVENTS
    return steady, found[-1][0] - began


def tell(what: str, pairs: list[tuple[float, float]], aim: float) -> None:
    ratio = median(theirs / mine for mine, theirs in pairs)
    mine, theirs = (EVENTS / median(times) for times in zip(*pairs, strict=True))
    each = ", ".join(f"{theirs / mine:.2f}" for mine, theirs in pairs)
    print(f"\n{what}: {mine:,.0f} runs/s; the loop: {theirs:,.0f} runs/s; ratio {ratio:.2f} (aim {aim}; {each})")


def test_micro_batches_against_a_loop(scene: Scene, tmp_path: Path) -> None:
    direct(scene, tmp_path / "warm")
    pairs = [
        (micro_batches(scene, tmp_path / f"ours-{number}"), direct(scene, tmp_path / f"loop-{number}"))
        for number in range(ROUNDS)
    ]
    tell("ingest, micro-batches, commits and starts included", pairs, 0.5)


def test_flink_against_a_loop(scene: Scene, tmp_path: Path, flink_jobs: str) -> None:
    direct(scene, tmp_path / "warm")
    pairs, whole = [], []
    for number in range(ROUNDS):
        steady, all_of_it = on_flink(scene, tmp_path / f"ours-{number}", flink_jobs)
        other = direct(scene, tmp_path / f"loop-{number}")
        pairs.append((steady, other))
        whole.append((all_of_it, other))
    tell("ingest, Flink, from the first commit to the last", pairs, 0.3)
    tell("ingest, Flink, the start of the job included", whole, 0.3)

"""Deliveries with retries, while the receiver and its broker are killed at random; then the topic and ingest."""

from __future__ import annotations

import http.client
import json
import os
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ciml.data_root import DataRoot
from ciml.engines.processes import lasting_ports, python_environment
from ciml.kafka import KafkaOptions
from ciml.pipelines.ingest.committer import IngestConfig
from ciml.services.driver import drive
from ciml.services.ingest import IngestService
from ciml.transforms.fetch.policy import FetchPolicy
from tests.faults.children import Program
from tests.integrations.receivers.kept import wait
from tests.integrations.webhooks.hooking import SOURCE, Hooks, delivery, write_config
from tests.messages import published
from tests.pipelines.ingest.ingesting import account
from tests.pipelines.ingest.scenario import corpus_facts


@dataclass
class Receiving:
    """``ciml receive KIND`` in a process of its own, which may be killed and started again."""

    kind: str
    folder: Path
    config: str
    kafka: str
    topic: str
    probe: Path
    port: int = 0

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "receivers.toml").write_text(self.config)
        self.start()

    def start(self) -> None:
        environment = python_environment()
        environment["PYTHONPATH"] = os.pathsep.join([str(self.probe), environment.get("PYTHONPATH", "")])
        self.program = Program(
            [sys.executable, "-m", "ciml", "receive", self.kind, "--config",
             str(self.folder / "receivers.toml"), "--kafka", self.kafka, "--topic", self.topic],
            self.folder / "receiver.log", environment,
        )  # fmt: skip

    def kill(self) -> None:
        """Kill it, and start another one."""
        self.program.kill()
        self.start()


def receiving_webhooks(folder: Path, kafka: str, topic: str, probe: Path) -> Receiving:
    (port,) = lasting_ports(1)
    config = f"[webhooks]\nport = {port}\nanswer_s = 5\n{SOURCE}rate = 100000\nburst = 100000\n"
    write_config(folder)
    return Receiving("webhooks", folder, config, kafka, topic, probe, port)


def send_until_accepted(hooks: Hooks, body: bytes) -> None:
    """Send a delivery as a CI system with retries does, until it is acknowledged."""

    def is_accepted() -> bool:
        with suppress(OSError, http.client.HTTPException):
            return hooks.post(body).status == 202
        return False

    wait(is_accepted, "a delivery is not accepted", 240.0)


def run_bodies(number: int) -> list[bytes]:
    """The deliveries of runs ``r-0`` and so on, which are the events ``e-0`` and so on."""
    ((facts, log),) = corpus_facts(1)
    assert facts.start_us
    assert facts.end_us
    times = {"start_time": facts.start_us / 1e6, "end_time": facts.end_us / 1e6}
    return [delivery(each, result="SUCCESS", log_url=log.as_uri(), **times) for each in range(number)]


def ingest_and_compare(kafka: str, topic: str, data: Path, number: int, source: str) -> Counter[tuple[str, str]]:
    """Compare what was acknowledged (all of `run_bodies`) with the topic, and with the raw store after ingest."""
    stored = Counter(json.loads(each.value or b"")["id"] for each in published(kafka, topic, "ci-events"))
    assert set(stored) == {f"e-{each}" for each in range(number)}
    ((_, log),) = corpus_facts(1)
    config = IngestConfig(
        DataRoot.open(str(data)).raw,
        topic,
        f"{topic}-runs",
        kafka=KafkaOptions(kafka),
        fetch=FetchPolicy(file_roots=(str(log.parent),)),
    )
    drive(IngestService(config), until="end")
    state, deltas = account(config.raw)
    rows = [each["mention"]["run_id"] for delta in deltas for each in delta["runs"]]
    assert Counter(rows) == Counter(f"{source}~r-{each}~1" for each in range(number))
    counts = Counter(state.counts)
    assert counts == Counter({("run", ""): number}) + Counter({("repeat", "event"): stored.total() - number})
    return counts

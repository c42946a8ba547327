"""A mixed stream of events on real logs, and what the producer knows must become of each (event, run)."""

from __future__ import annotations

import gzip
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from ciml.events.cloudevents import STARTED, finished_event, run_event
from ciml.events.records import RunFacts
from ciml.events.run_id import RunId
from tests.corpus import CORPUS, builds


@dataclass
class Sent:
    """One message that the broker acknowledged: its position, and the runs that it names ("" for none)."""

    partition: int
    offset: int
    runs: tuple[str, ...]
    expected: tuple[str, str]


@dataclass
class Scenario:
    """What was sent. ``expected`` is the (kind, reason) of each (event, run) in the end, whatever the order.

    ``outputs`` are the stored outputs of jobs by run id, or why they are missing; None for an event that names none.
    """

    broker: str
    topic: str
    logs: Path
    sent: list[Sent] = field(default_factory=list)
    runs: set[str] = field(default_factory=set)
    untrusted: set[str] = field(default_factory=set)
    late: dict[Path, bytes] = field(default_factory=dict)
    outputs: dict[str, bytes | str | None] = field(default_factory=dict)

    def counts(self) -> Counter[tuple[str, str]]:
        return Counter(message.expected for message in self.sent for _ in message.runs)

    def log_arrives(self) -> None:
        """What was not there yet is there now."""
        for path, data in self.late.items():
            path.write_bytes(data)


def with_output(scenario: Scenario, facts: RunFacts, number: int) -> RunFacts:
    """Name the output of a run's job: a small or a large one, one that is not there, or none."""
    path = scenario.logs / f"{number}.output.gz"
    if number % 8 == 6:
        scenario.outputs[facts.run_id] = None
        return facts
    if number % 8 == 3:
        scenario.outputs[facts.run_id] = "log_not_found"
    else:
        lines = f"run {number}\n" * (20_000 if number % 8 == 5 else 1)
        path.write_bytes(gzip.compress(f"{lines}password=hunter2\n1 failed".encode()))
        scenario.outputs[facts.run_id] = f"{lines}password=REDACTED\n1 failed".encode()
    return facts.replace(output_url=path.as_uri())


def corpus_facts(count: int) -> list[tuple[RunFacts, Path]]:
    """Runs of the sample corpus, taken again under other ids where there are not enough."""
    lines = builds(120)
    found = []
    for number in range(count):
        build = lines[number % len(lines)]
        native = f"{build['build_uuid']}.{number // len(lines)}"
        facts = RunFacts(
            run_id=RunId("zuul", native).encode(), build_uuid=native, build_name=build["build_name"],
            outcome="success", result="SUCCESS", source="zuul", pipeline="gate", project="p", branch="main",
            change=str(number), provider=build["node_flavor"],
            start_us=_us(build["start_time"]), end_us=_us(build["end_time"]),
        )  # fmt: skip
        found.append((facts, CORPUS / build["log_path"]))
    return found


def _us(text: str) -> int:
    return round(datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() * 1_000_000)


def send(
    broker: str, topic: str, partitions: int, folder: Path, runs: int = 60, first: int = 0, to: Scenario | None = None
) -> Scenario:
    """Sends runs of which every fourth meets one of the tricks. What is said of one run is in one partition.

    ``first`` is how many runs an earlier wave has sent, and ``to`` the scenario of that wave, if it goes on.
    """
    from confluent_kafka import Producer

    scenario = to or Scenario(broker, topic, folder)
    producer = Producer({"bootstrap.servers": broker, "linger.ms": 5, "enable.idempotence": True})
    folder.mkdir(parents=True, exist_ok=True)

    def emit(value: bytes | None, headers: Any, key: str, names: tuple[str, ...], kind: str, reason: str = "") -> None:
        def done(error: Any, message: Any) -> None:
            assert error is None
            scenario.sent.append(Sent(message.partition(), message.offset(), names, (kind, reason)))

        partition = sum(key.encode()) % partitions
        producer.produce(topic, value, key.encode(), headers=headers, partition=partition, on_delivery=done)
        producer.poll(0)

    def say(facts: RunFacts, event: str, kind: str, reason: str = "", event_type: str = "") -> None:
        if event_type:
            value, headers = run_event(event_type, facts, event_id=event)
        else:
            value, headers = finished_event(
                facts, event_id=event, mode=("structured", "binary", "bare")[len(event) % 3]
            )
        emit(value, headers, facts.run_id, (facts.run_id,), kind, reason)

    def ok(facts: RunFacts) -> RunFacts:
        scenario.runs.add(facts.run_id)
        say(facts, f"e-{facts.run_id}", "run")
        return facts

    def untrusted(facts: RunFacts, path: Path) -> None:
        scenario.untrusted.add(facts.run_id)
        ok(facts.replace(pipeline="check"))

    def other_log(facts: RunFacts, path: Path) -> None:
        ok(facts)
        text = gzip.decompress(path.read_bytes()).rstrip(b"\n")
        other = path.with_name(f"{path.name}.other")
        other.write_bytes(text[: text.rindex(b"\n") + 1])
        say(facts.replace(log_url=other.as_uri()), "other", "repeat", "other_log")

    def missing(facts: RunFacts, path: Path, kind: str) -> None:
        if kind == "run":
            scenario.late[path] = path.read_bytes()
            scenario.runs.add(facts.run_id)
        path.unlink()
        say(facts, "e-missing", kind, "" if kind == "run" else "log_not_found")

    def cut(facts: RunFacts, path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-20])
        say(facts, "e-cut", "dead_letter", "corrupt_gzip")

    tricks: list[Callable[[RunFacts, Path], None]] = [
        lambda m, p: emit(b"{not json", [], m.run_id, ("",), "dead_letter", "broken_json"),
        lambda m, p: say(ok(m), f"e-{m.run_id}", "repeat", "event"),
        lambda m, p: missing(m, p, "dead_letter"),
        untrusted,
        lambda m, p: say(
            ok(m).replace(phase="started", outcome=None, result=""), "s", "ignored", "not_finished", STARTED
        ),
        lambda m, p: say(m.replace(log_url="http://169.254.169.254/x"), "e-meta", "dead_letter", "address_not_allowed"),
        lambda m, p: say(m.replace(log_url="file:///etc/passwd"), "e-file", "dead_letter", "address_not_allowed"),
        lambda m, p: say(ok(m).replace(outcome="failure", result="FAILURE"), "e-again", "correction", "outcome"),
        lambda m, p: say(ok(m), "e-other", "repeat", "run"),
        other_log,
        lambda m, p: say(m.replace(outcome="cancellation", result="ABORTED"), "e-cancel", "ignored", "cancelled"),
        lambda m, p: missing(m, p, "run"),
        cut,
        lambda m, p: emit(None, [], m.run_id, ("",), "dead_letter", "tombstone"),
    ]
    for number, (facts, source) in enumerate(corpus_facts(first + runs)[first:], first):
        path = folder / f"{number}.csv.gz"
        shutil.copyfile(source, path)
        facts = with_output(scenario, facts.replace(log_url=path.as_uri()), number)
        if number % 4 == 1:
            tricks[number // 4 % len(tricks)](facts, path)
        else:
            ok(facts)
    assert producer.flush(60) == 0
    return scenario

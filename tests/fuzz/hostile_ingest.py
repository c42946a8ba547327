"""Hostile logs, hostile events and good runs through the real ingest, mixed: what was sent is what is accounted for.

    python -m tests.fuzz.hostile_ingest    # 10,000 logs, 10,000 events, 2,000 good runs
    python -m tests.fuzz.hostile_ingest --engine flink --logs 250 --events 250 --good 100

A real broker, and ``ciml ingest --once`` in a process of its own. Each good run has to be a raw row with the digest of
the direct computation. Each hostile log has to be a row as the direct computation makes it, or a dead letter with the
reason for which that rejects it. Each hostile event has its offset covered and a record. It exits with 1 where this is
not so.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import click
import pyarrow as pa

from ciml import engines
from ciml.digest import telemetry_digest
from ciml.errors import RejectedInput
from ciml.events.cloudevents import finished_event
from ciml.events.records import RunFacts, records_of
from ciml.events.run_id import RunId
from ciml.kafka import KafkaOptions
from ciml.limits import MAX_LOG_BYTES, SETTLE_PEAK_BYTES
from ciml.manifest.log import ManifestLog
from ciml.pipelines.kafka.broker import list_topic
from ciml.runs.state import open_raw
from ciml.storage import Store, open_store
from ciml.transforms.fetch.decompress import gunzip
from ciml.transforms.parse.logs import Log, parse_logs
from tests.corpus import CORPUS
from tests.fuzz.strategies.hostile_events import hostile_event
from tests.fuzz.strategies.hostile_logs import hostile_log
from tests.memory import peak_bytes
from tests.pipelines.ingest.scenario import corpus_facts
from tests.raw_producer import RawProducer

ROOT = Path(__file__).parents[2]
_START_US = 1_795_521_600_000_000  # 2026-11-24 12:00 UTC, where many hostile logs are
_PARTITIONS = 2


@dataclass
class Sent:
    """What was sent.

    Attributes:
      logs: run id -> (log, its facts), of good runs and of hostile logs.
      good: the run ids of the good runs.
      messages: how many messages went to the topic.
    """

    logs: dict[str, tuple[Path, RunFacts]] = field(default_factory=dict)
    good: set[str] = field(default_factory=set)
    messages: int = 0


@dataclass
class Found:
    """What became of it.

    Attributes:
      faults: what is not as it has to be, a line each.
      became: how many (event, run) became what.
    """

    faults: list[str] = field(default_factory=list)
    became: Counter[str] = field(default_factory=Counter)

    def expect(self, holds: bool, fault: str) -> None:
        if not holds:
            self.faults.append(fault)


def send(broker: str, topic: str, folder: Path, seed: int, logs: int, events: int, good: int) -> Sent:
    """Send everything in an order determined by the seed."""
    sent, order = Sent(), [("log", n) for n in range(logs)] + [("event", n) for n in range(events)]
    order += [("good", n) for n in range(good)]
    random.Random(seed).shuffle(order)
    corpus = corpus_facts(good)
    with RawProducer(broker, **{"message.max.bytes": "8000000"}) as producer:
        for kind, number in order:
            if kind == "event":
                value, headers, time_ms = hostile_event(seed * 1_000_000 + number)
                producer.send(topic, value, headers, time_ms, partition=number % _PARTITIONS)
            else:
                facts, path = corpus[number] if kind == "good" else _hostile(folder, seed, number)
                sent.logs[facts.run_id] = path, facts
                if kind == "good":
                    sent.good.add(facts.run_id)
                value, named = finished_event(facts.replace(log_url=path.as_uri()))
                producer.send(topic, value, named, partition=number % _PARTITIONS)
            sent.messages += 1
    return sent


def _create(broker: str, topic: str) -> None:
    """Makes a topic that takes what a broker's defaults reject: any CreateTime, and large messages."""
    from confluent_kafka.admin import AdminClient, NewTopic

    most = str((1 << 63) - 1)
    options = {
        "message.timestamp.after.max.ms": most, "message.timestamp.before.max.ms": most,
        "max.message.bytes": "8000000", "retention.ms": "-1", "segment.ms": most,
    }  # fmt: skip
    client = AdminClient({"bootstrap.servers": broker})
    client.create_topics([NewTopic(topic, _PARTITIONS, 1, config=options)])[topic].result(30)


def _hostile(folder: Path, seed: int, number: int) -> tuple[RunFacts, Path]:
    path = folder / f"{number % 100}" / f"{number}.log"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(hostile_log(seed * 1_000_000 + number))
    native = f"hostile-{number}"
    facts = RunFacts(
        run_id=RunId("zuul", native).encode(), build_uuid=native, build_name="hostile", outcome="failure",
        result="FAILURE", source="zuul", pipeline="check", start_us=_START_US, end_us=_START_US + 3_600_000_000,
    )  # fmt: skip
    return facts, path


def direct(logs: Iterable[tuple[str, Path, RunFacts]]) -> Iterator[tuple[str, str]]:
    """(run id, digest or reason) of each log, by the direct computation."""
    remaining = iter(logs)
    while part := list(islice(remaining, 50)):
        wanted: list[tuple[str, Log]] = []
        for run_id, path, facts in part:
            try:
                data = gunzip([path.read_bytes()], MAX_LOG_BYTES)
            except RejectedInput as refused:
                yield run_id, refused.reason
                continue
            wanted.append((run_id, Log(data, facts.start_us, facts.end_us)))
        for (run_id, _), made in zip(wanted, parse_logs([log for _, log in wanted]), strict=True):
            yield run_id, telemetry_digest(run_id, made) if isinstance(made, pa.Table) else made.reason


def judge(data: Store, topic: str, sent: Sent) -> Found:
    """Compares the raw store with what was sent."""
    found = Found()
    records: dict[str, list[dict[str, Any]]] = {}
    origins: set[tuple[int, int]] = set()
    for _, delta in ManifestLog(data.child("raw")).since(0):
        for kind, record in records_of(delta):
            found.became[f"{kind} {record.get('reason', '')}".strip()] += 1
            origins.add((record["origin"][1], record["origin"][2]))
            records.setdefault(record.get("mention", {}).get("run_id", ""), []).append(record)
    _, state = open_raw(data.child("raw"))
    covered = sum(ranges.count() for name, _, ranges in state.partitions() if name == topic)
    found.expect(covered == sent.messages, f"{covered} offsets are covered, and {sent.messages} messages were sent")
    found.expect(len(origins) == sent.messages, f"{len(origins)} messages have a record, of {sent.messages}")
    found.expect(not state.deferred, f"{len(state.deferred)} runs are still deferred")
    wanted = ((run_id, path, facts) for run_id, (path, facts) in sent.logs.items())
    for run_id, want in direct(wanted):
        mine = records.get(run_id, [])
        got = [record["file"]["digest"] if record["kind"] == "run" else record.get("reason") for record in mine]
        found.expect(got == [want], f"{run_id} became {got}, want {want} ({sent.logs[run_id][0]})")
        if run_id in sent.good:
            found.expect(len(want) == 64, f"the good run {run_id} is rejected as {want}")
    return found


def ingest(home: Path, data: Path, folder: Path, broker: str, topic: str, engine: str) -> tuple[float, int]:
    """Runs ``ciml ingest --once``. Returns (seconds, peak resident memory in bytes)."""
    options = ["--data-path", str(data), "--kafka", broker, "--topic", topic, "--once", "--engine", engine]
    options += ["--runs-topic", f"{topic}-runs"]  # the broker may be shared
    options += ["--allow-root", str(folder), "--allow-root", str(CORPUS), "--home", str(home)]
    began = time.monotonic()
    log = folder.with_name("ingest.log")
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "ciml", "ingest", *options], cwd=ROOT, stdout=out, stderr=subprocess.STDOUT
        )
    peak = 0
    while process.poll() is None:
        peak = max(peak, peak_bytes(process.pid))
        time.sleep(0.05)
    if process.returncode:
        raise click.ClickException(f"ciml ingest ended with {process.returncode}:\n{log.read_text()[-3000:]}")
    return time.monotonic() - began, peak


def play(
    seed: int, logs: int, events: int, good: int, engine: str = "micro-batches", broker: str = "", flink: str = ""
) -> tuple[Found, dict[str, Any]]:
    """Sends, ingests and judges. Returns what was found, and the figures.

    Args:
      seed: of what is sent and of its order.
      logs: how many hostile logs; ``events`` hostile events, ``good`` good runs.
      engine: ``micro-batches`` or ``flink``.
      broker: of a real broker that runs; one is started by default.
      flink: the job server of the engine ``flink``, where it runs already.
    """
    with tempfile.TemporaryDirectory(prefix="ciml-hostile-") as place:
        folder, home = Path(place) / "logs", Path(place) / "home"
        folder.mkdir()
        wanted = [name for name, there in (("kafka", broker), ("flink", flink)) if not there]
        wanted = [name for name in wanted if name == "kafka" or engine == "flink"]
        with engines.start(wanted, home=home, settings=engines.Settings(tied=True)) as running:
            broker = broker or running.kafka
            flink = flink or (running.flink if engine == "flink" else "")
            topic = f"hostile-{seed}-{os.getpid()}"
            _create(broker, topic)
            sent = send(broker, topic, folder, seed, logs, events, good)
            ends = list_topic(KafkaOptions(broker), topic).bounds.values()
            if (there := sum(end - first for first, end in ends)) != sent.messages:
                raise click.ClickException(f"the broker has {there} of {sent.messages} messages")
            data = Path(place) / "data"
            name = f"flink:{flink}" if engine == "flink" else engine
            seconds, peak = ingest(home, data, folder, broker, topic, name)
            found = judge(open_store(data), topic, sent)
            if engine != "flink":
                found.expect(peak < SETTLE_PEAK_BYTES, f"peak memory {peak:,} bytes, at most {SETTLE_PEAK_BYTES:,}")
            figures = {
                "engine": engine, "seed": seed, "hostile logs": logs, "hostile events": events, "good runs": good,
                "messages": sent.messages, "seconds": round(seconds, 1), "peak MiB": round(peak / (1 << 20)),
                "became": dict(sorted(found.became.items())),
            }  # fmt: skip
            return found, figures


@click.command()
@click.option("--logs", default=10_000, show_default=True, help="Hostile logs.")
@click.option("--events", default=10_000, show_default=True, help="Hostile events.")
@click.option("--good", default=2_000, show_default=True, help="Good runs.")
@click.option("--seed", default=1, show_default=True, help="Seed of what is sent, and of its order.")
@click.option("--engine", type=click.Choice(["micro-batches", "flink"]), default="micro-batches", show_default=True)
def main(logs: int, events: int, good: int, seed: int, engine: str) -> None:
    """Send hostile input through the real ingest, and judge."""
    found, figures = play(seed, logs, events, good, engine)
    click.echo(json.dumps(figures, indent=1))
    for fault in found.faults[:20]:
        click.echo(f"FAULT: {fault}")
    click.echo(f"{len(found.faults)} faults")
    sys.exit(1 if found.faults else 0)


if __name__ == "__main__":
    main()

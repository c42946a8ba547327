"""Measure the time from a CI event to the verdict on `predictions`. Writes the figures of docs/serving.md.

    python -m studies.verdict_latency [--rate 20] [--seconds 60] [--kafka HOST:PORT] [--keep FOLDER]

Uses real services: events of failed runs of the corpus on Kafka, `ciml ingest`, the model server with a calibrated
model of causes, and `ciml predict stream`. An event is timed from its production until a consumer of committed messages
receives its verdict. It prints p50 and p99 of the whole and of both parts (event to announcement, announcement to
verdict), and the load of the machine, without which the figures mean nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Consumer, Producer

from ciml import engines
from ciml.cli.demo.processes import Children
from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.events.cloudevents import finished_event
from ciml.events.outcomes import FAILED
from ciml.events.records import RunFacts
from ciml.events.run_facts import facts_from_listing
from ciml.events.run_id import RunId
from ciml.serving.push import push
from ciml.serving.registry import Decision
from ciml.storage import open_store
from ciml.training.experiment import Experiment
from ciml.training.refresh import Candidate, TrainConfig, refresh
from tests.corpus import CORPUS, builds
from tests.runs.scenes import RawStore
from tests.transforms.samples import corpus

EVENTS = "ci-events"
RUNS = "runs"
PREDICTIONS = "predictions"
MODEL = "cause"


def push_model(folder: Path, target: DataRoot) -> None:
    """Train a calibrated model of causes on the corpus, in a data root of its own, and push it to another."""
    from ciml.pipelines.datasets.update import create_dataset, update_dataset

    own = DataRoot.open(folder)
    runs, tables, _ = corpus()
    trusted = [run.replace(source="zuul", event="", pipeline="gate") for run in runs]
    RawStore(own).add(list(zip(trusted, tables, strict=True)))
    definition = DatasetDefinition(
        name=MODEL,
        class_label=MODEL,
        context=("outcome", "profile"),
        features_regex="^(usr|stl|1m|wai)$",
        sample_interval="5s",
        aggregation_functions=("mean", "max", "last"),
        tdt_split=(5, 3, 2),
        span_runs=500,
    )
    create_dataset(own, definition)
    update_dataset(own.dataset(MODEL), seal=True)
    candidate = refresh(TrainConfig(own, MODEL, MODEL, Experiment(name=MODEL, epochs=40, calibration="auto")))
    assert isinstance(candidate, Candidate)
    push(target, MODEL, open_store(candidate.folder), Decision(True))


@dataclass
class Timed:
    """When each run's event was sent and its messages arrived, epoch seconds by run id."""

    sent: dict[str, float] = field(default_factory=dict)
    announced: dict[str, float] = field(default_factory=dict)
    predicted: dict[str, float] = field(default_factory=dict)
    verdicts: dict[str, str] = field(default_factory=dict)
    late_s: float = 0.0  # how late the producer was, at worst

    def listen(self, kafka: str, stop: threading.Event) -> None:
        """Note the arrivals on both topics until ``stop``."""
        consumer = Consumer(
            {
                "bootstrap.servers": kafka,
                "group.id": f"bench-{os.getpid()}",
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 5,
                "log_level": 3,
            }
        )
        consumer.subscribe([RUNS, PREDICTIONS])
        while not stop.is_set():
            message = consumer.poll(0.05)
            if message is None or message.error():
                continue
            now = time.time()
            value = json.loads(message.value())
            if message.topic() == RUNS:
                self.announced[value["run_id"]] = now
            else:
                self.predicted[value["run_id"]] = now
                self.verdicts[value["run_id"]] = value["verdict"]["cause"]
        consumer.close()

    def send(self, kafka: str, rate: float, seconds: float) -> None:
        """Send the events of failed runs of the corpus, again and again under new ids, at a steady rate."""
        failed = [run for run in map(_facts, builds()) if run.outcome in FAILED]
        producer = Producer({"bootstrap.servers": kafka, "linger.ms": 0, "log_level": 3})
        begin = time.time()
        for number, facts in zip(range(round(rate * seconds)), itertools.cycle(failed), strict=False):
            due = begin + number / rate
            sent = len(self.sent)
            while time.time() < due:
                producer.poll(0)
                time.sleep(min(max(due - time.time(), 0), 0.01))
            identity = RunId("bench", f"{os.getpid()}-{sent}", 1)
            run = facts.replace(run_id=identity.encode(), build_uuid=identity.native_id, source="bench")
            value, headers = finished_event(run, event_id=run.build_uuid, time_us=run.end_us)
            self.late_s = max(self.late_s, time.time() - due)
            self.sent[run.run_id] = time.time()
            producer.produce(EVENTS, value, key=run.run_id, headers=headers)
        assert producer.flush(30) == 0


def _facts(line: dict[str, Any]) -> RunFacts:
    return facts_from_listing(line, source="bench", logs=CORPUS.as_uri()).replace(event="gate", pipeline="gate")


def measure(folder: Path, kafka: str, models: str, rate: float, seconds: float) -> Timed:
    """Run ingest and predict as processes, send the events, and wait for all verdicts."""
    data = str(folder / "data")
    timed = Timed()
    stop = threading.Event()
    place = ("--data-path", data, "--kafka", kafka, "--engine", "micro-batches")
    listener = threading.Thread(target=timed.listen, args=(kafka, stop))
    with Children(folder / "logs", folder) as children:
        children.start("ingest", "ingest", *place, "--topic", EVENTS, "--allow-root", str(CORPUS))
        children.start("predict", "predict", "stream", *place, "--server", models, "--model", MODEL)
        listener.start()
        try:
            timed.send(kafka, 2.0, 5.0)  # until imports, connections and caches are warm
            children.wait_for(lambda: timed.sent.keys() <= timed.predicted.keys(), "warm-up", 180.0)
            warm = set(timed.sent)
            timed.send(kafka, rate, seconds)
            children.wait_for(lambda: timed.sent.keys() <= timed.predicted.keys(), "verdicts", 60.0 + seconds)
        finally:
            stop.set()
            listener.join()
    for run_id in warm:
        del timed.sent[run_id]
    return timed


def report(timed: Timed, rate: float) -> str:
    """Return the figures as text."""
    run_ids = list(timed.sent)
    parts = {
        "event to verdict": [timed.predicted[run_id] - timed.sent[run_id] for run_id in run_ids],
        "event to announcement": [timed.announced[run_id] - timed.sent[run_id] for run_id in run_ids],
        "announcement to verdict": [timed.predicted[run_id] - timed.announced[run_id] for run_id in run_ids],
    }
    causes = sorted(Counter(timed.verdicts[run_id] for run_id in run_ids).items())
    by_cause = ", ".join(f"{count} {cause}" for cause, count in causes)
    lines = [f"{len(run_ids):,} failed runs at {rate:g} a second: {by_cause}"]
    for name, values in parts.items():
        p50, p99 = np.quantile(values, [0.5, 0.99])
        lines.append(f"  {name}: p50 {p50:.2f} s, p99 {p99:.2f} s, most {max(values):.2f} s")
    lines.append(
        f"  load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs; the producer was at most {timed.late_s:.2f} s late"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=20.0, help="events a second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--kafka", help="HOST:PORT of a broker without ciml's topics; else one is started")
    parser.add_argument("--keep", type=Path, help="a folder for data and logs that stays")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="verdict-latency-") as name:
        folder = options.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        data = DataRoot.open(folder / "data")
        push_model(folder / "training", data)
        settings = engines.Settings(models_config=data.models.url("models.config"), tied=True)
        names = ["models"] if options.kafka else ["kafka", "models"]
        with engines.start(names, home=folder / "engines", settings=settings) as running:
            kafka = options.kafka or running.kafka
            engines.create_topics(kafka, {EVENTS: 1, RUNS: 1, PREDICTIONS: 1})
            timed = measure(folder, kafka, running.models["grpc"], options.rate, options.seconds)
    print(report(timed, options.rate))


if __name__ == "__main__":
    main()

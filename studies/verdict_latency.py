"""Measure the time from a CI event to the verdict on `predictions`. Writes the figures of docs/serving.md.

    python -m studies.verdict_latency [--rate 20] [--seconds 60] [--output-mb 0] [--kafka HOST:PORT] [--keep FOLDER]

Uses real services: events of failed runs of the corpus on Kafka, `ciml ingest`, the model server with a calibrated
model of causes, and `ciml predict stream`. An event is timed from its production until a consumer of committed messages
receives its verdict. It prints p50 and p99 of the whole and of both parts (event to announcement, announcement to
verdict), and the load of the machine, without which the figures mean nothing.

With ``--output-mb``, logs and outputs come from an HTTP server, and the model reads outputs. An output consists of
those of the corpus, repeated up to the size, and ends with that of the run.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import itertools
import json
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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
#: The outputs of the corpus, by the id of the build.
OUTPUTS = {
    line["build_uuid"]: gzip.decompress((CORPUS / line["output_path"]).read_bytes())
    for line in builds()
    if "output_path" in line
}


def push_model(folder: Path, target: DataRoot, with_outputs: bool) -> None:
    """Train a calibrated model of causes on the corpus, in a data root of its own, and push it to another."""
    from ciml.pipelines.datasets.update import create_dataset, update_dataset

    data = DataRoot.open(folder)
    runs, tables, _ = corpus()
    trusted = [run.replace(source="zuul", event="", pipeline="gate") for run in runs]
    outputs = {run.run_id: OUTPUTS.get(run.build_uuid, b"") for run in runs} if with_outputs else None
    RawStore(data).add(list(zip(trusted, tables, strict=True)), outputs=outputs)
    definition = DatasetDefinition(
        name=MODEL,
        class_label=MODEL,
        context=("log",) if with_outputs else ("outcome", "profile"),
        features_regex="^(usr|stl|1m|wai)$",
        sample_interval="5s",
        aggregation_functions=("mean", "max", "last"),
        tdt_split=(5, 3, 2),
        span_runs=500,
    )
    create_dataset(data, definition)
    update_dataset(data.dataset(MODEL), seal=True)
    candidate = refresh(TrainConfig(data, MODEL, MODEL, Experiment(name=MODEL, epochs=40, calibration="auto")))
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

    def send(self, kafka: str, rate: float, seconds: float, logs: str = "") -> None:
        """Send the events of failed runs of the corpus, again and again under new ids, at a steady rate.

        With the address of a `log_server`, logs and outputs are there.
        """
        failed = [run for run in map(_facts, builds()) if run.outcome in FAILED]
        if logs:
            failed = [run.replace(log_url=f"{logs}/{run.build_uuid}/dstat.csv") for run in failed]
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
            if logs:
                run = run.replace(output_url=f"{logs}/{facts.build_uuid}/{sent}.txt")
            value, headers = finished_event(run, event_id=run.build_uuid, time_us=run.end_us)
            self.late_s = max(self.late_s, time.time() - due)
            self.sent[run.run_id] = time.time()
            producer.produce(EVENTS, value, key=run.run_id, headers=headers)
        assert producer.flush(30) == 0


def _facts(line: dict[str, Any]) -> RunFacts:
    return facts_from_listing(line, source="bench", logs=CORPUS.as_uri()).replace(event="gate", pipeline="gate")


@contextlib.contextmanager
def log_server(size: int) -> Iterator[str]:
    """Serve the logs of the corpus and outputs of so many bytes, each different. Yields its address; "" for size 0."""
    if not size:
        yield ""
        return
    logs = {line["build_uuid"]: CORPUS / line["log_path"] for line in builds()}
    text = b"".join(OUTPUTS.values())
    text *= size // len(text) + 1

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _, run, name = self.path.split("/")
            body = logs[run].read_bytes()
            if name.endswith(".txt"):
                end = OUTPUTS.get(run, b"")
                body = b"%s\n%s%s" % (name.encode(), text[: max(size - len(end), 0)], end)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def measure(folder: Path, kafka: str, models: str, rate: float, seconds: float, logs: str) -> Timed:
    """Run ingest and predict as processes, send the events, and wait for all verdicts."""
    data = str(folder / "data")
    timed = Timed()
    stop = threading.Event()
    place = ("--data-path", data, "--kafka", kafka, "--engine", "micro-batches")
    listener = threading.Thread(target=timed.listen, args=(kafka, stop))
    with Children(folder / "logs", folder) as children:
        allowed = ("--allow-host", logs) if logs else ("--allow-root", str(CORPUS))
        children.start("ingest", "ingest", *place, "--topic", EVENTS, *allowed)
        children.start("predict", "predict", "stream", *place, "--server", models, "--model", MODEL)
        listener.start()
        try:
            timed.send(kafka, 2.0, 5.0, logs)  # until imports, connections and caches are warm
            children.wait_for(lambda: timed.sent.keys() <= timed.predicted.keys(), "warm-up", 180.0)
            warm = set(timed.sent)
            timed.send(kafka, rate, seconds, logs)
            children.wait_for(lambda: timed.sent.keys() <= timed.predicted.keys(), "verdicts", 60.0 + 10 * seconds)
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
    parser.add_argument("--output-mb", type=float, default=0.0, help="size of an output, MB; 0: runs have none")
    parser.add_argument("--kafka", help="HOST:PORT of a broker without ciml's topics; else one is started")
    parser.add_argument("--keep", type=Path, help="a folder for data and logs that stays")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="verdict-latency-") as name:
        folder = options.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        data = DataRoot.open(folder / "data")
        push_model(folder / "training", data, with_outputs=options.output_mb > 0)
        settings = engines.Settings(models_config=data.models.url("models.config"), tied=True)
        names = ["models"] if options.kafka else ["kafka", "models"]
        server = log_server(int(options.output_mb * 1e6))
        with engines.start(names, home=folder / "engines", settings=settings) as running, server as logs:
            kafka = options.kafka or running.kafka
            engines.create_topics(kafka, {EVENTS: 1, RUNS: 1, PREDICTIONS: 1})
            timed = measure(folder, kafka, running.models["grpc"], options.rate, options.seconds, logs)
    print(report(timed, options.rate))


if __name__ == "__main__":
    main()

"""All services of ciml on a real broker, as the chart runs them, watched by a real Prometheus."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ciml import engines
from ciml.cli.demo.corpus import Sample, corpus_folder, read_corpus
from ciml.cli.demo.review import run_ending_now, shift_log
from ciml.data_root import DataRoot
from ciml.engines.processes import free_ports
from ciml.engines.state import EngineState
from ciml.events.cloudevents import finished_event
from ciml.events.records import RunFacts
from ciml.events.run_id import RunId
from ciml.limits import MAX_OUTPUT_STORED_LINE_BYTES
from ciml.services.files import ServiceFiles
from tests.corpus import CORPUS, builds
from tests.interop.prometheus import plugins
from tests.interop.prometheus.server import Prometheus, prometheus
from tests.transforms.fetch import log_server
from tests.verdicts.feedback import openapi
from tests.verdicts.feedback.github_stub import TOKEN, GitHubServer
from tests.verdicts.feedback.reviewing import SHA
from tests.verdicts.feedback.stub import serving

ROOT = Path(__file__).parents[3]
LONG_OUTPUT = b"start\n" + b"word " * MAX_OUTPUT_STORED_LINE_BYTES + b"\nend\n"
RECEIVERS = """
[webhooks]
port = {port}
[[source]]
receiver = "webhooks"
name = "github"
adapter = "cloudevents"
auth = "none"
[[source]]
receiver = "webhooks"
name = "broken"
adapter = "brokenci"
auth = "none"
[[source]]
receiver = "mqtt"
name = "zuul"
adapter = "zuul"
broker = "{mosquitto}"
topics = ["zuul/#"]
"""
FEEDBACK = """
dry_run = false
settle_s = 0.5
settle_most_s = 2
min_probability = 0.0
active_models = ["*"]
min_passing_runs = 0
[[system]]
kind = "github"
name = "hub"
sources = ["github"]
api = "{github}"
secret_file = "{token}"
gap_s = 0.1
"""


@dataclass
class World:
    """The services, and what they talk to."""

    folder: Path
    kafka: EngineState
    mosquitto: EngineState
    prometheus: Prometheus
    github: GitHubServer
    logs: log_server.LogServer
    samples: list[Sample]
    ports: dict[str, int] = field(default_factory=dict)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    commands: dict[str, list[str]] = field(default_factory=dict)
    sent: int = 0
    excluded: int = 0

    @property
    def data(self) -> DataRoot:
        return DataRoot.open(self.folder / "data")

    @property
    def plugins(self) -> Path:
        return self.folder / "plugins"

    # ---- commands and services

    def ciml(self, *words: str) -> str:
        """Run a command to its end; return what it prints."""
        command = [sys.executable, "-m", "ciml", *words]
        done = subprocess.run(command, env=self._environment(), cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def start(self, job: str, *words: str) -> None:
        """Start a service in the foreground, and let Prometheus scrape it as this job."""
        (port,) = free_ports(1)
        self.ports.setdefault(job, port)
        self.commands[job] = [*words, "--metrics-port", str(self.ports[job])]
        self.restart(job)

    def service(self, job: str, kind: str, *words: str) -> None:
        """Start a supervised service, as the chart's containers do."""
        home = str(self.folder / "home")
        self.start(job, "service", "run", kind, "--name", job, "--home", home, "--tied-to", str(os.getpid()), *words)

    def restart(self, job: str) -> None:
        """Start a service again, which ended or was killed."""
        log = (self.folder / f"{job}.log").open("ab")
        command = [sys.executable, "-m", "ciml", *self.commands[job]]
        self.running[job] = subprocess.Popen(command, env=self._environment(), cwd=self.folder, stdout=log, stderr=log)
        self.prometheus.scrape(job, self.ports[job])

    def stop(self, job: str) -> None:
        """End a service with its worker, and forget it."""
        self.prometheus.forget(job)
        process = self.running.pop(job)
        if self.commands[job][0] == "service" and process.poll() is None:
            self.files(job).want("stop")
        else:
            process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()

    def files(self, job: str) -> ServiceFiles:
        """The files of a supervised service."""
        return ServiceFiles(self.folder / "home", job)

    def health(self, job: str) -> str:
        return str(self.files(job).status().get("health", ""))

    def worker(self, job: str) -> int | None:
        """The pid of a service's worker, None while it has none."""
        found = self.files(job).process("worker")
        return None if found is None else found.pid

    def kill_worker(self, job: str, most_s: float = 60.0) -> None:
        """Kill the next worker as soon as it is there, as a system that lacks memory does."""
        self.until(lambda: self.worker(job) is not None, f"{job} has no worker", most_s)
        pid = self.worker(job)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        self.until(lambda: self.worker(job) != pid, f"the worker of {job} does not die")

    @contextmanager
    def hanging(self, pid: int | None) -> Iterator[None]:
        """Suspend a process for the block."""
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with suppress(ProcessLookupError):  # its supervisor may have replaced it
                os.kill(pid, signal.SIGCONT)

    def until(self, done: Callable[[], bool], what: str, most_s: float = 120.0) -> None:
        until = time.monotonic() + most_s
        while not done():
            assert time.monotonic() < until, f"{what}\n{self._logs()}"
            time.sleep(0.2)

    def _logs(self) -> str:
        ends = [f"{path.name}: {path.read_text(errors='replace')[-600:]}" for path in self.folder.glob("*.log")]
        return "\n".join(ends)

    def _environment(self) -> dict[str, str]:
        found = os.pathsep.join([str(ROOT), str(self.plugins)])
        return {**os.environ, "PYTHONPATH": found, "CIML_KAFKA": self.kafka.address, "TF_CPP_MIN_LOG_LEVEL": "2"}

    # ---- events

    def facts(self, sample: Sample, **changes: Any) -> RunFacts:
        """A run like a recorded one that has just ended, of a change on the GitHub.

        Its log and its output, which has a line that is too long, are on the log server.
        """
        now = datetime.now(UTC)
        made = run_ending_now(sample, {"change": "7", "head": SHA}, now)
        native = uuid.uuid4().hex
        path, output = f"/{native}.csv.gz", f"/{native}.txt"
        facts = made.replace(
            run_id=RunId("github", native).encode(), build_uuid=native, source="github", project="octo/widget",
            branch="main", patchset=SHA, log_url=f"{self.logs.url}{path}",
            output_url=f"{self.logs.url}{output}", **changes,
        )  # fmt: skip
        started, begins = (datetime.fromtimestamp((one.start_us or 0) / 1e6, UTC) for one in (sample.facts, facts))
        log = shift_log((CORPUS / sample.log_path).read_bytes(), started, begins)
        self.logs.answers |= {path: (200, log, {}), output: (200, LONG_OUTPUT, {})}
        return facts

    def failed(self, number: int, **changes: Any) -> RunFacts:
        """Facts of a run that failed, one of those whose cause is known."""
        known = [sample for sample in self.samples if sample.facts.labels.get("cause") == "machine"]
        return self.facts(known[number % len(known)], **changes)

    def deliver(self, facts: RunFacts) -> None:
        """Deliver the event of a finished run by a webhook."""
        body, _ = finished_event(facts)
        self.post("github", body, {"content-type": "application/cloudevents+json"})

    def post(self, source: str, body: bytes, headers: Mapping[str, str]) -> None:
        """Post a delivery."""
        one = http.client.HTTPConnection("127.0.0.1", self.ports["hooks"], timeout=30)
        try:
            one.request("POST", f"/hooks/{source}", body, dict(headers))
            answer = one.getresponse()
            assert answer.status == 202, (answer.status, answer.read())
        finally:
            one.close()
        self.sent += 1

    def flood(self, number: int, value: bytes = b'{"specversion": "1.0"') -> None:
        """Produce messages that are no events."""
        from confluent_kafka import Producer

        producer = Producer({"bootstrap.servers": self.kafka.address, "linger.ms": 20})
        for _ in range(number):
            producer.produce("ci-events", value)
        assert producer.flush(30) == 0


def failing(samples: list[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample.facts.outcome in ("failure", "timeout")]


@contextmanager
def world(folder: Path) -> Iterator[World]:
    """Start what the services need, and load the recorded runs into the data root. No service runs yet."""
    plugins.install(folder / "plugins")
    with ExitStack() as stack:
        running = stack.enter_context(
            engines.start(["kafka", "mosquitto"], folder / "home", engines.Settings(tied=True))
        )
        assert not running.light, running.notes
        engines.create_topics(running.kafka, {"ci-events": 2, "runs": 1, "predictions": 1})
        github = GitHubServer(openapi.github())
        github.pull(7, SHA)
        stack.enter_context(serving(github))
        one = World(
            folder, running.states["kafka"], running.states["mosquitto"],
            stack.enter_context(prometheus(folder / "prometheus")), github, stack.enter_context(log_server.serving()),
            read_corpus(corpus_folder()),
        )  # fmt: skip
        stack.callback(_end, one)
        _prepare(one)
        yield one


def _prepare(one: World) -> None:
    (one.ports["hooks"],) = free_ports(1)
    receivers = RECEIVERS.format(port=one.ports["hooks"], mosquitto=one.mosquitto.address)
    (one.folder / "receivers.toml").write_text(receivers)
    token = one.folder / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    (one.folder / "feedback.toml").write_text(FEEDBACK.format(github=one.github.url, token="token"))
    (one.folder / "broken-feedback.toml").write_text(FEEDBACK.format(github=one.github.url, token="missing"))
    (one.folder / "fetch.toml").write_text(f'hosts = ["{one.logs.url}"]\ndelays_s = [1, 1, 1, 5, 600]\n')
    # Those of known cause several times, each of its own change: of a few held-out runs the gate would bless no model.
    known = [line for line in builds() if "cause" in line]
    copies = [
        {**line, "build_uuid": f"{line['build_uuid']}.{number}", "change": f"{line['build_uuid']}.{number}"}
        for number in range(6) for line in known
    ]  # fmt: skip
    listing = one.folder / "builds.jsonl"
    listing.write_text("".join(json.dumps(line) + "\n" for line in [*builds(), *copies]))
    one.ciml("backfill", str(listing), "--logs", str(CORPUS), "--data-path", "data")
    cause = str(corpus_folder().parent / "cause.toml")
    one.ciml("dataset", "create", "cause", "--definition", cause, "--data-path", "data")
    one.ciml("dataset", "update", "cause", "--seal", "--data-path", "data")


def _end(one: World) -> None:
    one.logs.slow_s = 0.0
    for job, process in one.running.items():
        if one.commands[job][0] == "service" and process.poll() is None:
            one.files(job).want("stop")
        else:
            process.terminate()
    until = time.monotonic() + 60
    for process in one.running.values():
        try:
            process.wait(max(1.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()


def read_panels() -> list[tuple[str, str]]:
    """Return (title, query) of each query of the chart's dashboard."""
    from tests.deploy.chart import CHART

    dashboard = json.loads((CHART / "files/dashboard.json").read_text())
    return [(panel["title"], target["expr"]) for panel in dashboard["panels"] for target in panel["targets"]]

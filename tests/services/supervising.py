"""Helpers for tests of supervised services: a service in its own home, used by its commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from ciml.cli.commands.serve.service import command
from ciml.data_root import DataRoot
from ciml.engines import processes
from ciml.services.files import ServiceFiles
from ciml.services.options import ServiceOptions, options_of
from tests.pipelines.ingest.ingesting import account, check
from tests.pipelines.ingest.scenario import Scenario

ROOT = Path(__file__).parents[2]


def shell(command: str) -> None:
    """Run a command in a shell of another folder, as an operator who copies it from the status."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {"PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, shell=True, cwd="/", env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def webhooks(port: int, secret: Path) -> str:
    return (
        f'[webhooks]\nport = {port}\n[[source]]\nreceiver = "webhooks"\nname = "hub"\nadapter = "github"\n'
        f'secret_file = "{secret}"\n'
    )


@dataclass
class Supervised:
    """The service named ``one`` of a home."""

    home: Path

    @property
    def files(self) -> ServiceFiles:
        return ServiceFiles(self.home, "one")

    def ask(self, *words: str) -> Result:
        """Run ``ciml service <words>`` in this process; return its output, exit code and exception."""
        done = CliRunner().invoke(command, [*words, "--home", str(self.home)], standalone_mode=False)
        if done.return_value is not None and done.exception is None:
            done.exit_code = int(done.return_value)
        return done

    def run(self, *words: str) -> str:
        """Run ``ciml service <words>``, which must succeed; return its output."""
        done = self.ask(*words)
        assert done.exception is None, done.exception
        return done.output

    def begin(self, kind: str, *words: str) -> Result:
        """Run ``ciml service start <kind>``; the service ends with this process."""
        return self.ask("start", kind, "--name", "one", "--tied-to", str(os.getpid()), *words)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ask("status", "one", "--json").output)["one"]
        return found

    def code(self) -> int:
        return self.ask("status", "one").exit_code

    def pid(self, what: str) -> int:
        process = self.files.process(what)
        assert process is not None, f"no {what} runs"
        return int(process.pid)

    def kill(self, what: str) -> int:
        pid = self.pid(what)
        os.kill(pid, signal.SIGKILL)
        self.wait(lambda: (one := self.files.process(what)) is None or one.pid != pid, f"the {what} does not die")
        return pid

    def kill_worker(self) -> None:
        """Kill the worker, and wait for the next one to run."""
        worker = self.kill("worker")
        self.wait(lambda: self.files.process("worker") is not None and self.pid("worker") != worker, "no new worker")
        self.wait(lambda: self.status()["health"] == "running", "the new worker does not run")

    def wait(self, done: Callable[[], bool], what: str, most_s: float = 90.0) -> None:
        deadline = time.monotonic() + most_s
        while not done():
            assert time.monotonic() < deadline, f"{what}: {json.dumps(self.status(), indent=1)[:3000]}"
            time.sleep(0.1)


@dataclass
class Ingest(Supervised):
    """An ingest of a scenario."""

    data: str
    scenario: Scenario
    runs_topic: str

    def start(self, *words: str) -> Result:
        return self.begin(
            "ingest", "--data-path", self.data, "--kafka", self.scenario.broker,
            "--topic", self.scenario.topic, "--runs-topic", self.runs_topic, "--allow-root", str(self.scenario.logs),
            "--retry-after", "500ms", "--retry-after", "500ms", "--retry-after", "4s", *words,
        )  # fmt: skip

    def settled(self) -> int:
        """Return the number of settled (event, run), without deferred ones."""
        state, _ = account(DataRoot.open(self.data).raw)
        return sum(state.counts.values()) - len(state.deferred)

    def finish(self) -> None:
        """Wait until all is settled and announced, stop, and compare everything with the producer's list."""
        self.wait(lambda: self.settled() == self.scenario.counts().total(), "not all is settled")
        self.run("stop", "one")
        check(self.scenario, DataRoot.open(self.data).raw, self.runs_topic)


@contextmanager
def supervised(home: Path) -> Iterator[Supervised]:
    """A service that is stopped in the end in any case."""
    one = Supervised(home)
    try:
        yield one
    finally:
        if one.files.was_started:
            one.ask("stop", "one")


@contextmanager
def ingest(home: Path, data: str, scenario: Scenario, runs_topic: str) -> Iterator[Ingest]:
    """An ingest that is stopped in the end in any case."""
    with supervised(home):
        yield Ingest(home, data, scenario, runs_topic)


def run_planned(service: Any) -> None:
    """Plan a work item, which has to be due, and run it."""
    work = service.plan()
    assert work is not None, "no work is due"
    service.run(work)


def mark_running(files: ServiceFiles, what: str, started_before_s: float = 0.0) -> None:
    """Record this process as the worker or the supervisor, as of a start so many seconds before its own."""
    files.record(what, os.getpid(), processes.start_time(os.getpid()) - started_before_s)


def options_for(kind: str, **values: Any) -> ServiceOptions:
    """Return options of a kind of service: these values that it has, and examples of the others that it needs."""
    options = options_of(kind)
    examples = {
        "data_path": "data", "kafka": "127.0.0.1:1", "model": "m", "server": "s:1", "datasets": ["d"], "dataset": "d",
        "config": "none",
    }  # fmt: skip
    return options.from_json({name: value for name, value in {**examples, **values}.items() if name in options.names()})

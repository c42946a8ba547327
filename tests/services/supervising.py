"""What tests of supervised services share: one ingest in a home of its own, started and looked at as a user would."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from ciml.data_root import DataRoot
from cli.commands.serve.service import command
from services.files import ServiceFiles
from tests.pipelines.ingest.ingesting import account, check
from tests.pipelines.ingest.scenario import Scenario


@dataclass
class Supervised:
    """The service named ``one`` of a home."""

    home: Path

    @property
    def place(self) -> ServiceFiles:
        return ServiceFiles(self.home, "one")

    def ask(self, *words: str) -> Result:
        """``ciml service <words>`` in this process: its output, exit code and what it raised."""
        done = CliRunner().invoke(command, [*words, "--home", str(self.home)], standalone_mode=False)
        if done.return_value is not None and done.exception is None:
            done.exit_code = int(done.return_value)
        return done

    def begin(self, kind: str, *words: str) -> Result:
        """``ciml service start <kind>``, which ends with this process."""
        return self.ask("start", kind, "--name", "one", "--tied-to", str(os.getpid()), *words)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ask("status", "one", "--json").output)["one"]
        return found

    def code(self) -> int:
        return self.ask("status", "one").exit_code

    def pid(self, what: str) -> int:
        process = self.place.process(what)
        assert process is not None, f"no {what} runs"
        return int(process.pid)

    def kill(self, what: str) -> int:
        pid = self.pid(what)
        os.kill(pid, signal.SIGKILL)
        self.wait(lambda: (one := self.place.process(what)) is None or one.pid != pid, f"the {what} does not die")
        return pid

    def kill_worker(self) -> None:
        """Kills the worker, and waits for the next one to work."""
        worker = self.kill("worker")
        self.wait(lambda: self.place.process("worker") is not None and self.pid("worker") != worker, "no new worker")
        self.wait(lambda: self.status()["health"] == "running", "the new worker does not run")

    def wait(self, done: Callable[[], bool], what: str, most_s: float = 90.0) -> None:
        deadline = time.monotonic() + most_s
        while not done():
            assert time.monotonic() < deadline, f"{what}: {json.dumps(self.status(), indent=1)[:3000]}"
            time.sleep(0.2)


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
        """How many (event, run) are settled, deferred ones not counted."""
        state, _ = account(DataRoot.open(self.data).raw)
        return sum(state.counts.values()) - len(state.deferred)

    def finish(self) -> None:
        """Waits until all is settled and announced, stops, and compares everything with the producer's list."""
        self.wait(lambda: self.settled() == self.scenario.counts().total(), "not all is settled")
        done = self.ask("stop", "one")
        assert done.exception is None, done.exception
        check(self.scenario, DataRoot.open(self.data).raw, self.runs_topic)


@contextmanager
def supervised(home: Path) -> Iterator[Supervised]:
    """A service that is stopped in the end, whatever became of it."""
    one = Supervised(home)
    try:
        yield one
    finally:
        if one.place.known:
            one.ask("stop", "one")


@contextmanager
def ingest(home: Path, data: str, scenario: Scenario, runs_topic: str) -> Iterator[Ingest]:
    """An ingest that is stopped in the end, whatever became of it."""
    one = Ingest(home, data, scenario, runs_topic)
    try:
        yield one
    finally:
        if one.place.known:
            one.ask("stop", "one")


def both(first: Scenario, second: Scenario) -> Scenario:
    """What was sent in two waves."""
    return Scenario(
        second.broker, second.topic, second.logs, first.sent + second.sent, first.runs | second.runs,
        first.untrusted | second.untrusted, {**first.late, **second.late},
    )  # fmt: skip

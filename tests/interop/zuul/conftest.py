"""The real Zuul of up.sh, and ciml connected to it by the files of ``ciml connect``."""

from __future__ import annotations

import fcntl
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ciml.data_root import DataRoot
from ciml.runs.latest_runs import StoredRun, latest_runs
from ciml.runs.state import RawState, open_raw

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
BROKER, LOGS = "mqtts://127.0.0.1:18883", "http://127.0.0.1:19001"


def _up(folder: Path, *what: str) -> None:
    environment = {**os.environ, "CIML_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    command = ["bash", str(HERE / "up.sh"), str(folder), *what]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip()
        pytest.fail(f"the real Zuul does not start: {said}", pytrace=False)


@pytest.fixture(scope="session")
def installed() -> Iterator[Path]:
    """The folder of an installed Zuul: ``$CIML_ZUUL``, or in ``/var/cache``, which PostgreSQL's user can enter.

    No other session uses it meanwhile.
    """
    folder = Path(os.environ.get("CIML_ZUUL") or "/var/cache/ciml/zuul")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:  # its ports are fixed
        fcntl.flock(lock, fcntl.LOCK_EX)
        _up(folder, "install")
        yield folder


@pytest.fixture(scope="session")
def zuul(installed: Path) -> Iterator[Path]:
    """The same, running."""
    try:
        _up(installed)
        yield installed
    finally:
        subprocess.run(["bash", str(HERE / "down.sh"), str(installed)], check=True)


@dataclass
class Operator:
    """What an operator does: commands of ciml, in a folder of their own."""

    folder: Path
    kafka: str

    def ciml(self, *arguments: str, timeout: float = 300.0) -> str:
        """Return what a command prints."""
        done = subprocess.run(
            self._command(*arguments), cwd=self.folder, env=self._environment(), capture_output=True, text=True,
            timeout=timeout,
        )  # fmt: skip
        assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a command in the background, with a log in the folder."""
        words = itertools.takewhile(lambda word: not word.startswith("-"), arguments)
        log = (self.folder / f"{'-'.join(words)}.log").open("ab")
        command = self._command(*arguments)
        return subprocess.Popen(command, cwd=self.folder, env=self._environment(), stdout=log, stderr=log)

    def ingest(self) -> tuple[list[StoredRun], RawState]:
        """Ingest what has arrived; return the stored runs and the state."""
        self.ciml(
            "ingest", "--data-path", "data", "--fetch-policy", "fetch.toml", "--trust-policy", "trust.toml", "--kafka",
            self.kafka, "--once", "--engine", "micro-batches",
        )  # fmt: skip
        log, state = open_raw(DataRoot.open(str(self.folder / "data")).raw)
        return list(latest_runs(log, state)), state

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "ciml", *arguments]

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT), "CIML_HOME": str(self.folder / "home")}


def wait_until(found: Callable[[], bool], what: str, most_s: float = 420.0) -> None:
    """Wait for something that takes Zuul a minute."""
    until = time.monotonic() + most_s
    while not found():
        assert time.monotonic() < until, f"not within {most_s:g} s: {what}"
        time.sleep(1.0)


def _make_topics(kafka: str) -> None:
    """Make the topics anew: an operator begins without the events of another test."""
    from confluent_kafka.admin import AdminClient

    from ciml.engines.kafka import create_topics

    client, names = AdminClient({"bootstrap.servers": kafka}), {"ci-events": 2, "runs": 1, "predictions": 1}
    known = names.keys() & client.list_topics(timeout=30).topics.keys()
    for deleted in client.delete_topics(list(known)).values() if known else ():
        deleted.result(30)
    wait_until(lambda: not names.keys() & client.list_topics(timeout=30).topics.keys(), "topics are deleted", 60)
    create_topics(kafka, names)


@pytest.fixture
def operator(zuul: Path, kafka: str, tmp_path: Path) -> Iterator[Operator]:
    """An operator whose receivers are connected to Zuul's broker and to its Gerrit."""
    _make_topics(kafka)
    password, hosts = tmp_path / "password", tmp_path / "hosts"  # the broker's, and Gerrit's
    password.touch(mode=0o600)
    password.write_text("ciml-secret\n")
    scanned = subprocess.run(["ssh-keyscan", "-p", "29418", "127.0.0.1"], capture_output=True, text=True, check=True)
    hosts.write_text(scanned.stdout)
    one = Operator(tmp_path, kafka)
    one.ciml(
        "connect", "zuul", "--broker", BROKER, "--logs", LOGS, "--password-file", str(password), "--ca-file",
        str(zuul / "mqtt/ca.pem"),
    )  # fmt: skip
    one.ciml(
        "connect", "gerrit", "--ssh", "ssh://ciml@127.0.0.1:29418", "--rest", "http://127.0.0.1:18080", "--key-file",
        str(zuul / "etc/ciml_key"), "--known-hosts-file", str(hosts), "--password-file", str(password), "--feedback",
    )  # fmt: skip
    receivers = [
        one.start("receive", kind, "--config", "receivers.toml", "--kafka", kafka) for kind in ("mqtt", "gerrit")
    ]
    try:
        for kind in ("mqtt", "gerrit"):
            log = tmp_path / f"receive-{kind}.log"
            wait_until(lambda log=log, kind=kind: f"receiving {kind}" in log.read_text(), f"receive {kind}", 60)
        yield one
    finally:
        for process in receivers:
            process.terminate()
        for process in receivers:
            process.wait(30)

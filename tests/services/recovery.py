"""Each kind of service against each fault: broken, repaired, and back by itself or by the command in its status.

A real broker, mosquitto and model server, moto's S3 behind a link of our own, a file system that is full, and servers
that play GitHub and Gerrit. The trainer waits for a data set, so that no trial trains.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3

from ciml import engines
from ciml.engines.processes import lasting_ports
from ciml.storage.s3 import _make_client
from tests.services.outages import Broker, Link, full, small_disk, taken
from tests.services.supervising import Supervised, shell

SECRET = "a secret that is long enough"
FAULTS = (
    "credential missing", "broker away", "S3 away", "S3 hanging", "disk full", "port taken", "invalid configuration",
)  # fmt: skip
BUCKET = "s3://trial/data"
_MOST_S = 150.0


@dataclass(frozen=True)
class Kind:
    """A kind of service in the trials.

    Attributes:
      name: of `ciml.services.options.KINDS`.
      words: further arguments of its start.
      credential, config: files that it reads.
      broken: the content of an invalid configuration.
      uses_broker, uses_s3: whether it talks to them.
      s3_at_start: whether it talks to S3 only when its worker starts.
      own_port: that its worker listens on; 0 for none.
    """

    name: str
    words: tuple[str, ...]
    credential: Path
    config: Path
    broken: str = "nonsense"
    uses_broker: bool = True
    uses_s3: bool = True
    s3_at_start: bool = False
    own_port: int = 0


@dataclass
class Scene:
    """What services talk to."""

    folder: Path
    broker: Broker
    s3: Link
    home: Path
    metrics_port: int = field(default_factory=lambda: lasting_ports(1)[0])

    @property
    def credentials(self) -> Path:
        """The credentials of S3."""
        return self.folder / "aws-credentials"

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o600)
        return path

    def upload(self, data: Path) -> None:
        """Copy a data root to the bucket."""
        client = boto3.client("s3")
        for path in data.rglob("*"):
            if path.is_file():
                client.put_object(Bucket="trial", Key=f"data/{path.relative_to(data)}", Body=path.read_bytes())


@contextmanager
def scene(folder: Path, setenv: Callable[[str, str], None], delenv: Callable[[str], None]) -> Iterator[Scene]:
    """Start what services talk to. The credentials of S3 are in a file, as in production."""
    with ExitStack() as stack:
        home = stack.enter_context(small_disk(folder / "home"))
        broker = Broker(folder / "engines")
        stack.callback(broker.close)
        engines.create_topics(broker.address, {"ci-events": 1, "runs": 1, "predictions": 1, "samples": 1})
        running = stack.enter_context(engines.start(["s3"], folder / "s3", engines.Settings(tied=True)))
        link = Link(running.states["s3"].ports["s3"])
        stack.callback(link.close)
        one = Scene(folder, broker, link, home)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_PROFILE"):
            delenv(name)
        setenv("AWS_ENDPOINT_URL_S3", link.url)
        setenv("AWS_DEFAULT_REGION", "us-east-1")
        setenv("AWS_EC2_METADATA_DISABLED", "true")
        setenv("AWS_SHARED_CREDENTIALS_FILE", str(one.credentials))
        one.write(one.credentials.name, "[default]\naws_access_key_id = ciml\naws_secret_access_key = ciml\n")
        boto3.setup_default_session()
        boto3.client("s3").create_bucket(Bucket="trial")
        boto3.client("s3").put_object(Bucket="trial", Key="data/file", Body=b"")
        yield one


def data_words(one: Scene) -> tuple[str, ...]:
    return ("--data-path", BUCKET, *broker_words(one))


def broker_words(one: Scene) -> tuple[str, ...]:
    return ("--kafka", one.broker.address)


@dataclass
class Trials:
    """The trials of one kind.

    Attributes:
      cells: what happened, by fault.
    """

    scene: Scene
    kind: Kind
    service: Supervised
    cells: dict[str, str] = field(default_factory=dict)

    def begin(self) -> None:
        """Start the service, at first without its credential: an error names it, and nothing runs."""
        secret = self.kind.credential.read_bytes()
        self.kind.credential.unlink()
        _make_client.cache_clear()  # a command is a new process
        done = self._start()
        assert done.exception is not None or done.exit_code == 2, done.output
        assert self.kind.credential.name in f"{done.exception} {done.output}", f"{done.exception} {done.output}"
        assert "is running" not in done.output
        assert not self.service.files.was_started
        self._put(self.kind.credential, secret)
        done = self._start()
        assert done.exception is None, done.exception
        self._until(self._works, "it does not work")

    def _start(self) -> Any:
        return self.service.begin(self.kind.name, *self.kind.words, "--metrics-port", str(self.scene.metrics_port))

    def run(self, fault: str) -> None:
        """Try a fault; record how the service recovered from it."""
        trial = {
            "credential missing": self._credential_missing, "broker away": self._broker_away,
            "S3 away": self._s3_away, "S3 hanging": self._s3_hanging, "disk full": self._disk_full,
            "port taken": self._port_taken, "invalid configuration": self._invalid_configuration,
        }[fault]  # fmt: skip
        self.cells[fault] = trial()

    def _credential_missing(self) -> str:
        secret = self.kind.credential.read_bytes()
        self.kind.credential.unlink()
        if self.kind.name != "ingest":  # which reads it for each log
            self._kill_worker()
        seen = self._noticed()
        text = " ".join([seen["why"], *(seen.get("problems") or {}).values()])
        assert self.kind.credential.name in text, text
        self._put(self.kind.credential, secret)
        return self._recover(seen)

    def _invalid_configuration(self) -> str:
        before = self.kind.config.read_bytes()
        self.kind.config.write_text(self.kind.broken)
        self._kill_worker()
        seen = self._noticed()
        assert seen["health"] == "failed"
        assert self.kind.config.name in seen["why"] or "fetch policy" in seen["why"], seen["why"]
        self._put(self.kind.config, before)
        return self._recover(seen)

    def _broker_away(self) -> str:
        self.scene.broker.die()
        try:
            seen = self._noticed() if self.kind.uses_broker else self._unaffected()
        finally:
            self.scene.broker.live()
        return self._recover(seen)

    def _s3_away(self) -> str:
        return self._s3("refused")

    def _s3_hanging(self) -> str:
        return self._s3("hanging")

    def _s3(self, mode: Any) -> str:
        self.scene.s3.set(mode)
        if self.kind.s3_at_start:
            self._kill_worker()
        try:
            seen = self._noticed() if self.kind.uses_s3 else self._unaffected()
        finally:
            self.scene.s3.set("open")
        return self._recover(seen)

    def _disk_full(self) -> str:
        with full(self.scene.home):
            self._kill_worker()
            seen = self._noticed()
        return self._recover(seen)

    def _port_taken(self) -> str:
        """The port of the metrics, which the supervisor opens, and that of the worker, if it has one."""
        if self.kind.own_port:
            self._kill_and_take(self.kind.own_port)
        self.service.kill("supervisor")
        with taken(self.scene.metrics_port):
            dead = self.service.status()
            assert dead["remedy"] is not None
            shell(dead["remedy"])
            self._until(lambda: "cannot listen" in str(self.service.status()["metrics"]), "the port is not reported")
            seen = self.service.status()
        self._until(lambda: str(self.service.status()["metrics"]).startswith("http"), "the port is not opened")
        return self._recover(seen)

    def _kill_and_take(self, port: int) -> None:
        pid = self.service.pid("worker")
        self.service.kill("worker")
        with taken_soon(port):
            self._until(lambda: "cannot listen" in self.service.status()["why"], "the port is not reported")
        self._until(self._works, f"it does not work after {pid}")

    def _kill_worker(self) -> None:
        if self.service.files.process("worker") is not None:
            self.service.kill("worker")

    def _noticed(self) -> dict[str, Any]:
        """Wait until the status reports trouble; it never claims a fresh figure that it cannot know."""
        found: dict[str, Any] = {}

        def noticed() -> bool:
            began = time.monotonic()
            found.update(self.service.status())
            assert time.monotonic() - began < 30.0, "the status command hangs"
            if found["stale"]:
                assert found["lag"] is None or "lag" not in found["stale"]
            reported = (
                found["health"] in ("waiting", "stalled", "failed")
                or bool(found.get("problems"))
                or BUCKET in found["why"]
            )
            return reported or "status" in found["stale"]

        self._until(noticed, "the fault is not noticed")
        return found

    def _unaffected(self) -> dict[str, Any]:
        """Return the status after the worker and the supervisor have worked through the fault."""
        self._until(self._works, "it is affected")
        return {**self.service.status(), "unaffected": True}

    def _recover(self, seen: Mapping[str, Any]) -> str:
        command = seen["remedy"]
        if command is not None:
            shell(command)
        self._until(self._works, f"it does not recover by {command}")
        if seen.get("unaffected"):
            return "yes, unaffected"
        return "yes, by itself" if command is None else f"yes, {' '.join(shlex.split(command)[:3])}"

    def _works(self) -> bool:
        """Return whether supervisor and worker have both completed an iteration since this was first asked."""
        now_us = time.time() * 1e6
        deadline = time.monotonic() + 12.0
        while time.monotonic() < deadline:
            seen, report = self.service.status(), self.service.files.report()
            fresh = report.get("state") == "running" and not report.get("waits") and report["time_us"] > now_us
            if fresh and seen["health"] == "running" and not seen["stale"] and not seen.get("problems"):
                return True
            time.sleep(0.3)
        return False

    def _until(self, done: Callable[[], bool], what: str) -> None:
        def log(name: str) -> str:
            path = self.service.files.log(name)
            return path.read_text(errors="replace")[-1500:] if path.exists() else ""

        try:
            self.service.wait(done, f"{self.kind.name}: {what}", _MOST_S)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{log('supervisor')}\n{log('worker')}") from None

    @staticmethod
    def _put(path: Path, content: bytes) -> None:
        path.write_bytes(content)
        path.chmod(0o600)


@contextmanager
def taken_soon(port: int) -> Iterator[None]:
    """Take a port as soon as it is free."""
    deadline = time.monotonic() + 20.0
    while True:
        try:
            with taken(port):
                yield
            return
        except OSError:
            assert time.monotonic() < deadline, f"port {port} is not free"
            time.sleep(0.01)


def table(rows: Mapping[str, Mapping[str, str]]) -> str:
    """Return the trials as a table of Markdown."""
    lines = ["| kind | " + " | ".join(FAULTS) + " |", "|---|" + "---|" * len(FAULTS)]
    for kind, cells in rows.items():
        lines.append(f"| `{kind}` | " + " | ".join(cells.get(fault, "–") for fault in FAULTS) + " |")
    return "\n".join(lines)

"""Each kind of service recovers from each fault, by itself or by the command that its status names.

`pytest -s -m interop tests/services/test_recovery.py` tries all of them, and prints the table of docs/operations.md:
with a real broker, mosquitto and model server, moto's S3 behind a link, a small file system, and servers that play
GitHub and Gerrit. The trainer waits for a data set, so that no trial trains.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest

from ciml import engines
from ciml.engines.processes import lasting_ports
from ciml.services.options import KINDS
from ciml.storage.s3 import _make_client
from tests.faults.broker import Broker
from tests.faults.rows_store import disk
from tests.integrations.gerrit.samples import source
from tests.integrations.gerrit.server import FakeGerrit
from tests.integrations.mqtt.conftest import certificates, mosquitto
from tests.integrations.mqtt.mosquitto import write_source
from tests.services.supervising import Supervised, shell, supervised, webhooks
from tests.verdicts.feedback.conftest import github_server
from tests.verdicts.feedback.test_service import configure

__all__ = ["certificates", "github_server", "mosquitto"]

SECRET = "a-secret-that-is-long-enough"
BUCKET = "s3://trial/data"
_rows: dict[str, dict[str, str]] = {}


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


class Link:
    """A TCP proxy on a port of this machine, which can be cut."""

    def __init__(self, target: int) -> None:
        self.port = lasting_ports(1)[0]
        sockets = self._sockets = set[socket.socket]()

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with socket.create_connection(("127.0.0.1", target)) as server:
                    sockets.update((self.request, server))
                    back = threading.Thread(target=_copy, args=(server, self.request), daemon=True)
                    back.start()
                    _copy(self.request, server)
                    back.join()

        self._handler = Handler
        self.open()

    def open(self) -> None:
        socketserver.ThreadingTCPServer.allow_reuse_address = True
        socketserver.ThreadingTCPServer.daemon_threads = True
        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", self.port), self._handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def cut(self) -> None:
        """End all connections, and refuse new ones."""
        self._server.shutdown()
        self._server.socket.close()
        for one in list(self._sockets):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._sockets.clear()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


@contextmanager
def taken(port: int) -> Iterator[None]:
    """Take a port as soon as it is free."""
    deadline = time.monotonic() + 20.0
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        while True:
            try:
                one.bind(("127.0.0.1", port))
                break
            except OSError:
                assert time.monotonic() < deadline, f"port {port} is not free"
                time.sleep(0.01)
        one.listen(1)
        yield


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """Fill a disk, and fill what becomes free, until the context ends."""
    path = folder / "filler"
    freed = threading.Event()

    def fill() -> None:
        with path.open("wb", buffering=0) as file:
            while not freed.wait(0.02):
                with contextlib.suppress(OSError):
                    while file.write(b"x" * 4096):
                        pass

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        yield
    finally:
        freed.set()
        thread.join()
        path.unlink()


@dataclass
class Scene:
    """What services talk to. The credentials of S3 are in a file, as in production."""

    folder: Path
    home: Path
    broker: Broker
    s3: Link
    s3_pid: int
    credentials: Path


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("recovery")
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        small = stack.enter_context(disk(folder / "home", 8))
        assert small is not None, "a small file system cannot be mounted here"
        broker = Broker(folder / "broker")
        stack.callback(broker.kill)
        engines.create_topics(broker.address, {"ci-events": 1, "runs": 1, "predictions": 1, "samples": 1})
        running = stack.enter_context(engines.start(["s3"], folder / "s3", engines.Settings(tied=True)))
        s3 = running.states["s3"]
        link = Link(s3.ports["s3"])
        stack.callback(link.cut)
        keys = "[default]\naws_access_key_id = ciml\naws_secret_access_key = ciml\n"
        credentials = write(folder / "aws-credentials", keys)
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{link.port}")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
        boto3.setup_default_session()
        boto3.client("s3").create_bucket(Bucket="trial")
        boto3.client("s3").put_object(Bucket="trial", Key="data/file", Body=b"")
        yield Scene(folder, small.folder, broker, link, s3.pid or 0, credentials)


@dataclass(frozen=True)
class Kind:
    """A kind of service in the trials: the arguments of its start, files that it reads, and what affects it."""

    words: tuple[str, ...]
    credential: Path
    config: Path
    broken: str = "nonsense"  # the content of an invalid configuration
    uses: tuple[str, ...] = ("broker", "S3")
    own_port: int = 0


def kind_of(name: str, one: Scene, request: pytest.FixtureRequest) -> Kind:
    """Return a kind with what it needs."""
    folder = one.folder / name
    folder.mkdir()
    kafka = ("--kafka", one.broker.address)
    data = ("--data-path", BUCKET, *kafka)
    if name == "ingest":
        token = write(folder / "token", SECRET)
        text = f'hosts = ["logs.example.org"]\n[[credentials]]\nhost = "logs.example.org"\ntoken_file = "{token}"\n'
        policy = write(folder / "fetch.toml", text)
        return Kind((*data, "--engine", "micro-batches", "--fetch-policy", str(policy)), token, policy, "hosts = 3")
    if name in ("predict", "live"):
        properties = write(folder / "kafka.properties", "client.id = ciml\n")
        words = (*data, "--kafka-config", str(properties))
        if name == "live":
            made = request.getfixturevalue("made")
            for path in filter(Path.is_file, made.rglob("*")):
                key = f"data/{path.relative_to(made)}"
                boto3.client("s3").put_object(Bucket="trial", Key=key, Body=path.read_bytes())
            engine = f"flink:{request.getfixturevalue('flink')}"
            return Kind((*words, "--dataset", "providers", "--engine", engine), properties, properties)
        world = request.getfixturevalue("world")
        world.push(request.getfixturevalue("folders")[0])
        model = ("--model", "m", "--server", world.address, "--engine", "micro-batches")
        return Kind((*words, *model), properties, properties)
    if name == "trainer":
        experiment = write(folder / "experiment.toml", "epochs = 1\n")
        words = ("--data-path", BUCKET, "--dataset", "later", "--experiment", str(experiment))
        return Kind(words, one.credentials, experiment, uses=("S3",))
    if name == "feedback":
        config = Path(configure(folder, request.getfixturevalue("github_server")))
        return Kind(("--config", str(config), *data), folder / "token", config)
    port = 0
    config = folder / "receivers.toml"
    if name == "webhooks":
        port = lasting_ports(1)[0]
        secret = write(folder / "hub-secret", SECRET)
        write(config, webhooks(port, secret))
    elif name == "mqtt":
        write_source(folder, **request.getfixturevalue("mosquitto").user)
        secret = folder / "password"
    else:
        server = FakeGerrit(folder / "gerrit")
        server.start()
        request.addfinalizer(server.close)
        secret = server.folder / "key"
        write(config, source(server.folder, server.ssh, server.rest))
    return Kind(("--config", str(config), *kafka), secret, config, uses=("broker",), own_port=port)


@dataclass
class Trials:
    """The trials of one kind."""

    name: str
    scene: Scene
    kind: Kind
    service: Supervised
    metrics_port: int = field(default_factory=lambda: lasting_ports(1)[0])

    def begin(self) -> None:
        """Start the service, at first without its credential: an error names it, and nothing runs."""
        words = (self.name, *self.kind.words, "--metrics-port", str(self.metrics_port))
        with self._without(self.kind.credential):
            _make_client.cache_clear()  # a command is a new process
            done = self.service.begin(*words)
            assert done.exception is not None or done.exit_code == 2, done.output
            assert self.kind.credential.name in f"{done.exception} {done.output}", f"{done.exception} {done.output}"
            assert not self.service.files.was_started
        done = self.service.begin(*words)
        assert done.exception is None, done.exception
        self._until(self._works, "it does not work")

    def run(self, fault: str) -> str:
        """Try a fault, and repair it; return how the service recovered."""
        with getattr(self, f"_{fault.replace(' ', '_').lower()}")():
            if fault.partition(" ")[0] in {"broker", "S3"}.difference(self.kind.uses):
                self._until(self._works, "it is affected")
                return "yes, unaffected"
            seen = self._noticed()
            text = " ".join([seen["why"], *(seen.get("problems") or {}).values()])
            if fault == "credential missing":
                assert self.kind.credential.name in text, text
            if fault == "invalid configuration":
                assert seen["health"] == "failed"
                assert self.kind.config.name in text or "fetch policy" in text, text
        command = seen["remedy"]
        if command is not None:
            shell(command)
        self._until(self._works, f"it does not recover by {command}")
        return "yes, by itself" if command is None else f"yes, {' '.join(shlex.split(command)[:3])}"

    @contextmanager
    def _without(self, path: Path) -> Iterator[None]:
        content = path.read_text()
        path.unlink()
        yield
        write(path, content)

    @contextmanager
    def _credential_missing(self) -> Iterator[None]:
        with self._without(self.kind.credential):
            if self.name != "ingest":  # which reads it for each log
                self._kill_worker()
            yield

    @contextmanager
    def _invalid_configuration(self) -> Iterator[None]:
        with self._without(self.kind.config):
            self.kind.config.write_text(self.kind.broken)
            self._kill_worker()
            yield

    @contextmanager
    def _broker_away(self) -> Iterator[None]:
        self.scene.broker.kill()
        yield
        self.scene.broker.start()

    @contextmanager
    def _s3_away(self) -> Iterator[None]:
        self.scene.s3.cut()
        self._kill_worker(only="live")  # which talks to S3 when its worker starts
        yield
        self.scene.s3.open()

    @contextmanager
    def _s3_hanging(self) -> Iterator[None]:
        os.kill(self.scene.s3_pid, signal.SIGSTOP)
        try:
            self._kill_worker(only="live")
            yield
        finally:
            os.kill(self.scene.s3_pid, signal.SIGCONT)

    @contextmanager
    def _disk_full(self) -> Iterator[None]:
        with full(self.scene.home):
            self._kill_worker()
            yield

    @contextmanager
    def _port_taken(self) -> Iterator[None]:
        """Take the port of the worker, if it has one, and then that of the metrics, which the supervisor opens."""
        if self.kind.own_port:
            self.service.kill("worker")
            with taken(self.kind.own_port):
                self._until(lambda: "cannot listen" in self.service.status()["why"], "the port is not reported")
            self._until(self._works, "it does not work again")
        self.service.kill("supervisor")
        with taken(self.metrics_port):
            shell(self.service.status()["remedy"])
            self._until(lambda: "cannot listen" in str(self.service.status()["metrics"]), "the port is not reported")
        yield
        self._until(lambda: str(self.service.status()["metrics"]).startswith("http"), "the port is not opened")

    def _kill_worker(self, only: str = "") -> None:
        if only in ("", self.name) and self.service.files.process("worker") is not None:
            self.service.kill("worker")

    def _noticed(self) -> dict[str, Any]:
        """Return the status once it reports trouble; it never claims a fresh figure that it cannot know."""
        seen: dict[str, Any] = {}

        def noticed() -> bool:
            began_s = time.monotonic()
            seen.update(self.service.status())
            assert time.monotonic() - began_s < 30.0, "the status command hangs"
            assert seen["lag"] is None or "lag" not in seen["stale"]
            is_reported = seen["health"] in ("waiting", "stalled", "failed") or seen.get("problems")
            return bool(is_reported or BUCKET in seen["why"] or "status" in seen["stale"])

        self._until(noticed, "the fault is not noticed")
        return seen

    def _works(self) -> bool:
        """Return whether supervisor and worker have both completed an iteration since this was first asked."""
        now_us = time.time() * 1e6
        deadline = time.monotonic() + 12.0
        while time.monotonic() < deadline:
            seen = self.service.status()
            report = self.service.files.report()
            is_fresh = report.get("state") == "running" and not report.get("waits") and report["time_us"] > now_us
            if is_fresh and seen["health"] == "running" and not seen["stale"] and not seen.get("problems"):
                return True
            time.sleep(0.3)
        return False

    def _until(self, done: Callable[[], bool], what: str) -> None:
        self.service.wait(done, what, 150.0)


FAULTS = tuple(
    "credential missing,broker away,S3 away,S3 hanging,disk full,port taken,invalid configuration".split(",")
)


def recover(name: str, faults: tuple[str, ...], one: Scene, request: pytest.FixtureRequest) -> dict[str, str]:
    kind = kind_of(name, one, request)
    with supervised(one.home / name) as service:
        trials = Trials(name, one, kind, service)
        trials.begin()
        cells = {fault: trials.run(fault) for fault in faults}
        service.run("stop")
        assert service.status()["health"] == "stopped"
    return cells


@pytest.mark.engines
@pytest.mark.timeout(600)
def test_ingest_recovers_from_what_failed_before(scene: Scene, request: pytest.FixtureRequest) -> None:
    faults = ("credential missing", "S3 hanging", "invalid configuration")
    ways = ["yes, by itself", "yes, by itself", "yes, ciml service resume"]
    assert list(recover("ingest", faults, scene, request).values()) == ways


@pytest.mark.interop
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("name", KINDS)
def test_each_kind_recovers_from_each_fault(name: str, scene: Scene, request: pytest.FixtureRequest) -> None:
    _rows[name] = recover(name, FAULTS, scene, request)
    lines = ["| kind | " + " | ".join(FAULTS) + " |", "|---" * (len(FAULTS) + 1) + "|"]
    lines += [f"| `{kind}` | {' | '.join(cells[fault] for fault in FAULTS)} |" for kind, cells in _rows.items()]
    print("\n" + "\n".join(lines))
    assert all(_rows[name][fault].startswith("yes") for fault in FAULTS)

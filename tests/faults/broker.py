"""A broker that a trial may harm (one for each process that runs trials), and toxiproxy, which may stand before it."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import platformdirs

from ciml.engines.base import Settings
from ciml.engines.kafka import Kafka
from ciml.engines.processes import free_ports, lasting_ports
from tests.faults.children import Program


class Broker:
    """A real broker in a process of its own; its data outlive the process.

    Attributes:
      address: where producers and the harness reach it.
      proxied: the port at which a proxy has to listen for clients that use it.
      behind: the port to which that proxy forwards.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        home.mkdir(parents=True, exist_ok=True)
        kafka, controller, self.behind, self.proxied = lasting_ports(4)
        self._engine = Kafka()
        ports = {"kafka": kafka, "kafka-controller": controller}
        launch = self._engine.prepare(home, ports, Settings(kafka_heap_mb=384))
        assert launch.command is not None
        self._command, self._state = launch.command, self._engine.state_of(launch)
        self._settings(home / "kafka" / "server.properties", self.behind, self.proxied)
        self.address = launch.address
        self.start()

    @staticmethod
    def _settings(file: Path, behind: int, proxied: int) -> None:
        """Add a second listener, announced as the proxy's address."""
        more = {
            "listeners": f",PROXIED://127.0.0.1:{behind}",
            "advertised.listeners": f",PROXIED://127.0.0.1:{proxied}",
            "listener.security.protocol.map": ",PROXIED:PLAINTEXT",
        }
        lines = [line + more.get(line.partition("=")[0], "") for line in file.read_text().splitlines()]
        file.write_text("\n".join([*lines, "inter.broker.listener.name=PLAINTEXT", ""]))

    def start(self, most_s: float = 90.0) -> float:
        """Start it, on the data of its predecessor; return the seconds until it answered."""
        began = time.monotonic()
        self.process = Program(self._command, self._home / "broker.log")
        while not self.is_whole():
            if self.process.poll() is not None or time.monotonic() - began > most_s:
                raise RuntimeError(f"the broker does not start: {self.process.said()}")
            time.sleep(0.05)
        return time.monotonic() - began

    def kill(self) -> None:
        """Send SIGKILL."""
        self.process.kill()

    def freeze(self) -> None:
        """Send SIGSTOP: connections stay, nothing answers."""
        self.process.send(signal.SIGSTOP)

    def thaw(self) -> None:
        """Send SIGCONT."""
        self.process.send(signal.SIGCONT)

    def is_whole(self) -> bool:
        """Return whether it runs and answers."""
        return self.process.poll() is None and self._engine.ready(self._home, self._state) is not None


_brokers: dict[int, Broker] = {}


def own_broker(home: Path) -> Broker:
    """Return the broker of this process, restarted if an earlier trial left it dead."""
    pid = os.getpid()
    broker = _brokers.get(pid)
    if broker is None:
        broker = _brokers[pid] = Broker(home / f"broker-{pid}")
        atexit.register(broker.kill)
    broker.thaw()
    if not broker.is_whole():
        broker.kill()
        broker.start()
    return broker


_TOXIPROXY = "v2.12.0"
_PACKAGE = f"github.com/Shopify/toxiproxy/v2/cmd/server@{_TOXIPROXY}"


class Missing(Exception):
    """Toxiproxy is not available here; the message says why."""


def _toxiproxy() -> Path:
    """Return the program, built once for the user by Go, from the Go proxy."""
    folder = Path(platformdirs.user_cache_dir("ciml")) / f"toxiproxy-{_TOXIPROXY}"
    if not (folder / "server").exists():
        if shutil.which("go") is None:
            raise Missing("toxiproxy is built by Go, which is not installed")
        part = folder.with_name(f"{folder.name}.{os.getpid()}")
        done = subprocess.run(
            ["go", "install", _PACKAGE], env={**os.environ, "GOBIN": str(part)}, capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise Missing(f"toxiproxy does not build: {done.stderr.strip()[-200:]}")
        folder.mkdir(parents=True, exist_ok=True)
        os.replace(part / "server", folder / "server")
        part.rmdir()
    return folder / "server"


class Proxy:
    """Toxiproxy: a TCP link from one port to another, which it cuts, slows and resets."""

    def __init__(self, folder: Path, listen: int, upstream: int) -> None:
        program, port = _toxiproxy(), free_ports(1)[0]
        self._process = Program([str(program), "-host", "127.0.0.1", "-port", str(port)], folder / "proxy.log")
        self._api = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=10)
        deadline = time.monotonic() + 20
        while True:
            try:
                self._api.get("/version")
                break
            except httpx.TransportError:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"toxiproxy does not answer: {self._process.said()}") from None
                time.sleep(0.05)
        link = {"name": "link", "listen": f"127.0.0.1:{listen}", "upstream": f"127.0.0.1:{upstream}"}
        self._api.post("/proxies", json=link).raise_for_status()

    def add(self, kind: str, stream: str = "downstream", **attributes: Any) -> None:
        """Add a toxic."""
        toxic = {"type": kind, "stream": stream, "attributes": attributes}
        self._api.post("/proxies/link/toxics", json=toxic).raise_for_status()

    def enable(self, on: bool) -> None:
        """Enable the link; while disabled, connections are closed and refused."""
        self._api.post("/proxies/link", json={"enabled": on}).raise_for_status()

    def mend(self) -> None:
        """Remove all toxics and enable the link."""
        self._api.post("/reset").raise_for_status()

    def close(self) -> None:
        self._api.close()
        self._process.kill()

"""A broker that a trial may hurt: killed, frozen, forgetful, behind a proxy. One for each process that runs trials."""

from __future__ import annotations

import atexit
import os
import random
import signal
import time
from pathlib import Path

from ciml.engines.base import Settings
from ciml.engines.kafka import Kafka
from ciml.engines.processes import bindable
from tests.faults.children import Program


class Broker:
    """A real broker in a process of its own; its data outlive the process.

    Attributes:
      address: where producers and the harness reach it.
      proxied: the port at which a proxy has to listen for those who are to come through it.
      behind: the port to which that proxy leads.
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
        self._settings(home / "kafka" / "server.properties")
        self.address = launch.address
        self._process: Program | None = None
        self.start()

    def _settings(self, file: Path) -> None:
        """A second listener, announced as the proxy's address; retention that is looked at twice a second."""
        lines = []
        for line in file.read_text().splitlines():
            name, _, value = line.partition("=")
            if name == "listeners":
                value += f",PROXIED://127.0.0.1:{self.behind}"
            elif name == "advertised.listeners":
                value += f",PROXIED://127.0.0.1:{self.proxied}"
            elif name == "listener.security.protocol.map":
                value += ",PROXIED:PLAINTEXT"
            lines.append(f"{name}={value}" if value else line)
        lines += [
            "log.retention.check.interval.ms=500",
            "log.initial.task.delay.ms=500",
            "inter.broker.listener.name=PLAINTEXT",
        ]
        file.write_text("\n".join(lines) + "\n")

    def start(self, most_s: float = 90.0) -> float:
        """Starts it, or starts it again on its data; seconds until it answered."""
        began = time.monotonic()
        self._process = Program(self._command, self._home / "broker.log")
        while self._engine.ready(self._home, self._state) is None:
            if self._process.poll() is not None or time.monotonic() - began > most_s:
                raise RuntimeError(f"the broker does not come up: {self._process.said()}")
            time.sleep(0.05)
        return time.monotonic() - began

    @property
    def process(self) -> Program:
        assert self._process is not None
        return self._process

    def kill(self) -> None:
        """SIGKILL, by its pid."""
        self.process.kill()

    def freeze(self) -> None:
        """SIGSTOP: connections stay, nothing answers."""
        self.process.send(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self.process.send(signal.SIGCONT)

    def is_whole(self) -> bool:
        """Whether it runs and answers."""
        return self.process.poll() is None and self._engine.ready(self._home, self._state) is not None


def lasting_ports(count: int) -> list[int]:
    """Ports that stay free while nobody listens: below those that the system gives to connections."""
    numbers = random.sample(range(18_000, 32_000), 200)
    found = [number for number in numbers if bindable(number)][:count]
    if len(found) < count:
        raise RuntimeError("no free ports")
    return found


_brokers: dict[int, Broker] = {}


def own_broker(home: Path) -> Broker:
    """The broker of this process, whole: mended where an earlier trial left it broken."""
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

"""Where trials play: engines that they share, a folder of their own, and the processes of a trial (`Story`)."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.children import Child, Nursery, start_cold
from tests.faults.cluster import Cluster
from tests.faults.plan import Planner

_numbers = itertools.count(1)


@dataclass
class Scene:
    """What a trial is given.

    Attributes:
      folder: the trial's own, kept when the trial fails.
      broker: ``host:port`` of a broker that other trials use too, so it is not to be hurt: see `tests.faults.broker`.
      logs_url: of a log server; the corpus is below it as ``corpus``.
      served: the folder that it serves.
      nursery: forks programs in no time.
      engine: ``micro-batches`` or ``flink``.
      cluster: the Flink cluster, for ``flink``.
      planted: the name of a defect that ingest is to have (`tests.faults.planted`).
      scale: of the number of runs; below 1 for a look in passing.
      lag_limit_s: I7: how long after a fault the lag may last.
    """

    folder: Path
    broker: str
    logs_url: str
    served: Path
    nursery: Nursery | None = None
    engine: str = "micro-batches"
    cluster: Cluster | None = None
    planted: str = ""
    lag_limit_s: float = 120.0
    environment: dict[str, str] = field(default_factory=dict)
    scale: float = 1.0
    _log_number: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def topic(self, name: str = "events", partitions: int = 1, broker: str = "", **config: str) -> str:
        """Makes a fresh topic and returns its name. ``config`` in the broker's words, with ``_`` for dots."""
        unique = f"{name}-{os.getpid()}-{next(_numbers)}-{time.time_ns() % 10**8}"
        make_topic(broker or self.broker, unique, partitions, {k.replace("_", "."): v for k, v in config.items()})
        return unique

    def planner(self, seed: int, partitions: int = 2) -> Planner:
        """A planner whose broken, missing and late logs are served from a folder of the trial's own."""
        name = f"{self.folder.name}-{seed}"
        return Planner(seed, self.logs_url, self.served / name, f"{self.logs_url}/{name}", partitions, self.scale)

    def ciml(
        self, *arguments: str, name: str = "ciml", planted: bool = False, cold: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> Child:  # fmt: skip
        """Starts ``ciml arguments`` as a process.

        Args:
          arguments: of the command line.
          name: of its log.
          planted: whether it has the scene's defect.
          cold: starts the program from its beginning, instead of forking one that has imported everything.
          environment: more variables.
        """
        log = self.folder / "logs" / f"{next(self._log_number):02d}-{name}.log"
        defect = self.planted if planted else ""
        more = {**self.environment, **(environment or {})}
        if self.nursery is None or cold:
            return start_cold(arguments, log, more, defect)
        return self.nursery.start(arguments, log, more, defect)

    def run(self, arguments: list[str]) -> tuple[int | None, str]:
        """Runs ``ciml arguments`` to its end: (exit code, what it said)."""
        child = self.ciml(*arguments, name=arguments[0])
        code = child.wait(180)
        child.kill()
        return code, child.said()


def make_topic(broker: str, topic: str, partitions: int, config: Mapping[str, str] | None = None) -> None:
    """Makes a topic without retention (unless ``config`` says otherwise) and waits until it has its leaders."""
    from confluent_kafka.admin import AdminClient, NewTopic

    client = AdminClient({"bootstrap.servers": broker, "log_level": 0})
    wanted = NewTopic(topic, partitions, 1, config={"retention.ms": "-1", **(config or {})})
    for future in client.create_topics([wanted], operation_timeout=30).values():
        future.result()
    deadline = time.monotonic() + 30
    while True:
        found = client.list_topics(topic, timeout=30).topics[topic]
        led = found.error is None and all(part.leader >= 0 for part in found.partitions.values())
        if led and len(found.partitions) == partitions:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"{broker}: the topic {topic} has no leaders")
        time.sleep(0.05)


class Sampler:
    """I6: memory and open files of processes, looked at all the time."""

    def __init__(self, every_s: float = 0.2) -> None:
        self._every_s = every_s
        self._children: list[Child] = []
        self._over = threading.Event()
        self.rss_mb = 0.0
        self.open_files = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def watch(self, child: Child) -> None:
        self._children.append(child)

    def _run(self) -> None:
        while not self._over.wait(self._every_s):
            for child in list(self._children):
                usage = child.usage()
                if usage is None:
                    self._children.remove(child)
                else:
                    self.rss_mb, self.open_files = max(self.rss_mb, usage[0]), max(self.open_files, usage[1])

    def close(self) -> None:
        self._over.set()
        self._thread.join(5)

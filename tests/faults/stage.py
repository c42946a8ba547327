"""What all trials of a sitting share: a broker, a log server, a nursery in each process that runs trials."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ciml import engines
from ciml.engines.processes import free_ports
from tests.corpus import CORPUS
from tests.faults.children import Nursery, python
from tests.faults.cluster import Cluster
from tests.faults.scene import Scene


@dataclass(frozen=True)
class Stage:
    """Addresses that every trial gets. Can be pickled."""

    home: Path
    broker: str
    logs_url: str
    cluster: Cluster | None = None

    @property
    def served(self) -> Path:
        """The folder that the log server serves."""
        return self.home / "served"

    def scene(self, folder: Path, *, engine: str = "micro-batches", planted: str = "", nursery: bool = True) -> Scene:
        """A scene in a fresh folder."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return Scene(
            folder, self.broker, self.logs_url, self.served, _nursery(self.home) if nursery else None, engine,
            self.cluster, planted,
        )  # fmt: skip


_nurseries: dict[int, Nursery] = {}


def _nursery(home: Path) -> Nursery:
    """The nursery of this process."""
    pid = os.getpid()
    if pid not in _nurseries:
        _nurseries[pid] = Nursery(home / f"nursery-{pid}")
        atexit.register(_nurseries[pid].close)
    return _nurseries[pid]


def close_nursery() -> None:
    """Ends this process's nursery; the next scene makes another."""
    if (nursery := _nurseries.pop(os.getpid(), None)) is not None:
        nursery.close()


@contextmanager
def serve_logs(home: Path) -> Iterator[str]:
    """A log server over HTTP, with the corpus in it; its address."""
    served = home / "served"
    served.mkdir(parents=True, exist_ok=True)
    (served / "corpus").symlink_to(CORPUS / "logs")
    port = free_ports(1)[0]
    server = python("ciml.engines.programs", "logs", str(served), str(port), log=home / "logs.log")
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()


@contextmanager
def stage(*, broker: str = "", flink: bool = False, **settings: Any) -> Iterator[Stage]:
    """Starts what trials share, in a temporary folder, and ends it.

    Args:
      broker: one that runs already.
      flink: whether a Flink cluster is wanted too.
      settings: of the engines.
    """
    home = Path(tempfile.mkdtemp(prefix="ciml-faults-"))
    wanted = [*([] if broker else ["kafka"]), *(["cluster"] if flink else [])]
    try:
        with serve_logs(home) as logs_url:
            if not wanted:
                yield Stage(home, broker, logs_url)
                return
            with engines.start(
                wanted, home=home / "engines", settings=engines.Settings(tied=True, **settings)
            ) as running:
                yield Stage(home, broker or running.kafka, logs_url, Cluster(home / "engines") if flink else None)
    finally:
        shutil.rmtree(home, ignore_errors=True)

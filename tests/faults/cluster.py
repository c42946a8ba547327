"""A standalone Flink cluster whose parts are killed by their recorded pids, and an ingest that a supervisor keeps."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from ciml import engines
from ciml.engines.flink.cluster import cluster_parts
from ciml.pipelines.flink import jobs as flink_rest
from ciml.pipelines.flink.jobs import RestJob
from ciml.services.files import ServiceFiles
from tests.faults.children import Child
from tests.pipelines.flink.flink_state import taskmanagers


@dataclass(frozen=True)
class Cluster:
    """The cluster of a home. Its keeper restarts what is killed. Can be pickled."""

    home: Path

    @property
    def rest(self) -> str:
        """The address of Flink's REST API."""
        return engines.read(self.home)["cluster"].urls["rest"]

    def kill(self, part: str) -> None:
        """Send SIGKILL to a part, such as ``taskmanager-1``."""
        pid = cluster_parts(self.home)[part].pid
        if pid is None:
            raise RuntimeError(f"{part} does not run")
        os.kill(pid, signal.SIGKILL)

    def parts(self, kind: str) -> list[str]:
        """Return the names of the parts of a kind (``taskmanager``, ``workers``) that run now."""
        return [name for name, one in cluster_parts(self.home).items() if name.startswith(kind) and one.pid is not None]

    def workers(self) -> list[psutil.Process]:
        """Return the Python workers that work for a job, not the spare ones: those that are connected."""
        found = []
        for pool in self.parts("workers"):
            pid = cluster_parts(self.home)[pool].pid
            with contextlib.suppress(psutil.Error):
                for child in psutil.Process(pid).children(recursive=True):
                    with contextlib.suppress(psutil.Error):
                        if any(one.status == psutil.CONN_ESTABLISHED for one in child.net_connections("inet")):
                            found.append(child)
        return found

    def jobs(self) -> list[RestJob]:
        """Return the jobs that run."""
        return [job for job in flink_rest.list_rest_jobs(self.rest) if not job.over]

    def cancel_jobs(self) -> None:
        """Cancel what runs, over Flink's REST API, as if by accident."""
        for job in self.jobs():
            flink_rest.cancel(job)

    def wait_whole(self, most_s: float = 120.0) -> None:
        """Wait until Flink has all its TaskManagers and runs no job. Jobs that earlier trials left are cancelled."""
        deadline = time.monotonic() + most_s
        while True:
            with contextlib.suppress(Exception):
                self.cancel_jobs()
                if len(taskmanagers(self.rest)) >= len(self.parts("taskmanager")) > 0 and not self.jobs():
                    return
            if time.monotonic() > deadline:
                raise RuntimeError("the cluster does not come back")
            time.sleep(0.3)

    def forget_checkpoints(self) -> int:
        """Delete all checkpoints of all jobs; return the number of folders."""
        found = [path for path in (self.home / "flink" / "checkpoints").glob("*") if path.is_dir()]
        for path in found:
            shutil.rmtree(path, ignore_errors=True)
        return len(found)

    def checkpoint_bytes(self) -> int:
        """Return the size of the last checkpoint of the job that runs; 0 without one."""
        with contextlib.suppress(Exception):
            points = [flink_rest.last_checkpoint(job) for job in self.jobs()]
            return max(point.bytes for point in points if point is not None)
        return 0


class Supervised(Child):
    """An ingest of ``ciml service start ingest``: its supervisor, and the job in the cluster.

    Args:
      cluster: where it runs.
      name: of the ingest.
      run: runs ``ciml`` to its end: (exit code, output).
      arguments: of ``ciml ingest``.
    """

    def __init__(
        self, cluster: Cluster, name: str, run: Callable[[list[str]], tuple[int | None, str]], arguments: list[str]
    ) -> None:
        self.cluster, self.name, self._run = cluster, name, run
        self._files = ServiceFiles(cluster.home, name)
        self._code: int | None = None
        self._stopped = False
        self._command("start", "ingest", *arguments, "--name", name, "--wait", "0", "--tied-to", str(os.getpid()))
        pid = getattr(self._files.recorded("supervisor"), "pid", 0)
        super().__init__(pid, self._files.log("supervisor"))

    def _command(self, *arguments: str) -> int | None:
        code, self._output = self._run(["service", *arguments, "--home", str(self.cluster.home)])
        if code != 0:
            self._code = -1 if code is None else code
        return code

    def poll(self) -> int | None:
        if self._code is None and not self._stopped and self.status().get("health") == "failed":
            self._code = 4
        return 0 if self._stopped and self._code is None else self._code

    def crash(self) -> bool:
        """Kill the Python workers that work."""
        deadline = time.monotonic() + 60
        while not (busy := self.cluster.workers()):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        for worker in busy:
            with contextlib.suppress(psutil.Error):
                worker.kill()
        return True

    def kill(self) -> bool:
        """End all of it, at the end of a trial."""
        alive = not self._stopped
        if alive:
            self.stop()
        return alive

    def stop(self, most_s: float = 120.0, *, savepoint: bool = False) -> int | None:
        more = ["--savepoint"] if savepoint else []
        code = self._command("stop", self.name, "--wait", f"{most_s:.0f}s", *more)
        self._stopped = True
        return code

    def resume(self, parallelism: int) -> int | None:
        """Resume after a stop."""
        self._stopped = False
        return self._command("resume", self.name, "--wait", "0", "--parallelism", str(parallelism))

    def status(self) -> Any:
        """Return what its supervisor last wrote."""
        return self._files.status()

    def said(self, size: int = 2000) -> str:
        return f"{self._output[-size // 2 :]} {super().said(size // 2)} {self.status().get('why', '')}"

    def usage(self) -> tuple[float, int] | None:
        """Return the usage of the largest Python worker."""
        found = []
        for worker in self.cluster.workers():
            with contextlib.suppress(psutil.Error):
                found.append((worker.memory_info().rss / (1 << 20), worker.num_fds()))
        return max(found, default=(0.0, 0))

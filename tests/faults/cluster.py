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

import httpx
import psutil

from ciml import engines
from ciml.engines.flink.cluster import cluster_parts
from ciml.pipelines.flink import jobs as flink_rest
from ciml.services.files import ServiceFiles
from tests.faults.children import Child
from tests.pipelines.flink.flink_state import taskmanagers


@dataclass(frozen=True)
class Cluster:
    """The cluster of a home. Its keeper starts again what is killed. Can be pickled."""

    home: Path

    @property
    def rest(self) -> str:
        """The address of Flink's REST API."""
        return engines.read(self.home)["cluster"].urls["rest"]

    def kill(self, part: str) -> int:
        """SIGKILL to a part, such as ``taskmanager-1``; its pid."""
        pid = cluster_parts(self.home)[part].pid
        if pid is None:
            raise RuntimeError(f"{part} does not run")
        os.kill(pid, signal.SIGKILL)
        return pid

    def parts(self, kind: str) -> list[str]:
        """The names of the parts of a kind (``taskmanager``, ``workers``) that run now."""
        return [name for name, one in cluster_parts(self.home).items() if name.startswith(kind) and one.pid is not None]

    def workers(self) -> list[psutil.Process]:
        """The Python workers that work for a job, not the spare ones: those that are connected."""
        found = []
        for pool in self.parts("workers"):
            pid = cluster_parts(self.home)[pool].pid
            with contextlib.suppress(psutil.Error):
                for child in psutil.Process(pid).children(recursive=True):
                    with contextlib.suppress(psutil.Error):
                        if any(one.status == psutil.CONN_ESTABLISHED for one in child.net_connections("inet")):
                            found.append(child)
        return found

    def kill_worker(self) -> bool:
        """SIGKILL to the Python workers that work; False where none does."""
        busy = self.workers()
        for worker in busy:
            with contextlib.suppress(psutil.Error):
                worker.kill()
        return bool(busy)

    def is_whole(self) -> bool:
        """Whether Flink answers, has all its TaskManagers, and runs no job."""
        try:
            slots = taskmanagers(self.rest)
            jobs = [job for job in flink_rest.list_rest_jobs(self.rest) if not job.over]
        except Exception:  # noqa: BLE001  # whatever it says, it is not whole
            return False
        return len(slots) >= len(self.parts("taskmanager")) > 0 and not jobs

    def wait_whole(self, most_s: float = 120.0) -> None:
        """Waits until it is whole. Jobs that earlier trials left are cancelled."""
        deadline = time.monotonic() + most_s
        while not self.is_whole():
            with contextlib.suppress(Exception):
                for job in flink_rest.list_rest_jobs(self.rest):
                    if not job.over:
                        flink_rest.cancel(job)
            if time.monotonic() > deadline:
                raise RuntimeError("the cluster does not come back")
            time.sleep(0.3)

    def forget_checkpoints(self) -> int:
        """Deletes all checkpoints of all jobs; how many folders that were."""
        found = [path for path in (self.home / "flink" / "checkpoints").glob("*") if path.is_dir()]
        for path in found:
            shutil.rmtree(path, ignore_errors=True)
        return len(found)

    def checkpoint_bytes(self) -> int:
        """The size of the last checkpoint of the job that runs; 0 without one."""
        with contextlib.suppress(Exception):
            for job in flink_rest.list_rest_jobs(self.rest):
                if not job.over and (last := flink_rest.last_checkpoint(job)) is not None:
                    return last.bytes
        return 0

    def cancel_jobs(self) -> None:
        """Cancels what runs, over Flink's REST API, as if by accident."""
        for job in flink_rest.list_rest_jobs(self.rest):
            if not job.over:
                flink_rest.cancel(job)

    def slots(self) -> int:
        """How many slots there are."""
        return int(httpx.get(f"{self.rest}/overview", timeout=10, trust_env=False).json()["slots-total"])


class Supervised(Child):
    """An ingest of ``ciml service start ingest``: its supervisor, and the job in the cluster.

    Args:
      cluster: where it runs.
      name: of the ingest.
      run: runs ``ciml`` to its end: (exit code, what it said).
      arguments: of ``ciml ingest``.
      log: a file of its own.
    """

    def __init__(
        self, cluster: Cluster, name: str, run: Callable[[list[str]], tuple[int | None, str]], arguments: list[str]
    ) -> None:
        self.cluster, self.name, self._run = cluster, name, run
        self._place = ServiceFiles(cluster.home, name)
        self._code: int | None = None
        self._stopped = False
        self._words = ""
        more = ["--home", str(cluster.home), "--name", name, "--wait", "0", "--tied-to", str(os.getpid())]
        self._command(["service", "start", "ingest", *arguments, *more])
        pid = getattr(self._place.recorded("supervisor"), "pid", 0)
        super().__init__(pid, self._place.log("supervisor"))

    def _command(self, arguments: list[str]) -> int | None:
        code, self._words = self._run(arguments)
        if code != 0:
            self._code = -1 if code is None else code
        return code

    def poll(self) -> int | None:
        if self._code is None and not self._stopped and self._place.status().get("health") == "failed":
            self._code = 4
        return 0 if self._stopped and self._code is None else self._code

    def crash(self) -> bool:
        """Kills the Python workers that work."""
        deadline = time.monotonic() + 60
        while not self.cluster.kill_worker():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def kill(self) -> bool:
        """The end of a trial: everything of it ends."""
        if self._stopped:
            return False
        self._stopped = True
        self._run(["service", "stop", self.name, "--home", str(self.cluster.home), "--wait", "60s"])
        return True

    def stop(self, most_s: float = 60.0, *, savepoint: bool = False) -> int | None:
        more = ["--savepoint"] if savepoint else []
        code = self._command(["service", "stop", self.name, "--home", str(self.cluster.home), "--wait", "120s", *more])
        self._stopped = True
        return code

    def resume(self, parallelism: int | None = None) -> int | None:
        """Goes on after a stop."""
        self._stopped = False
        more = [] if parallelism is None else ["--parallelism", str(parallelism)]
        command = ["service", "resume", self.name, "--home", str(self.cluster.home), "--wait", "0", *more]
        return self._command(command)

    def status(self) -> dict:
        """What its supervisor last wrote."""
        return self._place.status()

    def said(self, size: int = 2000) -> str:
        return f"{self._words[-size // 2 :]} {super().said(size // 2)} {self.status().get('why', '')}"

    def usage(self) -> tuple[float, int] | None:
        """Of the largest Python worker."""
        found = []
        for worker in self.cluster.workers():
            with contextlib.suppress(psutil.Error):
                found.append((worker.memory_info().rss / (1 << 20), worker.num_fds()))
        return max(found, default=(0.0, 0))

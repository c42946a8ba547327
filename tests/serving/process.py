"""A model server in its own process, whose memory and file descriptors can be measured and limited."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

MIB = 1 << 20


@dataclass(frozen=True)
class ServerProcess:
    """A running server: its ports and its process."""

    grpc_port: int
    rest_port: int
    process: subprocess.Popen[str]

    @property
    def pid(self) -> int:
        return self.process.pid

    def rss(self) -> int:
        """Return the resident bytes."""
        return self._status("VmRSS")

    def peak_rss(self) -> int:
        """Return the peak of resident bytes since `reset_peak`."""
        return self._status("VmHWM")

    def reset_peak(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def _status(self, field: str) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) << 10
        raise AssertionError(f"no {field} of process {self.pid}")


def wait_loaded(rest_port: int, timeout_s: float = 60.0) -> None:
    """Wait until the server loads no model's first version any more."""
    deadline = time.monotonic() + timeout_s
    while httpx.get(f"http://127.0.0.1:{rest_port}/readyz", trust_env=False).json().get("loading"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def server_process(config: str, log: Path, *arguments: str, files: int | None = None) -> Iterator[ServerProcess]:
    """Run ``ciml serve`` on ports that the system chooses.

    Args:
      config: the ModelServerConfig.
      log: the file for its standard error.
      arguments: more of the command line.
      files: the most file descriptors that it may open; None leaves the limit as it is.
    """
    command = [sys.executable, "-m", "ciml", "serve", "--config", config, "--grpc-port=0", "--rest-port=0"]

    def limit() -> None:
        if files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    with log.open("wb") as err:
        process = subprocess.Popen(
            [*command, *arguments], stdout=subprocess.PIPE, stderr=err, text=True, preexec_fn=limit
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, log.read_text()[-2000:]
            ready = json.loads(line)
            wait_loaded(ready["rest"])
            yield ServerProcess(ready["grpc"], ready["rest"], process)
        finally:
            process.terminate()
            process.wait(timeout=30)
            if process.stdout is not None:
                process.stdout.close()

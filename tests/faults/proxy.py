"""Toxiproxy: a TCP proxy that cuts, slows and resets what goes through it. Built by Go, from the Go proxy."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import platformdirs

from ciml.engines.processes import free_ports
from tests.faults.children import Program

VERSION = "v2.12.0"
_PACKAGE = f"github.com/Shopify/toxiproxy/v2/cmd/server@{VERSION}"


class Missing(Exception):
    """Toxiproxy can't be had here; the message says why."""


def binary() -> Path:
    """The program, built once for the user."""
    folder = Path(platformdirs.user_cache_dir("ciml")) / f"toxiproxy-{VERSION}"
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
    """One link, from a port here to another.

    Args:
      folder: for its log.
      listen: the port that clients are told.
      upstream: the port behind it.
    """

    def __init__(self, folder: Path, listen: int, upstream: int) -> None:
        program, port = binary(), free_ports(1)[0]
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
        """Adds a toxic."""
        toxic = {"type": kind, "stream": stream, "attributes": attributes}
        self._api.post("/proxies/link/toxics", json=toxic).raise_for_status()

    def enable(self, on: bool) -> None:
        """Off: connections are closed and refused."""
        self._api.post("/proxies/link", json={"enabled": on}).raise_for_status()

    def mend(self) -> None:
        """Takes all toxics away and opens the link."""
        self._api.post("/reset").raise_for_status()

    def close(self) -> None:
        self._api.close()
        self._process.kill()

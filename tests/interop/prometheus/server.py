"""Debian's Prometheus with the chart's alert rules, and scrape jobs named as the chart's PodMonitor names them."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from ciml.engines.processes import free_ports
from tests.deploy.chart import CHART
from tests.interop.prometheus.durations import shortened

_CONFIG = {
    "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
    "rule_files": ["rules.yaml"],
    "scrape_configs": [
        {"job_name": "ciml", "file_sd_configs": [{"files": ["targets.json"], "refresh_interval": "1s"}]}
    ],
}


class Prometheus:
    """A running Prometheus.

    Args:
      url: of its API.
      folder: of its configuration.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self._folder, self._client = folder, httpx.Client(base_url=url, timeout=30, trust_env=False)
        self._targets: dict[str, int] = {}

    def ready(self) -> bool:
        try:
            return self._client.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def scrape(self, job: str, port: int) -> None:
        """Scrape a service under the name of a job."""
        self._targets[job] = port
        self._write()

    def forget(self, *jobs: str) -> None:
        """Scrape these jobs no more."""
        for job in jobs:
            self._targets.pop(job, None)
        self._write()

    def _write(self) -> None:
        targets = [{"targets": [f"127.0.0.1:{port}"], "labels": {"job": job}} for job, port in self._targets.items()]
        new = self._folder / "targets.new"
        new.write_text(json.dumps(targets))
        new.rename(self._folder / "targets.json")

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Return the series of an expression, now, that have a number."""
        answer = self._client.get("/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", answer
        found = [(one["metric"], float(one["value"][1])) for one in answer["data"]["result"]]
        return [(labels, value) for labels, value in found if math.isfinite(value)]

    def firing(self) -> set[tuple[str, str]]:
        """Return (alert, job) of all alerts that fire."""
        alerts = self._client.get("/api/v1/alerts").json()["data"]["alerts"]
        return {
            (one["labels"]["alertname"], one["labels"].get("job", "")) for one in alerts if one["state"] == "firing"
        }

    def has_fired(self, alert: str, job: str) -> bool:
        """Whether an alert has fired in the last hour."""
        series = f'ALERTS{{alertname="{alert}", job="{job}", alertstate="firing"}}'
        return self.query(f"max_over_time({series}[1h])") != []

    def wait_for(self, *alerts: tuple[str, str], most_s: float = 120.0, meanwhile: Callable[[], object] = int) -> None:
        """Wait until each of these has fired, though not all at once."""
        missing = set(alerts)
        self._until(lambda: not missing.difference_update(self.firing()) and not missing, most_s, meanwhile,
                    lambda: f"do not fire: {sorted(missing)}; fire: {sorted(self.firing())}")  # fmt: skip

    def wait_for_quiet(self, known: Iterable[str] = (), most_s: float = 180.0) -> None:
        """Wait until nothing fires but alerts of these names."""
        others = set(known)
        self._until(lambda: not {name for name, _ in self.firing()} - others, most_s, int,
                    lambda: f"fire: {sorted(self.firing())}")  # fmt: skip

    def _until(
        self, done: Callable[[], bool], most_s: float, meanwhile: Callable[[], object], what: Callable[[], str]
    ) -> None:
        until = time.monotonic() + most_s
        while not done():
            assert time.monotonic() < until, what()
            meanwhile()
            time.sleep(0.5)


def rules() -> dict[str, Any]:
    """The content of the chart's rules file."""
    found: dict[str, Any] = yaml.safe_load((CHART / "files/alerts.yaml").read_text())
    return found


@contextmanager
def prometheus(folder: Path) -> Iterator[Prometheus]:
    """Start Prometheus; it ends with the block."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.fail("the alert rules are tried in a real Prometheus: apt-get install prometheus", pytrace=False)
    folder.mkdir(parents=True)
    (folder / "rules.yaml").write_text(yaml.safe_dump(shortened(rules())))
    (folder / "prometheus.yml").write_text(yaml.safe_dump(_CONFIG))
    (folder / "targets.json").write_text("[]")
    (port,) = free_ports(1)
    command = [
        program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        one = Prometheus(f"http://127.0.0.1:{port}", folder)
        until = time.monotonic() + 30
        while not one.ready():
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < until, (folder / "log").read_text()
            time.sleep(0.1)
        yield one
    finally:
        process.terminate()
        process.wait(30)

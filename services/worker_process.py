"""The worker process of a service, as its supervisor sees it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from engines import processes
from services.files import ServiceFiles

_GRACE_S = 30.0  # a batch that runs is ended in order


class Worker:
    """The process that works or submits; it outlives whoever started it, and is known by its pid and start time."""

    def __init__(self, place: ServiceFiles, cwd: Path) -> None:
        self._place, self._cwd = place, cwd
        self._child: tuple[int, float] | None = None  # until it has written itself down

    @property
    def runs(self) -> bool:
        written = self._place.process("worker")
        return written is not None or (self._child is not None and processes.find(*self._child) is not None)

    @property
    def began_s(self) -> float | None:
        """Its start time, epoch seconds."""
        return self._place.written("worker")[1]

    def said(self) -> dict[str, Any]:
        """What it said of itself last."""
        return self._place.said("worker")

    def how(self) -> str:
        """How it ended."""
        return self.said().get("error") or processes.last_lines(self._place.log("worker"), 1) or "its process is gone"

    def start(self, savepoint: str = "") -> None:
        """Starts it, in the place of one that is gone."""
        self._place.forget("worker")
        command = processes.python_command("services.worker", str(self._place.home), self._place.name)
        shutil.rmtree(self._place.timings, ignore_errors=True)
        self._place.timings.mkdir(parents=True, exist_ok=True)
        environment = {
            **processes.python_environment(), "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONUNBUFFERED": "1",
            "PROMETHEUS_MULTIPROC_DIR": str(self._place.timings),
        }  # fmt: skip
        self._child = processes.spawn([*command, savepoint], self._place.log("worker"), environment, self._cwd)

    def end(self) -> None:
        """Ends it, in order where it can be."""
        for one in (self._child, self._place.written("worker")):
            if one is not None:
                processes.end(*one, grace_s=_GRACE_S)

"""A standalone Flink cluster: JobManager, TaskManagers, job server, Python workers, and their watchdog."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import psutil

from ciml.engines import processes
from ciml.engines.base import Engine, Launch, Settings
from ciml.engines.flink import parts
from ciml.engines.flink.cluster_config import Addresses, make_parts, state_root
from ciml.engines.flink.parts import MARK, Health, Part, PartState
from ciml.engines.jars import NoJava
from ciml.engines.processes import python_command, python_environment
from ciml.engines.state import REAL, EngineState
from ciml.errors import CimlError, EngineError

_GRACE_S = 8.0


class Cluster(Engine):
    """The watchdog is its process; the watchdog's children are listed in ``<home>/cluster/parts.json``."""

    name = "cluster"
    uses = (
        "cluster-jobs",
        "cluster-rest",
        "cluster-rpc",
        "cluster-blob",
        "cluster-workers",
    )

    def prepare(self, home: Path, ports: Mapping[str, int], settings: Settings) -> Launch:
        if settings.state and not settings.state.startswith("s3://"):
            raise CimlError(f"invalid state {settings.state!r}: a cluster keeps it in its home folder or on s3://")
        if settings.state:
            _expect_bucket(settings.state)
        folder = home / "cluster"
        chosen = dict(ports)
        if parts.marked(home):  # its watchdog was killed: running parts keep their ports
            chosen = dict(parts.read_plan(folder)[1].get("ports", ports))
        for part in ("checkpoints", "savepoints"):
            (home / "flink" / part).mkdir(parents=True, exist_ok=True)
        try:
            planned = make_parts(home, chosen, settings)
        except NoJava as error:
            raise NoJava(f"a Flink cluster needs Java ({error}); without Java use --engine micro-batches") from error
        kept_at = settings.state or str(home / "flink")
        parts.write_plan(folder, planned, {"ports": chosen, "state": kept_at, "rest": Addresses.of(chosen).rest})
        addresses = Addresses.of(chosen)
        state = EngineState(
            name=self.name,
            kind=REAL,
            what=f"Flink 1.19, standalone: {settings.task_managers} × {settings.slots} slots",
            address=addresses.jobs,
            ports=chosen,
            urls={**asdict(addresses), "state": state_root(home, settings)},
            memory_mb=sum(planned_part.memory_mb or 0 for planned_part in planned),
        )
        command = python_command("ciml.engines.flink.cluster_watchdog", str(home), str(folder))
        return Launch(state, command, {**python_environment(), MARK: str(home), "PYTHONUNBUFFERED": "1"})

    def ready(self, home: Path, state: EngineState) -> EngineState | None:
        states = parts.read_states(home / "cluster")
        planned, _ = parts.read_plan(home / "cluster")
        for part in planned:  # the last check first: a known TaskManager implies that its JobManager answers
            part_state = states.get(part.name)
            if part_state is None or health(part, part_state) != "ok":
                return None
        return state

    def missing(self, home: Path, state: EngineState) -> str:
        states = parts.read_states(home / "cluster")
        unwell = {
            part.name: part.log
            for part in parts.read_plan(home / "cluster")[0]
            if health(part, states.get(part.name, PartState(part.name))) != "ok"
        }
        return ", ".join(f"{name} ({log})" for name, log in unwell.items())

    def end(self, home: Path, state: EngineState) -> bool:
        """Stop the watchdog first, since it would restart the rest, then all processes with the cluster's mark."""
        watchdog = processes.find(state.pid, state.started)
        if watchdog is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                watchdog.kill()
        deadline = time.monotonic() + _GRACE_S
        remaining = ran = parts.marked(home)
        for process in remaining:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        while remaining:
            if time.monotonic() > deadline + _GRACE_S:
                raise EngineError(f"cluster in {home}: processes {[process.pid for process in remaining]} do not stop")
            if time.monotonic() > deadline:
                for process in remaining:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
            time.sleep(0.05)
            remaining = parts.marked(home)
        parts.states_file(home / "cluster").unlink(missing_ok=True)
        return bool(ran) or watchdog is not None


def _expect_bucket(state: str) -> None:
    """Check the bucket of the state; a missing one would only show as failing checkpoints."""
    from ciml.storage import open_store

    next(iter(open_store(state).entries("")), None)


def health(part: Part, state: PartState) -> Health:
    """Return the health of a part."""
    if processes.find(state.pid, state.started) is None:
        return "dead"
    if parts.asks(part.check) == "yes":
        return "ok"
    return "no answer" if state.answered else "starting"


def cluster_parts(home: Path) -> dict[str, PartState]:
    """Return the states of the cluster's parts by name, as the watchdog last recorded them."""
    return parts.read_states(home / "cluster")


def part_rows(home: Path) -> dict[str, dict[str, object]]:
    """Return each part of the cluster of ``home`` with process, memory and health, for `ciml status`."""
    states = parts.read_states(home / "cluster")
    rows: dict[str, dict[str, object]] = {}
    for part in parts.read_plan(home / "cluster")[0]:
        part_state = states.get(part.name, PartState(part.name))
        rows[part.name] = {
            **asdict(part_state),
            "what": part.what,
            "address": part.address,
            "log": part.log,
            "memory_mb": part.memory_mb,
            "memory_used_mb": processes.memory_mb(part_state.pid, part_state.started),
            "health": health(part, part_state),
        }
    return rows

"""One trainer at a time writes to a registry, also after it was frozen, killed, or out of its lease."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from ciml.data_root import DataRoot
from ciml.serving import lease as module
from ciml.serving.lease import ModelLockedError, leased
from ciml.serving.ledger import hold
from ciml.serving.push import reconcile
from ciml.serving.registry import Decision, Lease, LostLeaseError, Registry, Signature

#: A trainer that takes the lease for a second, waits for a line, and then records a candidate.
TRAINER = """
import sys
from ciml.data_root import DataRoot
from ciml.serving.lease import leased
from ciml.serving.registry import Registry
registry = Registry(DataRoot.open(sys.argv[1]), "m")
with leased(registry, float(sys.argv[2])):
    print("leased", flush=True)
    sys.stdin.readline()
    registry.commit(lambda state: {"kind": "release", "author": "late", "reason": "late"})
"""


#: The start of this process, epoch seconds.
STARTED = psutil.Process().create_time()


class Clock:
    """Epoch microseconds that a test sets."""

    def __init__(self) -> None:
        self.us = 1_000_000_000

    def __call__(self) -> int:
        return self.us


@pytest.fixture
def data(tmp_path: Path) -> DataRoot:
    return DataRoot.open(tmp_path / "data")


def kinds(data: DataRoot) -> list[str]:
    return [delta["kind"] for delta in Registry(data, "m").deltas()]


def decide(registry: Registry, name: str) -> None:
    delta = {"kind": "verdict", "candidate": name, **Decision(False).to_json()}
    registry.commit(lambda state: delta)


def start(data: DataRoot, seconds: float) -> subprocess.Popen[str]:
    trainer = subprocess.Popen(
        [sys.executable, "-c", TRAINER, data.url, str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert trainer.stdout is not None
    assert trainer.stdout.readline() == "leased\n"
    return trainer


def test_a_second_trainer_is_told_who_trains(data: DataRoot) -> None:
    clock = Clock()
    first, second = Registry(data, "m", clock), Registry(data, "m", clock)
    with leased(first, 100):
        clock.us += 40_000_000
        with (
            pytest.raises(ModelLockedError, match=rf"process {os.getpid()} on .*, its lease ends in 60 s"),
            leased(second),
        ):
            pass
        decide(first, "a")
    with leased(second):
        decide(second, "b")
    assert kinds(data) == ["lease", "verdict", "lease", "lease", "verdict", "lease"]
    assert first.state.lease is None


def test_a_trainer_that_lost_its_lease_writes_nothing_more(data: DataRoot) -> None:
    clock = Clock()
    first, second = Registry(data, "m", clock), Registry(data, "m", clock)
    with leased(first, 100):
        clock.us += 100_000_001
        with leased(second, 100):
            with pytest.raises(LostLeaseError, match="model m: another trainer has taken over"):
                decide(first, "late")
            decide(second, "b")
        with pytest.raises(LostLeaseError):  # also when nobody has it any more
            decide(first, "late")
    assert set(first.state.decisions) == {"b"}
    decide(first, "c")  # outside of a lease, as people do
    assert set(first.state.decisions) == {"b", "c"}


def test_people_decide_without_a_lease(data: DataRoot) -> None:
    registry = Registry(data, "m")
    registry.commit(lambda state: {"kind": "candidate", "candidate": CANDIDATE})
    registry.commit(lambda state: {"kind": "staged", "candidate": "c", "model_version": 1, "pusher": "p"})
    registry.commit(lambda state: {"kind": "pushed", "model_version": 1, "labels": {"stable": 1}})
    with leased(Registry(data, "m")):
        hold(registry, Signature("ann", "release week"))
    assert registry.state.hold is not None


CANDIDATE = {"id": "c", "digest": "d", "files": {}, "folder": "f", "facts": {}}


def test_reconcile_leaves_the_version_that_a_trainer_stages(data: DataRoot) -> None:
    clock = Clock()
    trainer = Registry(data, "m", clock)
    with leased(trainer, 100):
        trainer.commit(lambda state: {"kind": "candidate", "candidate": CANDIDATE})
        trainer.commit(lambda state: {"kind": "staged", "candidate": "c", "model_version": 1, "pusher": "p"})
        reconcile(Registry(data, "m", clock))
        assert trainer.state.in_state("staged") == [1]
        clock.us += 100_000_001
        reconcile(Registry(data, "m", clock))
        assert trainer.state.in_state("abandoned") == [1]


def test_a_lease_is_renewed_three_times_as_often_as_it_ends(data: DataRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    waits_s: list[float | None] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits_s.append(timeout)
            return super().wait(0.02)

    monkeypatch.setattr(module, "threading", SimpleNamespace(Event=Stop, Thread=threading.Thread))
    registry = Registry(data, "m")
    with leased(registry, 600):
        deadline_s = time.monotonic() + 60
        while registry.state.version < 4 and time.monotonic() < deadline_s:
            time.sleep(0.02)
        assert registry.state.version >= 4
        assert set(waits_s) == {200}
        decide(registry, "a")


def test_the_lease_of_a_killed_process_of_this_machine_is_free_at_once(data: DataRoot) -> None:
    trainer = start(data, 3600)
    with pytest.raises(ModelLockedError, match=f"process {trainer.pid} on"), leased(Registry(data, "m")):
        pass
    trainer.kill()
    trainer.communicate()
    with leased(Registry(data, "m")):
        pass


@pytest.mark.parametrize(
    ("changes", "is_held"),
    [
        ({}, True),
        ({"started": STARTED + 0.9}, True),  # a correction of the clock has moved the time of the boot
        ({"started": STARTED - 0.9}, True),
        ({"started": STARTED + 1.1}, False),  # another process has its number now
        ({"pid": 1 << 30}, False),
        ({"host": "elsewhere", "pid": 1 << 30}, True),  # what runs there is not known
    ],
)
def test_a_process_of_this_machine_holds_a_lease_while_it_runs(
    changes: dict[str, Any], is_held: bool, data: DataRoot
) -> None:
    present = Lease("l", socket.gethostname(), os.getpid(), module._start_time(os.getpid()), 1 << 62)
    delta = {"kind": "lease", "lease": asdict(replace(present, **changes))}
    Registry(data, "m").commit(lambda state: delta)
    with pytest.raises(ModelLockedError) if is_held else nullcontext(), leased(Registry(data, "m")):
        pass


def test_a_frozen_trainer_that_wakes_up_after_its_lease_records_nothing(data: DataRoot) -> None:
    trainer = start(data, 1)
    trainer.send_signal(signal.SIGSTOP)
    registry = Registry(data, "m")
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        try:
            with leased(registry, 60):
                decide(registry, "mine")
                trainer.send_signal(signal.SIGCONT)
                _, errors = trainer.communicate("go on\n", timeout=60)
            break
        except ModelLockedError:
            time.sleep(0.1)
    assert trainer.returncode == 1
    assert "LostLeaseError: model m: another trainer has taken over" in errors
    assert kinds(data) == ["lease", "lease", "verdict", "lease"]

from __future__ import annotations

import os
import random
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from ciml.engines import processes
from ciml.engines.state import ProcessId
from ciml.errors import EngineError

SLEEPER = (sys.executable, "-c", "import time; time.sleep(60)")
#: Prints the pid of a child.
PARENT = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(sys.argv[1:])  # as long as it is named, its end is not collected
print(child.pid, flush=True)
time.sleep(60)
"""


def spawn(tmp_path: Path, command: tuple[str, ...]) -> ProcessId:
    return processes.spawn(command, tmp_path / "log", {}, tmp_path)


def spawn_parent(tmp_path: Path, *child: str) -> tuple[ProcessId, psutil.Process]:
    """Start a process that ignores SIGTERM, and its child."""
    parent = spawn(tmp_path, (sys.executable, "-c", PARENT, *child))
    while not (tmp_path / "log").read_text().endswith("\n"):
        time.sleep(0.01)
    return parent, psutil.Process(int((tmp_path / "log").read_text()))


def test_a_process_is_found_and_ended(tmp_path: Path):
    process = spawn(tmp_path, SLEEPER)
    while not processes.memory_mb(process):  # none directly after its start
        time.sleep(0.01)
    earlier = process._replace(started=process.started - 3600)  # engines.json names a process that had this pid before
    assert processes.find(earlier) is None
    assert not processes.end(earlier)
    assert processes.find(process) is not None
    assert processes.end(process)
    assert processes.find(process) is None
    assert not psutil.pid_exists(process.pid)
    assert not processes.end(process)


def test_a_process_that_ignores_sigterm_is_killed_with_its_children(tmp_path: Path):
    parent, child = spawn_parent(tmp_path, *SLEEPER)
    assert processes.end(parent, grace_s=0.3)
    assert not psutil.pid_exists(parent.pid)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_zombie_of_another_parent_does_not_run(tmp_path: Path):
    parent, child = spawn_parent(tmp_path, "true")
    while child.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert processes.find(ProcessId(child.pid, child.create_time())) is None
    processes.end(parent, grace_s=0.0)


def test_a_wait_for_a_process_does_not_wait_for_a_later_one_with_its_pid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The process ends, and its pid is used again, before the wait has a descriptor."""
    first = spawn(tmp_path, SLEEPER)
    later = spawn(tmp_path, SLEEPER)
    open_descriptor = os.pidfd_open

    def open_later(pid: int) -> int:
        processes.end(first)
        return open_descriptor(later.pid)

    monkeypatch.setattr(os, "pidfd_open", open_later)
    waiting = threading.Thread(target=processes.wait_for_end, args=(first,), daemon=True)
    waiting.start()
    waiting.join(10)
    assert not waiting.is_alive()
    processes.end(later)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ([sys.executable, "-c", "raise SystemExit('out of luck')"], "formatting failed: out of luck"),
        (["/no/such/program"], "formatting failed: cannot start /no/such/program: No such file"),
        (SLEEPER, r"formatting failed: not done after 0\.5 s"),
    ],
)
def test_a_program_that_runs_once_and_fails_is_one_line(tmp_path: Path, command: list[str], message: str):
    with pytest.raises(EngineError, match=message):
        processes.run_once(command, tmp_path / "log", 0.5 if command is SLEEPER else 60, "formatting")


def test_a_program_that_is_not_there_is_one_line(tmp_path: Path):
    with pytest.raises(EngineError, match="cannot start /no/such/program: No such file or directory"):
        spawn(tmp_path, ("/no/such/program",))


def test_lasting_ports_are_below_those_that_connections_are_given(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "_first_ephemeral_port", lambda: 18_002)
    monkeypatch.setattr(processes, "bindable", lambda port: True)
    assert sorted(processes.lasting_ports(2)) == [18_000, 18_001]
    assert len(set(processes.lasting_ports(3)) - {18_000, 18_001}) == 3  # too few are free


def test_lasting_ports_do_not_depend_on_a_seed(monkeypatch: pytest.MonkeyPatch):
    """Processes that train seed their generators alike, and start servers at the same time."""
    monkeypatch.setattr(processes, "bindable", lambda port: True)
    chosen = set()
    for _ in range(2):
        random.seed(1)
        chosen.add(tuple(processes.lasting_ports(5)))
    assert len(chosen) == 2


def test_free_ports_differ():
    ports = processes.free_ports(600)  # so many that a system which may give a port twice does
    assert len(set(ports)) == 600

from __future__ import annotations

import os
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
STUBBORN = (
    sys.executable,
    "-c",
    "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
    "print(child.pid, flush=True); time.sleep(60)",
)


def spawn(tmp_path: Path, command: tuple[str, ...]) -> ProcessId:
    return processes.spawn(command, tmp_path / "log", {}, tmp_path)


def test_a_process_is_found_and_ended(tmp_path: Path):
    process = spawn(tmp_path, SLEEPER)
    assert processes.find(process) is not None
    while not processes.memory_mb(process):  # none directly after its start
        time.sleep(0.01)
    assert processes.end(process)
    assert processes.find(process) is None
    assert not psutil.pid_exists(process.pid)
    assert not processes.end(process)


def test_a_pid_that_is_in_use_again_is_never_signalled(tmp_path: Path):
    process = spawn(tmp_path, SLEEPER)
    earlier = process._replace(started=process.started - 3600)  # engines.json names a process that had this pid before
    assert processes.find(earlier) is None
    assert not processes.end(earlier)
    assert processes.find(process) is not None
    processes.end(process)


def test_a_process_that_ignores_sigterm_is_killed_with_its_children(tmp_path: Path):
    process = spawn(tmp_path, STUBBORN)
    while not (tmp_path / "log").read_text().endswith("\n"):
        time.sleep(0.01)
    child = int((tmp_path / "log").read_text())
    assert processes.end(process, grace_s=0.3)
    assert not psutil.pid_exists(process.pid)
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_a_zombie_of_another_parent_does_not_run(tmp_path: Path):
    code = "import subprocess, time; print(subprocess.Popen(['true']).pid, flush=True); time.sleep(60)"
    parent = spawn(tmp_path, (sys.executable, "-c", code))
    while not (tmp_path / "log").read_text().endswith("\n"):
        time.sleep(0.01)
    child = psutil.Process(int((tmp_path / "log").read_text()))
    while child.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert processes.find(ProcessId(child.pid, child.create_time())) is None
    processes.end(parent)


def test_a_wait_for_a_process_does_not_wait_for_a_later_one_with_its_pid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The process ends, and its pid is used again, before the wait has a descriptor."""
    first, later = spawn(tmp_path, SLEEPER), spawn(tmp_path, SLEEPER)
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


def test_a_process_that_ended_by_itself_is_not_found(tmp_path: Path):
    process = spawn(tmp_path, (sys.executable, "-c", "print('bye')"))
    deadline = time.monotonic() + 10
    while processes.find(process) is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert processes.find(process) is None
    assert processes.last_lines(tmp_path / "log") == "bye"


def test_a_program_that_is_not_there_is_one_line(tmp_path: Path):
    with pytest.raises(EngineError, match="cannot start /no/such/program: No such file or directory"):
        spawn(tmp_path, ("/no/such/program",))


def test_a_program_that_runs_once_and_fails_is_one_line(tmp_path: Path):
    log = tmp_path / "log"
    with pytest.raises(EngineError, match="formatting failed: out of luck"):
        processes.run_once([sys.executable, "-c", "raise SystemExit('out of luck')"], log, 60, "formatting")
    with pytest.raises(EngineError, match="formatting failed: cannot start /no/such/program: No such file"):
        processes.run_once(["/no/such/program"], log, 60, "formatting")
    with pytest.raises(EngineError, match=r"formatting failed: not done after 0\.1 s"):
        processes.run_once(SLEEPER, log, 0.1, "formatting")


def test_the_last_candidate_completes_the_lasting_ports(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "_first_ephemeral_port", lambda: 18_002)
    monkeypatch.setattr(processes, "bindable", lambda port: True)
    assert sorted(processes.lasting_ports(2)) == [18_000, 18_001]


def test_free_ports_differ():
    ports = processes.free_ports(600)  # so many that a system which may give a port twice does
    assert len(set(ports)) == 600

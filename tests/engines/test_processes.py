from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
import pytest

from ciml.engines import processes
from ciml.errors import EngineError

SLEEPER = (sys.executable, "-c", "import time; time.sleep(60)")
STUBBORN = (
    sys.executable,
    "-c",
    "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
    "print(child.pid, flush=True); time.sleep(60)",
)


def spawn(tmp_path: Path, command: tuple[str, ...]) -> tuple[int, float]:
    return processes.spawn(command, tmp_path / "log", {}, tmp_path)


def test_a_process_is_found_and_ended(tmp_path: Path):
    pid, started = spawn(tmp_path, SLEEPER)
    assert processes.find(pid, started) is not None
    assert (processes.memory_mb(pid, started) or 0) > 0
    assert processes.end(pid, started)
    assert processes.find(pid, started) is None
    assert not psutil.pid_exists(pid)
    assert not processes.end(pid, started)


def test_a_pid_that_is_in_use_again_is_never_signalled(tmp_path: Path):
    pid, started = spawn(tmp_path, SLEEPER)
    earlier = started - 3600  # what engines.json says of a process that had this pid before
    assert processes.find(pid, earlier) is None
    assert not processes.end(pid, earlier)
    assert processes.find(pid, started) is not None
    processes.end(pid, started)


def test_a_process_that_ignores_sigterm_is_killed_with_its_children(tmp_path: Path):
    pid, started = spawn(tmp_path, STUBBORN)
    while not (tmp_path / "log").read_text().endswith("\n"):
        time.sleep(0.01)
    child = int((tmp_path / "log").read_text())
    assert processes.end(pid, started, grace_s=0.3)
    assert not psutil.pid_exists(pid)
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_a_process_that_ended_by_itself_is_not_found(tmp_path: Path):
    pid, started = spawn(tmp_path, (sys.executable, "-c", "print('bye')"))
    deadline = time.monotonic() + 10
    while processes.find(pid, started) is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert processes.find(pid, started) is None
    assert processes.last_lines(tmp_path / "log") == "bye"


def test_a_program_that_is_not_there_is_one_line(tmp_path: Path):
    with pytest.raises(EngineError, match="cannot start /no/such/program: No such file or directory"):
        spawn(tmp_path, ("/no/such/program",))


def test_free_ports_differ():
    ports = processes.free_ports(20)
    assert len(set(ports)) == 20

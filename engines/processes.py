"""Processes that outlive the one that started them: started, told apart, ended."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from ciml.errors import EngineError

# A process's start time is computed from the boot time, which a clock correction shifts a little. A pid cannot
# come round again within this time.
_SAME_START_S = 1.0
_FIRST_LASTING_PORT = 18_000
_children: dict[int, subprocess.Popen] = {}


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """``count`` different ports that were free a moment ago, chosen by the system."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) for _ in range(count)]
        for one in sockets:
            one.bind((host, 0))
        return [one.getsockname()[1] for one in sockets]


def lasting_ports(count: int) -> list[int]:
    """``count`` different ports that are free, and stay free while their server is away.

    They are below those that the system gives to connections: a client that tries again and again to reach a server
    that died could be given the server's own port.
    """
    numbers = range(_FIRST_LASTING_PORT, _first_of_connections())
    found: list[int] = []
    for number in random.sample(numbers, len(numbers)):
        if len(found) == count:
            return found
        if bindable(number):
            found.append(number)
    return free_ports(count)


def _first_of_connections() -> int:
    try:
        return max(_FIRST_LASTING_PORT, int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0]))
    except (OSError, ValueError, IndexError):
        return _FIRST_LASTING_PORT


def bindable(port: int, host: str = "127.0.0.1") -> bool:
    """Return whether a server could listen there now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((host, port))
        except OSError:
            return False
    return True


def comes_free(port: int, patience_s: float) -> bool:
    """Whether a server could listen there within so long: the system may still be ending a dead server's threads."""
    deadline = time.monotonic() + patience_s
    while not bindable(port):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def python_environment() -> dict[str, str]:
    """What a Python child needs to import the same ciml as this process, from a checkout as from an installation."""
    root = str(Path(__file__).resolve().parents[1])
    if Path(root).name == "site-packages":
        return {}
    return {"PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}


def python_command(module: str, *arguments: str) -> tuple[str, ...]:
    """Return the command line that runs a module with this interpreter."""
    return (sys.executable, "-m", module, *arguments)


def spawn(command: Sequence[str], log: Path, environment: Mapping[str, str], cwd: Path) -> tuple[int, float]:
    """Start a process in a session of its own (no Ctrl-C reaches it), its output appended to ``log``.

    Returns:
      Its pid, and its start time in seconds since the epoch.

    Raises:
      EngineError: when the program cannot be started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    cwd.mkdir(parents=True, exist_ok=True)
    try:
        with log.open("ab") as out:
            child = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                cwd=cwd,
                start_new_session=True,
            )
    except OSError as error:
        raise EngineError(f"cannot start {command[0]}: {error.strerror or error}") from error
    _children[child.pid] = child
    return child.pid, start_time(child.pid)  # a child that ended already is still in the table: nobody reaped it


def start_time(pid: int) -> float:
    """Return the start time of a process, in seconds since the epoch.

    Raises:
      EngineError: when there is no such process.
    """
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        raise EngineError(f"there is no process {pid}") from None


def find(pid: int | None, started: float | None) -> psutil.Process | None:
    """Return the process of that pid and start time, or None when it has ended, be its pid in use again or not."""
    if pid is None or started is None:
        return None
    child = _children.get(pid)
    if child is not None and child.poll() is not None:
        _children.pop(pid, None)
        return None
    try:
        process = psutil.Process(pid)
        if abs(process.create_time() - started) > _SAME_START_S or process.status() == psutil.STATUS_ZOMBIE:
            return None
    except psutil.Error:
        return None
    return process


def end(pid: int | None, started: float | None, grace_s: float = 10.0) -> bool:
    """End a process and those it started: SIGTERM, and SIGKILL for what is left after ``grace_s`` seconds.

    Returns:
      Whether it was running. A process that has the pid by reuse is left alone.

    Raises:
      EngineError: when it still runs after SIGKILL, or may not be signalled.
    """
    process = find(pid, started)
    if process is None:
        return False
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return False
    try:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
        _gone(family[:1], grace_s)
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):  # psutil itself refuses a pid that was used again
                one.kill()
    except psutil.AccessDenied as error:
        raise EngineError(f"may not end process {pid}: it belongs to another user") from error
    if not _gone(family, 5.0):
        raise EngineError(f"process {pid} does not end")
    return True


def _gone(family: Sequence[psutil.Process], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while True:
        if not any(_runs(one) for one in family):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)


def _runs(process: psutil.Process) -> bool:
    child = _children.get(process.pid)
    if child is not None:  # only its parent can ask in one step, and so remove it from the process table
        if child.poll() is None:
            return True
        _children.pop(process.pid, None)
        return False
    try:
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def memory_mb(pid: int | None, started: float | None) -> int | None:
    """Resident memory of a process and those it started, in MiB; None when it has ended."""
    process = find(pid, started)
    if process is None:
        return None
    total = 0
    with contextlib.suppress(psutil.Error):
        for one in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += one.memory_info().rss
    return round(total / 2**20)


def last_lines(log: Path, count: int = 3) -> str:
    """Return the last lines of a log with something in them, in one line."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return " | ".join([line.strip() for line in lines if line.strip()][-count:])[-600:]


def says_port_taken(log: Path) -> bool:
    """Return whether a log tells that a port could not be had."""
    with log.open("rb") as file:
        said = file.read(1 << 20).lower()
    return b"address already in use" in said or b"failed to bind" in said or b"is in use by another program" in said

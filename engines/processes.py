"""Starts, identifies and stops processes that outlive their starter; reads their logs, and finds ports for them."""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from ciml.engines.state import ProcessId
from ciml.errors import EngineError
from ciml.version import import_root

# A process's start time is derived from the boot time, which a clock correction shifts a little. A pid is not reused
# within this time.
_SAME_START_S = 1.0
_FIRST_LASTING_PORT = 18_000
_KILLED_S = 5.0  # limit until the system has removed killed processes
#: The address that all engines listen on.
HOST = "127.0.0.1"

#: The children of this process, by pid.
_children: dict[int, subprocess.Popen] = {}


def python_environment() -> dict[str, str]:
    """Return the environment in which a Python child imports the same ciml, from a checkout or an installation."""
    if import_root().name == "site-packages":
        return {}
    return {"PYTHONPATH": os.pathsep.join([str(import_root()), *filter(None, [os.environ.get("PYTHONPATH")])])}


def python_command(module: str, *arguments: str) -> tuple[str, ...]:
    """Return the command line to run a module with this interpreter."""
    return (sys.executable, "-m", module, *arguments)


def spawn(command: Sequence[str], log: Path, environment: Mapping[str, str], cwd: Path) -> ProcessId:
    """Start a process in a session of its own (no Ctrl-C reaches it), with its output appended to ``log``.

    It has this process's environment, `python_environment` and ``environment``.

    Raises:
      EngineError: if the program cannot be started.
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
                env={**os.environ, **python_environment(), **environment},
                cwd=cwd,
                start_new_session=True,
            )
    except OSError as error:
        raise EngineError(f"cannot start {command[0]}: {error.strerror or error}") from error
    _children[child.pid] = child
    # A child that has ended already is in the process table until it is reaped.
    return ProcessId(child.pid, start_time(child.pid))


def run_once(command: Sequence[str], log: Path, timeout_s: float, task: str) -> None:
    """Run a program, with its output in ``log``, and wait for it to end.

    Raises:
      EngineError: if it cannot be started, takes longer than ``timeout_s`` (it is killed then), or fails. The message
        names the task; for a failure it has the last lines of the log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with log.open("wb") as out:
            process = subprocess.run(command, stdout=out, stderr=out, timeout=timeout_s, check=False)
    except OSError as error:
        raise EngineError(f"{task} failed: cannot start {command[0]}: {error.strerror or error}") from error
    except subprocess.TimeoutExpired:
        raise EngineError(f"{task} failed: not done after {timeout_s:g} s (log: {log})") from None
    if process.returncode != 0:
        raise EngineError(f"{task} failed: {last_lines(log)}")


def start_time(pid: int) -> float:
    """Return the start time of a process, in seconds since the epoch.

    Raises:
      EngineError: if there is no such process.
    """
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        raise EngineError(f"no process {pid}") from None


def find(identity: ProcessId | None) -> psutil.Process | None:
    """Return the process if it runs, else None. Another process with its reused pid is not returned."""
    if identity is None:
        return None
    try:
        process = psutil.Process(identity.pid)
        same = abs(process.create_time() - identity.started) <= _SAME_START_S
    except psutil.Error:
        return None
    return process if same and _is_running(process) else None


def _is_running(process: psutil.Process) -> bool:
    child = _children.get(process.pid)
    if child is not None:  # a parent can poll, which also reaps the child
        if child.poll() is None:
            return True
        _children.pop(process.pid, None)
        return False
    try:
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def end(identity: ProcessId | None, grace_s: float = 10.0) -> bool:
    """Stop a process and its children: SIGTERM to the process, and SIGKILL to all that run ``grace_s`` seconds later.

    Returns:
      Whether it was running. Another process with a reused pid is not touched.

    Raises:
      EngineError: if it survives SIGKILL, or may not be signalled.
    """
    process = find(identity)
    if process is None:
        return False
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return False
    try:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
        _becomes_true(lambda: not _is_running(process), grace_s)
        for member in family:  # children may outlive a process that ended on SIGTERM
            with contextlib.suppress(psutil.NoSuchProcess):  # psutil refuses to signal a reused pid
                member.kill()
    except psutil.AccessDenied as error:
        raise EngineError(f"no permission to stop process {process.pid}: it belongs to another user") from error
    if not _becomes_true(lambda: not any(map(_is_running, family)), _KILLED_S):
        raise EngineError(f"process {process.pid} does not stop")
    return True


def when_ended(identity: ProcessId, act: Callable[[], object]) -> None:
    """Call ``act`` in a thread of this process when another process has ended."""

    def run() -> None:
        wait_for_end(identity)
        act()

    threading.Thread(target=run, name="when-ended", daemon=True).start()


def wait_for_end(identity: ProcessId) -> None:
    """Wait for a process to end; return immediately if it has ended already."""
    try:
        descriptor = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return
    # The descriptor names one process even after its pid is reused. Only now is it certain which one: opened after the
    # comparison of the start times, it could be that of a later process with the same pid.
    if find(identity) is not None:
        poll = select.poll()  # select(2) cannot wait for a descriptor above 1,023
        poll.register(descriptor, select.POLLIN)
        poll.poll()
    os.close(descriptor)


def memory_mb(identity: ProcessId | None) -> int | None:
    """Return the resident memory of a process and its children in MiB, or None if it has ended."""
    process = find(identity)
    if process is None:
        return None
    total = 0
    with contextlib.suppress(psutil.Error):
        for member in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += member.memory_info().rss
    return round(total / 2**20)


def last_lines(log: Path, count: int = 3) -> str:
    """Return the last non-empty lines of a log, joined."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return " | ".join([line.strip() for line in lines if line.strip()][-count:])[-600:]


def reports_port_in_use(log: Path) -> bool:
    """Return whether a log reports a port in use."""
    with log.open("rb") as file:
        text = file.read(1 << 20).lower()
    return b"address already in use" in text or b"failed to bind" in text or b"is in use by another program" in text


def free_ports(count: int) -> list[int]:
    """Return ``count`` different free ports, chosen by the system."""
    listeners = [socket.socket() for _ in range(count)]
    try:
        for listener in listeners:  # all stay open until the last is bound, so that no port is chosen twice
            listener.bind((HOST, 0))
        return [listener.getsockname()[1] for listener in listeners]
    finally:
        for listener in listeners:
            listener.close()


def lasting_ports(count: int) -> list[int]:
    """Return ``count`` different free ports, below the system's ephemeral ports if enough of them are free.

    The system gives an ephemeral port to any connection while its server is down: a client that keeps reconnecting to
    a dead server could get the server's own port. If too few other ports are free, all are chosen by the system.
    """
    numbers = range(_FIRST_LASTING_PORT, _first_ephemeral_port())
    ports: list[int] = []
    # Not of the process's generator: two trainings seed it alike, and would start two servers at one port.
    for number in random.SystemRandom().sample(numbers, len(numbers)):
        if len(ports) == count:
            break
        if bindable(number):
            ports.append(number)
    return ports if len(ports) == count else free_ports(count)


def _first_ephemeral_port() -> int:
    try:
        return max(_FIRST_LASTING_PORT, int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0]))
    except (OSError, ValueError, IndexError):
        return _FIRST_LASTING_PORT


def bindable(port: int) -> bool:
    """Return whether a server could listen on the port."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError:
            return False
    return True


def becomes_free(port: int, patience_s: float) -> bool:
    """Wait until a server can listen on the port, for at most ``patience_s``; return whether it can."""
    return _becomes_true(lambda: bindable(port), patience_s)


def _becomes_true(condition: Callable[[], bool], patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True

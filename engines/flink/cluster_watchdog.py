"""Keeps the parts of a cluster running: ``python -m ciml.engines.flink.cluster_watchdog HOME FOLDER``.

It starts missing parts, and restarts parts that died or do not answer. Its whole state is in FOLDER's ``plan.json`` and
``parts.json``: after a kill, a new watchdog continues with the running parts.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil

from ciml.engines import processes
from ciml.engines.flink.parts import (
    MARK,
    Part,
    PartState,
    asks,
    marked,
    read_plan,
    read_states,
    sweep_checkpoints,
    write_states,
)
from ciml.errors import CimlError, EngineError

_TICK_S = 0.2
_ASK_S = 2.0
_YOUNG_S = 60.0  # additional patience for a process that has not answered yet
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_STEADY_S = 120.0  # a process that ran this long restarts without a pause
_SWEEP_S = 3600.0
_KEEP_CHECKPOINTS_S = 7 * 86400.0  # for jobs unknown to Flink
_LOG_BYTES = 32 << 20


class ClusterWatchdog:
    """Watches the parts of one home."""

    def __init__(self, home: Path, folder: Path) -> None:
        self._home = home
        self._folder = folder
        parts, self._settings = read_plan(folder)
        states = read_states(folder)
        self._parts = [_WatchedPart(part, states.get(part.name, PartState(part.name)), home) for part in parts]
        self._end_strays()

    def _end_strays(self) -> None:
        """Stop parts that a killed watchdog started but did not record. Workers belong to their pools and end there."""
        own_pids = {os.getpid(), *(part.state.pid for part in self._parts)}
        for process in marked(self._home):
            with contextlib.suppress(psutil.Error):
                if own_pids.isdisjoint(part.pid for part in (process, *process.parents())):
                    process.kill()

    def run(self) -> None:
        """Watch the parts until this process is killed."""
        last_asked = 0.0
        next_sweep = time.monotonic() + _SWEEP_S
        with ThreadPoolExecutor(max_workers=len(self._parts) + 1) as pool:
            while True:
                changed = [self._steady(part.check) for part in self._parts]
                now = time.monotonic()
                if now - last_asked >= _ASK_S:
                    last_asked = now
                    changed += [self._steady(partial(part.ask, pool)) for part in self._parts]
                if now > next_sweep and "state" in self._settings:
                    next_sweep = now + _SWEEP_S
                    pool.submit(self._sweep)
                if any(changed):
                    write_states(self._folder, [part.state for part in self._parts])
                time.sleep(_TICK_S)

    def _sweep(self) -> None:
        try:
            before_s = time.time() - _KEEP_CHECKPOINTS_S
            for job in sweep_checkpoints(self._settings["state"], self._settings["rest"], before_s):
                _log(f"removed the old checkpoints of {job}")
        except CimlError as error:
            _log(f"old checkpoints could not be removed, retrying later: {error}")

    @staticmethod
    def _steady(step: Callable[[], bool]) -> bool:
        """Run a step; a failure (no memory for a process, a process that does not stop) is retried next round."""
        try:
            return step()
        except (EngineError, OSError) as error:
            _log(f"{error}; retrying")
            time.sleep(1)
            return True


class _WatchedPart:
    """A part and its observed state."""

    def __init__(self, part: Part, state: PartState, home: Path) -> None:
        self.part = part
        self.state = state
        self._home = home
        self._pause_s = _FIRST_PAUSE_S
        self._start_at = self._born = self._answered = time.monotonic()
        self._asking: Future[str] | None = None
        if processes.find(state.pid, state.started) is None:
            self.state = replace(state, pid=None, started=None, answered=False)

    def check(self) -> bool:
        """Start the part if it is not running; return whether anything changed."""
        if self.state.pid is None:
            if time.monotonic() < self._start_at:
                return False
            self._start()
            return True
        if processes.find(self.state.pid, self.state.started) is not None:
            return False
        if self.state.restarts == 0 and not self.state.answered and processes.says_port_taken(Path(self.part.log)):
            raise SystemExit(f"{self.part.name}: address already in use: {processes.last_lines(Path(self.part.log))}")
        self._restart("it died")
        return True

    def ask(self, pool: ThreadPoolExecutor) -> bool:
        """Read the last health check's answer and send the next one; return whether anything changed."""
        if self.state.pid is None:
            self._asking = None
            return False
        changed = False
        now = time.monotonic()
        if self._asking is not None and self._asking.done():
            answer = self._asking.result()
            self._asking = None
            if answer == "yes" and not self.state.answered:
                self.state = replace(self.state, answered=True)
                changed = True
            if answer != "no":
                self._answered = now
        if self._asking is None:
            self._asking = pool.submit(asks, self.part.check)
        patience = self.part.patience_s + (0.0 if self.state.answered else _YOUNG_S)
        if now - self._answered > patience:
            processes.end(self.state.pid, self.state.started, grace_s=2.0)
            self._restart(f"no answer for {patience:.0f} s")
            return True
        return changed

    def _restart(self, reason: str) -> None:
        """Schedule a restart after a pause."""
        now = time.monotonic()
        if now - self._born > _STEADY_S:
            self._pause_s = _FIRST_PAUSE_S
        self._start_at = now + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        _log(f"{self.part.name} (pid {self.state.pid}): {reason}; restart in {self._start_at - now:.1f} s")
        self.state = PartState(self.part.name, restarts=self.state.restarts + 1, reason=reason)
        self._asking = None

    def _start(self) -> None:
        scratch = Path(self.part.scratch)
        log = Path(self.part.log)
        shutil.rmtree(scratch, ignore_errors=True)  # a killed Flink leaves 30 MB there
        with contextlib.suppress(FileNotFoundError):
            if log.stat().st_size > _LOG_BYTES:
                os.replace(log, f"{log}.1")
        environment = {**self.part.environment, MARK: str(self._home)}
        pid, started = processes.spawn(self.part.command, log, environment, scratch)
        self.state = replace(self.state, pid=pid, started=started, answered=False)
        self._born = self._answered = time.monotonic()
        _log(f"{self.part.name}: started, pid {pid}")


def _log(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {text}", flush=True)


def main(arguments: Iterable[str]) -> None:
    """Run the watchdog until it is killed; exit at once if another one is running."""
    from filelock import FileLock, Timeout

    home, folder = (Path(argument) for argument in arguments)
    try:
        with FileLock(folder / "keeper.lock", timeout=2):
            ClusterWatchdog(home, folder).run()
    except Timeout:
        raise SystemExit(f"another watchdog is running in {folder}") from None


if __name__ == "__main__":
    main(sys.argv[1:])

"""Keeps the parts of a cluster running: ``python -m ciml.engines.flink.cluster_watchdog HOME FOLDER``.

It starts missing parts, and restarts parts that died or do not answer. Its whole state is in FOLDER's ``plan.json`` and
``parts.json``: after a kill, a new watchdog continues with the running parts.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

import psutil

from ciml.engines import processes
from ciml.engines.flink.parts import (
    MARK,
    Part,
    PartState,
    cluster_processes,
    read_plan,
    read_states,
    run_check,
    write_states,
)
from ciml.errors import CimlError, EngineError
from ciml.pipelines.flink.jobs import ask
from ciml.storage import Entry, open_store

_TICK_S = 0.2
_CHECK_S = 2.0
_START_S = 60.0  # additional patience for a process that has not answered yet
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_STEADY_S = 120.0  # a process that ran this long restarts without a pause
_COLLECT_S = 3600.0
_KEEP_CHECKPOINTS_S = 7 * 86400.0  # for jobs unknown to Flink
_LOG_BYTES = 32 << 20


class ClusterWatchdog:
    """Watches the parts of one home, each in a thread."""

    def __init__(self, home: Path, folder: Path) -> None:
        self._home = home
        self._folder = folder
        self._parts, self._settings = read_plan(folder)
        self._lock = threading.Lock()
        self._states = read_states(folder)

    def run(self) -> None:
        """Watch the parts until this process is killed; end it if a part cannot be watched."""
        self._end_strays()
        pool = ThreadPoolExecutor(len(self._parts))
        watches = [pool.submit(self._watch, part) for part in self._parts]
        while not (ended := wait(watches, _COLLECT_S, FIRST_EXCEPTION).done):
            if "state" in self._settings:
                self._remove_old_checkpoints()
        traceback.print_exception(ended.pop().exception())
        sys.stderr.flush()
        os._exit(1)  # the other threads would go on

    def _end_strays(self) -> None:
        """Stop parts that a killed watchdog started but did not record. Workers belong to their pools and end there."""
        known_pids = {os.getpid(), *(state.pid for state in self._states.values())}
        for process in cluster_processes(self._home):
            with contextlib.suppress(psutil.Error):
                ancestors = (process, *process.parents())
                if known_pids.isdisjoint(ancestor.pid for ancestor in ancestors):
                    process.kill()

    def _remove_old_checkpoints(self) -> None:
        try:
            before_s = time.time() - _KEEP_CHECKPOINTS_S
            for job in remove_old_checkpoints(self._settings["state"], self._settings["rest"], before_s):
                _log(f"removed the old checkpoints of {job}")
        except CimlError as error:
            _log(f"old checkpoints could not be removed, retrying later: {error}")

    def _record(self, state: PartState) -> PartState:
        with self._lock:
            self._states[state.name] = state
            write_states(self._folder, self._states.values())
        return state

    def _watch(self, part: Part) -> None:
        """Start a part, and again whenever it has died or does not answer, after a pause."""
        pause_s = _FIRST_PAUSE_S
        while True:
            born_s = time.monotonic()
            state = self._states.get(part.name, PartState(part.name))
            try:
                if processes.find(state.process) is None:
                    state = self._start(part, state)
                reason = self._wait_for_fault(part, state)
            except (EngineError, OSError) as error:  # no memory for a process, or one that does not stop
                _log(f"{error}; retrying")
                time.sleep(1)
                continue
            if time.monotonic() - born_s > _STEADY_S:
                pause_s = _FIRST_PAUSE_S
            _log(f"{part.name} (pid {state.pid}): {reason}; restart in {pause_s:.1f} s")
            self._record(PartState(part.name, restarts=state.restarts + 1, reason=reason))
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _start(self, part: Part, state: PartState) -> PartState:
        scratch = Path(part.scratch)
        log = Path(part.log)
        shutil.rmtree(scratch, ignore_errors=True)  # a killed Flink leaves 30 MB there
        with contextlib.suppress(FileNotFoundError):
            if log.stat().st_size > _LOG_BYTES:
                os.replace(log, f"{log}.1")
        environment = {**part.environment, MARK: str(self._home)}
        process = processes.spawn(part.command, log, environment, scratch)
        _log(f"{part.name}: started, pid {process.pid}")
        return self._record(replace(state, pid=process.pid, started=process.started, answered=False))

    def _wait_for_fault(self, part: Part, state: PartState) -> str:
        """Return why a running part has to be started again; it has ended then."""
        answered_s = checked_s = time.monotonic()
        with ThreadPoolExecutor(1) as pool:  # a check takes seconds, in which a death must be noticed
            check = pool.submit(run_check, part.check)
            while processes.find(state.process) is not None:
                now = time.monotonic()
                if check.done() and now - checked_s >= _CHECK_S:
                    checked_s = now
                    check = pool.submit(run_check, part.check)
                answer = check.result() if check.done() else ""
                if answer == "yes" and not state.answered:
                    state = self._record(replace(state, answered=True))
                if answer in ("yes", "unknown"):
                    answered_s = now
                patience_s = part.patience_s + (0.0 if state.answered else _START_S)
                if now - answered_s > patience_s:
                    processes.end(state.process, grace_s=2.0)
                    return f"no answer for {patience_s:.0f} s"
                time.sleep(_TICK_S)
        log = Path(part.log)
        if state.restarts == 0 and not state.answered and processes.reports_port_in_use(log):
            raise SystemExit(f"{part.name}: address already in use: {processes.last_lines(log)}")
        return "it died"


def remove_old_checkpoints(state: str, rest: str, before_s: float) -> list[str]:
    """Remove the checkpoints of jobs that Flink does not know and that wrote none since ``before_s``.

    Flink retains the checkpoints of jobs that failed, were cancelled, or lost their JobManager, and never removes them.
    Savepoints stay.

    Args:
      state: a folder or an ``s3://`` prefix; the checkpoints are in its ``checkpoints/JOB``.
      rest: the URL of Flink's REST API.
      before_s: epoch seconds.

    Returns:
      The ids of the jobs whose checkpoints were removed.

    Raises:
      EngineError: if Flink or the storage does not answer. Earlier removals are not undone.
    """
    job_ids = {job["id"] for job in ask("GET", f"{rest}/jobs")["jobs"]}
    store = open_store(state)
    checkpoints = store.child("checkpoints")
    entries_by_job: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in checkpoints.entries():
        entries_by_job[entry.path.partition("/")[0]].append(entry)
    old_jobs = []
    for job, entries in sorted(entries_by_job.items()):
        if job not in job_ids and max(entry.modified_s for entry in entries) < before_s:
            for entry in entries:
                checkpoints.delete(entry.path)
            old_jobs.append(job)
    store.delete_leftovers("checkpoints", before_s)
    return old_jobs


def _log(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {text}", flush=True)


def main(arguments: Iterable[str]) -> None:
    """Run the watchdog until it is killed; exit immediately if another one is running."""
    from filelock import FileLock, Timeout

    home, folder = (Path(argument) for argument in arguments)
    try:
        with FileLock(folder / "keeper.lock", timeout=2):
            ClusterWatchdog(home, folder).run()
    except Timeout:
        raise SystemExit(f"another watchdog is running in {folder}") from None


if __name__ == "__main__":
    main(sys.argv[1:])

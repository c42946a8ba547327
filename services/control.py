"""Starts, resumes and stops supervised services: the commands below ``ciml service``.

Of each service one command runs at a time. A start begins from the manifest; `resume` takes over a running job, and
uses a savepoint.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ciml.engines import processes
from ciml.errors import CimlError, EngineError, IntegrityError
from ciml.services.files import ServiceFiles, StartOptions, Status, check_secret_variables, in_place
from ciml.services.jobs import jobs_of, submits

Report = Callable[[str], object]

_POLL_S = 0.2
_AT_WORK = ("starting", "running", "restarting")


def start(
    files: ServiceFiles, options: StartOptions, wait_s: float, report: Report, *, foreground: bool = False
) -> int:
    """Start a service from its manifest; in the foreground, supervise it here. Return the exit code.

    A start in the foreground with the same options, as by a container or systemd, continues like `resume`.

    Raises:
      CimlError: if it is already running, or an option is invalid.
      EngineError: if the broker, the store or the engine does not answer, or the service does not run in time.
      IntegrityError: if continuing would lose or mix data.
    """
    with _commanding(files), in_place(files.home, options):
        if _is_supervised(files):
            supervisor = files.recorded("supervisor")
            pid = f" (pid {supervisor.pid})" if supervisor is not None else ""
            raise CimlError(
                f"a service named {files.name} is already running{pid}: stop it (ciml service stop {files.name}), or "
                "choose another --name"
            )
        continues = foreground and files.was_started and _are_same(files.options(), options)
        # In the foreground a missing credential fails the worker, which the supervisor's metrics report.
        check(options, report if continues else None, worker=not foreground)
        _end_failed_supervisor(files)
        if files.was_started:
            _end_other_job(files, options, report)
        files.put_options(options)
        if not continues:
            _begin_status(files, report)
        if not foreground:
            _start_supervisor(files, wait_s, report)
            return 0
        files.want("run")
    from ciml.services.process import supervisor_main

    return supervisor_main(files.home, files.name)


def resume(files: ServiceFiles, parallelism: int | None, wait_s: float, report: Report) -> None:
    """Resume a service, and take over its running job. Raises as `start` does."""
    with _commanding(files), in_place(files.home, options := files.options()):
        is_changed = parallelism not in (None, options.parallelism)
        if _is_supervised(files):
            if is_changed:
                raise CimlError(
                    f"the service {files.name} is running: stop it (ciml service stop {files.name} --savepoint), then "
                    "resume"
                )
            report(f"The service {files.name} is already running.")
            return
        check_secret_variables(options)
        check(options, report)
        _end_failed_supervisor(files)
        if is_changed:
            options = replace(options, parallelism=int(parallelism or 1))
            _end_other_job(files, options, report)
        files.put_options(options)
        _start_supervisor(files, wait_s, report)


def stop(files: ServiceFiles, wait_s: float, report: Report, *, savepoint: bool = False) -> None:
    """Stop a service: by its supervisor, or in this process if none is running.

    Raises:
      EngineError: if it does not stop in time, or stopped without the requested savepoint.
    """
    with _commanding(files), in_place(files.home, options := files.options()):
        before = files.status()
        supervisor = files.process("supervisor")
        if supervisor is None and before.get("health") == "stopped" and not _has_job(files, options):
            report(f"The service {files.name} is already stopped.")
            return
        files.want("savepoint" if savepoint else "stop")
        deadline = time.monotonic() + wait_s
        while files.process("supervisor") is not None and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        if files.process("supervisor") is not None:
            report("The supervisor does not react; killing it.")
            processes.end(files.recorded("supervisor"), grace_s=2.0)
        if files.status().get("health") not in ("stopped", "failed") or _has_job(files, options):
            _stop_here(files, options, wait_s)
        if files.status().get("health") == "failed":
            files.put_status({**files.status(), "health": "stopped", "why": "as asked"})
        _report_stopped(files, options, before, report, savepoint=savepoint)


def check(options: StartOptions, report: Report | None = None, *, worker: bool = True) -> None:
    """Check options, credentials, broker, topic, store and engine. Raises as `start` does.

    Args:
      options: of the service.
      report: called with credentials that cannot be used, for a service that was started before: the rest of its work
        need not wait for them. None makes them an error.
      worker: also check what only the worker reads.
    """
    from ciml.services.process import impatient_service

    service = impatient_service(options)
    if service.needs_flink and options.engine != "flink":
        raise CimlError(service.needs_flink)
    if service.excludes_flink and options.engine == "flink":
        raise CimlError(service.excludes_flink)
    try:
        problems = service.problems()
        if problems and report is None:
            raise CimlError("; ".join(problems.values()))
        for problem in problems.values():
            if report is not None:
                report(f"Continuing without: {problem}")
        if worker:
            service.check()
        service.observe()
    finally:
        service.close()
    if options.engine == "flink":
        from ciml.pipelines.flink.jobs import list_jobs

        list_jobs(options.jobs)


@contextmanager
def _commanding(files: ServiceFiles) -> Iterator[None]:
    with files.exclusive("command", timeout_s=5.0) as held:
        if not held:
            raise CimlError(f"another command is starting or stopping the service {files.name}; retry when it is done")
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
                raise
            raise EngineError(
                f"the files of the service in {files.home} cannot be written: {error.strerror}; correct this, then run "
                "the command again"
            ) from error


def _is_supervised(files: ServiceFiles) -> bool:
    """Return whether a supervisor watches; that of a failed service only serves its metrics."""
    return files.process("supervisor") is not None and files.status().get("health") != "failed"


def _are_same(before: StartOptions, options: StartOptions) -> bool:
    return replace(before, tied=None) == replace(options, tied=None)


def _end_failed_supervisor(files: ServiceFiles) -> None:
    """End the supervisor of a failed service, if it still serves metrics."""
    if not _is_supervised(files):
        processes.end(files.recorded("supervisor"))


def _end_other_job(files: ServiceFiles, options: StartOptions, report: Report) -> None:
    """End the job of an earlier start unless its options are the same: then it is taken over."""
    before = files.options()
    if _are_same(before, options) or not _has_job(files, before):
        return
    report(f"Ending the job of an earlier start of {files.name}: its options differ.")
    jobs_of(files, before).cancel()


def _has_job(files: ServiceFiles, options: StartOptions) -> bool:
    """Return whether its job runs; False if the engine does not answer."""
    try:
        return jobs_of(files, options).status().state in _AT_WORK
    except EngineError:
        return False


def _begin_status(files: ServiceFiles, report: Report) -> None:
    """Replace the status of an earlier start, of which only the last failure stays."""
    status = files.status()
    savepoint = status.get("savepoint")
    if savepoint and not savepoint["use"]:
        report(f"Starting from the manifest, not from the savepoint {savepoint['path']} (resume would use it).")
    failure = status.get("last_failure")
    files.put_status({"last_failure": failure} if failure else {})


def _start_supervisor(files: ServiceFiles, wait_s: float, report: Report) -> None:
    """Start a supervisor, and wait until its service runs; with ``wait_s`` 0 only start it."""
    files.want("run")
    command = processes.python_command("ciml.services.process", "supervisor", str(files.home), files.name)
    log = files.log("supervisor")
    supervisor = processes.spawn(command, log, {}, Path(files.options().cwd))
    if not wait_s:
        report(f"The supervisor of {files.name} has started (pid {supervisor.pid}).")
        return
    began_s = time.monotonic()
    why = "its supervisor has not started yet"
    while time.monotonic() < began_s + wait_s:
        status = files.status()
        if (status.get("supervisor") or {}).get("pid") == supervisor.pid:  # else the status is an earlier supervisor's
            why = status.get("why") or status.get("health", "")
            if status["health"] == "failed":
                raise (IntegrityError if status.get("exit_code", 4) == 4 else CimlError)(why)
            if status["health"] == "running":
                report(_running_text(status))
                return
            if status["health"] == "stalled":
                break
        if processes.find(supervisor) is None:
            raise EngineError(f"the supervisor of {files.name} ended: {processes.last_lines(log)} (log: {log})")
        time.sleep(_POLL_S)
    raise EngineError(
        f"the service {files.name} is not running after {time.monotonic() - began_s:.0f} s: {why}. Its supervisor "
        "continues; check it with: ciml service status"
    )


def _running_text(status: Status) -> str:
    engine = f" on {status['engine']}" if status.get("engine") else ""
    behind = f"; {status['behind']:,} messages to go" if status.get("behind") is not None else ""
    version = f", from version {status.get('version')}" if status.get("data") else ""
    return f"The service {status['name']} is running{engine}{version}{behind}."


def _stop_here(files: ServiceFiles, options: StartOptions, wait_s: float) -> None:
    from ciml.services.process import supervise

    leave = threading.Event()
    timer = threading.Timer(max(wait_s, 30.0), leave.set)
    timer.daemon = True
    with files.exclusive("supervisor", timeout_s=10.0) as held:
        if not held:
            raise EngineError(f"another supervisor of {files.name} has just started; retry")
        timer.start()
        health = supervise(files, options, leave)
        timer.cancel()
    if health not in ("stopped", "failed"):
        raise EngineError(f"the service {files.name} is not stopped: {files.status().get('why')}")


def _report_stopped(
    files: ServiceFiles, options: StartOptions, before: Status, report: Report, *, savepoint: bool
) -> None:
    status = files.status()
    suffix = ""
    if savepoint and submits(options):
        stored = status.get("savepoint") or {}
        if not stored.get("path") or stored == before.get("savepoint"):
            why = status.get("savepoint_failed") or "its job did not run"
            raise EngineError(
                f"the service {files.name} is stopped without a savepoint: {why}. Resume starts from the manifest"
            )
        suffix = f", with the savepoint {stored['path']}"
    elif savepoint:
        suffix = "; no savepoint is needed"
    if status.get("why") not in (None, "", "as asked"):
        suffix += f": {status['why']}"
    version = f" at version {status.get('version')}" if status.get("data") else ""
    report(f"The service {files.name} is stopped{version}{suffix}.")

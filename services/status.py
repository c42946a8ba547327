"""Gathers the status of a supervised service, which `ciml.cli.commands.serve.service` shows.

A running supervisor writes the status. If it died, this module queries job and data in a child process: a query needs
the folder and the environment of the service's start, and a library may wait longer than it should. *Figures* are the
parts of a status that are read together: ``job``, ``manifest``, ``lag``, and ``status``, the supervisor's own.

The child is ``python -m ciml.services.status HOME NAME``.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import cast

import psutil

from ciml.engines import processes
from ciml.engines.state import default_home
from ciml.errors import CimlError
from ciml.manifest.coverage import ADOPT_COMMAND
from ciml.services.files import JobEntry, ServiceFiles, StartOptions, Status, in_place, now_us, read_times

_HEARTBEAT_S = 60.0
_STALE_S = 15.0  # several pauses of a supervisor; an answer takes it at most 10 s
_DEADLINE_S = 20.0  # for the query of one service
_EXIT_CODES = {"running": 0, "starting": 0, "stopped": 1}
_AT_WORK = ("starting", "running", "restarting")


def exit_code(status: Status) -> int:
    """Return 0 for a healthy service, 1 for a stopped one, 2 for any other."""
    return _EXIT_CODES.get(status["health"], 2)


def gather(files: ServiceFiles) -> Status:
    """Return the status of a service. Values that cannot be known now are None.

    A service with a damaged file has the health ``failed``, and the error as the reason.
    """
    try:
        return _gather(files)
    except CimlError as error:
        return {
            **_unknown({}),
            "name": files.name,
            "health": "failed",
            "why": str(error),
            "supervisor": None,
            "worker": None,
            "remedy": None,
            "uptime_s": None,
            "last_commit_age_s": None,
            "dead_letters": None,
            "ages_s": {},
            "stale": [],
            "last_known": None,
        }


def _gather(files: ServiceFiles) -> Status:
    supervisor = files.process("supervisor")
    worker = files.process("worker")
    heartbeat: Status = {}
    status: Status = {
        "name": files.name,
        "health": "stopped",
        "why": "",
        **files.status(),
        "supervisor": None if supervisor is None else {"pid": supervisor.pid},
        "worker": None if worker is None else {"pid": worker.pid},
    }
    if supervisor is not None:
        heartbeat = _check_heartbeat(status, supervisor)
        status |= heartbeat
        times_us = read_times(status)
    else:
        status |= _query_in_child(files, status)
        if files.wanted() == "run" and status["health"] != "failed":
            remark = ", its job keeps running" if status["job"].get("state") in _AT_WORK else ""
            status |= {"health": "stalled", "why": f"its supervisor died{remark}"}
        times_us = status["read_us"]  # without the time of the supervisor's own figures: nobody updates them
    job = status.get("job") or {}
    status["remedy"] = remedy(files, status, is_silent=heartbeat.get("health") == "stalled")
    status["uptime_s"] = age_s(job.get("submitted_us")) if job.get("state") in _AT_WORK else None
    status["last_commit_age_s"] = age_s(status.get("last_commit_us"))
    status["dead_letters"] = (status.get("counts") or {}).get("dead_letter")
    status["ages_s"] = {figures: age_s(time_us) for figures, time_us in times_us.items()}
    status["stale"] = sorted(figures for figures, age in status["ages_s"].items() if age is not None and age > _STALE_S)
    return status | _hide_stale_lag(status)


def _check_heartbeat(status: Status, supervisor: psutil.Process) -> Status:
    """Return health and reason of a service whose supervisor runs and has not written for a long time; {} otherwise."""
    silent_s = (now_us() - status.get("updated_us", 0)) / 1e6
    if silent_s <= _HEARTBEAT_S:
        return {}
    if time.time() - supervisor.create_time() < _HEARTBEAT_S:
        return {"health": "starting", "why": ""}
    return {"health": "stalled", "why": f"supervisor heartbeat missing for {silent_s:.0f} s"}


def _query_in_child(files: ServiceFiles, status: Status) -> Status:
    """Return what `_query` returns in a child process; unknown values if it fails or exceeds `_DEADLINE_S`."""
    try:
        child = subprocess.run(
            processes.python_command(__name__, str(files.home), files.name),
            env={**os.environ, **processes.python_environment()},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_DEADLINE_S,
            check=True,
        )
        return cast("Status", json.loads(child.stdout.splitlines()[-1]))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return {**_unknown(status), "read_us": {}}


def _query(files: ServiceFiles, options: StartOptions) -> Status:
    """Return the values that job and data show, in the folder and the environment of the service's start."""
    from ciml.services.jobs import jobs_of
    from ciml.services.process import impatient_service

    status = files.status()
    answer = _unknown(status)
    read_us = dict(status.get("read_us", {}))
    reported: Status = {}
    with contextlib.suppress(CimlError):
        job = jobs_of(files, options).status()
        names: JobEntry = {"state": job.state, "id": job.id, "name": job.name, "how": job.how, "restarts": job.restarts}
        answer["job"] |= names
        read_us["job"] = now_us()
        reported = cast("Status", job.progress)
        if reported.get("lag") is not None and job.progress_us is not None:
            read_us["lag"] = job.progress_us
    with contextlib.suppress(CimlError), contextlib.closing(impatient_service(options)) as service:
        answer |= cast("Status", service.facts())  # available even if the broker does not answer
        answer |= cast("Status", service.observe().to_json())
        read_us["manifest"] = now_us()
        if answer["lag"] is not None:
            read_us["lag"] = now_us()
    if answer["lag"] is None:  # only its worker knows the position
        answer |= reported
    answer["read_us"] = read_us
    return answer


def _unknown(status: Status) -> Status:
    """Return the values that a query replaces, as unknown. The last checkpoint and the job's names are kept."""
    job: JobEntry = {**(status.get("job") or {}), "state": "unknown"}
    return {"rate": None, "behind": None, "lag": None, "checkpoint": status.get("checkpoint"), "job": job}


def remedy(files: ServiceFiles, status: Status, *, is_silent: bool = False) -> str | None:
    """Return the command that continues the service after the cause is repaired; None if it continues by itself.

    Args:
      files: of the service.
      status: with ``health`` and ``supervisor``.
      is_silent: whether its supervisor runs and has not written for a long time.
    """
    home = "" if files.home == default_home() else f" --home {shlex.quote(str(files.home))}"
    service = f"{files.name}{home}"
    resume = f"ciml service resume {service}"
    if status["health"] == "failed":
        return f"{ADOPT_COMMAND} --service {service} && {resume}" if status.get("needs_adoption") else resume
    if status["supervisor"] is None:
        return resume
    if is_silent:
        return f"ciml service stop {service} && {resume}"  # the silent supervisor has to end first
    return None


def _hide_stale_lag(status: Status) -> Status:
    """Return the last known lag apart from the present one, which is unknown, if it is stale."""
    if "lag" not in status["stale"]:
        return {"last_known": None}
    last_known = {"behind": status.get("behind"), "lag": status.get("lag"), "rate": status.get("rate")}
    return {"last_known": last_known, "behind": None, "lag": None, "rate": None}


def age_s(time_us: int | None) -> int | None:
    """Return the age of a time in whole seconds, at least 0; None for no time."""
    return max(0, (now_us() - time_us) // 1_000_000) if time_us else None


def _print_query(home: Path, name: str) -> None:
    """Print the answer of `_query` as the last line of the output, and end without waiting for library threads."""
    files = ServiceFiles(home, name)
    options = files.options()
    with in_place(home, options):
        print(json.dumps(_query(files, options)), flush=True)
    os._exit(0)


if __name__ == "__main__":
    _print_query(Path(sys.argv[1]), sys.argv[2])

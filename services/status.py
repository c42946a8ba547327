"""The status of a supervised service, as ``ciml service status`` shows it.

A running supervisor writes the status. If it died, `gather` queries job and data itself. *Figures* are the parts of a
status that are read together: ``job``, ``manifest``, ``lag``, and ``status``, the supervisor's own.
"""

from __future__ import annotations

import contextlib
import shlex
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import Any

import psutil

from ciml.engines.state import default_home
from ciml.errors import CimlError
from ciml.manifest.coverage import OTHER_TOPIC
from ciml.services.files import ServiceFiles, StartOptions, in_place, now_us, read_times

Status = dict[str, Any]

_HEARTBEAT_S = 60.0
_NO_HEARTBEAT = "supervisor heartbeat missing"
_STALE_S = 15.0  # several pauses of a supervisor; an answer takes it at most 10 s
_DEADLINE_S = 20.0  # for all that the command itself queries
_EXIT_CODES = {"running": 0, "starting": 0, "stopped": 1}
_AT_WORK = ("starting", "running", "restarting")
_MOST_RESUBMISSIONS = 5


def exit_code(status: Status) -> int:
    """Return 0 for a healthy service, 1 for a stopped one, 2 for any other."""
    return _EXIT_CODES.get(status["health"], 2)


def gather(files: ServiceFiles) -> Status:
    """Return the status of a service. Values that cannot be known now are None."""
    status: Status = {"name": files.name, "health": "stopped", "why": "", **files.status()}
    supervisor = files.process("supervisor")
    worker = files.process("worker")
    status["supervisor"] = None if supervisor is None else {"pid": supervisor.pid}
    status["worker"] = None if worker is None else {"pid": worker.pid}
    if supervisor is None:
        status |= _query_in_time(files, status)
    else:
        status |= _check_heartbeat(status, supervisor)
    job = status.get("job") or {}
    status["remedy"] = remedy(files, status)
    status["uptime_s"] = _age_s(job.get("submitted_us")) if job.get("state") in _AT_WORK else None
    status["last_commit_age_s"] = _age_s(status.get("last_commit_us"))
    status["dead_letters"] = (status.get("counts") or {}).get("dead_letter")
    return status | _ages(status)


def _check_heartbeat(status: Status, supervisor: psutil.Process) -> Status:
    """Return health and reason of a service whose supervisor runs and has written nothing for long; {} otherwise."""
    silent_s = (now_us() - status.get("updated_us", 0)) / 1e6
    if silent_s <= _HEARTBEAT_S:
        return {}
    if time.time() - supervisor.create_time() < _HEARTBEAT_S:
        return {"health": "starting", "why": ""}
    return {"health": "stalled", "why": f"{_NO_HEARTBEAT} for {silent_s:.0f} s"}


def _query_in_time(files: ServiceFiles, status: Status) -> Status:
    """Return what `_query` returns within `_DEADLINE_S`; without an answer in time, values are unknown.

    It queries in a thread, because a library may wait longer than it should.
    """
    answer: Future[Status] = Future()

    def query() -> None:
        try:
            answer.set_result(_query(files, status))
        except BaseException as error:  # noqa: BLE001  # raised where the result is awaited
            answer.set_exception(error)

    threading.Thread(target=query, name=f"status of {files.name}", daemon=True).start()
    try:
        return answer.result(_DEADLINE_S)
    except TimeoutError:
        return {**_unknown(status), "read_us": {}, "query": f"no answer within {_DEADLINE_S:.0f} s"}


def _query(files: ServiceFiles, status: Status) -> Status:
    """Return what job and data show of a service without a supervisor."""
    options = files.options()
    answer = _unknown(status)
    with contextlib.suppress(CimlError), in_place(files.home, options):
        answer = _query_in_place(files, options, status)
    if files.wanted() == "run" and status["health"] != "failed":
        remark = ", its job keeps running" if answer["job"]["state"] in _AT_WORK else ""
        answer |= {"health": "stalled", "why": f"its supervisor died{remark}"}
    return answer


def _query_in_place(files: ServiceFiles, options: StartOptions, status: Status) -> Status:
    from ciml.services.jobs import jobs_of
    from ciml.services.process import impatient_service

    answer = _unknown(status)
    read_us = dict(status.get("read_us", {}))
    reported: Mapping[str, Any] = {}
    with contextlib.suppress(CimlError):
        job = jobs_of(files, options).status()
        answer["job"] |= {"state": job.state, "id": job.id, "name": job.name, "how": job.how, "restarts": job.restarts}
        read_us["job"] = now_us()
        reported = job.progress
        if reported.get("lag") is not None and job.progress_us is not None:
            read_us["lag"] = job.progress_us
    with contextlib.suppress(CimlError), contextlib.closing(impatient_service(options)) as service:
        answer |= service.facts()
        answer |= service.observe().to_json()
        read_us["manifest"] = now_us()
        if answer["lag"] is not None:
            read_us["lag"] = now_us()
    if answer["lag"] is None:  # only its worker knows the position
        answer |= reported
    return {**answer, "read_us": read_us}


def _unknown(status: Status) -> Status:
    """Return the values that only a query shows, as unknown; the last checkpoint and the job's names stay."""
    job = {**(status.get("job") or {}), "state": "unknown"}
    return {"rate": None, "behind": None, "lag": None, "checkpoint": status.get("checkpoint"), "job": job}


def remedy(files: ServiceFiles, status: Status) -> str | None:
    """Return the command that continues the service after the cause is repaired; None if it continues by itself."""
    health = status["health"]
    why = status["why"]
    home = "" if files.home == default_home() else f" --home {shlex.quote(str(files.home))}"
    service = f"{files.name}{home}"
    resume = f"ciml service resume {service}"
    if health == "failed" and OTHER_TOPIC in why:
        return f"{OTHER_TOPIC} --service {service} && {resume}"
    if health == "stalled" and status["supervisor"] is not None and why.startswith(_NO_HEARTBEAT):
        return f"ciml service stop {service} && {resume}"
    return resume if status["supervisor"] is None or health == "failed" else None


def _ages(status: Status) -> Status:
    """Return the ages of figures, seconds, and which are stale. A stale lag becomes None, and stays in ``last_known``.

    A status that no supervisor updates is not stale: what this command read of it is as old as ``read_us`` says.
    """
    times_us = read_times(status) if status["supervisor"] is not None else status.get("read_us", {})
    ages_s = {figures: _age_s(time_us) for figures, time_us in times_us.items()}
    stale = sorted(figures for figures, age_s in ages_s.items() if age_s is not None and age_s > _STALE_S)
    ages: Status = {"ages_s": ages_s, "stale": stale, "last_known": None}
    if "lag" in stale:
        ages["last_known"] = {name: status.get(name) for name in ("behind", "lag", "rate")}
        ages |= {"behind": None, "lag": None, "rate": None}
    return ages


def _age_s(time_us: int | None) -> int | None:
    return max(0, (now_us() - time_us) // 1_000_000) if time_us else None


def show(status: Status) -> None:
    """Print the status of one service as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    colour = ("green", "yellow", "red")[exit_code(status)]
    why = f": {status['why']}" if status["why"] else ""
    table.add_row(status.get("kind", "ingest"), status["name"])
    table.add_row("health", f"[{colour}]{status['health']}[/]{_plain(why)}{_plain(_read_note(status, 'status'))}")
    for title, text in _rows(status):
        table.add_row(title, _plain(text))
    Console().print(table)


def _rows(status: Status) -> list[tuple[str, str]]:
    """Return (title, text) of each row below the health."""
    rows = [*_job_rows(status), *_count_rows(status), *_history_rows(status)]
    if status["remedy"]:
        rows.append(("to continue", status["remedy"]))
    resubmissions = (status.get("resubmissions") or [])[-_MOST_RESUBMISSIONS:]
    for number, resubmission in enumerate(resubmissions):
        time_text = datetime.fromtimestamp(resubmission["time_us"] / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        rows.append(("" if number else "resubmitted", f"{time_text} {resubmission['why']}"))
    return rows


def _job_rows(status: Status) -> list[tuple[str, str]]:
    job = status.get("job") or {}
    rate = status.get("rate")
    job_texts = [job.get("state", "–"), job.get("name"), job.get("id")]
    commit = f"{status.get('version', '–')}, committed {_age_text(status['last_commit_age_s'])} ago"
    return [
        ("engine", f"{status.get('engine') or '–'}, parallelism {status.get('parallelism', '–')}"),
        ("topic", f"{status.get('topic') or '–'} at {status.get('kafka') or '–'}"),
        ("data", status.get("data") or "–"),
        ("job", " ".join(filter(None, job_texts)) + _read_note(status, "job")),
        ("uptime", _age_text(status["uptime_s"])),
        ("lag", _lag_text(status)),
        ("rate", "–" if rate is None else f"{rate:.1f} messages a second"),
        ("version", commit + _read_note(status, "manifest")),
    ]


def _count_rows(status: Status) -> list[tuple[str, str]]:
    counts = status.get("counts") or {}
    if status.get("kind", "ingest") != "ingest":
        return [("counts", ", ".join(f"{number:,} {kind}" for kind, number in counts.items()) or "–")]
    return [
        ("runs", _number(counts.get("run"))),
        ("waiting logs", _number(status.get("deferred"))),
        ("dead letters", _number(status.get("dead_letters"))),
    ]


def _history_rows(status: Status) -> list[tuple[str, str]]:
    restarts = _number((status.get("job") or {}).get("restarts"))
    checkpoint = status.get("checkpoint")
    savepoint = status.get("savepoint")
    failure = status.get("last_failure")
    checkpoint_text = savepoint_text = "–"
    if checkpoint:
        checkpoint_text = f"{_size(checkpoint['bytes'])}, {_age_text(_age_s(checkpoint['time_us']))} old"
    if savepoint:
        savepoint_text = f"{savepoint['path']} ({savepoint['use'] or 'kept'})"
    rows = [
        ("checkpoint", checkpoint_text),
        ("savepoint", savepoint_text),
        ("restarts", f"{restarts} by the engine, {status.get('resubmitted', 0)} resubmitted"),
        ("metrics", status.get("metrics") or "–"),
        ("processes", f"supervisor {_pid(status['supervisor'])}, worker {_pid(status['worker'])}"),
        *(("problem", problem) for problem in (status.get("problems") or {}).values()),
    ]
    if failure:
        rows.append(("last failure", f"{_age_text(_age_s(failure['time_us']))} ago: {failure['why']}"))
    return rows


def _lag_text(status: Status) -> str:
    lag = status.get("lag")
    if lag is None:
        last = status.get("last_known") or {}
        if last.get("behind") is None:
            return "–"
        return f"unknown; {last['behind']:,} messages {_age_text(status['ages_s']['lag'])} ago"
    text = f"{status['behind']:,} messages{_read_note(status, 'lag')}"
    if not status["behind"]:
        return text
    by_partition = ", ".join(f"[{partition}] {number:,}" for partition, number in lag.items())
    return f"{text} ({by_partition})"


def _read_note(status: Status, figures: str) -> str:
    """Return a note with the age of figures, which marks stale ones; "" if they were never read."""
    age_s = status["ages_s"].get(figures)
    if age_s is None:
        return ""
    return f" (stale: read {_age_text(age_s)} ago)" if figures in status["stale"] else f" (read {_age_text(age_s)} ago)"


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _number(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _pid(process: Mapping[str, Any] | None) -> str:
    return "–" if process is None else str(process["pid"])


def _age_text(seconds: int | None) -> str:
    if seconds is None:
        return "–"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _size(number: int) -> str:
    return f"{number / 2**20:.1f} MiB" if number >= 2**20 else f"{number / 2**10:.0f} KiB"

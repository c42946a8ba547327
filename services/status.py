"""The status of a supervised service: from its supervisor, or from its files and its engine if that died."""

from __future__ import annotations

import contextlib
import shlex
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import Any

from ciml.engines.state import default_home
from ciml.errors import CimlError
from ciml.manifest.coverage import OTHER_TOPIC
from ciml.services.files import ServiceFiles, StartOptions, in_place, now_us
from ciml.services.metrics import read_times

_SILENT_S = 60.0
_STALE_S = 15.0  # several pauses of a supervisor; an answer takes it at most 10 s
_DEADLINE_S = 20.0  # for all that the command itself queries
_SILENT = "supervisor heartbeat missing"
_CODES = {"running": 0, "starting": 0, "stopped": 1}
_AT_WORK = ("starting", "running", "restarting")


def exit_code(status: dict[str, Any]) -> int:
    """Return 0 for a healthy service, 1 for a stopped one, 2 for any other."""
    return _CODES.get(status["health"], 2)


def gather(files: ServiceFiles) -> dict[str, Any]:
    """Return the status of a service. Values that cannot be known now are None."""
    status = {"name": files.name, "health": "stopped", "why": "", **files.status()}
    supervisor = files.process("supervisor")
    worker = files.process("worker")
    status["supervisor"] = None if supervisor is None else {"pid": supervisor.pid}
    status["worker"] = None if worker is None else {"pid": worker.pid}
    silent_s = (now_us() - status.get("updated_us", 0)) / 1e6
    if supervisor is not None:
        young = time.time() - supervisor.create_time() < _SILENT_S
        if silent_s > _SILENT_S:
            status["health"] = "starting" if young else "stalled"
            status["why"] = "" if young else f"{_SILENT} for {silent_s:.0f} s"
    else:
        _query_in_time(files, status)
    status["remedy"] = remedy(files, status)
    job = status.get("job") or {}
    submitted_us = job.get("submitted_us")
    at_work = job.get("state") in _AT_WORK
    status["uptime_s"] = (now_us() - submitted_us) // 1_000_000 if submitted_us and at_work else None
    commit = status.get("last_commit_us")
    status["last_commit_age_s"] = (now_us() - commit) // 1_000_000 if commit else None
    status["dead_letters"] = (status.get("counts") or {}).get("dead_letter")
    _mark_stale(status, supervised=supervisor is not None)
    return status


def remedy(files: ServiceFiles, status: dict[str, Any]) -> str | None:
    """Return the command that continues the service after the cause is repaired; None if it continues by itself."""
    health = status["health"]
    why = status["why"]
    resume = f"ciml service resume {_named(files)}"
    if health == "failed" and OTHER_TOPIC in why:
        return f"{OTHER_TOPIC} --service {_named(files)} && {resume}"
    if health == "stalled" and status["supervisor"] is not None and why.startswith(_SILENT):
        return f"ciml service stop {_named(files)} && {resume}"
    return resume if status["supervisor"] is None or health == "failed" else None


def _named(files: ServiceFiles) -> str:
    """Return the arguments of a command that name a service, for the shell that asked for its status."""
    home = "" if files.home == default_home() else f" --home {shlex.quote(str(files.home))}"
    return files.name + home


def _mark_stale(status: dict[str, Any], *, supervised: bool) -> None:
    """Set the age of each group of figures; a lag that is not known now becomes None and stays in ``last_known``."""
    now = now_us()
    times = read_times(status) if supervised else status.get("read_us", {})
    ages = {figures: max(0, (now - time_us) // 1_000_000) for figures, time_us in times.items()}
    stale = sorted(figures for figures, age_s in ages.items() if age_s > _STALE_S)
    status["ages_s"] = ages
    status["stale"] = stale
    status["last_known"] = None
    if "lag" in stale:
        status["last_known"] = {name: status.get(name) for name in ("behind", "lag", "rate")}
        status.update(behind=None, lag=None, rate=None)


def _query_in_time(files: ServiceFiles, status: dict[str, Any]) -> None:
    """Update the status from job and data within `_DEADLINE_S`, in a thread: a library may wait longer than it should.

    Without an answer in time, values are unknown.
    """
    answer: Future[dict[str, Any]] = Future()

    def query() -> None:
        try:
            answer.set_result(_query(files, dict(status)))
        except BaseException as error:  # noqa: BLE001  # raised below
            answer.set_exception(error)

    threading.Thread(target=query, name=f"status of {files.name}", daemon=True).start()
    try:
        status.update(answer.result(_DEADLINE_S))
    except TimeoutError:
        job = {**(status.get("job") or {}), "state": "unknown"}
        status.update(rate=None, behind=None, lag=None, read_us={}, job=job)
        status["query"] = f"no answer within {_DEADLINE_S:.0f} s"


def _query(files: ServiceFiles, status: dict[str, Any]) -> dict[str, Any]:
    """Update the status from job and data, without a supervisor, and return it."""
    options = files.options()
    status.update(rate=None, behind=None, lag=None, checkpoint=status.get("checkpoint"))
    status["job"] = {**(status.get("job") or {}), "state": "unknown"}
    with contextlib.suppress(CimlError), in_place(files.home, options):
        _query_in_place(files, options, status)
    if files.wanted() == "run" and status["health"] != "failed":
        remark = ", its job keeps running" if status["job"]["state"] in _AT_WORK else ""
        status["health"] = "stalled"
        status["why"] = f"its supervisor died{remark}"
    return status


def _query_in_place(files: ServiceFiles, options: StartOptions, status: dict[str, Any]) -> None:
    from ciml.services.jobs import jobs_of
    from ciml.services.process import watched

    reported: Mapping[str, Any] = {}
    read_us = status["read_us"] = dict(status.get("read_us", {}))
    with contextlib.suppress(CimlError):
        job = jobs_of(files, options).status()
        status["job"].update(state=job.state, id=job.id, name=job.name, how=job.how, restarts=job.restarts)
        read_us["job"] = now_us()
        reported = job.progress
        if reported.get("lag") is not None and job.progress_us is not None:
            read_us["lag"] = job.progress_us
    with contextlib.suppress(CimlError), contextlib.closing(watched(options)) as service:
        status.update(service.facts())
        status.update(service.observe().to_json())
        read_us["manifest"] = now_us()
        if status["lag"] is not None:
            read_us["lag"] = now_us()
    if status["lag"] is None:  # only its worker knows the position
        status.update(reported)


def show(status: dict[str, Any]) -> None:
    """Print the status of one service as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    colour = ("green", "yellow", "red")[exit_code(status)]
    why = f": {status['why']}" if status["why"] else ""
    table.add_row(status.get("kind", "ingest"), status["name"])
    table.add_row("health", f"[{colour}]{status['health']}[/]{_plain(why)}{_plain(_read(status, 'status'))}")
    for title, text in _rows(status):
        table.add_row(title, _plain(text))
    Console().print(table)


def _rows(status: dict[str, Any]) -> list[tuple[str, str]]:
    job = status.get("job") or {}
    savepoint = status.get("savepoint") or {}
    lag = status.get("lag")
    behind = _lag(status)
    if lag and status["behind"]:
        behind += " (" + ", ".join(f"[{part}] {number:,}" for part, number in lag.items()) + ")"
    failure = status.get("last_failure")
    rate = status.get("rate")
    point = status.get("checkpoint")
    counts = status.get("counts") or {}
    resubmissions = status.get("resubmissions") or []
    table = [
        ("runs", f"{counts['run']:,}" if "run" in counts else "–"),
        ("waiting logs", _number(status.get("deferred"))),
        ("dead letters", _number(status.get("dead_letters"))),
    ]
    if status.get("kind", "ingest") != "ingest":
        table = [("counts", ", ".join(f"{number:,} {kind}" for kind, number in counts.items()) or "–")]
    rows = [
        ("engine", f"{status.get('engine') or '–'}, parallelism {status.get('parallelism', '–')}"),
        ("topic", f"{status.get('topic') or '–'} at {status.get('kafka') or '–'}"),
        ("data", status.get("data") or "–"),
        ("job", " ".join(filter(None, [job.get("state", "–"), job.get("name"), job.get("id")])) + _read(status, "job")),
        ("uptime", _age(status["uptime_s"])),
        ("lag", behind),
        ("rate", "–" if rate is None else f"{rate:.1f} messages a second"),
        ("version", _version(status) + _read(status, "manifest")),
        *table,
        ("checkpoint", "–" if not point else f"{_size(point['bytes'])}, {_age(_since(point['time_us']))} old"),
        ("savepoint", "–" if not savepoint else f"{savepoint['path']} ({savepoint['use'] or 'kept'})"),
        ("restarts", f"{_number(job.get('restarts'))} by the engine, {status.get('resubmitted', 0)} resubmitted"),
        ("metrics", status.get("metrics") or "–"),
        ("processes", f"supervisor {_pid(status['supervisor'])}, worker {_pid(status['worker'])}"),
        *(("problem", problem) for problem in (status.get("problems") or {}).values()),
        *([("last failure", f"{_age(_since(failure['time_us']))} ago: {failure['why']}")] if failure else []),
        *([("to continue", status["remedy"])] if status["remedy"] else []),
    ]
    return rows + [
        ("" if number else "resubmitted", f"{_time(resubmission['time_us'])} {resubmission['why']}")
        for number, resubmission in enumerate(resubmissions[-5:])
    ]


def _lag(status: dict[str, Any]) -> str:
    if status.get("lag") is not None:
        return f"{status['behind']:,} messages" + _read(status, "lag")
    last = status.get("last_known") or {}
    if last.get("behind") is None:
        return "–"
    return f"unknown; {last['behind']:,} messages {_age(status['ages_s']['lag'])} ago"


def _version(status: dict[str, Any]) -> str:
    return f"{status.get('version', '–')}, committed {_age(status['last_commit_age_s'])} ago"


def _read(status: dict[str, Any], figures: str) -> str:
    """Return the age of figures for people; stale ones are marked."""
    age_s = status["ages_s"].get(figures)
    if age_s is None:
        return ""
    return f" (stale: read {_age(age_s)} ago)" if figures in status["stale"] else f" (read {_age(age_s)} ago)"


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _number(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _pid(process: dict[str, Any] | None) -> str:
    return "–" if process is None else str(process["pid"])


def _since(time_us: int) -> int:
    return max(0, (now_us() - time_us) // 1_000_000)


def _age(seconds: int | None) -> str:
    if seconds is None:
        return "–"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _size(number: int) -> str:
    return f"{number / 2**20:.1f} MiB" if number >= 2**20 else f"{number / 2**10:.0f} KiB"


def _time(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%SZ")

"""The status of a supervised service: from its supervisor, or from its files and its engine if that died."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from ciml.errors import CimlError
from services.files import ServiceFiles, now_us
from services.service import Service

_SILENT_S = 60.0
_CODES = {"running": 0, "starting": 0, "stopped": 1}


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
            status["why"] = "" if young else f"supervisor heartbeat missing for {silent_s:.0f} s"
    else:
        _query(files, status)
    job = status.get("job") or {}
    began = job.get("submitted_us")
    at_work = job.get("state") in ("starting", "running", "restarting")
    status["uptime_s"] = (now_us() - began) // 1_000_000 if began and at_work else None
    commit = status.get("last_commit_us")
    status["last_commit_age_s"] = (now_us() - commit) // 1_000_000 if commit else None
    status["dead_letters"] = (status.get("counts") or {}).get("dead_letter")
    return status


def _query(files: ServiceFiles, status: dict[str, Any]) -> None:
    """Update the status from job and data, without a supervisor."""
    from services.control import use_s3
    from services.jobs import jobs_of
    from services.process import watched

    options = files.options()
    use_s3(files.home, options)
    status.update(rate=None, behind=None, lag=None, checkpoint=status.get("checkpoint"))
    job: dict[str, Any] = {**(status.get("job") or {}), "state": "unknown"}
    known: Mapping[str, Any] = {}
    with contextlib.suppress(CimlError):
        seen = jobs_of(files, options).status()
        job.update(state=seen.state, id=seen.id, name=seen.name, how=seen.how, restarts=seen.restarts)
        known = seen.progress
    status["job"] = job
    if files.wanted() == "run" and status["health"] != "failed":
        left = ", its job keeps running" if job["state"] in ("running", "restarting", "starting") else ""
        status["health"], status["why"] = "stalled", f"its supervisor died{left}: ciml service resume"
    with contextlib.suppress(CimlError):
        _query_data(watched(options), status)
    if status["lag"] is None:  # only its worker knows the position
        status.update(known)


def _query_data(service: Service, status: dict[str, Any]) -> None:
    try:
        status.update(service.facts())
        status.update(service.observe().to_json())
    finally:
        service.close()


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
    table.add_row("health", f"[{colour}]{status['health']}[/]{_plain(why)}")
    for title, text in _rows(status):
        table.add_row(title, _plain(text))
    Console().print(table)


def _rows(status: dict[str, Any]) -> list[tuple[str, str]]:
    job, kept = status.get("job") or {}, status.get("savepoint") or {}
    lag = status.get("lag")
    behind = "–" if lag is None else f"{status['behind']:,} messages"
    if lag and status["behind"]:
        behind += " (" + ", ".join(f"[{part}] {number:,}" for part, number in lag.items()) + ")"
    rate = status.get("rate")
    point, counts = status.get("checkpoint"), status.get("counts") or {}
    again = status.get("resubmissions") or []
    made = [
        ("runs", f"{counts['run']:,}" if "run" in counts else "–"),
        ("waiting logs", _number(status.get("deferred"))),
        ("dead letters", _number(status.get("dead_letters"))),
    ]
    if status.get("kind", "ingest") != "ingest":
        made = [("counts", ", ".join(f"{number:,} {what}" for what, number in counts.items()) or "–")]
    rows = [
        ("engine", f"{status.get('engine') or '–'}, parallelism {status.get('parallelism', '–')}"),
        ("topic", f"{status.get('topic') or '–'} at {status.get('kafka') or '–'}"),
        ("data", status.get("data") or "–"),
        ("job", " ".join(filter(None, [job.get("state", "–"), job.get("name"), job.get("id")]))),
        ("uptime", _age(status["uptime_s"])),
        ("lag", behind),
        ("rate", "–" if rate is None else f"{rate:.1f} messages a second"),
        ("version", f"{status.get('version', '–')}, committed {_age(status['last_commit_age_s'])} ago"),
        *made,
        ("checkpoint", "–" if not point else f"{_size(point['bytes'])}, {_age(_since(point['time_us']))} old"),
        ("savepoint", "–" if not kept else f"{kept['path']} ({kept['use'] or 'kept'})"),
        ("restarts", f"{_number(job.get('restarts'))} by the engine, {status.get('resubmitted', 0)} resubmitted"),
        ("metrics", status.get("metrics") or "–"),
        ("processes", f"supervisor {_pid(status['supervisor'])}, worker {_pid(status['worker'])}"),
    ]  # fmt: skip
    return rows + [("" if number else "resubmitted", f"{_time(one['time_us'])} {one['why']}") for number, one in
                   enumerate(again[-5:])]  # fmt: skip


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

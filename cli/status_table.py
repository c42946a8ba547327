"""The table of a service's status, as ``ciml service status`` prints it. A dash stands for an unknown value."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from ciml.cli.output import age_text
from ciml.services.files import Status
from ciml.services.status import age_s, exit_code

_MOST_RESUBMISSIONS = 5


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
    commit = _aged(", committed {} ago", status["last_commit_age_s"])
    return [
        ("engine", f"{status.get('engine') or '–'}, parallelism {status.get('parallelism', '–')}"),
        ("topic", f"{status.get('topic') or '–'} at {status.get('kafka') or '–'}"),
        ("data", status.get("data") or "–"),
        ("job", " ".join(filter(None, job_texts)) + _read_note(status, "job")),
        ("uptime", age_text(status["uptime_s"])),
        ("lag", _lag_text(status)),
        ("rate", "–" if rate is None else f"{rate:.1f} messages a second"),
        ("version", f"{status.get('version', '–')}{commit}{_read_note(status, 'manifest')}"),
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
        checkpoint_text = _size(checkpoint["bytes"]) + _aged(", {} old", age_s(checkpoint["time_us"]))
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
        rows.append(("last failure", _aged("{} ago: ", age_s(failure["time_us"])) + failure["why"]))
    return rows


def _lag_text(status: Status) -> str:
    lag = status.get("lag")
    if lag is None:
        last = status.get("last_known") or {}
        if last.get("behind") is None:
            return "–"
        return f"unknown; {last['behind']:,} messages {age_text(status['ages_s']['lag'])} ago"
    text = f"{status['behind']:,} messages{_read_note(status, 'lag')}"
    if not status["behind"]:
        return text
    by_partition = ", ".join(f"[{partition}] {number:,}" for partition, number in lag.items())
    return f"{text} ({by_partition})"


def _read_note(status: Status, figures: str) -> str:
    """Return a note with the age of figures, which marks stale ones; "" if they were never read."""
    template = " (stale: read {} ago)" if figures in status["stale"] else " (read {} ago)"
    return _aged(template, status["ages_s"].get(figures))


def _aged(template: str, seconds: int | None) -> str:
    """Return the template with an age; "" for an unknown one."""
    return "" if seconds is None else template.format(age_text(seconds))


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _number(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _pid(process: Mapping[str, Any] | None) -> str:
    return "–" if process is None else str(process["pid"])


def _size(number: int) -> str:
    return f"{number / 2**20:.1f} MiB" if number >= 2**20 else f"{number / 2**10:.0f} KiB"

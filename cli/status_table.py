"""The table of a service's status, as ``ciml service status`` prints it. A dash stands for an unknown value.

`ciml.services.files.Status` describes the keys. Those that are always present are indexed. Any other is read by
``get``: it is missing before its value was first known, and None while its value cannot be known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from ciml.cli.output import age_text
from ciml.services.files import SavepointEntry, Status
from ciml.services.status import age_s, exit_code

#: The colour of the health, by the exit code of ``ciml service status``: healthy, stopped, and any other.
_COLOURS = {0: "green", 1: "yellow", 2: "red"}
_MOST_RESUBMISSIONS = 5
_Row = tuple[str, str]  # title and text


def show(status: Status) -> None:
    """Print the status of one service as a table."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    colour = _COLOURS[exit_code(status)]
    why = f": {status['why']}" if status["why"] else ""
    table.add_row(status.get("kind", "ingest"), status["name"])
    table.add_row("health", f"[{colour}]{status['health']}[/]" + escape(why + _read_note(status, "status")))
    for title, text in (*_job_rows(status), *_count_rows(status), *_history_rows(status), *_remedy_rows(status)):
        table.add_row(title, escape(text))
    Console().print(table)


def _job_rows(status: Status) -> list[_Row]:
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


def _count_rows(status: Status) -> list[_Row]:
    counts = status.get("counts") or {}
    if status.get("kind", "ingest") != "ingest":
        return [("counts", ", ".join(f"{number:,} {kind}" for kind, number in counts.items()) or "–")]
    return [
        ("runs", _number(counts.get("run"))),
        ("waiting logs", _number(status.get("deferred"))),
        ("dead letters", _number(status.get("dead_letters"))),
    ]


def _history_rows(status: Status) -> list[_Row]:
    job = status.get("job") or {}
    restarts = f"{_number(job.get('restarts'))} by the engine, {status.get('resubmitted', 0)} resubmitted"
    problems = status.get("problems") or {}
    failure = status.get("last_failure")
    return [
        ("checkpoint", _checkpoint_text(status.get("checkpoint"))),
        ("savepoint", _savepoint_text(status.get("savepoint"))),
        ("restarts", restarts),
        ("metrics", status.get("metrics") or "–"),
        ("processes", f"supervisor {_pid(status['supervisor'])}, worker {_pid(status['worker'])}"),
        *(("problem", problem) for problem in problems.values()),
        *([("last failure", _aged("{} ago: ", age_s(failure["time_us"])) + failure["why"])] if failure else ()),
    ]


def _remedy_rows(status: Status) -> Iterator[_Row]:
    if status["remedy"]:
        yield "to continue", status["remedy"]
    resubmissions = (status.get("resubmissions") or [])[-_MOST_RESUBMISSIONS:]
    for number, resubmission in enumerate(resubmissions):
        time_text = datetime.fromtimestamp(resubmission["time_us"] / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        yield "" if number else "resubmitted", f"{time_text} {resubmission['why']}"


def _checkpoint_text(checkpoint: Mapping[str, int] | None) -> str:
    return _size(checkpoint["bytes"]) + _aged(", {} old", age_s(checkpoint["time_us"])) if checkpoint else "–"


def _savepoint_text(savepoint: SavepointEntry | None) -> str:
    return f"{savepoint['path']} ({savepoint['use'] or 'kept'})" if savepoint else "–"


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


def _number(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _pid(process: Mapping[str, int] | None) -> str:
    return "–" if process is None else str(process["pid"])


def _size(number: int) -> str:
    return f"{number / 2**20:.1f} MiB" if number >= 2**20 else f"{number / 2**10:.0f} KiB"

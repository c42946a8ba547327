"""Own logs and a table of results, as a data scientist has them: other names than ours, one row a run."""

from __future__ import annotations

import csv
import gzip
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

BEGIN = datetime(2026, 11, 24, 12, tzinfo=UTC)


def log_of(number: int, seconds: int = 5) -> bytes:
    """A log of dool, which differs from run to run."""
    begin = BEGIN + timedelta(minutes=number)
    rows = "".join(
        f"{begin + timedelta(seconds=at):%d-%m %H:%M:%S},{number + at},{at % 3},0.{number % 10}\n"
        for at in range(seconds)
    )
    head = f'"dool 1.3.8 CSV output"\n"Cmdline:","dool -tcl",,,"Date:","{begin:%d %b %Y %H:%M:%S} UTC"\n'
    return (head + '"system","total cpu usage",,"load avg"\n"time","usr","sys","1m"\n' + rows).encode()


def make_runs(folder: Path, count: int, first: int = 0) -> list[dict[str, Any]]:
    """Write so many logs below ``folder/logs``; return the rows of the table."""
    rows = []
    for number in range(first, first + count):
        begin = BEGIN + timedelta(minutes=number)
        path = folder / "logs" / f"{number:04d}" / "dool.csv.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(log_of(number), mtime=0))
        rows.append(
            {
                "run_id": f"run-{number}",
                "job_name": ("unit", "docs")[number % 2],
                "status": ("passed", "failed", "passed")[number % 3],
                "started_at": begin.isoformat(),
                "finished_at": (begin + timedelta(seconds=5)).isoformat(),
                "log_file": f"{number:04d}/dool.csv.gz",
                "cloud": ("ovh", "rax")[number % 2],
                "team": "red",
            }
        )
    return rows


def write_csv(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> str:
    """Write rows as CSV; return the path."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return str(path)

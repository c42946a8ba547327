"""Runs to give evidence of, beside twenty passing runs of their job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from ciml.transforms.profiles import Profiles, make_profiles
from ciml.verdicts.evidence.observe import Subject
from tests.transforms.profiles.tables import START_US, STEAL, USED, USR, facts_of, table_of

IDLE, WAIT, LOAD = "total cpu usage:idl", "total cpu usage:wai", "load avg:1m"
WRITTEN, RECEIVED, RUNNABLE, AVAILABLE = "dsk/total:writ", "net/total:recv", "procs:run", "memory usage:avai"
DISK_USED, DISK_FREE = "/:used", "/:free"
MB, GB = 1e6, 1e9
#: What a passing run looks like in each second.
USUAL: Mapping[str, float] = {
    USR: 60.0, IDLE: 30.0, WAIT: 0.0, STEAL: 0.0, LOAD: 2.0, USED: 2 * GB, AVAILABLE: 14 * GB, WRITTEN: 3 * MB,
    RECEIVED: 0.1 * MB, RUNNABLE: 2.0, DISK_USED: 10 * GB, DISK_FREE: 30 * GB,
}  # fmt: skip


@lru_cache
def profiles(rows: int) -> Profiles:
    """Twenty passing runs of about so many seconds, which differ by up to 10 % from `USUAL`."""
    runs = []
    for number in range(20):
        length = round(rows * (0.9 + number / 100))
        shares = {name: value * (0.95 + number / 200) for name, value in USUAL.items()}
        table = table_of({name: [value] * length for name, value in shares.items()})
        # Its logs are stored within two seconds.
        end_us = START_US + 1_000_000 * (length - 1) + 100_000 * number
        runs.append((facts_of(number=number).replace(end_us=end_us), table))
    return make_profiles(runs)


def subject_of(rows: int = 60, usual: int = 60, every_s: float = 1.0, **changes: Any) -> Subject:
    """A run of so many seconds as usual, beside runs of ``usual`` seconds, with changes of its facts."""
    return run_of({}, rows, usual, every_s, **changes)


def run_of(
    columns: Mapping[str, Sequence[float | None]],
    rows: int = 60,
    usual: int = 60,
    every_s: float = 1.0,
    times: Sequence[int] | None = None,
    job: str = "unit",
    **changes: Any,
) -> Subject:
    """A run with these columns, the others as usual."""
    rows = len(next(iter(columns.values()))) if columns else rows
    table = table_of(
        {**{name: [value] * rows for name, value in USUAL.items()}, **columns}, every_s=every_s, times=times
    )
    return Subject(table, profiles(usual).of(job), **changes)

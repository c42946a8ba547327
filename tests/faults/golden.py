"""Logs with known contents, as runs: what is stored of them is compared with what was written into them."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq

from ciml.errors import RejectedInput
from tests.faults.direct import table_of
from tests.faults.oracle import Ledger, Objects
from tests.faults.plan import Planner, Run, envelope
from tests.golden import make_logs
from tests.golden.make_logs import SECOND, Golden

ZONES = (
    "UTC", "Europe/Berlin", "Europe/London", "America/New_York", "America/Los_Angeles", "America/Sao_Paulo",
    "Asia/Kolkata", "Asia/Tokyo", "Asia/Kathmandu", "Australia/Sydney", "Australia/Lord_Howe", "Pacific/Auckland",
)  # fmt: skip


def iso(us: int) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)).isoformat().replace("+00:00", "Z")


def send_log(
    planner: Planner, name: str, data: bytes, start_us: int, end_us: int, job: str = ""
) -> tuple[Run, RejectedInput | None]:
    """Adds a run with this log: a row, or a dead letter where the direct computation refuses it (which is returned)."""
    path = Path(planner.served, name)
    path.write_bytes(data)
    run = planner.run(log=name)
    run = replace(run, start=iso(start_us), end=iso(end_us), start_us=start_us, end_us=end_us, job=job or run.job)
    event = envelope(f"e-{run.native}", run.body())
    try:
        table_of(str(path), start_us, end_us)
    except RejectedInput as refused:
        planner.send(run.native, event, run.claim("dead_letter", refused.reason))
        return run, refused
    planner.send(run.native, event, run.claim("run"))
    return run, None


def send_golden(planner: Planner, golden: Golden, name: str, job: str = "") -> tuple[Run, RejectedInput | None]:
    """As `send_log`, with the times that belong to a golden log."""
    start = golden.start_us if golden.start_us is not None else min(golden.times_us) - 2 * SECOND
    end = max(golden.end_us or 0, max(golden.times_us) + 3 * SECOND)  # also where the clock was set back
    return send_log(planner, name, golden.data, start, end, job)


def check(raw: Objects, ledger: Ledger, wanted: Mapping[str, Golden]) -> list[str]:
    """Compares raw rows with what was written into their logs."""
    return [line for run_id, golden in wanted.items() for line in _check(raw, ledger, run_id, golden)]


def _check(raw: Objects, ledger: Ledger, run_id: str, golden: Golden) -> list[str]:
    entries = ledger.rows.get(run_id, [])
    where = f"golden: {run_id} ({golden.name})"
    data = raw.read(entries[0].record["file"]["path"]) if entries else None
    if data is None:
        return [f"{where} is not there"]
    table = pq.ParquetFile(io.BytesIO(data)).read()
    times = table.column("time").cast(pa.int64()).to_pylist()
    if times != golden.times_us:
        wrong = next((a, b) for a, b in zip([*times, 0], [*golden.times_us, 0], strict=False) if a != b)
        return [f"{where} has {iso(wrong[0])} for {iso(wrong[1])}"]
    if table.column("boot").to_pylist() != golden.boot:
        return [f"{where}: the first samples after a start are not marked as such"]
    for name, values in golden.columns.items():
        stored = table.column(name).to_pylist() if name in table.column_names else [None] * len(values)
        same = all(
            a == b or (a is not None and b is not None and math.isclose(a, b))
            for a, b in zip(stored, values, strict=True)
        )
        if not same:
            return [f"{where}: other values of {name}"]
    return []


def transitions(zone: str, year: int) -> list[int]:
    """The clock changes of a zone in a year, µs UTC."""
    place, found = ZoneInfo(zone), []
    at = datetime(year, 1, 1, tzinfo=UTC)
    while at.year == year:
        later = at + timedelta(days=1)
        if at.astimezone(place).utcoffset() != later.astimezone(place).utcoffset():
            low, high = at, later
            while high - low > timedelta(seconds=1):
                middle = low + (high - low) / 2
                same = middle.astimezone(place).utcoffset() == at.astimezone(place).utcoffset()
                low, high = (middle, high) if same else (low, middle)
            found.append(round(high.timestamp()) * SECOND)
        at = later
    return found


def is_open(golden: Golden, zone: str) -> bool:
    """Whether a sample stands at a local time that comes twice."""
    place = ZoneInfo(zone)
    for us in golden.times_us:
        local = datetime.fromtimestamp(us / SECOND, place).replace(tzinfo=None)
        offsets = {local.replace(tzinfo=place, fold=fold).utcoffset() for fold in (0, 1)}
        if len(offsets) > 1:
            return True
    return False


def of_time(kind: str, chance: random.Random, number: int) -> tuple[Golden, str]:
    """A log of a time that is hard to get right, in some zone, by some recorder; and the zone."""
    zone = chance.choice(ZONES)
    base = chance.choice((make_logs.DSTAT, make_logs.DSTAT_072, make_logs.DOOL, make_logs.PCP))
    recorder = replace(base, zone=zone)
    place, year = ZoneInfo(zone), chance.randrange(2008, 2037)
    count, step = chance.choice(((60, 1), (300, 1), (40, 10), (30, 600)))
    before = chance.randrange(1, count) * step * SECOND

    def at(*date: int) -> int:
        return round(datetime(*date, tzinfo=place).timestamp()) * SECOND  # type: ignore[misc,arg-type]

    back: list[int] = []
    if kind == "new year":
        middle = at(year + 1, 1, 1)
    elif kind == "leap day":
        year = chance.choice((2008, 2012, 2016, 2020, 2024, 2028, 2032))
        middle = at(year, *chance.choice(((2, 29), (3, 1))))
    elif kind == "clock change":
        changes = transitions(zone, year)
        middle = chance.choice(changes) if changes else at(year, 7, 1)
    else:  # the clock is set back
        middle = at(year, chance.randrange(1, 13), chance.randrange(1, 29), chance.randrange(5, 20))
        back = [chance.choice((2, 30, 120)) * SECOND]
    first = middle - before
    times = [first + index * step * SECOND for index in range(count)]
    if back:
        half = count // 2
        times = times[:half] + [us - back[0] for us in times[half:]]
    if step != 1:
        recorder = replace(recorder, cmdline=f"{recorder.cmdline.removesuffix(' 1')} {step}")
    return make_logs.record(f"{kind} {number} {zone}", recorder, times), zone

"""A log with impossible times, or that is too wide, costs only its own rows or itself, and is found out cheaply."""

from __future__ import annotations

import time
from collections.abc import Callable

import pyarrow as pa
import pytest

from ciml.errors import Refused
from tests.golden.make_logs import instant
from transforms.parse import Log, parse_logs

GOOD = (
    b'"dool 1.3.8 CSV output"\n"Cmdline:","dool -tl",,,,"Date:","24 Nov 2026 12:00:00 UTC"\n'
    b'"system","load avg",,\n"time","1m","5m","15m"\n24-11 12:00:00,1,2,3\n24-11 12:00:01,4,5,6\n'
)
NOON_US = instant("2026-11-24T12:00:00Z")
CENTURY_US = instant("2000-01-01T00:00:00Z"), instant("2100-01-01T00:00:00Z")


def log(date: str, *rows: str, columns: str = '"system","load avg"\n"time","1m"') -> bytes:
    return f'"Cmdline:","dstat -tl",,,,"Date:","{date}"\n{columns}\n{"".join(row + chr(10) for row in rows)}'.encode()


def parsed(data: bytes, start_us: int | None = None, end_us: int | None = None) -> pa.Table | Refused:
    """The result for a log between two good ones, which have to be as they always are."""
    alone = parse_logs([Log(GOOD)])[0]
    before, result, after = parse_logs([Log(GOOD), Log(data, start_us, end_us), Log(GOOD)])
    assert isinstance(alone, pa.Table)
    assert before.equals(alone, check_metadata=True)  # type: ignore[union-attr]
    assert after.equals(alone, check_metadata=True)  # type: ignore[union-attr]
    return result


def times_of(result: pa.Table | Refused) -> list[int]:
    assert isinstance(result, pa.Table), result
    return result.column("time").cast(pa.int64()).to_pylist()


EDGES = [
    "31 Dec 9999 23:59:59", "01 Jan 0001 00:00:00", "30 Dec 9999 00:00:00", "31 Dec 1999 12:00:00",
    "01 Jan 2000 00:00:00", "31 Dec 2099 23:59:59", "02 Jan 2100 00:00:00", "01 Jan 1970 00:00:00",
    "29 Feb 2000 23:59:60", "29 Feb 2100 00:00:00", "01 Jan 0000 00:00:00", "19 Jan 2038 03:14:08",
]  # fmt: skip
ZONES = ["CET", "-03", "UTC", "+14:00", "-1400", "IST", "EST", "WIB", "Europe/Berlin", "", "Mars/Phobos", "../../etc"]


@pytest.mark.parametrize("date", EDGES)
def test_no_date_in_a_header_reaches_beyond_its_log(date: str) -> None:
    events = [(None, None), (NOON_US, None), (NOON_US, NOON_US + 60_000_000), (10**18, -(10**18))]
    alone = parse_logs([Log(GOOD)])[0]
    assert isinstance(alone, pa.Table)
    for zone in ZONES:
        shapes = [
            log(f"{date} {zone}", "24-11 12:00:00,1", "24-11 12:00:01,2"),
            log(f"{date} {zone}", "31-12 23:59:59,1", "01-01 00:00:00,2"),
            log(f"{date} {zone}", "9999-12-31 23:59:59,1", "0001-01-01 00:00:00,2", "2026-11-24 12:00:00,3"),
            log(f"{date} {zone}", "23:59:59,1", "00:00:00,2"),
            log(f"{date} {zone}", "1,2", columns='"load avg",\n"1m","5m"'),
        ]
        *results, good = parse_logs([*(Log(shape, *event) for shape in shapes for event in events), Log(GOOD)])
        assert good.equals(alone, check_metadata=True)  # type: ignore[union-attr]
        for result in results:
            if isinstance(result, Refused):
                assert result.reason in {"no_time", "ambiguous_time"}
            else:
                assert all(CENTURY_US[0] <= us < CENTURY_US[1] for us in times_of(result))


def test_a_header_of_the_year_9999_leaves_rows_without_a_year_without_a_time() -> None:
    for zone in ("CET", "-03", "UTC"):
        result = parsed(log(f"31 Dec 9999 23:59:59 {zone}", "31-12 23:59:59,1"), NOON_US)
        assert isinstance(result, Refused)
        assert result.reason == "no_time"


def test_rows_that_tell_their_year_do_not_need_the_header_to() -> None:
    result = parsed(log("31 Dec 9999 23:59:59 CET", "2026-11-24 13:00:00,1", "2026-11-24 13:00:01,2"), NOON_US)
    assert times_of(result) == [NOON_US, NOON_US + 1_000_000]


@pytest.mark.parametrize("zone", ["CET", "-03", "UTC", "IST"])
def test_a_row_of_the_year_9999_costs_only_itself(zone: str) -> None:
    rows = ("2026-11-24 12:00:00,1", "9999-12-31 23:59:59,2", "0001-01-01 00:00:00,3", "2026-11-24 12:00:01,4")
    result = parsed(
        log(f"24 Nov 2026 12:00:00 {zone}", *rows), NOON_US - 7 * 3_600_000_000, NOON_US + 7 * 3_600_000_000
    )
    if zone == "IST":  # three places, and all of them fit
        assert isinstance(result, Refused)
        assert result.reason == "ambiguous_time"
        return
    assert isinstance(result, pa.Table)
    assert result.column("load avg:1m").to_pylist() == [1.0, 4.0]
    assert result.schema.metadata[b"dropped_rows"] == b"2"


def cpu_s(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


@pytest.mark.parametrize("zone", ["CET", "-03", "EST", "America/Nuuk"])
def test_a_date_far_from_the_rows_costs_no_more_than_one_beside_them(zone: str) -> None:
    def once(day: int, month_year: str) -> float:
        """Another day for each call, of which nothing can be remembered."""
        data = log(f"{day} {month_year} 12:00:00 {zone}", f"2026-11-{day} 12:00:00,1", f"2026-11-{day} 12:00:01,2")
        return cpu_s(lambda: parse_logs([Log(data, NOON_US)]))

    once(10, "Nov 2026")
    near = min(once(day, "Nov 2026") for day in (11, 12, 13))
    for number, year in enumerate(("2000", "2099", "9990", "0001")):
        first = 14 + 3 * number
        assert min(once(day, f"Nov {year}") for day in range(first, first + 3)) <= 20 * near, year

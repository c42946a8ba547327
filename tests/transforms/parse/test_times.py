"""Years, zones and clock changes."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciml.dstat import HOUR, epoch_us, interval_of
from ciml.errors import RejectedInput
from ciml.transforms.parse.clock import fixed_offset
from ciml.transforms.parse.logs import Log, parse_logs
from ciml.transforms.parse.times import civil_days, read_cells
from tests.golden.make_logs import DOOL, DSTAT, LOAD, instant, record, replace, seconds


def written(times: list[str], date: str, **event: object) -> list[str] | str:
    """The times (ISO) that come out of a log with these time cells, or the reason why none do."""
    date_cell = f',,,,"Date:","{date}"' if date else ""
    rows = "".join(f"{time},1\n" for time in times)
    data = f'"Cmdline:","dstat -tl"{date_cell}\n"system","load avg"\n"time","1m"\n{rows}'
    result = parse_logs([Log(data.encode(), **event)])[0]  # type: ignore[arg-type]
    if isinstance(result, RejectedInput):
        return result.reason
    return [time.isoformat().replace("+00:00", "Z") for time in result.column("time").to_pylist()]


def test_new_year_whichever_side_the_header_is_on() -> None:
    assert written(["31-12 23:59:59", "01-01 00:00:00"], "31 Dec 2026 23:59:59 UTC") == [
        "2026-12-31T23:59:59Z",
        "2027-01-01T00:00:00Z",
    ]
    assert written(["31-12 23:59:59"], "01 Jan 2027 00:00:00 UTC") == ["2026-12-31T23:59:59Z"]


def test_leap_day_only_in_a_leap_year() -> None:
    assert written(["29-02 12:00:00"], "28 Feb 2028 12:00:00 UTC") == ["2028-02-29T12:00:00Z"]
    assert written(["29-02 12:00:00"], "28 Feb 2000 12:00:00 UTC") == ["2000-02-29T12:00:00Z"]
    assert written(["29-02 12:00:00"], "31 Dec 2027 12:00:00 UTC") == ["2028-02-29T12:00:00Z"]
    assert written(["29-02 12:00:00"], "28 Feb 2027 12:00:00 UTC") == "no_time"
    assert written(["28-02 12:00:00", "29-02 12:00:00"], "28 Feb 2100 12:00:00 UTC") == "no_time"


def test_year_from_the_event_where_there_is_no_date() -> None:
    run = {"start_us": instant("2026-12-31T23:00:00Z"), "end_us": instant("2027-01-01T01:00:00Z")}
    assert written(["31-12 23:00:01", "01-01 00:59:59"], "", **run) == ["2026-12-31T23:00:01Z", "2027-01-01T00:59:59Z"]
    assert written(["31-12 23:00:01"], "") == "no_time"


@pytest.mark.parametrize(
    ("zone", "want"),
    [
        ("UTC", "2026-06-15T12:00:00Z"),
        ("+0530", "2026-06-15T06:30:00Z"),
        ("-03", "2026-06-15T15:00:00Z"),
        ("+05:45", "2026-06-15T06:15:00Z"),
        ("JST", "2026-06-15T03:00:00Z"),
        ("CEST", "2026-06-15T10:00:00Z"),
        ("PDT", "2026-06-15T19:00:00Z"),
        ("IST", "ambiguous_time"),  # India or Ireland; in Israel it is summer
        ("CST", "ambiguous_time"),
        ("XYZ", "ambiguous_time"),
        ("+9900", "ambiguous_time"),
        ("", "ambiguous_time"),
    ],
)
def test_zone_of_the_header_alone(zone: str, want: str) -> None:
    got = written(["15-06 12:00:00"], f"15 Jun 2026 12:00:00 {zone}".strip())
    assert got == want or got == [want]


@pytest.mark.parametrize(
    ("zone", "start"),
    [
        ("IST", "2026-06-15T06:30:00Z"),  # Kolkata
        ("IST", "2026-06-15T11:00:00Z"),  # Dublin
        ("CST", "2026-06-15T04:00:00Z"),  # Shanghai
        ("XYZ", "2026-06-15T06:15:00Z"),  # Kathmandu's offset under a name that nobody knows
        ("", "2026-06-15T12:00:00Z"),
        ("", "2026-06-15T22:00:00Z"),
    ],
)
def test_start_and_end_settle_the_zone(zone: str, start: str) -> None:
    times, date = ["15-06 12:00:00", "15-06 12:00:01"], f"15 Jun 2026 12:00:00 {zone}".strip()
    run = {"start_us": instant(start) - 5_000_000, "end_us": instant(start) + 60_000_000}
    for event in (run, {"start_us": run["start_us"]}, {"end_us": run["end_us"]}):
        got = written(times, date, **event)
        assert got == [start, start.replace(":00Z", ":01Z")]


def test_a_run_that_fits_no_zone_is_refused() -> None:
    start = instant("2026-06-15T08:17:00Z")
    assert written(["15-06 12:00:00"], "15 Jun 2026 12:00:00 IST", start_us=start, end_us=start) == "ambiguous_time"


def test_a_hint_serves_where_the_header_says_nothing() -> None:
    assert written(["15-06 12:00:00"], "15 Jun 2026 12:00:00", zone="Asia/Kolkata") == ["2026-06-15T06:30:00Z"]
    assert written(["15-06 12:00:00"], "15 Jun 2026 12:00:00", zone="+0530") == ["2026-06-15T06:30:00Z"]
    assert written(["15-06 12:00:00"], "15 Jun 2026 12:00:00 CST", zone="Asia/Shanghai") == ["2026-06-15T04:00:00Z"]
    assert written(["15-06 12:00:00"], "15 Jun 2026 12:00:00 UTC", zone="Asia/Kolkata") == ["2026-06-15T12:00:00Z"]
    assert written(["15-06 12:00:00"], "15 Jun 2026 12:00:00", zone="../../etc/passwd") == "ambiguous_time"


def test_forms_of_the_time_cell() -> None:
    date = "24 Nov 2026 23:59:00 UTC"
    for cell in (
        "24-11 23:59:58.250", "Nov-24 23:59:58.250", "nov-24 23:59:58.25", "2026-11-24 23:59:58.250",
        "2026-11-24T23:59:58.25Z", "2026-11-25T05:29:58.25+0530", "2026-11-25T05:29:58.25+05:30", "23:59:58.250",
        "1795564798.250", "1795564798250", "  24-11 23:59:58.250  ",
    ):  # fmt: skip
        assert written([cell], date) == ["2026-11-24T23:59:58.250000Z"], cell
    for cell in (
        "24/11 23:59:58",
        "11-24 23:59:58",
        "Now-24 23:59:58",
        "24-11 23:59:61",
        "24-11 23:60:00",
        "0",
        "x" * 99,
    ):
        assert written([cell], date) == "no_time", cell


def test_a_time_alone_goes_on_over_midnight() -> None:
    got = written(["23:59:59", "00:00:00", "12:00:00", "23:59:59", "00:00:00"], "24 Nov 2026 23:59:59 UTC")
    assert got == [
        "2026-11-24T23:59:59Z",
        "2026-11-25T00:00:00Z",
        "2026-11-25T12:00:00Z",
        "2026-11-25T23:59:59Z",
        "2026-11-26T00:00:00Z",
    ]
    # A clock that is set back over midnight: the samples keep their order.
    assert written(["00:00:01", "23:59:59", "00:00:00"], "25 Nov 2026 00:00:00 UTC") == [
        "2026-11-25T00:00:01Z",
        "2026-11-24T23:59:59Z",
        "2026-11-25T00:00:00Z",
    ]


@pytest.mark.parametrize(
    ("zone", "start", "count", "step"),
    [
        ("America/Sao_Paulo", "2017-02-19T01:54:40Z", 40, 10),  # -02 becomes -03
        ("America/Sao_Paulo", "2018-11-04T01:00:00Z", 30, 600),
        ("Australia/Lord_Howe", "2031-04-05T12:10:00Z", 30, 600),  # half an hour back
        ("Australia/Lord_Howe", "2032-10-02T15:25:30Z", 40, 10),
        ("Atlantic/Azores", "2026-10-25T00:59:30Z", 60, 1),  # +00 becomes -01
    ],
)
def test_a_zone_whose_name_is_a_number_may_change_its_clocks(zone: str, start: str, count: int, step: int) -> None:
    golden = record("", replace(DSTAT, zone=zone), seconds(start, count, step))
    result = parse_logs([Log(golden.data, golden.start_us, golden.end_us)])[0]
    assert isinstance(result, pa.Table)
    assert result.column("time").cast(pa.int64()).to_pylist() == golden.times_us


def test_a_fixed_offset_stays_one_while_other_places_change_their_clocks() -> None:
    golden = record("", replace(DSTAT, zone="America/Argentina/Buenos_Aires"), seconds("2017-02-19T01:30:00Z", 90, 60))
    for log in (Log(golden.data), Log(golden.data, golden.start_us, golden.end_us)):
        result = parse_logs([log])[0]
        assert isinstance(result, pa.Table)
        assert result.column("time").cast(pa.int64()).to_pylist() == golden.times_us


AUTUMN = ["25-10 02:30:00", "25-10 02:30:01"]  # comes twice in Berlin


def test_the_hour_that_comes_twice_by_the_header() -> None:
    assert written(AUTUMN, "25 Oct 2026 02:30:00 CEST") == ["2026-10-25T00:30:00Z", "2026-10-25T00:30:01Z"]
    assert written(AUTUMN, "25 Oct 2026 02:30:00 CET") == ["2026-10-25T01:30:00Z", "2026-10-25T01:30:01Z"]


def test_the_hour_that_comes_twice_by_the_event_or_refused() -> None:
    date = "25 Oct 2026 02:30:00"
    assert written(AUTUMN, date, zone="Europe/Berlin") == "ambiguous_time"
    for hour in ("00", "01"):
        start = instant(f"2026-10-25T{hour}:29:50Z")
        run = {"start_us": start, "end_us": start + 60_000_000}
        got = written(AUTUMN, date, zone="Europe/Berlin", **run)
        assert got == [f"2026-10-25T{hour}:30:00Z", f"2026-10-25T{hour}:30:01Z"]


def test_a_silence_into_the_hour_that_comes_twice() -> None:
    """The last sample before is at 01:40, the next one says 02:30: half past which two?"""
    cells, date = ["25-10 01:40:00", "25-10 02:30:00"], "25 Oct 2026 01:40:00 CEST"
    assert written(cells, date) == "ambiguous_time"
    start = instant("2026-10-24T23:39:50Z")
    assert written(cells, date, start_us=start, end_us=instant("2026-10-25T00:31:00Z")) == [
        "2026-10-24T23:40:00Z",
        "2026-10-25T00:30:00Z",
    ]


def test_a_clock_without_summer_time_is_recognised_by_its_steady_steps() -> None:
    """CET in Algiers goes on from 01:59 to 02:00 where Berlin's goes to 03:00."""
    algiers = [f"29-03 0{1 + m // 60}:{m % 60:02d}:00" for m in range(50, 75)]
    got = written(algiers, "29 Mar 2026 01:50:00 CET")
    assert got == [f"2026-03-29T0{m // 60}:{m % 60:02d}:00Z" for m in range(50, 75)]


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "America/St_Johns", "Australia/Sydney"])
def test_every_second_around_both_clock_changes(zone: str) -> None:
    """Recorded with the zone's abbreviation, two hours before to two hours after, against zoneinfo."""
    changes = {
        "Europe/Berlin": ("2026-03-29T01:00:00Z", "2026-10-25T01:00:00Z"),
        "America/New_York": ("2026-03-08T07:00:00Z", "2026-11-01T06:00:00Z"),
        "America/St_Johns": ("2026-03-08T05:30:00Z", "2026-11-01T04:30:00Z"),
        "Australia/Sydney": ("2026-10-03T16:00:00Z", "2026-04-04T16:00:00Z"),
    }
    for change in changes[zone]:
        first = (instant(change) - 7200 * 1_000_000) // 1_000_000
        start = dt.datetime.fromtimestamp(first, dt.UTC).isoformat()
        golden = record("x", replace(DSTAT, zone=zone, groups=(LOAD,)), seconds(start, 14_400, 1))
        table = parse_logs([Log(golden.data, golden.start_us, golden.end_us)])[0]
        assert not isinstance(table, RejectedInput), table
        assert table.column("time").cast(pa.int64()).to_pylist() == golden.times_us


@given(
    start=st.datetimes(dt.datetime(2001, 1, 2), dt.datetime(2098, 12, 30)),
    steps=st.lists(st.integers(0, 5000), min_size=0, max_size=20),
    offset=st.sampled_from(["UTC", "Etc/GMT-5", "Etc/GMT+11"]),
    recorder=st.sampled_from([DSTAT, DOOL]),
)
def test_any_time_comes_back(start: dt.datetime, steps: list[int], offset: str, recorder: object) -> None:
    first = int(start.replace(microsecond=0, tzinfo=dt.UTC).timestamp())
    times = [t * 1_000_000 for t in np.cumsum([first, *steps]).tolist()]
    golden = record("x", replace(recorder, zone=offset, groups=(LOAD,)), times, event=False)  # type: ignore[type-var]
    table = parse_logs([Log(golden.data)])[0]
    assert not isinstance(table, RejectedInput), table
    assert table.column("time").cast(pa.int64()).to_pylist() == times


@given(st.lists(st.binary(max_size=45), max_size=20))
def test_any_bytes_as_time_cells(cells: list[bytes]) -> None:
    read = read_cells(pa.array(cells, pa.binary()))
    alone = [read_cells(pa.array([cell], pa.binary())) for cell in cells]
    assert read.ok.tolist() == [each.ok[0] for each in alone]
    assert read.clock.tolist() == [each.clock[0] for each in alone]
    assert read.instant.tolist() == [each.instant[0] for each in alone]


def test_epochs_of_every_kind() -> None:
    head = b'"epoch","load avg"\n"epoch","1m"\n'
    rows = b"1795528584,1\n1795528584.123,1\n1795528584123,1\n1795528584.123456,1\n0,1\n-5,1\nnan,1\n,1\n1e30,1\nx,1\n"
    table = parse_logs([Log(head + rows)])[0]
    assert not isinstance(table, RejectedInput), table
    assert table.column("time").cast(pa.int64()).to_pylist() == [
        1795528584000000,
        1795528584123000,
        1795528584123000,
        1795528584123456,
    ]
    assert table.schema.metadata[b"dropped_rows"] == b"6"


@pytest.mark.parametrize(
    ("cmdline", "interval"),
    [
        (b"dstat", 1.0),
        (b"dstat -tcm", 1.0),
        (b"dstat -tcm --output 7 5 100", 5.0),
        (b"dstat -C 0,1 -D sda 10", 10.0),
        (b"dool --time --output /x/y.csv 2", 2.0),
        (b"pcp-dstat -t 0.5", 0.5),
        (b"dstat 0", 1.0),
        (b"7", 1.0),
        (b"", 1.0),
    ],
)
def test_interval_of_a_command_line(cmdline: bytes, interval: float) -> None:
    assert interval_of(cmdline) == interval


def test_without_times_and_dates_only_the_first_start_begins_at_the_run() -> None:
    start = b'"load avg",\n"1m","5m"\n1,2\n3,4\n'
    start_us = instant("2026-11-24T12:00:00Z")
    (table,) = parse_logs([Log(b'"Cmdline:","dool 5"\n' + start * 3, start_us)])
    assert isinstance(table, pa.Table)
    assert table.column("time").cast(pa.int64()).to_pylist() == [start_us, start_us + 5_000_000]
    assert (table.schema.metadata[b"starts"], table.schema.metadata[b"dropped_rows"]) == (b"3", b"4")


def test_fixed_offsets_are_only_what_is_the_same_everywhere() -> None:
    assert fixed_offset("UTC") == 0
    assert fixed_offset("-0330") == -12_600_000_000
    assert [fixed_offset(zone) for zone in ("+14:00", "-1400", "+1401", "-14:01")] == [
        14 * HOUR,
        -14 * HOUR,
        None,
        None,
    ]
    assert [fixed_offset(zone) for zone in ("", "GMT", "CET", "+1", "+1500", "+0560", "+٠٥٣٠")] == [None] * 7


def test_civil_times() -> None:
    dates = [dt.date(1999, 1, 1) + dt.timedelta(days) for days in range(37_500)]
    fields = np.array([(date.year, date.month, date.day) for date in dates], np.int64).T
    assert civil_days(*fields).tolist() == [date.toordinal() - dt.date(1970, 1, 1).toordinal() for date in dates]
    assert epoch_us(1970, 1, 1) == 0
    assert epoch_us(2028, 2, 29, 23, 59, 60) == instant("2028-03-01T00:00:00Z")
    assert epoch_us(2027, 2, 29) is None
    assert epoch_us(2027, 2, 28, 24) is None


def test_the_machines_own_zone_plays_no_part() -> None:
    script = (
        "from tests.golden.make_logs import all_logs\n"
        "from ciml.transforms.parse.logs import Log, parse_logs\n"
        "logs = all_logs()[:25]\n"
        "for g, t in zip(logs, parse_logs([Log(g.data, g.start_us, g.end_us) for g in logs])):\n"
        "    assert [int(x.timestamp() * 1e6 + .5) for x in t.column('time').to_pylist()] == g.times_us, g.name\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "TZ": "Asia/Kolkata"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


RUN_2026 = {"start_us": instant("2026-06-15T12:00:00Z"), "end_us": instant("2026-06-15T12:10:00Z")}


@pytest.mark.parametrize(
    ("date", "event", "want"),
    [
        ("15 Jun 2019 12:00:00 UTC", RUN_2026, "outside_run"),
        ("15 Jun 2031 12:00:00 UTC", RUN_2026, "outside_run"),
        ("15 Jun 2019 12:00:00 +0200", RUN_2026, "outside_run"),
        ("15 Jun 2019 12:00:00 UTC", {"start_us": RUN_2026["start_us"]}, "outside_run"),
        ("15 Jun 2031 12:00:00 UTC", {"end_us": RUN_2026["end_us"]}, "outside_run"),
        ("15 Jun 2019 12:00:00 UTC", {}, ["2019-06-15T12:00:00Z"]),
        ("15 Jun 2026 12:00:00 +0900", RUN_2026, ["2026-06-15T03:00:00Z"]),  # another zone than it says
    ],
)
def test_a_log_of_another_time_than_its_run_is_rejected(date: str, event: dict[str, int], want: object) -> None:
    assert written(["15-06 12:00:00"], date, **event) == want


def test_the_clock_of_a_recorder_may_be_a_day_off_and_its_log_longer_than_the_run() -> None:
    late = {name: time + 86_400_000_000 for name, time in RUN_2026.items()}
    assert written(["15-06 12:00:00"], "15 Jun 2026 12:00:00 UTC", **late) == ["2026-06-15T12:00:00Z"]
    later = {name: time + 1 for name, time in late.items()}
    assert written(["15-06 12:00:00"], "15 Jun 2026 12:00:00 UTC", **later) == "outside_run"
    days = ["10-06 12:00:00", "20-06 12:00:00"]
    assert len(written(days, "15 Jun 2026 12:00:00 UTC", **RUN_2026)) == 2


def test_epochs_years_outside_the_run_are_rejected_too() -> None:
    data = b'"Cmdline:","dstat -Tl"\n"epoch","load avg"\n"epoch","1m"\n1560600000,1\n1560600001,1\n'
    (rejected,) = parse_logs([Log(data, **RUN_2026)])
    assert isinstance(rejected, RejectedInput)
    assert str(rejected).startswith("outside_run: the samples are of 2019-06-15T12:00:00Z to 2019-06-15T12:00:01Z")


@pytest.mark.parametrize(
    ("zone", "month", "hint"),
    [("CDT", "Jun", "America/Chicago"), ("IST", "Jun", "Asia/Kolkata"), ("CST", "Jan", "Asia/Shanghai")],
)
def test_an_ambiguous_zone_is_named_with_a_remedy_that_works(zone: str, month: str, hint: str) -> None:
    number = {"Jan": "01", "Jun": "06"}[month]
    head = f'"Cmdline:","dstat -tl",,,,"Date:","15 {month} 2026 12:00:00 {zone}"\n"system","load avg"\n"time","1m"\n'
    data = f"{head}15-{number} 12:00:00,1\n".encode()
    (rejected,) = parse_logs([Log(data)])
    assert isinstance(rejected, RejectedInput)
    assert "; name one, such as " in rejected.detail
    (table,) = parse_logs([Log(data, zone=hint)])
    assert not isinstance(table, RejectedInput)


def test_a_repeated_hour_that_nothing_resolves_asks_for_no_zone() -> None:
    data = b'"Cmdline:","dstat -tl",,,,"Date:","01 Nov 2026 00:30:00 CDT"\n"system","load avg"\n"time","1m"\n'
    (rejected,) = parse_logs([Log(data + b"01-11 00:30:00,1\n01-11 01:30:00,1\n", zone="America/Chicago")])
    assert isinstance(rejected, RejectedInput)
    assert rejected.detail == "zone 'CDT': an hour that America/Chicago has twice may be the first or the second"

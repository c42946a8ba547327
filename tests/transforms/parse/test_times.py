"""Years, zones and clock changes."""

from __future__ import annotations

import datetime as dt
import time

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
from tests.golden.make_logs import DOOL, DSTAT, LOAD, all_logs, instant, record, replace, seconds


def written(times: list[str], date: str, **event: object) -> list[str] | str:
    """The times (ISO) that come out of a log with these time cells, or the reason why none do."""
    date_cell = f',,,,"Date:","{date}"' if date else ""
    rows = "".join(f"{time},1\n" for time in times)
    data = f'"Cmdline:","dstat -tl"{date_cell}\n"system","load avg"\n"time","1m"\n{rows}'
    result = parse_logs([Log(data.encode(), **event)])[0]  # type: ignore[arg-type]
    if isinstance(result, RejectedInput):
        return result.reason
    return [time.isoformat().replace("+00:00", "Z") for time in result.column("time").to_pylist()]


RUN = {"start_us": instant("2026-06-15T12:00:00Z"), "end_us": instant("2026-06-15T12:10:00Z")}
#: By the day of its one sample, all at noon: the header's date, the event, and the time or the reason.
ONE_SAMPLE: list[tuple[str, str, dict[str, object], str]] = [
    ("31-12", "01 Jan 2027 00:00:00 UTC", {}, "2026-12-31T12:00:00Z"),
    ("01-01", "31 Dec 2026 23:59:59 UTC", {}, "2027-01-01T12:00:00Z"),
    ("31-12", "", {}, "no_time"),
    # A leap day exists in leap years only.
    ("29-02", "28 Feb 2028 12:00:00 UTC", {}, "2028-02-29T12:00:00Z"),
    ("29-02", "28 Feb 2000 12:00:00 UTC", {}, "2000-02-29T12:00:00Z"),
    ("29-02", "31 Dec 2027 12:00:00 UTC", {}, "2028-02-29T12:00:00Z"),
    ("29-02", "28 Feb 2027 12:00:00 UTC", {}, "no_time"),
    ("29-02", "28 Feb 2100 12:00:00 UTC", {}, "no_time"),
    # The header's zone alone.
    ("15-06", "15 Jun 2026 12:00:00 UTC", {}, "2026-06-15T12:00:00Z"),
    ("15-06", "15 Jun 2026 12:00:00 +0530", {}, "2026-06-15T06:30:00Z"),
    ("15-06", "15 Jun 2026 12:00:00 -03", {}, "2026-06-15T15:00:00Z"),
    ("15-06", "15 Jun 2026 12:00:00 +05:45", {}, "2026-06-15T06:15:00Z"),
    ("15-06", "15 Jun 2026 12:00:00 JST", {}, "2026-06-15T03:00:00Z"),
    ("15-06", "15 Jun 2026 12:00:00 CEST", {}, "2026-06-15T10:00:00Z"),
    ("15-06", "15 Jun 2026 12:00:00 PDT", {}, "2026-06-15T19:00:00Z"),
    ("15-06", "15 Jun 2026 12:00:00 IST", {}, "ambiguous_time"),  # India or Ireland; in Israel it is summer
    ("15-06", "15 Jun 2026 12:00:00 CST", {}, "ambiguous_time"),
    ("15-06", "15 Jun 2026 12:00:00 XYZ", {}, "ambiguous_time"),
    ("15-06", "15 Jun 2026 12:00:00 +9900", {}, "ambiguous_time"),
    ("15-06", "15 Jun 2026 12:00:00", {}, "ambiguous_time"),
    # A hint serves where the header has no zone, and selects one of several.
    ("15-06", "15 Jun 2026 12:00:00", {"zone": "Asia/Kolkata"}, "2026-06-15T06:30:00Z"),
    ("15-06", "15 Jun 2026 12:00:00", {"zone": "+0530"}, "2026-06-15T06:30:00Z"),
    ("15-06", "15 Jun 2026 12:00:00 CST", {"zone": "Asia/Shanghai"}, "2026-06-15T04:00:00Z"),
    ("15-06", "15 Jun 2026 12:00:00 UTC", {"zone": "Asia/Kolkata"}, "2026-06-15T12:00:00Z"),
    ("15-06", "15 Jun 2026 12:00:00", {"zone": "../../etc/passwd"}, "ambiguous_time"),
    # A log of another time than its run is rejected; its limits are in test_parse.
    ("15-06", "15 Jun 2019 12:00:00 +0200", RUN, "outside_run"),
    ("15-06", "15 Jun 2019 12:00:00 UTC", {}, "2019-06-15T12:00:00Z"),
    ("15-06", "15 Jun 2026 12:00:00 +0900", RUN, "2026-06-15T03:00:00Z"),  # another zone than it says
]


@pytest.mark.parametrize(("day", "date", "event", "want"), ONE_SAMPLE)
def test_year_and_zone_of_one_sample(day: str, date: str, event: dict[str, object], want: str) -> None:
    got = written([f"{day} 12:00:00"], date, **event)
    assert got == (want if "_" in want else [want])


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
BERLIN = {"zone": "Europe/Berlin"}
FIRST_HOUR = {"start_us": instant("2026-10-25T00:29:50Z"), "end_us": instant("2026-10-25T00:30:50Z")}
SECOND_HOUR = {"start_us": instant("2026-10-25T01:29:50Z"), "end_us": instant("2026-10-25T01:30:50Z")}
SILENCE = ["25-10 01:40:00", "25-10 02:30:00"]  # the last sample before is at 01:40: half past which two?
SILENT_RUN = {"start_us": instant("2026-10-24T23:39:50Z"), "end_us": instant("2026-10-25T00:31:00Z")}
TURN = ["31-12 23:00:01", "01-01 00:59:59"]
TURN_RUN = {"start_us": instant("2026-12-31T23:00:00Z"), "end_us": instant("2027-01-01T01:00:00Z")}
ALGIERS = [f"29-03 0{1 + m // 60}:{m % 60:02d}:00" for m in range(50, 75)]  # CET goes on from 01:59 to 02:00 there


@pytest.mark.parametrize(
    ("cells", "date", "event", "want"),
    [
        (AUTUMN, "25 Oct 2026 02:30:00 CEST", {}, ["2026-10-25T00:30:00Z", "2026-10-25T00:30:01Z"]),
        (AUTUMN, "25 Oct 2026 02:30:00 CET", {}, ["2026-10-25T01:30:00Z", "2026-10-25T01:30:01Z"]),
        (AUTUMN, "25 Oct 2026 02:30:00", BERLIN, "ambiguous_time"),
        (AUTUMN, "25 Oct 2026 02:30:00", BERLIN | FIRST_HOUR, ["2026-10-25T00:30:00Z", "2026-10-25T00:30:01Z"]),
        (AUTUMN, "25 Oct 2026 02:30:00", BERLIN | SECOND_HOUR, ["2026-10-25T01:30:00Z", "2026-10-25T01:30:01Z"]),
        (SILENCE, "25 Oct 2026 01:40:00 CEST", {}, "ambiguous_time"),
        (SILENCE, "25 Oct 2026 01:40:00 CEST", SILENT_RUN, ["2026-10-24T23:40:00Z", "2026-10-25T00:30:00Z"]),
        (TURN, "", TURN_RUN, ["2026-12-31T23:00:01Z", "2027-01-01T00:59:59Z"]),
        (TURN, "31 Dec 2026 23:00:01 UTC", {}, ["2026-12-31T23:00:01Z", "2027-01-01T00:59:59Z"]),
        (ALGIERS, "29 Mar 2026 01:50:00 CET", {}, [f"2026-03-29T0{m // 60}:{m % 60:02d}:00Z" for m in range(50, 75)]),
    ],
)
def test_a_change_of_the_clock_or_year_is_resolved_or_the_log_rejected(
    cells: list[str], date: str, event: dict[str, object], want: object
) -> None:
    assert written(cells, date, **event) == want


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "America/St_Johns", "Australia/Sydney"])
def test_every_second_around_both_clock_changes(zone: str) -> None:
    """Recorded with the zone's abbreviation, 70 minutes before to 70 minutes after, against zoneinfo."""
    changes = {
        "Europe/Berlin": ("2026-03-29T01:00:00Z", "2026-10-25T01:00:00Z"),
        "America/New_York": ("2026-03-08T07:00:00Z", "2026-11-01T06:00:00Z"),
        "America/St_Johns": ("2026-03-08T05:30:00Z", "2026-11-01T04:30:00Z"),
        "Australia/Sydney": ("2026-10-03T16:00:00Z", "2026-04-04T16:00:00Z"),
    }
    for change in changes[zone]:
        first = instant(change) // 1_000_000 - 4200
        start = dt.datetime.fromtimestamp(first, dt.UTC).isoformat()
        golden = record("x", replace(DSTAT, zone=zone, groups=(LOAD,)), seconds(start, 8400, 1))
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


def test_interval_of_a_command_line() -> None:
    for cmdline in (b"dstat", b"dstat -tcm", b"dstat 0", b"7", b""):
        assert interval_of(cmdline) == 1.0, cmdline
    assert interval_of(b"dstat -tcm --output 7 5 100") == 5.0
    assert interval_of(b"dstat -C 0,1 -D sda 10") == 10.0
    assert interval_of(b"dool --time --output /x/y.csv 2") == 2.0
    assert interval_of(b"pcp-dstat -t 0.5") == 0.5


def test_without_times_and_dates_only_the_first_start_begins_at_the_run() -> None:
    start = b'"load avg",\n"1m","5m"\n1,2\n3,4\n'
    start_us = instant("2026-11-24T12:00:00Z")
    (table,) = parse_logs([Log(b'"Cmdline:","dool 5"\n' + start * 3, start_us)])
    assert isinstance(table, pa.Table)
    assert table.column("time").cast(pa.int64()).to_pylist() == [start_us, start_us + 5_000_000]
    assert (table.schema.metadata[b"starts"], table.schema.metadata[b"dropped_rows"]) == (b"3", b"4")


def test_fixed_offsets_are_only_what_is_the_same_everywhere() -> None:
    for zone, offset in {"UTC": 0, "-0330": -3.5 * HOUR, "+14:00": 14 * HOUR, "-1400": -14 * HOUR}.items():
        assert fixed_offset(zone) == offset, zone
    for zone in ("+1401", "-14:01", "", "GMT", "CET", "+1", "+1500", "+0560", "+٠٥٣٠"):
        assert fixed_offset(zone) is None, zone


def test_civil_times() -> None:
    dates = [dt.date(1999, 1, 1) + dt.timedelta(days) for days in range(37_500)]
    fields = np.array([(date.year, date.month, date.day) for date in dates], np.int64).T
    assert civil_days(*fields).tolist() == [date.toordinal() - dt.date(1970, 1, 1).toordinal() for date in dates]
    assert epoch_us(1970, 1, 1) == 0
    assert epoch_us(2028, 2, 29, 23, 59, 60) == instant("2028-03-01T00:00:00Z")
    assert epoch_us(2027, 2, 29) is None
    assert epoch_us(2027, 2, 28, 24) is None


def test_the_machines_own_zone_plays_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        logs = all_logs()[:25]
        tables = parse_logs([Log(golden.data, golden.start_us, golden.end_us) for golden in logs])
    finally:
        monkeypatch.undo()
        time.tzset()
    for golden, table in zip(logs, tables, strict=True):
        assert isinstance(table, pa.Table)
        assert table.column("time").cast(pa.int64()).to_pylist() == golden.times_us


def test_epochs_years_outside_the_run_are_rejected_too() -> None:
    data = b'"Cmdline:","dstat -Tl"\n"epoch","load avg"\n"epoch","1m"\n1560600000,1\n1560600001,1\n'
    (rejected,) = parse_logs([Log(data, **RUN)])
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

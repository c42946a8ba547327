"""Telemetry logs with known contents: from instants and values to what each recorder writes of them.

Nothing here reads a log, so a parser that agrees with `Golden.times_us` and `Golden.columns` is right for its own
reasons. All is computed from the row's and the column's number: two calls give the same bytes.

``python -m tests.golden.make_logs`` writes the small ones to ``tests/golden/telemetry``, as ``NAME.log`` with what has
to come out of it in ``NAME.json``.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from zoneinfo import ZoneInfo

FOLDER = Path(__file__).parent / "telemetry"
SECOND = 1_000_000

Group = tuple[str, tuple[str, ...]]
Value = float | None

CPU: Group = ("total cpu usage", ("usr", "sys", "idl", "wai", "stl"))
LOAD: Group = ("load avg", ("1m", "5m", "15m"))
MEMORY: Group = ("memory usage", ("used", "free", "buff", "cach"))
DISK: Group = ("dsk/total", ("read", "writ"))
IO: Group = ("io/total", ("read", "writ"))
USUAL = (CPU, LOAD, MEMORY, DISK, IO)

DSTAT_TIME, DOOL_TIME = "%d-%m %H:%M:%S", "%b-%d %H:%M:%S"


@dataclass(frozen=True)
class Golden:
    """A log and what is in it.

    ``times_us`` are µs UTC; ``columns`` holds a list of the same length for each full name, None for no number.
    ``start_us`` and ``end_us`` are what the run's event says, None for an event that does not.
    """

    name: str
    data: bytes
    times_us: list[int]
    columns: dict[str, list[Value]]
    boot: list[bool]
    recorder: str
    start_us: int | None = None
    end_us: int | None = None
    dropped: int = 0

    def expected(self) -> dict[str, object]:
        return {
            "recorder": self.recorder,
            "start_us": self.start_us,
            "end_us": self.end_us,
            "dropped_rows": self.dropped,
            "times": [_iso(us) for us in self.times_us],
            "boot": [index for index, mark in enumerate(self.boot) if mark],
            "columns": self.columns,
        }


@dataclass(frozen=True)
class Recorder:
    """How one program writes."""

    banner: str
    author: str
    time_format: str
    blank_after_cmdline: bool = False
    pad_time: int = 0
    zone: str = "UTC"
    cmdline: str = "dstat -tcmndrlpg --output dstat-csv_log.txt"
    date_zone: str | None = None  # instead of what strftime says; "" for none
    groups: Sequence[Group] = USUAL
    time_cell: tuple[str, str] | None = ("system", "time")

    def header(self, started_us: int, *, again: bool = False) -> str:
        local = _local(started_us, self.zone)
        zone = local.strftime("%Z") if self.date_zone is None else self.date_zone
        lines = []
        if not again:
            lines += [f'"{self.banner}"', f'"Author:","{self.author}",,,,"URL:","https://example.org/"']
        lines += [
            '"Host:","node-1",,,,"User:","root"',
            f'"Cmdline:","{self.cmdline}",,,,"Date:","{f"{local:%d %b %Y %H:%M:%S} {zone}".strip()}"',
        ]
        if self.blank_after_cmdline and not again:
            lines.append("")
        groups = [*([(self.time_cell[0], (self.time_cell[1],))] if self.time_cell else []), *self.groups]
        lines.append(",".join(f'"{group}"' + "," * (len(names) - 1) for group, names in groups))
        lines.append(",".join(f'"{name}"' for _, names in groups for name in names))
        return ("\n\n" if again else "") + "\n".join(lines) + "\n"

    def time(self, us: int) -> str:
        return _local(us, self.zone).strftime(self.time_format).ljust(self.pad_time)

    def row(self, us: int, cells: Iterable[str]) -> str:
        return ",".join([*([self.time(us)] if self.time_cell else []), *cells]) + "\n"


DSTAT = Recorder("Dstat 0.7.4 CSV output", "Dag Wieers <dag@wieers.com>", DSTAT_TIME)
DSTAT_072 = replace(DSTAT, banner="Dstat 0.7.2 CSV output", blank_after_cmdline=True)
DOOL = Recorder("dool 1.3.8 CSV output", "Scott Baker", DOOL_TIME, cmdline="dool --time --cpu --output /ci/dstat.csv 1")
PCP = Recorder("pcp-dstat 6.2.0 CSV Output", "PCP team", DSTAT_TIME, pad_time=16, cmdline="pcp-dstat -tcmdlr 1")


def _local(us: int, zone: str) -> dt.datetime:
    return dt.datetime.fromtimestamp(us / SECOND, ZoneInfo(zone))


def _iso(us: int) -> str:
    return dt.datetime.fromtimestamp(us / SECOND, dt.UTC).isoformat().replace("+00:00", "Z")


def instant(text: str) -> int:
    """µs UTC of an ISO 8601 time with its zone."""
    return round(dt.datetime.fromisoformat(text).timestamp() * SECOND)


def value(row: int, column: int) -> float:
    """The value in a cell: never the same in two neighbours, with at most three decimals, sometimes whole."""
    return ((row * 7919 + column * 104_729) % 100_003) / 1000 if (row + column) % 3 else float(row * 31 + column)


def cell(number: float | None) -> str:
    """As dool writes it."""
    if number is None:
        return ""
    return str(round(number)) if number == round(number) else f"{number:.3f}"


def names_of(groups: Sequence[Group]) -> list[str]:
    return [name if ":" in name else f"{group}:{name}" for group, names in groups for name in names]


def record(
    name: str,
    recorder: Recorder,
    times_us: Sequence[int],
    *,
    missing: Callable[[int, int], bool] = lambda row, column: False,
    event: bool = True,
) -> Golden:
    """What a recorder writes that is started at the first of the times and samples at each of them."""
    names = names_of(recorder.groups)
    matrix = [
        [None if missing(row, column) else value(row, column) for column in range(len(names))]
        for row in range(len(times_us))
    ]
    text = recorder.header(times_us[0]) + "".join(
        recorder.row(us, map(cell, values)) for us, values in zip(times_us, matrix, strict=True)
    )
    return Golden(
        name,
        text.encode(),
        list(times_us),
        {full: [values[column] for values in matrix] for column, full in enumerate(names)},
        [row == 0 for row in range(len(times_us))],
        recorder.banner.removesuffix(" CSV output").removesuffix(" CSV Output"),
        times_us[0] - 2 * SECOND if event else None,
        times_us[-1] + 3 * SECOND if event else None,
    )


def seconds(start: str, count: int, step: float = 1) -> list[int]:
    first = instant(start)
    return [first + round(index * step * SECOND) for index in range(count)]


# --- one for each recorder --------------------------------------------------------------------------------------------


def dstat_072() -> Golden:
    return record("dstat-072", DSTAT_072, seconds("2014-05-06T07:08:09Z", 4))


def dstat_074() -> Golden:
    return record("dstat-074", DSTAT, seconds("2020-11-19T12:07:00Z", 4))


def dool() -> Golden:
    """With a comma at the end of the group row, as dool 1.3.8 writes after some groups."""
    golden = record("dool", DOOL, seconds("2026-11-24T13:56:24Z", 4))
    head, rest = golden.data.split(b'\n"time"', 1)
    return replace(golden, data=head + b',\n"time"' + rest)


def pcp_dstat() -> Golden:
    """Right-padded times, no value in the first sample for what is a rate, and a cell that says what was missed."""
    golden = record("pcp-dstat", PCP, seconds("2026-11-24T13:56:24Z", 4), missing=lambda row, column: row == 0 < column)
    lines = golden.data.split(b"\n")
    lines[-2] += b',"missed 3 ticks"'
    return replace(golden, data=b"\n".join(lines))


def pcp_dstat_appended() -> Golden:
    """The banner is left out when the file exists."""
    golden = record("pcp-dstat-appended", PCP, seconds("2026-11-24T13:56:24Z", 3))
    head = PCP.header(golden.times_us[0])
    again = PCP.header(golden.times_us[0], again=True)
    return replace(golden, data=again.encode() + golden.data[len(head.encode()) :], recorder="")


def epoch_seconds() -> Golden:
    recorder = replace(DSTAT, time_cell=("epoch", "epoch"), time_format="%s", cmdline="dstat -Tc")
    golden = record("epoch-seconds", recorder, seconds("2026-11-24T13:56:24Z", 3), event=False)
    return replace(golden, data=_epochs(golden, recorder, lambda us: str(us // SECOND)))


def epoch_fraction() -> Golden:
    recorder = replace(DOOL, time_cell=("epoch", "epoch"), date_zone="IST", cmdline="dool --epoch")
    golden = record("epoch-fraction", recorder, seconds("2026-11-24T13:56:24.125Z", 3, 1.001), event=False)
    return replace(golden, data=_epochs(golden, recorder, lambda us: f"{us / SECOND:.3f}"))


def epoch_milliseconds() -> Golden:
    recorder = replace(PCP, time_cell=("epoch", "epoch-adv"), pad_time=0)
    golden = record("epoch-milliseconds", recorder, seconds("2026-11-24T13:56:24.25Z", 3), event=False)
    return replace(golden, data=_epochs(golden, recorder, lambda us: str(us // 1000)))


def _epochs(golden: Golden, recorder: Recorder, write: Callable[[int], str]) -> bytes:
    rows = zip(golden.times_us, zip(*golden.columns.values(), strict=True), strict=True)
    head = recorder.header(golden.times_us[0])
    return (head + "".join(",".join([write(us), *map(cell, values)]) + "\n" for us, values in rows)).encode()


def no_time() -> Golden:
    """Neither time nor epoch: five seconds apart, by the command line, from the header's date on."""
    recorder = replace(DSTAT, time_cell=None, cmdline="dstat -C 0,1 -cl --output 7 5 100")
    return record("no-time", recorder, seconds("2026-11-24T13:56:24Z", 3, 5), event=False)


def restarted() -> Golden:
    """Started again an hour later with other columns: load is gone, dsk/total is new, cpu is the same."""
    first = record("", replace(DOOL, groups=(CPU, LOAD)), seconds("2026-11-24T13:56:24Z", 3))
    second = record("", replace(DOOL, groups=(CPU, DISK)), seconds("2026-11-24T14:56:24Z", 2))
    head = replace(DOOL, groups=(CPU, DISK)).header(second.times_us[0])
    again = replace(DOOL, groups=(CPU, DISK)).header(second.times_us[0], again=True)
    torn = b"Nov-24 13:56:27,1,2\n"
    columns: dict[str, list[Value]] = {}
    for name in dict.fromkeys([*first.columns, *second.columns]):
        columns[name] = first.columns.get(name, [None] * 3) + second.columns.get(name, [None] * 2)
    return replace(
        first,
        name="restarted",
        data=first.data + torn + again.encode() + second.data[len(head.encode()) :],
        times_us=first.times_us + second.times_us,
        columns=columns,
        boot=first.boot + second.boot,
        end_us=second.end_us,
        dropped=1,
    )


def multi_instance() -> Golden:
    groups = (("net/lo", ("net/lo:recv", "net/lo:send")), ("net/eth0", ("net/eth0:recv", "net/eth0:send")), LOAD)
    return record("multi-instance", replace(DSTAT, groups=groups), seconds("2026-11-24T13:56:24Z", 3))


def repeated_columns() -> Golden:
    golden = record(
        "repeated-columns",
        replace(DSTAT, groups=(LOAD, (LOAD[0], ("1m", "5m")))),
        seconds("2026-11-24T13:56:24Z", 2),
    )
    names = ["load avg:1m", "load avg:5m", "load avg:15m", "load avg:1m#2", "load avg:5m#2"]
    matrix = [[value(row, column) for row in range(2)] for column in range(5)]
    return replace(golden, columns=dict(zip(names, matrix, strict=True)))


def cut_last_line() -> Golden:
    golden = record("cut-last-line", DSTAT, seconds("2026-11-24T13:56:24Z", 3))
    return replace(
        golden,
        data=golden.data[:-2],  # all cells are there, but who knows whether the last one is whole
        times_us=golden.times_us[:-1],
        columns={name: values[:-1] for name, values in golden.columns.items()},
        boot=golden.boot[:-1],
        dropped=1,
    )


# --- cells ------------------------------------------------------------------------------------------------------------


def _top(name: str, recorder: Recorder, words: Sequence[str]) -> Golden:
    """The words stand before the last group."""
    group: Group = ("most expensive", ("cpu process",))
    recorder = replace(recorder, groups=(LOAD, group, DISK))
    times = seconds("2026-11-24T13:56:24Z", len(words))
    text = recorder.header(times[0])
    for row, us in enumerate(times):
        cells = [cell(value(row, column)) for column in range(6)]
        cells[3] = words[row]
        text += recorder.row(us, cells)
    columns: dict[str, list[Value]] = {
        full: [None if column == 3 else value(row, column) for row in range(len(times))]
        for column, full in enumerate(names_of(recorder.groups))
    }
    return Golden(
        name, text.encode("latin-1"), times, columns, [row == 0 for row in range(len(times))],
        recorder.banner.removesuffix(" CSV output"), times[0] - SECOND, times[-1] + SECOND,
    )  # fmt: skip


def top_quoted() -> Golden:
    words = ['"java / 12%"', '"a,b,,c / 3%"', '""', '"caf\xe9, 7 / 99%"', '"7,8,9"']
    return _top("top-quoted", DSTAT, words)


def top_unquoted() -> Golden:
    return _top("top-unquoted", DOOL, ["java / 12%", "a,b,,c / 3%", "", "caf\xe9, 7 / 99%", "7,8,9"])


def odd_cells() -> Golden:
    """What is no finite number is no value, and what some parser would take for one is none either."""
    golden = record("odd-cells", replace(DSTAT, groups=(LOAD,)), seconds("2026-11-24T13:56:24Z", 5))
    odd: list[list[tuple[str, Value]]] = [
        [("nan", None), ("inf", None), ("1e400", None)],
        [("1_000", None), ("0x10", None), ("-", None)],
        [("-1.5e-3", -0.0015), (".5", 0.5), ("5.", 5.0)],
        [(" 7 ", 7.0), ("+3", 3.0), ("", None)],
        [("1e-400", 0.0), ("12k", None), ("NULL", None)],
    ]
    rows = "".join(DSTAT.row(us, [text for text, _ in cells]) for us, cells in zip(golden.times_us, odd, strict=True))
    head = replace(DSTAT, groups=(LOAD,)).header(golden.times_us[0])
    columns: dict[str, list[Value]] = {name: [row[i][1] for row in odd] for i, name in enumerate(golden.columns)}
    return replace(golden, data=(head + rows).encode(), columns=columns)


# --- times ------------------------------------------------------------------------------------------------------------


def new_year() -> Golden:
    return record("new-year", DSTAT, seconds("2026-12-31T23:59:58Z", 4), event=False)


def leap_day() -> Golden:
    return record(
        "leap-day", DOOL, [*seconds("2028-02-28T23:59:59Z", 2), *seconds("2028-02-29T23:59:59Z", 2)], event=False
    )


def india() -> Golden:
    """IST is also Israel and Ireland: the event's start and end say which."""
    recorder = replace(DOOL, zone="Asia/Kolkata")
    return record("india", recorder, seconds("2026-11-24T18:29:58Z", 4))  # over local midnight


def india_by_offset() -> Golden:
    recorder = replace(DSTAT, zone="Asia/Kolkata", date_zone="+0530")
    return record("india-by-offset", recorder, seconds("2026-11-24T18:29:58Z", 4), event=False)


def japan() -> Golden:
    recorder = replace(DSTAT, zone="Asia/Tokyo")
    return record("japan", recorder, seconds("2026-12-31T14:59:58Z", 4), event=False)  # over local New Year


def autumn() -> Golden:
    """02:00 to 03:00 comes twice; the recorder was started in the first of them and samples every ten minutes."""
    recorder = replace(DSTAT, zone="Europe/Berlin", cmdline="dstat -tc 600")
    return record("autumn", recorder, seconds("2026-10-25T00:30:00Z", 12, 600))


def autumn_second_hour() -> Golden:
    """Wholly within the hour when it comes for the second time: CET, says the header."""
    recorder = replace(DSTAT, zone="Europe/Berlin")
    return record("autumn-second-hour", recorder, seconds("2026-10-25T01:10:00Z", 3), event=False)


def spring() -> Golden:
    recorder = replace(DOOL, zone="America/New_York")
    return record("spring", recorder, seconds("2026-03-08T06:59:58Z", 4))


def clock_set_back() -> Golden:
    """By two minutes: the samples stay in the order in which they were recorded."""
    return record("clock-set-back", DSTAT, [*seconds("2026-11-24T13:58:00Z", 3), *seconds("2026-11-24T13:56:03Z", 3)])


# --- for downsampling -------------------------------------------------------------------------------------------------

ZONES = {"utc": ("UTC", "UTC"), "india": ("Asia/Kolkata", "+0530"), "japan": ("Asia/Tokyo", "JST")}


def over_midnight(zone: str = "utc") -> Golden:
    """Twenty minutes over midnight in UTC. ``zone`` is a key of `ZONES`."""
    place, stated = ZONES[zone]
    recorder = replace(DSTAT, zone=place, date_zone=stated)
    return record(f"over-midnight-{zone}", recorder, seconds("2026-11-24T23:50:00Z", 1200))


def long_run(zone: str = "utc") -> Golden:
    """Longer than 5,500 seconds."""
    place, stated = ZONES[zone]
    recorder = replace(DSTAT, zone=place, date_zone=stated)
    return record(f"long-run-{zone}", recorder, seconds("2026-11-24T21:13:17Z", 6000))


def gaps(zone: str = "utc") -> Golden:
    """Silent for two minutes, twice, so that whole bins are empty."""
    place, stated = ZONES[zone]
    recorder = replace(DOOL, zone=place, date_zone=stated)
    times = seconds("2026-11-24T23:55:03Z", 720)
    kept = [us for index, us in enumerate(times) if not (100 <= index < 220 or 430 <= index < 550)]
    return record(f"gaps-{zone}", recorder, kept)


def missing_values(zone: str = "utc") -> Golden:
    """Single cells, a column for minutes, and every column for a minute."""
    place, stated = ZONES[zone]
    recorder = replace(PCP, zone=place, date_zone=stated)

    def missing(row: int, column: int) -> bool:
        return (row * 13 + column * 7) % 29 == 0 or (column == 5 and 60 <= row < 200) or 300 <= row < 360

    return record(f"missing-values-{zone}", recorder, seconds("2026-11-24T23:55:03Z", 600), missing=missing)


SMALL: tuple[Callable[[], Golden], ...] = (
    dstat_072, dstat_074, dool, pcp_dstat, pcp_dstat_appended, epoch_seconds, epoch_fraction, epoch_milliseconds,
    no_time, restarted, multi_instance, repeated_columns, cut_last_line, top_quoted, top_unquoted, odd_cells, new_year,
    leap_day, india, india_by_offset, japan, autumn, autumn_second_hour, spring, clock_set_back,
)  # fmt: skip
LARGE: tuple[Callable[[str], Golden], ...] = (over_midnight, long_run, gaps, missing_values)


def all_logs() -> list[Golden]:
    return [make() for make in SMALL] + [make(zone) for make in LARGE for zone in ZONES]


def as_json(golden: Golden) -> str:
    """`Golden.expected`, a column a line."""
    expected = golden.expected()
    columns = expected.pop("columns")
    assert isinstance(columns, dict)
    lines = [f" {json.dumps(key)}: {json.dumps(entry)}" for key, entry in expected.items()]
    inner = ",\n".join(f"  {json.dumps(name)}: {json.dumps(values)}" for name, values in columns.items())
    return "{\n" + ",\n".join([*lines, f' "columns": {{\n{inner}\n }}']) + "\n}\n"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for make in SMALL:
        golden = make()
        (FOLDER / f"{golden.name}.log").write_bytes(golden.data)
        (FOLDER / f"{golden.name}.json").write_text(as_json(golden))


if __name__ == "__main__":
    main()

"""Telemetry logs with known contents: small ones that are stored, and large ones of the recorders of this module.

``telemetry`` has a log of every kind, as ``NAME.log`` with what has to come out of it in ``NAME.json``. Nothing here
reads a log, so a parser that agrees with `Golden.times_us` and `Golden.columns` is right for its own reasons. The large
ones are computed from the row's and the column's number: two calls give the same bytes.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
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


# --- for downsampling -------------------------------------------------------------------------------------------------

ZONES = {"utc": ("UTC", "UTC"), "india": ("Asia/Kolkata", "+0530"), "japan": ("Asia/Tokyo", "JST")}


@cache
def over_midnight(zone: str = "utc") -> Golden:
    """Twenty minutes over midnight in UTC. ``zone`` is a key of `ZONES`."""
    place, stated = ZONES[zone]
    recorder = replace(DSTAT, zone=place, date_zone=stated)
    return record(f"over-midnight-{zone}", recorder, seconds("2026-11-24T23:50:00Z", 1200))


@cache
def long_run(zone: str = "utc") -> Golden:
    """Longer than 5,500 seconds."""
    place, stated = ZONES[zone]
    recorder = replace(DSTAT, zone=place, date_zone=stated)
    return record(f"long-run-{zone}", recorder, seconds("2026-11-24T21:13:17Z", 6000))


@cache
def gaps(zone: str = "utc") -> Golden:
    """Silent for two minutes, twice, so that whole bins are empty."""
    place, stated = ZONES[zone]
    recorder = replace(DOOL, zone=place, date_zone=stated)
    times = seconds("2026-11-24T23:55:03Z", 720)
    kept = [us for index, us in enumerate(times) if not (100 <= index < 220 or 430 <= index < 550)]
    return record(f"gaps-{zone}", recorder, kept)


@cache
def missing_values(zone: str = "utc") -> Golden:
    """Single cells, a column for minutes, and every column for a minute."""
    place, stated = ZONES[zone]
    recorder = replace(PCP, zone=place, date_zone=stated)

    def missing(row: int, column: int) -> bool:
        return (row * 13 + column * 7) % 29 == 0 or (column == 5 and 60 <= row < 200) or 300 <= row < 360

    return record(f"missing-values-{zone}", recorder, seconds("2026-11-24T23:55:03Z", 600), missing=missing)


LARGE: tuple[Callable[[str], Golden], ...] = (over_midnight, long_run, gaps, missing_values)


def stored(name: str) -> Golden:
    """A small log, and what is in it."""
    expected = json.loads((FOLDER / f"{name}.json").read_text())
    times = expected["times"]
    return Golden(
        name=name,
        data=(FOLDER / f"{name}.log").read_bytes(),
        times_us=[instant(text) for text in times],
        columns=expected["columns"],
        boot=[index in expected["boot"] for index in range(len(times))],
        recorder=expected["recorder"],
        start_us=expected["start_us"],
        end_us=expected["end_us"],
        dropped=expected["dropped_rows"],
    )


SMALL: tuple[Callable[[], Golden], ...] = tuple(partial(stored, path.stem) for path in sorted(FOLDER.glob("*.log")))
dool = partial(stored, "dool")
dstat_074 = partial(stored, "dstat-074")


def all_logs() -> list[Golden]:
    return [make() for make in SMALL] + [make(zone) for make in LARGE for zone in ZONES]

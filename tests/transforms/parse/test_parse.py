"""Logs of every recorder against golden files; one beyond a limit is rejected, and affects only itself."""

from __future__ import annotations

import gzip
import itertools
import random
import subprocess
import sys
import time
from collections.abc import Callable

import pyarrow as pa
import pytest

from ciml.errors import RejectedInput
from ciml.events.records import Batch, Origin, PendingRun, RunFacts
from ciml.limits import (
    MAX_CLOCK_SKEW_S,
    MAX_COLUMN_NAME,
    MAX_HEADER_ROW_BYTES,
    MAX_LOG_CELLS,
    MAX_LOG_COLUMNS,
    MAX_LOG_HEADERS,
    MAX_LOG_ROW_BYTES,
    MAX_LOG_STARTS,
    MIN_ROW_CELLS,
)
from ciml.transforms.parse import logs
from ciml.transforms.parse.logs import Log, ParseLimits, parse_logs
from tests.golden import make_logs
from tests.golden.make_logs import Golden, instant

SMALL = {make().name: make() for make in make_logs.SMALL}


def log_of(golden: Golden) -> Log:
    return Log(golden.data, golden.start_us, golden.end_us)


def parse(data: bytes, **event: object) -> pa.Table:
    result = parse_logs([Log(data, **event)])[0]  # type: ignore[arg-type]
    if isinstance(result, RejectedInput):
        raise result
    return result


def check(golden: Golden, table: pa.Table | RejectedInput) -> None:
    assert isinstance(table, pa.Table), table
    assert table.column("time").cast(pa.int64()).to_pylist() == golden.times_us
    assert table.schema.field("time").type == pa.timestamp("us", tz="UTC")
    assert table.column("boot").to_pylist() == golden.boot
    assert table.column_names == ["time", "boot", *golden.columns]
    for name, values in golden.columns.items():
        assert table.schema.field(name).type == pa.float64()
        assert table.column(name).to_pylist() == values, name
    metadata = table.schema.metadata
    assert metadata[b"recorder"].decode() == golden.recorder
    assert int(metadata[b"dropped_rows"]) == golden.dropped


@pytest.mark.parametrize("batch_bytes", [1, 2000, ParseLimits().batch_bytes])
def test_golden_logs_in_batches_of_any_size(batch_bytes: int) -> None:
    logs = make_logs.all_logs()
    tables = parse_logs([log_of(golden) for golden in logs], ParseLimits(batch_bytes=batch_bytes))
    for golden, table in zip(logs, tables, strict=True):
        check(golden, table)
    assert parse_logs([]) == []


def test_same_table_from_text_and_gzip() -> None:
    golden = SMALL["dstat-074"]
    packed = gzip.compress(golden.data)
    half = len(golden.data) // 2
    members = gzip.compress(golden.data[:half]) + gzip.compress(b"") + gzip.compress(golden.data[half:])
    for data in (packed, members, packed + b"\x00" * 512, gzip.compress(packed)):
        check(golden, parse_logs([Log(data)])[0])


def test_a_restart_with_the_same_columns_is_one_series() -> None:
    golden = SMALL["dool"]
    again = golden.data.split(b'"Host:"')[1]
    table = parse(golden.data + b'\n\n"Host:"' + again.replace(b"13:56", b"13:57"))
    assert table.num_rows == 8
    assert table.column("boot").to_pylist() == [True, False, False, False] * 2
    assert table.schema.metadata[b"starts"] == b"2"
    assert table.schema.metadata[b"null_cells"] == b"0"
    rows = SMALL["dstat-074"].data
    table = parse(rows + rows[rows.index(b'"system"') :])  # a header without any preamble
    assert table.column("boot").to_pylist() == [True, False, False, False] * 2


def test_words_before_the_banner_and_carriage_returns_do_no_harm() -> None:
    golden = SMALL["dstat-074"]
    for data in (
        b"nohup: ignoring input\n\n" + golden.data,
        b"\xef\xbb\xbf" + golden.data,
        golden.data.replace(b"\n", b"\r\n"),
        golden.data.replace(b"\n", b"\n\n"),
    ):
        assert parse(data).drop_columns([]).equals(parse(golden.data)), data[:40]


def test_the_stage_replaces_a_log_by_its_table() -> None:
    waiting = PendingRun(Origin("t", 0, 0), "e", RunFacts("zuul~a~1", "a"), log=SMALL["dstat-074"].data)
    (run,) = logs.parse(Batch(None, pending_runs=[waiting])).pending_runs
    assert run.log is None
    assert run.telemetry.num_rows == 4


def test_first_sample_that_is_dropped_leaves_no_mark() -> None:
    data = SMALL["dstat-074"].data.replace(b"19-11 12:07:00,", b"19-11 12:07:00,1,1,")
    table = parse(data)
    assert table.num_rows == 3
    assert table.column("boot").to_pylist() == [False, False, False]
    assert table.schema.metadata[b"dropped_rows"] == b"1"


HEAD = SMALL["dstat-074"].data[: SMALL["dstat-074"].data.index(b"19-11")]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty_telemetry"),
        (b"\n\n", "empty_telemetry"),
        (HEAD, "empty_telemetry"),
        (HEAD[:-1], "empty_telemetry"),
        (HEAD + b"19-11 12:0", "empty_telemetry"),
        (HEAD + b"19-11 12:07:00" + b",nan" * 16 + b"\n", "empty_telemetry"),
        (b"<html>404</html>", "not_telemetry"),
        (b"\x00\x01\x02" * 999, "not_telemetry"),
        (b'"a","b"\n1,2\n', "not_telemetry"),
        (HEAD + b"yesterday" + b",1" * 16 + b"\n", "no_time"),
        (HEAD + b"19-11 25:07:00" + b",1" * 16 + b"\n", "no_time"),
        (b'"load avg"\n"1m"\n1\n', "no_time"),
        (b'"system","load avg"\n"time","1m"\n19-11 12:07:00,1\n', "no_time"),
        (gzip.compress(HEAD, mtime=0)[:-4], "corrupt_gzip"),  # the same bytes at any time: part of the test's name
    ],
)
def test_refused(data: bytes, reason: str) -> None:
    result = parse_logs([Log(data)])[0]
    assert isinstance(result, RejectedInput)
    assert result.reason == reason
    assert result.detail


def test_a_text_has_at_most_the_limit_of_bytes_packed_or_not() -> None:
    data = SMALL["dstat-074"].data
    for log in (Log(data), Log(gzip.compress(data))):
        within, beyond = (parse_logs([log], ParseLimits(len(data) - less))[0] for less in (0, 1))
        assert isinstance(within, pa.Table)
        assert isinstance(beyond, RejectedInput)
        assert beyond.reason == "log_too_large"


GOOD = (
    b'"dool 1.3.8 CSV output"\n"Cmdline:","dool -tl",,,,"Date:","24 Nov 2026 12:00:00 UTC"\n'
    b'"system","load avg",,\n"time","1m","5m","15m"\n24-11 12:00:00,1,2,3\n24-11 12:00:01,4,5,6\n'
)
NOON_US = instant("2026-11-24T12:00:00Z")


def log(date: str, *rows: str, columns: str = '"system","load avg"\n"time","1m"') -> bytes:
    return f'"Cmdline:","dstat -tl",,,,"Date:","{date}"\n{columns}\n{"".join(row + chr(10) for row in rows)}'.encode()


def parsed(data: bytes, start_us: int | None = None, end_us: int | None = None) -> pa.Table | RejectedInput:
    """The result for a log between two good ones, which have to be as they always are."""
    alone = parse_logs([Log(GOOD)])[0]
    before, result, after = parse_logs([Log(GOOD), Log(data, start_us, end_us), Log(GOOD)])
    assert isinstance(alone, pa.Table)
    assert before.equals(alone, check_metadata=True)  # type: ignore[union-attr]
    assert after.equals(alone, check_metadata=True)  # type: ignore[union-attr]
    return result


def test_rows_with_a_year_do_not_need_that_of_the_header() -> None:
    result = parsed(log("31 Dec 9999 23:59:59 CET", "2026-11-24 13:00:00,1", "2026-11-24 13:00:01,2"), NOON_US)
    assert isinstance(result, pa.Table)
    assert result.column("time").cast(pa.int64()).to_pylist() == [NOON_US, NOON_US + 1_000_000]


@pytest.mark.parametrize("zone", ["CET", "-03", "UTC"])
def test_a_row_of_the_year_9999_costs_only_itself(zone: str) -> None:
    rows = ("2026-11-24 12:00:00,1", "9999-12-31 23:59:59,2", "0001-01-01 00:00:00,3", "2026-11-24 12:00:01,4")
    result = parsed(
        log(f"24 Nov 2026 12:00:00 {zone}", *rows), NOON_US - 7 * 3_600_000_000, NOON_US + 7 * 3_600_000_000
    )
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


def starts(columns: int, count: int, rows: int = 1, *, same: bool = False) -> bytes:
    """A log whose recorder was started so often, with so many columns that (unless ``same``) only that start has."""
    parts = []
    for start in range(count):
        names = ",".join(f'"{0 if same else start}.{column}"' for column in range(columns))
        row = "2026-11-24 12:00:00" + ",1" * columns + "\n"
        parts.append(f'"Date:","24 Nov 2026 12:00:00 UTC"\n"system","g"\n"time",{names}\n{row * rows}')
    return "".join(parts).encode()


def wide(columns: int, rows: int, cell: str = "", last: str = "1") -> bytes:
    """A log with one start and nearly empty cells: the most that its bytes can make."""
    return starts(columns, 1, 0) + f"2026-11-24 12:00:00,{f'{cell},' * (columns - 1)}{last}\n".encode() * rows


def ended_by_returns(rows: int) -> bytes:
    return starts(1, 1, 0) + b"2026-11-24 12:00:00,1\r" * (rows - 1) + b"2026-11-24 12:00:00,1\n"


def shuffled(count: int) -> bytes:
    """A log with so many starts of the same seven columns, each time in another order."""
    orders = itertools.islice(itertools.permutations(f'"{column}"' for column in range(7)), count)
    head, row = '"Date:","24 Nov 2026 12:00:00 UTC"\n"system","g"\n"time"', f"2026-11-24 12:00:00{',1' * 7}\n"
    return "".join(f"{head},{','.join(order)}\n{row}" for order in orders).encode()


SHAPES: dict[str, Callable[[], bytes]] = {
    "new columns at each restart": lambda: starts(100, 999),
    "returns end rows": lambda: ended_by_returns(2_700_000),
    "starts with other columns, the most for their bytes": lambda: starts(40, 9, 4000),
    "the most rows": lambda: wide(1, MAX_LOG_CELLS // MIN_ROW_CELLS),
    "the most rows, without a zone": lambda: wide(1, MAX_LOG_CELLS // MIN_ROW_CELLS).replace(b" UTC", b""),
    "the most cells": lambda: wide(1000, MAX_LOG_CELLS // 1000),
    "the most cells, of words": lambda: wide(1000, MAX_LOG_CELLS // 1000, "a"),
}


@pytest.mark.whole
def test_no_log_takes_more_memory_than_a_worker_has() -> None:
    """In a process of its own, whose peak is that of the worst log so far and of what it was made from."""
    code = (
        "from tests.memory import peak_bytes\n"
        "from tests.transforms.parse.test_parse import SHAPES, Log, parse_logs\n"
        "for shape, make in SHAPES.items():\n"
        "    parse_logs([Log(make())])\n"
        "    print(peak_bytes() >> 20, shape, flush=True)\n"
    )
    lines = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(lines) == len(SHAPES)
    assert not [line for line in lines if int(line.split()[0]) > 800]


def named(group: str, *columns: str) -> bytes:
    names = ",".join(f'"{name}"' for name in columns)
    row = ",".join("1" for _ in columns)
    return f'"Date:","24 Nov 2026 12:00:00 UTC"\n"system","{group}"\n"time",{names}\n24-11 12:00:00,{row}\n'.encode()


def with_row_of(size: int, quote: bytes = b"") -> bytes:
    row = b"24-11 12:00:00,1"
    return named("g", "c").replace(row, row[:-1] + quote + b"1".ljust(size - len(row) + 1 - 2 * len(quote)) + quote)


def with_header_row_of(size: int) -> bytes:
    full, rest = divmod(size - len('"time"'), 100)
    return named("g", *(f"{number:097}" for number in range(full)), "x" * (rest - 3))


SKEW_US = MAX_CLOCK_SKEW_S * 1_000_000
HALF = MAX_LOG_COLUMNS // 2
MOST_ROWS = MAX_LOG_CELLS // MIN_ROW_CELLS
#: By what is limited: the limit, the reason beyond it, and the result of a log of a size.
LIMITS: dict[str, tuple[int, str, Callable[[int], pa.Table | RejectedInput]]] = {
    "columns": (MAX_LOG_COLUMNS, "log_too_wide", lambda count: parsed(starts(count, 1))),
    "columns of all starts": (2, "log_too_wide", lambda count: parsed(starts(HALF, count))),
    "cells for its bytes": (1, "log_too_large", lambda tens: parsed(starts(40, 30 * tens - 20, 20))),
    "rows": (MOST_ROWS, "log_too_large", lambda count: parsed(wide(1, count))),
    "restarts": (MAX_LOG_STARTS, "too_many_restarts", lambda count: parsed(starts(1, count, same=True))),
    "headers": (MAX_LOG_HEADERS, "too_many_restarts", lambda count: parsed(shuffled(count))),
    "a column's name": (MAX_COLUMN_NAME, "log_too_wide", lambda size: parsed(named("g", "c" * size))),
    "a group's name": (MAX_COLUMN_NAME, "log_too_wide", lambda size: parsed(named("g" * size, "c"))),
    "a row of a header": (MAX_HEADER_ROW_BYTES, "log_too_wide", lambda size: parsed(with_header_row_of(size))),
    "a row": (MAX_LOG_ROW_BYTES, "empty_telemetry", lambda size: parsed(with_row_of(size))),
    "a quoted row": (MAX_LOG_ROW_BYTES, "empty_telemetry", lambda size: parsed(with_row_of(size, b'"'))),
    "before the run": (SKEW_US, "outside_run", lambda us: parsed(named("g", "c"), NOON_US + us, NOON_US + us + 1)),
    "before its start": (SKEW_US, "outside_run", lambda us: parsed(named("g", "c"), NOON_US + us)),
    "after the run": (SKEW_US, "outside_run", lambda us: parsed(named("g", "c"), NOON_US - us - 1, NOON_US - us)),
    "after its end": (SKEW_US, "outside_run", lambda us: parsed(named("g", "c"), None, NOON_US - us)),
}


@pytest.mark.parametrize("limited", LIMITS)
def test_a_log_at_a_limit_is_read_and_one_beyond_it_is_not(limited: str) -> None:
    most, reason, parse = LIMITS[limited]
    within, beyond = parse(most), parse(most + 1)
    assert isinstance(within, pa.Table), within
    assert isinstance(beyond, RejectedInput), beyond.num_rows
    assert beyond.reason == reason


def test_a_log_of_too_many_cells_is_rejected_before_it_is_read() -> None:
    for data in (wide(HALF, MAX_LOG_CELLS // HALF + 1), ended_by_returns(MOST_ROWS + 1)):
        result = parsed(data)
        assert isinstance(result, RejectedInput)
        assert result.reason == "log_too_large"


def test_a_day_of_60_columns_at_one_second_is_read() -> None:
    cells = ",".join(["12.34"] * 60)
    rows = "".join(f"2026-11-24 {t // 3600:02d}:{t // 60 % 60:02d}:{t % 60:02d},{cells}\n" for t in range(86_400))
    result = parsed(starts(60, 1, 0) + rows.encode())
    assert isinstance(result, pa.Table), result
    assert (result.num_rows, result.num_columns) == (86_400, 62)
    assert result.column("g:0.7").null_count == 0


def test_starts_with_other_columns_have_their_own_values_and_null_elsewhere() -> None:
    """Against a slow reading: the columns in the order in which they come, each start's values at its rows."""
    chance = random.Random(4)
    text, order = "", list[str]()
    rows: list[dict[str, float]] = []
    for start in range(12):
        names = chance.sample("abcdefgh", chance.randint(1, 8))
        order += [f"g:{name}" for name in names if f"g:{name}" not in order]
        quoted = ",".join(f'"{name}"' for name in names)
        text += f'"Date:","24 Nov 2026 12:00:00 UTC"\n"system","g"\n"time",{quoted}\n'
        for _ in range(chance.randint(1, 3)):
            row = {f"g:{name}": float(chance.randrange(100)) for name in names}
            rows.append(row)
            text += f"2026-11-24 12:{start:02d}:00,{','.join(str(value) for value in row.values())}\n"
    result = parsed(text.encode())
    assert isinstance(result, pa.Table)
    assert result.column_names == ["time", "boot", *order]
    assert {name: result.column(name).to_pylist() for name in order} == {
        name: [row.get(name) for row in rows] for name in order
    }
    assert result.column("boot").to_pylist().count(True) == 12
    assert all(column.num_chunks == 1 for column in result.columns)

"""Whatever a log holds, it is telemetry or refused with a reason, in any company, within its limits."""

from __future__ import annotations

import math
from itertools import pairwise

import pyarrow as pa
from hypothesis import example, given
from hypothesis import strategies as st

from ciml.dstat import END_LOCAL, FIRST_LOCAL, split_segments
from ciml.errors import RejectedInput
from ciml.limits import CELLS_PER_LOG_BYTE, EARLIEST_US, LATEST_US, MAX_LOG_CELLS, MAX_LOG_COLUMNS
from ciml.telemetry import find_anomalies, short_names
from ciml.transforms.fetch.decompress import inflate
from ciml.transforms.parse.logs import Log, ParseLimits, parse_logs
from ciml.transforms.parse.times import local_times, read_cells
from tests.fuzz.frame import fuzz
from tests.fuzz.strategies.hostile_logs import log
from tests.fuzz.strategies.logs import GOLDEN, built, headers, logs, moments, times

REASONS = {
    "not_telemetry", "empty_telemetry", "no_time", "ambiguous_time", "outside_run", "log_too_wide", "log_too_large",
    "corrupt_gzip", "too_many_restarts",
}  # fmt: skip
LIMITS = ParseLimits(max_bytes=2 << 20)


def check(data: bytes, result: pa.Table | RejectedInput) -> None:
    """What holds for every result."""
    if isinstance(result, RejectedInput):
        assert result.reason in REASONS, result
        assert len(result.detail) < 1000
        return
    names = result.column_names
    assert names[:2] == ["time", "boot"]
    assert len(set(names)) == len(names) <= MAX_LOG_COLUMNS + 2
    assert result.schema.field("time").type == pa.timestamp("us", tz="UTC")
    assert all(column.type == pa.float64() for column in result.columns[2:])
    assert result.num_rows > 0
    assert {len(column) for column in result.columns} == {result.num_rows}
    assert result.column("time").null_count == result.column("boot").null_count == 0
    assert all(EARLIEST_US <= us < LATEST_US for us in result.column("time").cast(pa.int64()).to_pylist())
    starts = int(result.schema.metadata[b"starts"])
    assert result.column("boot").to_pylist().count(True) <= starts
    cells = result.num_rows * (len(names) - 2)
    size = len(inflate(data, LIMITS.max_bytes))
    assert cells <= min(MAX_LOG_CELLS, size * (1 if starts == 1 else CELLS_PER_LOG_BYTE))
    if cells <= 20_000:
        values = [value for column in result.columns[2:] for value in column.to_pylist() if value is not None]
        assert values
        assert all(math.isfinite(value) for value in values)
    # What reads tables has to take any.
    find_anomalies(result)
    assert set(short_names(names)) == set(names[2:])


def contents(result: pa.Table | RejectedInput) -> object:
    if isinstance(result, RejectedInput):
        return result.reason, result.detail
    return result.schema.metadata, {name: result.column(name).to_pylist() for name in result.column_names}


@fuzz
@given(logs, moments, moments)
@example(log("31 Dec 9999 23:59:59 CET", "31-12 23:59:59,1,2,3"), None, None)
@example(log("01 Jan 0001 00:00:00 -03", "01-01 00:00:00,1,2,3"), None, None)
@example(log("24 Nov 2026 12:00:00 CET", "9999-12-31 23:59:59,1,2,3", "2026-11-24 12:00:00,1,2,3"), None, None)
@example(log("24 Nov 2026 12:00:00 UTC", "24-11 12:00:00,nan,1,inf", "24-11 12:00:01,1e400,2,3"), None, None)
def test_a_log_is_telemetry_or_refused(data: bytes, start_us: int | None, end_us: int | None) -> None:
    check(data, parse_logs([Log(data, start_us, end_us)], LIMITS)[0])


@fuzz
@given(built(), moments, moments, st.sampled_from([None, "UTC", "CET", "-03", "Europe/Berlin", "Mars/Phobos", "../x"]))
def test_a_near_valid_log_is_telemetry_or_refused(
    data: bytes, start_us: int | None, end_us: int | None, zone: str | None
) -> None:
    check(data, parse_logs([Log(data, start_us, end_us, zone)], LIMITS)[0])


@fuzz
@given(st.lists(logs, max_size=3), st.lists(logs, max_size=2), st.sampled_from(GOLDEN))
def test_a_good_log_reads_the_same_beside_any(before: list[bytes], after: list[bytes], good: bytes) -> None:
    (alone,) = parse_logs([Log(good)])
    together = [*before, good, *after]
    results = parse_logs([*map(Log, together)], LIMITS)
    assert contents(results[len(before)]) == contents(alone)
    for data, result in zip(together, results, strict=True):
        check(data, result)


@fuzz
@given(headers(), st.binary(max_size=60))
def test_the_starts_of_a_log_are_its_text_in_order(header: tuple[str, int], rest: bytes) -> None:
    text = header[0].encode("utf-8", "surrogatepass") + rest + b"\n" + header[0].encode("utf-8", "surrogatepass") + rest
    try:
        segments = split_segments(text)
    except RejectedInput as refused:
        check(text, refused)
        return
    assert sum(segment.size for segment in segments) <= len(text)
    places, at = [], 0
    for segment in segments:
        at = text.index(segment.body, at)
        places.append((at, at + len(segment.body)))
        at += len(segment.body)
        assert segment.date_us is None or FIRST_LOCAL <= segment.date_us < END_LOCAL
        assert segment.interval_s > 0
        assert b"\n" not in segment.cmdline
    assert all(one[1] <= other[0] for one, other in pairwise(places))


@fuzz
@given(
    st.lists(st.one_of(times.map(str.encode), times.map(str.encode), st.binary(max_size=42)), max_size=8),
    st.integers(FIRST_LOCAL, END_LOCAL - 1),
)
def test_a_time_cell_is_a_time_or_is_none(cells: list[bytes], reference_us: int) -> None:
    read = read_cells(pa.array(cells, pa.binary()))
    times, found = local_times(read, reference_us)
    for index in range(len(cells)):
        if read.ok[index] and read.absolute[index]:
            assert EARLIEST_US <= read.instant[index] < LATEST_US
        elif found[index]:
            assert abs(int(times[index])) < 1 << 62

"""Logs of every recorder against golden files."""

from __future__ import annotations

import gzip

import pyarrow as pa
import pytest

from ciml.errors import RejectedInput
from ciml.transforms.parse.logs import Log, ParseLimits, parse_logs
from tests.golden import make_logs
from tests.golden.make_logs import Golden

GOLDEN = {golden.name: golden for golden in make_logs.all_logs()}


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
    tables = parse_logs([log_of(golden) for golden in GOLDEN.values()], ParseLimits(batch_bytes=batch_bytes))
    for golden, table in zip(GOLDEN.values(), tables, strict=True):
        check(golden, table)
    assert parse_logs([]) == []


def test_same_table_from_text_and_gzip() -> None:
    golden = GOLDEN["dstat-074"]
    packed = gzip.compress(golden.data)
    half = len(golden.data) // 2
    members = gzip.compress(golden.data[:half]) + gzip.compress(b"") + gzip.compress(golden.data[half:])
    for data in (packed, members, packed + b"\x00" * 512, gzip.compress(packed)):
        check(golden, parse_logs([Log(data)])[0])


def test_a_restart_with_the_same_columns_is_one_series() -> None:
    golden = GOLDEN["dool"]
    again = golden.data.split(b'"Host:"')[1]
    table = parse(golden.data + b'\n\n"Host:"' + again.replace(b"13:56", b"13:57"))
    assert table.num_rows == 8
    assert table.column("boot").to_pylist() == [True, False, False, False] * 2
    assert table.schema.metadata[b"starts"] == b"2"
    assert table.schema.metadata[b"null_cells"] == b"0"
    rows = GOLDEN["dstat-074"].data
    table = parse(rows + rows[rows.index(b'"system"') :])  # a header without any preamble
    assert table.column("boot").to_pylist() == [True, False, False, False] * 2


def test_words_before_the_banner_and_carriage_returns_do_no_harm() -> None:
    golden = GOLDEN["dstat-074"]
    for data in (
        b"nohup: ignoring input\n\n" + golden.data,
        b"\xef\xbb\xbf" + golden.data,
        golden.data.replace(b"\n", b"\r\n"),
        golden.data.replace(b"\n", b"\n\n"),
    ):
        assert parse(data).drop_columns([]).equals(parse(golden.data)), data[:40]


def test_first_sample_that_is_dropped_leaves_no_mark() -> None:
    data = GOLDEN["dstat-074"].data.replace(b"19-11 12:07:00,", b"19-11 12:07:00,1,1,")
    table = parse(data)
    assert table.num_rows == 3
    assert table.column("boot").to_pylist() == [False, False, False]
    assert table.schema.metadata[b"dropped_rows"] == b"1"


HEAD = GOLDEN["dstat-074"].data[: GOLDEN["dstat-074"].data.index(b"19-11")]
PACKED = gzip.compress(HEAD, mtime=0)  # the same bytes at any time: they are part of a test's name


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
        (PACKED[:-4], "corrupt_gzip"),
        (PACKED[:30], "corrupt_gzip"),
        (PACKED + b"rest", "corrupt_gzip"),
        (b"\x1f\x8b", "corrupt_gzip"),
        (gzip.compress(gzip.compress(PACKED, mtime=0), mtime=0), "corrupt_gzip"),
        (b'"system","x"\n"time","' + b"y" * 200 + b'"\n1,2\n', "log_too_wide"),
        (b'"system"' + b',"a"' * 20_000 + b'\n"time"' + b',"b"' * 20_000 + b"\n", "log_too_wide"),
    ],
)
def test_refused(data: bytes, reason: str) -> None:
    result = parse_logs([Log(data)])[0]
    assert isinstance(result, RejectedInput)
    assert result.reason == reason
    assert result.detail


def test_a_text_has_at_most_the_limit_of_bytes_packed_or_not() -> None:
    data = GOLDEN["dstat-074"].data
    for log in (Log(data), Log(gzip.compress(data))):
        within, beyond = (parse_logs([log], ParseLimits(len(data) - less))[0] for less in (0, 1))
        assert isinstance(within, pa.Table)
        assert isinstance(beyond, RejectedInput)
        assert beyond.reason == "log_too_large"

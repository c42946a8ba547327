"""Logs of every recorder against golden files, and real ones against a slow second reading."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ciml.digest import telemetry_digest
from ciml.errors import RejectedInput
from ciml.transforms.parse.logs import Log, ParseLimits, parse_logs
from tests.corpus import CORPUS
from tests.golden import make_logs
from tests.golden.make_logs import Golden
from tests.transforms.parse import parse_oracle

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


@pytest.mark.parametrize("path", sorted(make_logs.FOLDER.glob("*.log")), ids=lambda path: path.stem)
def test_golden_file(path: Path) -> None:
    want = json.loads(path.with_suffix(".json").read_text())
    table = parse(path.read_bytes(), start_us=want["start_us"], end_us=want["end_us"])
    assert [str(t).replace(" ", "T").replace("+00:00", "Z") for t in table.column("time").to_pylist()] == [
        t if "." not in t else t.replace("Z", "").ljust(26, "0") + "Z" for t in want["times"]
    ]
    assert [index for index, mark in enumerate(table.column("boot").to_pylist()) if mark] == want["boot"]
    assert {n: table.column(n).to_pylist() for n in table.column_names[2:]} == want["columns"]


def real_logs(count: int, seed: int = 7) -> list[bytes]:
    paths = sorted(CORPUS.glob("logs/*/*.gz"))
    return [path.read_bytes() for path in random.Random(seed).sample(paths, min(count, len(paths)))]


def test_real_logs_equal_the_oracle() -> None:
    data = real_logs(150)
    for packed, table in zip(data, parse_logs([Log(each) for each in data]), strict=True):
        parse_oracle.compare(table, gzip.decompress(packed))


def test_real_logs_that_are_damaged_equal_the_oracle() -> None:
    """A part of them: cut anywhere, a word in a cell, a cell too few or too many, a blank line."""
    chance = random.Random(11)
    texts = [text for each in real_logs(100) if (text := gzip.decompress(each)).count(b"\n") > 12]
    for index in range(0, len(texts), 4):
        lines = texts[index].split(b"\n")
        row = chance.randrange(8, len(lines) - 3)
        cells = lines[row].split(b",")
        damage = chance.randrange(6)
        if damage == 0:
            cells[chance.randrange(1, len(cells))] = chance.choice([b"-", b"nan", b"1_0", b"\xe9", b"1e999", b" 5"])
        elif damage == 1:
            del cells[-3:]
        elif damage == 2:
            cells += [b"1", b"2"]
        elif damage == 3:
            cells[0] = b"31-02 10:00:00"
        elif damage == 4:
            cells = [b"", b"\n"]
        lines[row] = b",".join(cells) if damage != 4 else b""
        texts[index] = b"\n".join(lines)[: None if damage < 5 else -5]
    for text, table in zip(texts, parse_logs([Log(text) for text in texts]), strict=True):
        parse_oracle.compare(table, text)


def test_a_table_survives_parquet(tmp_path: Path) -> None:
    for golden in (GOLDEN["restarted"], GOLDEN["missing-values-japan"]):
        table = parse_logs([log_of(golden)])[0]
        pq.write_table(table, tmp_path / "run.parquet")
        again = pq.read_table(tmp_path / "run.parquet")
        assert telemetry_digest("zuul~a~1", again) == telemetry_digest("zuul~a~1", table)
        assert again.equals(table)


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

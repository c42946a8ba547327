"""Tables of any form are read alike; a hostile one costs time in proportion to its size, and bounded memory."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ciml.errors import CimlError
from ciml.limits import MAX_RESULTS_CELL_CHARACTERS, MAX_RESULTS_COLUMNS, MAX_RESULTS_ROW_BYTES
from ciml.transforms.results import table
from ciml.transforms.results.table import arrow_table, delimited_table, open_results
from tests.growth import assert_linear
from tests.project.test_startup import loaded_by

ROWS = [{"id": "1", "job": 'a,"b"', "note": "x;y|z"}, {"id": "2", "job": "c\nd", "note": None}]


def read(path: Path) -> tuple[str, tuple[str, ...], list[dict[str, Any]]]:
    opened = open_results(path)
    rows = list(opened.rows())
    assert [row.number for row in rows] == list(range(1, len(rows) + 1))
    assert rows == list(opened.rows()), "it can be read again"
    assert [row.fault for row in rows if row.fault] == []
    return opened.form, opened.columns, [dict(row.cells) for row in rows]


def written(delimiter: str = ",", end: str = "\n") -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["id", "job", "note"], delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


@pytest.mark.parametrize(
    ("delimiter", "name"), [(",", "commas"), (";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")]
)
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_delimiters_quotes_marks_and_ends(
    tmp_path: Path, delimiter: str, name: str, bom: bytes, end: str, pack: Any
) -> None:
    path = tmp_path / "results.txt"
    path.write_bytes(pack(bom + written(delimiter, end)))
    assert read(path) == (f"text with {name}", ("id", "job", "note"), ROWS)


def test_parquet_json_lines_and_arrow_say_the_same(tmp_path: Path) -> None:
    held = pa.table({name: [row[name] for row in ROWS] for name in ("id", "job", "note")})
    pq.write_table(held, tmp_path / "a")
    (tmp_path / "b").write_text("\n\n".join(json.dumps(row) for row in ROWS))
    assert read(tmp_path / "a") == ("Parquet", ("id", "job", "note"), ROWS)
    assert read(tmp_path / "b") == ("JSON lines", ("id", "job", "note"), ROWS)
    assert [dict(row.cells) for row in open_results(held).rows()] == ROWS


def test_arrow_types_become_cells() -> None:
    held = pa.table(
        {
            "ns": pa.array([1_795_521_600_123_456_789, None], pa.timestamp("ns", "Asia/Tokyo")),
            "naive": pa.array([1_795_521_600, 0], pa.timestamp("s")),
            "cat": pa.array(["x", None]).dictionary_encode(),
            "f": pa.array([1.5, None]),
            "b": pa.array([True, False]),
            "list": pa.array([[1], []]),
            "bytes": pa.array([b"x", b"y"]),
        }
    )
    opened = open_results(held)
    assert opened.columns == ("ns", "naive", "cat", "f", "b")
    first, second = ({name: str(cell) for name, cell in row.cells.items()} for row in opened.rows())
    assert first == {
        "ns": "2026-11-24 12:00:00.123456+00:00", "naive": "2026-11-24 12:00:00", "cat": "x", "f": "1.5", "b": "True"
    }  # fmt: skip
    assert second == {"ns": "None", "naive": "1970-01-01 00:00:00", "cat": "None", "f": "None", "b": "False"}


def test_a_table_is_read_without_pandas(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["1"], "t": pa.array([10**18], pa.timestamp("ns", "UTC"))}), tmp_path / "a.parquet")
    table = str(tmp_path / "a.parquet")
    code = f"from ciml.transforms.results.table import open_results; list(open_results({table!r}).rows())"
    assert loaded_by(code) == set()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; give a table with a row a run"),
        (b"\xef\xbb\xbf\n  \n", "is empty; give a table with a row a run"),
        (b"PK\x03\x04rest", "is a zip file or an Excel workbook; save it as CSV"),
        ("id,job\n".encode("utf-16"), "is text in UTF-16; save it in UTF-8"),
        (b"SQLite format 3\0", "is an SQLite database; export the table as CSV"),
        (b'[{"id": 1}]', "is a JSON array; write JSON lines"),
        (b"PAR1 but no more", "is broken Parquet: "),
        (b"{broken\n", "holds no line that is a JSON object"),
        (b"id,job,id\n1,2,3\n", "the column 'id' appears twice; rename one"),
        (b"a" * 400 + b",b\n", "has a name that is too long; shorten it"),
        (b"\x1f\x8b broken", "broken gzip"),
        (b"x" * (MAX_RESULTS_ROW_BYTES + 1), "its first line has more than 1,032,192 bytes; is it a table?"),
        (b"\n" * 30 + b"a,b\n", "its first 20 lines are blank; begin with the names of the columns"),
    ],
)
def test_what_is_no_table_says_what_to_do(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "results.csv"
    path.write_bytes(content)
    with pytest.raises(CimlError) as error:
        open_results(path)
    assert message in str(error.value)
    assert "results.csv" in str(error.value)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    for path, message in {tmp_path / "none.csv": "no such table", tmp_path: "is not a regular file"}.items():
        with pytest.raises(CimlError, match=message):
            open_results(path)


def faults(content: bytes, tmp_path: Path) -> list[str]:
    path = tmp_path / "results.csv"
    path.write_bytes(content)
    return [row.fault for row in open_results(path).rows()]


def test_broken_rows_are_rows(tmp_path: Path) -> None:
    assert faults(b"a,b\n1,2\n\n1\n1,2,3\n3,4\n", tmp_path) == [
        "", "1 cells, but the header has 2", "3 cells, but the header has 2", ""
    ]  # fmt: skip
    long = b"x" * (MAX_RESULTS_CELL_CHARACTERS + 1)
    assert faults(b"a,b\n1," + long + b"\n3,4\n", tmp_path) == ["a cell has more than 65,536 characters", ""]
    wide = b"x" * (MAX_RESULTS_ROW_BYTES + 1)
    assert faults(b"a,b\n" + wide + b"\n3,4\n", tmp_path) == ["more than 1,032,192 bytes", ""]
    assert faults(b'{"a":1}\n{"a":' + wide + b'}\n[1]\n{"a":2}\n{"a":1,"a":2}\n', tmp_path) == [
        "", "more than 1,032,192 bytes", "not an object", "", "key 'a' appears twice"
    ]  # fmt: skip


def test_quotes_without_end_cost_no_more_than_a_limit(tmp_path: Path) -> None:
    rows = faults(b'a,b\n1,2\n3,"x\n' + b"5,6\n" * 40_000 + b"7,8\n", tmp_path)
    assert rows[0] == ""
    assert any("field larger than field limit" in fault for fault in rows)
    assert rows[-1] == "", "the rest is read"
    # each cell is short, but together they are a row without end
    rows = faults(b"a,b\n1,2\n" + b'"x\n",' * 250_000 + b"\n7,8\n", tmp_path)
    assert rows[0] == ""
    assert "more than 1,032,192 bytes" in rows
    assert "" not in rows[1:]


def test_nul_bytes_other_encodings_and_formulas_are_only_text(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_bytes(b'a,b\n\0,=cmd|"/c calc"!A1\n\xfcml,@SUM(1)\n')
    assert [list(row.cells.values()) for row in open_results(path).rows()] == [
        ["\0", '=cmd|"/c calc"!A1'], ["\udcfcml", "@SUM(1)"]
    ]  # fmt: skip


def test_a_long_line_is_never_held(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"a,b\n1,2\n")
    os.truncate(tmp_path / "x.csv", 128 << 20)
    tracemalloc.start()
    with (tmp_path / "x.csv").open("rb") as file:
        rows = list(delimited_table("x.csv", file).rows())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [row.fault for row in rows] == ["", "more than 1,032,192 bytes"]
    assert peak < 16 << 20


def test_a_table_beyond_the_limits_is_rejected_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"id": ["x" * 1000] * 1000}), tmp_path / "a.parquet", use_dictionary=False)
    (tmp_path / "a.csv").write_bytes(b"a,b\n" + b"1,2\n" * 300_000)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(bytes(2 << 20)))
    monkeypatch.setattr(table, "MAX_RESULTS_BYTES", 1 << 19)
    for name, message in {
        "a.parquet": r"has 1,000 rows and 0 MiB unpacked, at most 4,000,000 and 0; split it",
        "a.csv": r"a\.csv has 1 MiB, at most 0; split it",
        "a.csv.gz": r"has more than 0 MiB; split it",
    }.items():
        with pytest.raises(CimlError, match=message):
            open_results(tmp_path / name)
    monkeypatch.setattr(table, "MAX_RESULTS_ROWS", 999)
    with pytest.raises(CimlError, match="has 1,000 rows"):
        arrow_table("x", pa.table({"id": ["x"] * 1000}))


@pytest.mark.parametrize("form", ["csv", "json", "parquet", "arrow"])
def test_a_table_has_as_many_columns_as_the_limit(tmp_path: Path, form: str) -> None:
    def columns(count: int) -> int:
        names = [f"c{number}" for number in range(count)]
        path = tmp_path / "results"
        held = pa.table({name: [1] for name in names})
        if form == "arrow":
            return len(open_results(held).columns)
        if form == "parquet":
            pq.write_table(held, path)
        elif form == "csv":
            path.write_text(",".join(names) + "\n" + "," * (count - 1) + "\n")
        else:
            path.write_text("".join(json.dumps({name: 1}) + "\n" for name in names))
        return len(open_results(path).columns)

    assert columns(MAX_RESULTS_COLUMNS) == MAX_RESULTS_COLUMNS
    with pytest.raises(CimlError, match=r"has 1,025 columns, at most 1,024; leave some out"):
        columns(MAX_RESULTS_COLUMNS + 1)


def test_a_text_that_repeats_is_held_once(tmp_path: Path) -> None:
    """A small file could else become any number of bytes."""
    pq.write_table(pa.table({"id": pa.array(["x" * 60_000]).take(pa.array([0] * 2000))}), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 1 << 20
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    count = peak = 0
    for row in open_results(tmp_path / "a.parquet").rows():
        count += len(row.cells["id"])
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert count == 60_000 * 2000
    assert peak < 8 << 20
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()


SHAPES: dict[str, Callable[[int], bytes]] = {
    "rows": lambda n: b"a,b\n" + b"1,2\n" * n,
    "quotes": lambda n: b"a,b\n" + b'"' * n,
    "doubled quotes": lambda n: b'a,b\n"' + b'""' * n,
    "quotes without end": lambda n: b"a,b\n" + b'1,"x\n' * n,
    "delimiters": lambda n: b"a,b\n" + b"," * n,
    "all delimiters in the header": lambda n: b",;\t|" * (n // 8) + b"\n",
    "carriage returns": lambda n: b"a,b\n" + b"\r" * n,
    "NUL": lambda n: b"a,b\n" + b"\0" * n,
    "JSON lines": lambda n: b'{"a":1}\n' * (n // 8),
    "keys that change": lambda n: b"".join(b'{"k%d":1}\n' % (i % 900) for i in range(n // 8)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_hostile_shapes_take_linear_time(shape: str, tmp_path: Path) -> None:
    def work(path: Path) -> None:
        try:
            for _ in open_results(path).rows():
                pass
        except CimlError:
            pass

    def make(size: int) -> Path:
        path = tmp_path / f"{size}"
        path.write_bytes(SHAPES[shape](size))
        return path

    assert_linear(make, work, 20_000)

"""Whatever comes in: a table or a reason, the same in any company, within bounds of time and memory."""

from __future__ import annotations

import gzip

import pyarrow as pa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ciml.dstat import read_columns
from ciml.errors import RejectedInput
from ciml.transforms.parse.logs import Log, parse_logs
from ciml.transforms.parse.rows import Body, Rows, _read, read_rows, repair
from tests.golden import make_logs
from tests.tier import tries
from tests.transforms.parse import parse_oracle
from tests.transforms.parse.parse_oracle import sound

SMALL = [make() for make in make_logs.SMALL]
HEAD = b'"Cmdline:","dstat -tl",,,,"Date:","24 Nov 2026 12:00:00 UTC"\n"system","load avg",,\n"time","1m","5m","15m"\n'
COLUMNS = read_columns(b'"system","load avg",,', b'"time","1m","5m","15m"')
ROW = b"24-11 12:00:00,1,2,3\n"
GOOD = HEAD + ROW + ROW.replace(b"1,2,3", b"4,5,6")


def contents(result: pa.Table | RejectedInput) -> object:
    if isinstance(result, RejectedInput):
        return result.reason, result.detail
    return result.schema.metadata, {name: result.column(name).to_pylist() for name in result.column_names}


def values_of(rows: Rows) -> object:
    return (
        rows.time and [cell.strip() for cell in rows.time.to_pylist()],
        [column.to_pylist() for column in rows.values],
        rows.counts,
        rows.dropped,
        rows.has_first,
    )


numbers = st.one_of(
    st.integers(-(10**20), 10**20).map(str),
    st.floats().map(repr),
    st.floats(allow_nan=False).map("{:.3f}".format),
    st.from_regex(r"\A[+-]?[0-9]{0,4}\.?[0-9]{0,4}([eE][+-]?[0-9]{1,3})?\Z"),
    st.sampled_from(["", " 5 ", "nan", "-inf", "1e400", "+3", ".", "NULL", "infinity", "nan(1)", "\t4"]),
)
words = st.text(st.characters(codec="latin-1", exclude_characters='\r\n",\x00'), max_size=12)


@settings(max_examples=tries(150))
@given(st.lists(st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=6), min_size=1, max_size=4))
def test_the_fast_way_and_the_slow_way_agree(logs: list[list[tuple[str, str, str]]]) -> None:
    bodies = [b"".join(b"24-11 12:00:00," + ",".join(row).encode() + b"\n" for row in log) for log in logs]
    repaired = [repair(body, COLUMNS) for body in bodies]
    assert [each.dropped for each in repaired] == [0] * len(bodies)
    slow = _read(repaired, COLUMNS, as_numbers=False)
    assert slow is not None
    want = values_of(slow)
    fast = _read([Body(body, body.count(b"\n")) for body in bodies], COLUMNS, as_numbers=True)
    if fast is not None:
        assert values_of(fast) == want
    for indices, rows in read_rows(bodies, COLUMNS):
        group = _read([repaired[index] for index in indices], COLUMNS, as_numbers=False)
        assert group is not None
        assert values_of(rows) == values_of(group)
    for body, each in zip(bodies, logs, strict=True):
        ((_, alone),) = read_rows([body], COLUMNS)
        columns = [column.to_pylist() for column in alone.values]
        assert columns == [[parse_oracle.number(row[index]) for row in each] for index in range(3)]


@settings(max_examples=tries(150))
@given(
    st.lists(
        st.lists(
            st.one_of(numbers, words, words.map('"{}"'.format), st.just("24-11 12:00:01"), st.just("Nov-24 12:00:02")),
            min_size=2,
            max_size=6,
        ),
        max_size=12,
    ),
    st.sampled_from(["\n", "\r\n", "\n\n"]),
)
def test_any_rows_are_as_the_oracle_reads_them(rows: list[list[str]], line_end: str) -> None:
    """The oracle knows nothing of surplus cells that can be saved: those logs only have to be sound."""
    cells = [row if len(row) < 4 or i % 2 else ["24-11 12:00:00", *row[1:]] for i, row in enumerate(rows)]
    text = HEAD + line_end.join([*(",".join(row) for row in cells), ""]).encode("latin-1")
    result = parse_logs([Log(text)])[0]
    sound(result)
    if any(len(row) > 4 for row in cells) or isinstance(result, RejectedInput):
        return
    times, values, _ = parse_oracle.read(text.replace(b"\r\n", b"\n"))
    assert result.column("time").to_pylist() == times
    assert {name: result.column(name).to_pylist() for name in result.column_names[2:]} == values


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A golden log with bytes changed, cut out, doubled, or another log's bytes put in."""
    data = bytearray(draw(st.sampled_from(SMALL)).data)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.integers(0, 4))
        if kind == 0:
            data[at : at + 1] = draw(st.binary(max_size=3))
        elif kind == 1:
            del data[at : at + draw(st.integers(1, 200))]
        elif kind == 2:
            data[at:at] = data[at : at + draw(st.integers(1, 400))]
        elif kind == 3:
            data[at:at] = draw(st.sampled_from(SMALL)).data
        else:
            data[at:at] = draw(st.sampled_from([b"\n", b"\r", b'"', b",", b"\x00", b"\n\n\n", b',"', b"\xef\xbb\xbf"]))
    return gzip.compress(bytes(data)) if draw(st.booleans()) else bytes(data)


@settings(max_examples=tries(120))
@given(st.lists(damaged(), max_size=5))
@example([HEAD + ROW + b"\xef\xbb\xbf\n", HEAD + ROW])
@example([HEAD + b"\xef\xbb\xbf" + ROW, HEAD + ROW])
@example([HEAD + ROW, HEAD + b"\xef\xbb\xbf" + ROW])
@example([GOOD, HEAD + ROW.rstrip(b"\n") + b"\r" + ROW + b"\n", GOOD])
@example([GOOD, HEAD + ROW + b'24-11 12:00:00,1,2,"\n' + ROW, GOOD])
@example([GOOD, HEAD + b"\n" + ROW + b"\x0b\n\x0c\n" + ROW.replace(b"\n", b"\r"), GOOD])
@example([GOOD, HEAD + ROW + b"24-11 12:00:00,1,2,3\\\n" + ROW, GOOD])
@example([GOOD, HEAD + b"\xef\xbb\xbf\n" + ROW, GOOD])
@example([HEAD + ROW + b" " * 300_000 + ROW, HEAD + ROW + b"2,3,0.05,24-11 12:18:55\n"])
def test_a_log_is_read_alike_in_any_company(logs: list[bytes]) -> None:
    together = parse_logs([Log(data) for data in logs])
    for data, result in zip(logs, together, strict=True):
        sound(result)
        assert contents(result) == contents(parse_logs([Log(data)])[0])


@settings(max_examples=tries(150))
@given(st.binary(max_size=400), st.integers(-(10**18), 10**18) | st.none(), st.integers(-(10**18), 10**18) | st.none())
def test_any_bytes_at_all(data: bytes, start: int | None, end: int | None) -> None:
    for log in (data, HEAD + data, HEAD + ROW + data, b"\x1f\x8b" + data, gzip.compress(HEAD + data)):
        sound(parse_logs([Log(log, start, end)])[0])


def test_samples_without_a_certain_time_are_dropped() -> None:
    table = parse_logs([Log(HEAD + ROW + b'"load avg"\n"1m"\n7\n8\n' + HEAD + ROW)])[0]
    assert isinstance(table, pa.Table)
    assert table.column("load avg:1m").to_pylist() == [1.0, 1.0]
    assert table.schema.metadata[b"dropped_rows"] == b"2"


def test_a_plain_log_that_is_cut_anywhere_loses_only_its_end() -> None:
    golden = make_logs.dstat_074()
    first = golden.data.index(b"19-11 12:07:01")
    cuts = range(first, len(golden.data) - 1)
    for cut, table in zip(cuts, parse_logs([Log(golden.data[:cut]) for cut in cuts]), strict=True):
        assert isinstance(table, pa.Table), table
        whole = 1 + golden.data.count(b"\n", first, cut)
        assert table.column("time").cast(pa.int64()).to_pylist() == golden.times_us[:whole]

"""Whatever a log holds, it is a table or a reason, the same in any company, in time that is linear in its size."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ciml.dstat import interval_of, read_columns
from ciml.errors import RejectedInput
from ciml.telemetry import short_names, unique_names
from ciml.transforms.live.samples import Part, unseen
from ciml.transforms.parse.logs import Log, parse_logs
from ciml.transforms.parse.rows import Body, Rows, _read, read_rows, repair
from tests.fuzz.strategies.logs import GOLDEN, changed, delivered
from tests.golden import make_logs
from tests.growth import assert_linear
from tests.tier import part, tries
from tests.transforms.parse import parse_oracle
from tests.transforms.parse.parse_oracle import sound
from tests.transforms.parse.test_parse import named

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


@settings(max_examples=tries(80))
@given(st.lists(st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=6), min_size=1, max_size=4))
def test_the_fast_way_and_the_slow_way_agree(tables: list[list[tuple[str, str, str]]]) -> None:
    bodies = [b"".join(b"24-11 12:00:00," + ",".join(row).encode() + b"\n" for row in table) for table in tables]
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
    for body, each in zip(bodies, tables, strict=True):
        ((_, alone),) = read_rows([body], COLUMNS)
        columns = [column.to_pylist() for column in alone.values]
        assert columns == [[parse_oracle.number(row[index]) for row in each] for index in range(3)]


@settings(max_examples=tries(80))
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


@settings(max_examples=tries(120))
@given(st.lists(delivered(changed(st.sampled_from(GOLDEN))), max_size=5))
@example([HEAD + ROW + b"\xef\xbb\xbf\n", HEAD + ROW])
@example([HEAD + b"\xef\xbb\xbf" + ROW, HEAD + ROW])
@example([HEAD + ROW, HEAD + b"\xef\xbb\xbf" + ROW])
@example([GOOD, HEAD + ROW.rstrip(b"\n") + b"\r" + ROW + b"\n", GOOD])
@example([GOOD, HEAD + ROW + b'24-11 12:00:00,1,2,"\n' + ROW, GOOD])
@example([GOOD, HEAD + b"\n" + ROW + b"\x0b\n\x0c\n" + ROW.replace(b"\n", b"\r"), GOOD])
@example([GOOD, HEAD + ROW + b"24-11 12:00:00,1,2,3\\\n" + ROW, GOOD])
@example([GOOD, HEAD + b"\xef\xbb\xbf\n" + ROW, GOOD])
@example([HEAD + ROW + b" " * 300_000 + ROW, HEAD + ROW + b"2,3,0.05,24-11 12:18:55\n"])
def test_a_log_is_read_alike_in_any_company(company: list[bytes]) -> None:
    together = parse_logs([Log(data) for data in company])
    for data, result in zip(company, together, strict=True):
        sound(result)
        assert contents(result) == contents(parse_logs([Log(data)])[0])


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


NOON_US = 1_795_521_600_000_000


def in_header(cell: bytes, row: bytes = ROW) -> bytes:
    return HEAD.replace(b"dstat -tl", cell) + row


def restarts(
    count: int,
    date: Callable[[int], str] = lambda _: "24 Nov 2026 12:00:00 UTC",
    names: Callable[[int], str] = lambda _: '"1m","5m"',
) -> bytes:
    return "".join(
        f'"Date:","{date(at)}"\n"system","g"\n"time",{names(at)}\n2026-11-24 12:00:00,1,2\n' for at in range(count)
    ).encode()


def year(count: int) -> bytes:
    """Rows of all days of a year, by a clock that may change."""
    days = (b"2026-%02d-%02d 12:00:00,1,2,3\n" % (at // 28 + 1, at % 28 + 1) for at in range(336))
    return HEAD.replace(b"UTC", b"-03") + b"".join(days) * count


def repeated_hour(count: int) -> bytes:
    head = HEAD.replace(b"24 Nov 2026 12:00:00 UTC", b"25 Oct 2026 02:30:00 CEST")
    return head + b"25-10 02:59:59,1,2,3\n25-10 02:00:00,1,2,3\n" * count


def turns(count: int) -> bytes:
    chance = random.Random(5)
    return HEAD + b"".join(b"%02d:%02d:00,1,2,3\n" % (chance.randrange(24), at % 60) for at in range(count))


#: A log of a size, and the size of the small one.
SHAPES: dict[str, tuple[int, Callable[[int], bytes]]] = {
    "command lines within a command line": (2000, lambda n: in_header(b'"Cmdline:","' * n)),
    "command lines that do not end": (1000, lambda n: b'"Cmdline:","' * n + b"x\n" + HEAD.split(b"\n", 1)[1] + ROW),
    "command lines that nearly end": (1000, lambda n: b'"Cmdline:","",,' * n + b"x\n" + HEAD.split(b"\n", 1)[1] + ROW),
    "ends of a command line": (4000, lambda n: in_header(b'",' * n)),
    "commas behind a command line": (20_000, lambda n: in_header(b'x"' + b"," * n + b"x")),
    "dates within a command line": (4000, lambda n: in_header(b'"Date:"' * n)),
    "almost dates": (2000, lambda n: in_header(b'"Date:","24 Nov 2026 12:00:00 ' * n)),
    "digits where a date is": (10_000, lambda n: in_header(b'"Date:","' + b"1" * n)),
    "quotes in a preamble": (10_000, lambda n: b'"' * n + b"\n" + HEAD + ROW),
    "spaces in a preamble": (20_000, lambda n: b" " * n + b"x\n" + HEAD + ROW),
    "banners in a preamble": (2000, lambda n: b'"dstat CSV ' * n + b"\n" + HEAD + ROW),
    "a long line above a restart": (20_000, lambda n: HEAD + ROW + b" " * n + b"\n" + b'"a"\n"b"\n' + ROW),
    "lines above many restarts": (100, lambda n: HEAD + (ROW + b'" :"\n' * 12 + b'"a"\n"b"\n') * n),
    "group rows without column rows": (4000, lambda n: HEAD + ROW + b'"a"\n1\n' * n),
    "almost a header, in one line": (10_000, lambda n: HEAD + ROW + b'"a",' * n + b"x\n" + ROW),
    "almost a header, in many": (4000, lambda n: HEAD + ROW + b'"a","b",x\n' * n + ROW),
    "line ends between two rows of a header": (20_000, lambda n: HEAD + ROW + b'"a"' + b"\n\r" * n + b'"b\n'),
    "colons in group rows": (4000, lambda n: HEAD + ROW + b'"a:"\n"b"\n' * n),
    "quotes that open": (10_000, lambda n: HEAD + ROW + b'"\n' * n + ROW),
    "one line of quotes": (40_000, lambda n: HEAD + ROW + b'"' * n + b"\n" + ROW),
    "one line of commas": (40_000, lambda n: HEAD + ROW + b"," * n + b"\n" + ROW),
    "one giant number": (40_000, lambda n: HEAD + ROW + b"24-11 12:00:01,1,2," + b"9" * n + b"\n"),
    "one giant word": (40_000, lambda n: HEAD + ROW + b'24-11 12:00:01,1,2,"' + b"a," * n + b'"\n'),
    "one giant time": (40_000, lambda n: HEAD + ROW + b"1" * n + b",1,2,3\n"),
    "empty lines": (40_000, lambda n: HEAD + ROW + b"\n" * n + ROW),
    "carriage returns": (40_000, lambda n: HEAD + ROW + b"\r" * n + b"\n" + ROW),
    "rows ended by carriage returns": (4000, lambda n: HEAD + ROW + ROW.replace(b"\n", b"\r") * n + b"\n"),
    "NUL bytes": (40_000, lambda n: HEAD + ROW + b"\x00" * n + b"\n" + ROW),
    "NUL bytes, each a line": (20_000, lambda n: HEAD + ROW + b"\x00\n" * n + ROW),
    "only NUL bytes": (40_000, lambda n: b"\x00" * n),
    "surplus commas": (4000, lambda n: HEAD + ROW[:-1].join([b""] + [b",,,\n"] * n)),
    "words with commas": (4000, lambda n: HEAD.replace(b"5m", b"process") + b"24-11 12:00:00,1,a,b,c,3\n" * n),
    "words in every cell": (4000, lambda n: HEAD + ROW + b"24-11 12:00:00,a,b,c\n" * n),
    "exponents": (4000, lambda n: HEAD + ROW + b"24-11 12:00:00,1e400,1e-400,1.e\n" * n),
    "times of every width": (100, lambda n: HEAD + b"".join(b"1" * at + b",1,2,3\n" for at in range(60)) * n),
    "times out of order": (4000, turns),
    "times of half a day apart": (2000, lambda n: HEAD + b"00:00:00,1,2,3\n23:59:59,1,2,3\n" * n),
    "rows of all years": (20, lambda n: HEAD + b"".join(b"%04d-11-24 12:00:00,1,2,3\n" % at for at in range(9999)) * n),
    "rows of a year in a zone": (40, year),
    "an hour that comes twice, over and over": (1000, repeated_hour),
    "many columns": (400, lambda n: named("g", *[str(at) for at in range(n)])),
    "many columns of one name": (400, lambda n: named("g", *["a"] * n)),
    "many columns that look repeated": (
        400,
        lambda n: named("g", *[f"a#{at}" for at in range(n // 2)] + ["a"] * (n // 2)),
    ),
    "restarts": (100, restarts),
    "restarts with dates of their own": (
        40,
        lambda n: restarts(n, lambda at: f"{at % 28 + 1:02d} Nov {2000 + at % 90} 12:00:00 -03"),
    ),
    "restarts with columns of their own": (12, lambda n: restarts(n, names=lambda at: f'"{at % 12}","{at // 12}"')),
    "restarts with columns of their own, rejected": (1000, lambda n: restarts(n, names=lambda at: f'"{at}","x"')),
    "JSON": (10_000, lambda n: HEAD + ROW + b'{"a":' * n + b"\n" + ROW),
    "brackets": (40_000, lambda n: b"[" * n),
    "gzip members": (200, lambda n: gzip.compress(HEAD + ROW) * n),
    "a gzip bomb": (400_000, lambda n: gzip.compress(HEAD + ROW + bytes(n))),
}


@pytest.mark.parametrize("shape", part(list(SHAPES), 0, 3))
def test_a_log_that_grows_eightfold_takes_no_more_than_twenty_times_the_cpu(shape: str) -> None:
    size, make = SHAPES[shape]

    def work(data: bytes) -> None:
        read_columns.cache_clear()
        parse_logs([Log(data, NOON_US, NOON_US + 3_600_000_000)])

    sound(parse_logs([Log(make(size), NOON_US)])[0])
    assert_linear(make, work, size)


def test_many_logs_with_other_columns_each_take_time_in_proportion() -> None:
    def make(count: int) -> list[Log]:
        return [Log(named("g", *[f"{log}.{at}" for at in range(4)]), NOON_US) for log in range(count)]

    assert_linear(make, parse_logs, 20)


NAMES: dict[str, Callable[[int], list[str]]] = {
    "one name": lambda n: ["g:a"] * n,
    "a name and what it becomes": lambda n: [f"g:a#{at}" for at in range(n)] + ["g:a"] * n,
    "marks of repetition": lambda n: ["g:" + "#1" * n],
    "digits behind a mark": lambda n: ["g:#" + "1" * n + "x"],
    "colons": lambda n: [":" * n],
}


@pytest.mark.parametrize("shape", NAMES)
def test_names_are_made_distinct_in_linear_time(shape: str) -> None:
    assert_linear(NAMES[shape], unique_names, 2000)
    assert_linear(NAMES[shape], short_names, 2000)


def test_the_interval_of_a_command_line_is_found_in_linear_time() -> None:
    for piece in (b" ", b"1", b"-C ", b"\x00", b"1.1.", b"1e"):
        assert_linear(lambda size, piece=piece: b"dstat " + piece * size, interval_of, 20_000)  # type: ignore[misc]


def test_samples_of_many_starts_of_a_recorder_are_separated_in_linear_time() -> None:
    def make(count: int) -> Part:
        times = np.arange(count, dtype=np.int64)
        return Part(times, times * 0, times, times == 0, np.zeros((count, 1)), np.ones(1, bool))

    assert_linear(make, lambda part: unseen(part, {}), 1000)

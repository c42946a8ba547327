"""Rows become lines of a listing: each row is accounted for once, whatever a table holds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciml.errors import CimlError
from ciml.events.listing import Reading, decode_line
from ciml.transforms.results import convert
from ciml.transforms.results.convert import REASONS, BadRow, Conversion, GoodRow
from ciml.transforms.results.table import Row, open_results
from tests.growth import assert_linear
from tests.tier import tries

READING = Reading(logs="/srv/logs")
GOOD = {
    "run_id": "r1", "job": "unit", "result": "SUCCESS", "start": "2026-11-24T12:00:00Z", "log": "a.csv", "team": "red"
}  # fmt: skip


class Cells:
    """A table of Python values."""

    name, form = "results.csv", "Python"

    def __init__(self, rows: list[Mapping[str, Any]], faults: Mapping[int, str] | None = None) -> None:
        self.columns = tuple(dict.fromkeys(name for row in rows for name in row))
        self._rows, self._faults = rows, faults or {}

    def rows(self) -> Iterator[Row]:
        for number, cells in enumerate(self._rows, 1):
            fault = self._faults.get(number, "")
            yield Row(number, {} if fault else cells, fault)


def converted(*rows: Mapping[str, Any], **how: Any) -> list[GoodRow | BadRow]:
    return list(Conversion(Cells(list(rows)), READING, **how).rows())


def one(**changes: Any) -> Any:
    """What becomes of a row with these changes, beside a good one."""
    first, second = converted({**GOOD, "run_id": "r0"}, {**GOOD, **changes})
    assert isinstance(first, GoodRow)
    return json.loads(second.line) if isinstance(second, GoodRow) else second


def test_a_row_is_a_line_in_the_listings_words() -> None:
    assert one(provider="ovh", change=12345.0, attempt="2.0", note=None, size=1.5) == {
        "build_uuid": "r1", "build_name": "unit", "result": "SUCCESS", "start_time": "2026-11-24T12:00:00Z",
        "log_path": "a.csv", "node_provider": "ovh", "change": "12345", "attempt": 2,
        "labels": {"team": "red", "size": 1.5},
    }  # fmt: skip
    line = one(result=137)
    assert (line["result"], line["outcome"]) == ("137", "failure")
    assert one(start=1_795_521_600_000)["start_time"] == "2026-11-24T12:00:00Z"
    assert one(labels={"a": 1, "b": None})["labels"] == {"team": "red", "a": 1}
    assert one(when=datetime(2026, 1, 1, tzinfo=UTC), day=date(2026, 1, 1))["labels"] == {
        "team": "red", "when": "2026-01-01T00:00:00+00:00", "day": "2026-01-01"
    }  # fmt: skip


def test_a_secret_becomes_no_label() -> None:
    rows = converted({**GOOD, "api_token": "s3cr3t"})
    assert isinstance(rows[0], GoodRow)
    assert decode_line(rows[0].line, READING).facts.labels == {"team": "red", "api_token": "REDACTED"}


def test_a_label_may_have_the_name_of_a_field() -> None:
    rows = converted({**GOOD, "change": "no", "pr": 7}, mapping={"pr": "change"})
    assert isinstance(rows[0], GoodRow)
    facts = decode_line(rows[0].line, READING).facts
    assert (facts.change, facts.labels) == ("7", {"team": "red", "change": "no"})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"start": "2026-11-24 12:00:00"}, ("no_zone", "start", "'2026-11-24 12:00:00'")),
        ({"start": "soon"}, ("bad_time", "start", "'soon'")),
        ({"end": "2026-11-24T11:00:00Z"}, ("bad_time", "end", "'2026-11-24T11:00:00Z'")),
        ({"result": "weird"}, ("bad_result", "result", "'weird'")),
        ({"result": ""}, ("missing_field", "result", "''")),
        ({"result": None}, ("missing_field", "result", "")),
        ({"start": None}, ("missing_field", "start", "")),
        ({"log": None}, ("missing_field", "log", "")),
        ({"run_id": float("nan")}, ("missing_field", "run_id", "nan")),
        ({"job": "x" * 300}, ("bad_field", "job", f"'{'x' * 59}")),
        ({"log": "/etc/passwd"}, ("bad_path", "log", "'/etc/passwd'")),
        ({"attempt": 0}, ("bad_run_id", "attempt", "0")),
        ({"run_id": "x" * 300}, ("bad_run_id", "run_id", f"'{'x' * 59}")),
        ({"job": "a\0b"}, ("bad_field", "job", "'a\\x00b'")),
        ({"team": "x" * 2000}, ("bad_field", "team", f"'{'x' * 59}")),
        ({"run_id": "r0"}, ("duplicate_id", "run_id", "'r0'")),
        ({f"l{n}": n for n in range(70)}, ("bad_field", "labels", "")),
        ({"team": "\udcff"}, ("bad_field", "", "")),
        ({"size": 1 << 70}, ("bad_field", "", "")),
    ],
)
def test_a_bad_row_names_column_and_value(changes: dict[str, Any], expected: tuple[str, str, str]) -> None:
    made = one(**changes)
    assert isinstance(made, BadRow)
    assert (made.number, *made[1:4]) == (2, *expected)
    assert made.detail
    assert made.reason in REASONS


def test_a_second_row_of_an_id_is_bad_and_another_attempt_is_not() -> None:
    rows = converted(*({**GOOD, "attempt": attempt} for attempt in (1, 2, 1)))
    assert [type(row) for row in rows] == [GoodRow, GoodRow, BadRow]
    assert rows[2].detail == "row 1 has the same id and attempt"  # type: ignore[union-attr]


def test_a_bad_cell_is_shown_without_secrets() -> None:
    made = one(start="https://user:hunter2@ci.example.org/")
    assert isinstance(made, BadRow)
    assert "hunter2" not in "".join(map(str, made))
    assert "ci.example.org" in made.value


def test_a_table_has_as_many_rows_as_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "MAX_RESULTS_ROWS", 2)
    rows = [{**GOOD, "run_id": f"r{number}"} for number in range(3)]
    assert len(converted(*rows[:2])) == 2
    with pytest.raises(CimlError, match="has more than 2 rows; split it"):
        converted(*rows)


def test_rows_that_cannot_be_read_are_bad() -> None:
    rows = list(Conversion(Cells([GOOD, GOOD], {2: "3 cells, but the header has 6"}), READING).rows())
    assert rows[1] == BadRow(2, "broken_row", "", "", "3 cells, but the header has 6")


def test_a_table_without_rows_and_a_wrong_zone_are_errors() -> None:
    with pytest.raises(CimlError, match=r"results\.csv has no row"):
        Conversion(Cells([]), READING)
    with pytest.raises(CimlError, match="unknown time zone 'Berlin'"):
        Conversion(Cells([GOOD]), READING, zone="Berlin")


cells = st.one_of(
    st.none(), st.text(max_size=40), st.integers(), st.floats(), st.booleans(), st.binary(max_size=5),
    st.datetimes(), st.datetimes(timezones=st.just(UTC)), st.dates(), st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=5), st.none() | st.text(max_size=5) | st.floats() | st.integers(), max_size=3),
    st.sampled_from(["SUCCESS", "FAILURE", "pass", "1", "0", "2026-11-24T12:00:00Z", "a/b.csv", "r1", "r2"]),
)  # fmt: skip
names = st.sampled_from([*GOOD, "end", "attempt", "labels", "change", "provider", "x", ""]) | st.text(max_size=8)


@settings(max_examples=tries(200))
@given(
    rows=st.lists(st.dictionaries(names, cells, max_size=6).map(lambda some: {**GOOD, **some}), max_size=6),
    zone=st.sampled_from([None, "UTC", "Europe/Berlin"]),
    mapping=st.dictionaries(
        st.sampled_from(["x", "team", "end"]), st.sampled_from(["-", "pipeline", "job"]), max_size=1
    ),
)
def test_any_table_is_an_error_or_every_row_is_counted_once(
    rows: list[dict[str, Any]], zone: str | None, mapping: dict[str, str]
) -> None:
    try:
        made = converted(*rows, zone=zone, mapping=mapping)
    except CimlError:
        return
    assert [row.number for row in made] == list(range(1, len(rows) + 1))
    ids = []
    for row in made:
        if isinstance(row, BadRow):
            assert row.reason in REASONS
            assert len(row.value) <= 80
        else:
            assert b"\n" not in row.line
            run = decode_line(row.line, READING)
            assert run.fault is None
            assert run.address.startswith("file:///srv/logs/")
            ids.append(run.facts.run_id)
    assert len(ids) == len(set(ids))


def test_many_rows_and_many_columns_take_linear_time() -> None:
    def table(count: int) -> Cells:
        return Cells([{**GOOD, "run_id": f"r{number}"} for number in range(count)])

    assert_linear(table, lambda made: list(Conversion(made, READING).rows()), 300)
    wide = {**GOOD, "log": None}
    assert_linear(
        lambda count: Cells([{**wide, **{f"c{number}": number for number in range(count)}}]),
        lambda made: list(Conversion(made, READING).rows()),
        120,
    )


pieces = st.one_of(
    st.sampled_from(
        [b"run_id,job,result,start,log\n", b"r1,unit,SUCCESS,1795521600,a.csv\n", b'{"run_id": 1}\n', b"PAR1",
         b",", b";", b"\t", b"|", b'"', b"\n", b"\r\n", b"\r", b"\xef\xbb\xbf", b"\0", b"{", b"}", b"\x1f\x8b"]
    ),
    st.binary(max_size=6),
)  # fmt: skip


@settings(max_examples=tries(200))
@given(content=st.lists(pieces, max_size=12).map(b"".join))
def test_any_bytes_are_an_error_or_rows_that_are_counted_once(tmp_path_factory: Any, content: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "results.csv"
    path.write_bytes(content)
    try:
        rows = list(Conversion(open_results(path), READING, zone="UTC").rows())
    except CimlError:
        return
    assert [row.number for row in rows] == list(range(1, len(rows) + 1))
    assert rows

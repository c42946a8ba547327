"""Columns are found by name or content, and each cell has one meaning, or is rejected with the reason that helps."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciml.errors import CimlError, RejectedInput
from ciml.limits import EARLIEST_US, LATEST_US
from ciml.transforms.results.columns import SYNONYMS, find_columns, normal_name
from ciml.transforms.results.values import (
    number_text,
    parse_attempt,
    parse_label,
    parse_path,
    parse_result,
    parse_time,
    text_of,
    zone_of,
)

ROWS = [
    {"a": f"r{n}", "b": "unit", "c": ("SUCCESS", "FAILURE")[n % 2], "d": 1_795_521_600 + n, "e": 1_795_521_700 + n,
     "f": f"x/{n}.csv.gz", "g": "red"}
    for n in range(4)
]  # fmt: skip


def found(columns: list[str], rows: list[dict] | None = None, **mapping: str) -> dict[str, tuple[str, str]]:
    made = find_columns(columns, rows or [], mapping, "results.csv")
    return {ours: (theirs, how) for ours, theirs, how in made.guesses}


def test_no_name_belongs_to_two_fields() -> None:
    names = [name for names in SYNONYMS.values() for name in names]
    assert len(names) == len(set(names))
    assert [name for name in names if normal_name(name) != name] == []
    assert [ours for ours, names in SYNONYMS.items() if names[0] != ours] == []


def test_columns_are_found_by_their_names() -> None:
    columns = "|Run ID|jobName|conclusion|Started at|completed-at|Log File|Cloud|team|Unnamed: 0".split("|")
    made = find_columns(columns, [], {}, "results.csv")
    assert {ours: theirs for ours, theirs, _ in made.guesses} == {
        "build_uuid": "Run ID", "build_name": "jobName", "result": "conclusion", "start_time": "Started at",
        "end_time": "completed-at", "log_path": "Log File", "node_provider": "Cloud",
    }  # fmt: skip
    assert {how for _, _, how in made.guesses} == {"name"}
    assert made.labels == ("team",)
    assert made.left_out == ("", "Unnamed: 0")


def test_the_likeliest_of_several_names_wins_and_the_others_are_labels() -> None:
    columns = ["id", "uuid", "job", "status", "result", "start_time_ms", "log"]
    made = find_columns(columns, [], {}, "results.csv")
    assert {ours: theirs for ours, theirs, _ in made.guesses} == {
        "build_uuid": "uuid", "build_name": "job", "result": "result", "start_time": "start_time_ms", "log_path": "log"
    }  # fmt: skip
    assert made.labels == ("id", "status")


def test_the_users_word_precedes_every_guess() -> None:
    columns = ["id", "uuid", "job", "result", "verdict", "start", "log"]
    made = find_columns(columns, [], {"id": "build_uuid", "verdict": "result", "uuid": "-"}, "results.csv")
    assert [guess for guess in made.guesses if guess.how == "given"] == [
        ("build_uuid", "id", "given"), ("result", "verdict", "given")
    ]  # fmt: skip
    assert (made.labels, made.left_out) == (("result",), ("uuid",))
    assert found(["x", "job", "result", "start", "log"], x="run_id")["build_uuid"] == ("x", "given")


def test_content_decides_where_names_do_not() -> None:
    columns = list("abcdefg")
    assert found(columns, ROWS, b="job") == {
        "build_uuid": ("a", "content"), "build_name": ("b", "given"), "result": ("c", "content"),
        "start_time": ("d", "content"), "end_time": ("e", "content"), "log_path": ("f", "content"),
    }  # fmt: skip
    turned = [{**row, "d": row["e"], "e": row["d"]} for row in ROWS]
    assert found(columns, turned, b="job")["start_time"] == ("e", "content")


def test_ambiguous_content_decides_nothing() -> None:
    two = [{**row, "g": f"other-{row['a']}"} for row in ROWS]
    with pytest.raises(
        CimlError, match=r"no column is the run id; name it by --map COLUMN=build_uuid, or add it; columns: a, b, c"
    ):
        found(list("abcdefg"), two, b="job")
    crossed = [{**row, "e": row["d"] + (-1) ** n} for n, row in enumerate(ROWS)]
    with pytest.raises(CimlError, match=r"no column is the run id or the start or end time; name them by"):
        found(list("abcdefg"), crossed, b="job")


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"jobb": "build_name"}, r"results\.csv: no column 'jobb'; did you mean 'job'\?"),
        ({"zzz": "build_name"}, r"no column 'zzz'; it has id, job, result, start, log"),
        ({"job": "nmae"}, r"unknown field 'nmae'; choose from build_uuid, attempt, "),
        ({"job": "result", "log": "result"}, r"result has two columns, 'log' is the second; give one"),
        ({"id": "-"}, r"no column is the run id"),
    ],
)
def test_mistakes_name_the_column_and_the_remedy(mapping: dict[str, str], message: str) -> None:
    with pytest.raises(CimlError, match=message):
        found(["id", "job", "result", "start", "log"], **mapping)


def test_all_that_is_missing_is_named_at_once() -> None:
    with pytest.raises(CimlError) as error:
        found(["x", "(y)"])
    assert str(error.value) == (
        "results.csv: no column is the run id, the job, the result, the path of the log or the start or end time; name "
        "them by --map COLUMN=build_uuid --map COLUMN=build_name --map COLUMN=result --map COLUMN=log_path "
        "--map COLUMN=start_time, or add them; columns: x, (y)"
    )


@pytest.mark.parametrize(
    ("columns", "hint"),
    [
        (["a1", "unit", "SUCCESS", "2026-11-24T14:39:48Z", "logs/a1.csv.gz"], "; the first row looks like a run"),
        (["a1:unit:SUCCESS"], "; only commas, semicolons, tabs or vertical bars separate columns"),
        (["job", "2026-11-24T14:39:48Z"], None),
        (["x", "2026"], None),
    ],
)
def test_a_table_without_names_of_columns_is_recognised(columns: list[str], hint: str | None) -> None:
    with pytest.raises(CimlError, match=r"no column is .*, or add (it|them)") as error:
        found(columns)
    assert hint is None or hint in str(error.value)
    assert hint is not None or "the first row" not in str(error.value)


NOON_US = 1_795_521_600_000_000  # 2026-11-24T12:00:00Z
INDIA = timezone(timedelta(hours=5, minutes=30))


def reason_of(function: Any, *arguments: Any) -> tuple[str, str]:
    with pytest.raises(RejectedInput) as rejected:
        function(*arguments)
    return rejected.value.reason, rejected.value.detail


@pytest.mark.parametrize(
    "cell",
    [
        "2026-11-24T12:00:00Z", "2026-11-24 12:00:00+00:00", "2026-11-24 12:00:00 UTC", "2026-11-24 12:00:00 GMT",
        "2026-11-24 17:30:00 +0530", " 2026-11-24T17:30:00+05:30 ", "20261124T120000Z", "2026-11-24 12:00:00",
        1_795_521_600, 1_795_521_600.0, "1795521600", "1795521600.000", Decimal("1795521600"),
        1_795_521_600_000, "1795521600000", 1_795_521_600_000.0, 1_795_521_600_000_000, 1_795_521_600_000_000_000,
        datetime(2026, 11, 24, 12, tzinfo=UTC), datetime(2026, 11, 24, 17, 30, tzinfo=INDIA),
        datetime(2026, 11, 24, 12),
    ],
)  # fmt: skip
def test_noon_in_every_form(cell: Any) -> None:
    assert parse_time(cell, "UTC") == NOON_US


def test_a_time_without_a_zone_needs_one() -> None:
    assert reason_of(parse_time, "2026-11-24 12:00:00", None) == ("no_zone", "2026-11-24 12:00:00 has no time zone")
    assert reason_of(parse_time, datetime(2026, 11, 24, 12), None)[0] == "no_zone"
    assert reason_of(parse_time, date(2026, 11, 24), None)[0] == "no_zone"
    assert parse_time("2026-11-24 13:00:00", "Europe/Berlin") == NOON_US
    assert parse_time("2026-07-24 14:00:00", "Europe/Berlin") == parse_time("2026-07-24T12:00:00Z", None)
    assert parse_time(date(2026, 11, 24), "UTC") == NOON_US - 12 * 3600 * 1_000_000
    assert parse_time("2026-11-24T12:00:00Z", "Asia/Tokyo") == NOON_US, "its own zone precedes"


def test_hours_that_clocks_skip_or_repeat() -> None:
    assert reason_of(parse_time, "2026-03-29 02:30:00", "Europe/Berlin") == (
        "bad_time", "2026-03-29 02:30:00 does not exist in Europe/Berlin, where clocks skip it"
    )  # fmt: skip
    assert parse_time("2026-10-25 02:30:00", "Europe/Berlin") == parse_time("2026-10-25T00:30:00Z", None)


@pytest.mark.parametrize(
    "cell",
    ["", "yesterday", "24.11.2026", "11/24/2026 12:00", "20261124", 0, -1, 99, 4_102_444_800, float("inf"), 10**30,
     True, b"x", [], "1" * 10_000, "9999-12-31T23:59:59", "0001-01-01T00:00:00+14:00", datetime.max,
     "1999-12-31T00:00Z", "2026-11-24T12:00:00 \ud800"],
)  # fmt: skip
def test_what_is_no_time(cell: Any) -> None:
    assert reason_of(parse_time, cell, "UTC")[0] == "bad_time"


@given(micros=st.integers(EARLIEST_US // 1000, LATEST_US // 1000 - 1).map(lambda ms: ms * 1000))
def test_units_of_epoch_numbers_are_distinguished(micros: int) -> None:
    seconds, rest = divmod(micros, 1_000_000)
    assert parse_time(micros, None) == parse_time(micros // 1000, None) == parse_time(micros * 1000, None) == micros
    assert parse_time(f"{seconds}.{rest:06d}", None) == micros
    assert parse_time(datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest), None) == micros


def test_zones_are_those_of_iana() -> None:
    assert zone_of("utc") is UTC
    for name, message in {
        "Europe/Berlim": "unknown time zone 'Europe/Berlim'; did you mean Europe/Berlin?",
        "../../etc/passwd": "unknown time zone '../../etc/passwd'; give an IANA name, such as UTC or Europe/Berlin",
        "": "unknown time zone ''",
        "\0": "unknown time zone",
    }.items():
        with pytest.raises(CimlError) as error:
            zone_of(name)
        assert message in str(error.value)


@pytest.mark.parametrize(
    ("cell", "column", "outcome"),
    [
        ("SUCCESS", "result", "success"), ("timed out", "result", "timeout"), ("pass", "status", "success"),
        ("Passed", "status", "success"), ("ok", "x", "success"), ("fail", "x", "failure"), ("UNSTABLE", "x", "failure"),
        ("cancelled", "conclusion", "cancellation"),
        (0, "exit_code", "success"), (1, "exit_code", "failure"), (137, "rc", "failure"), (-9, "rc", "failure"),
        ("0", "result", "success"), ("1.0", "result", "failure"), (2.0, "result", "failure"),
        (True, "result", "success"), ("false", "result", "failure"),
        (True, "passed", "success"), (1, "passed", "success"), ("0", "success", "failure"), (False, "ok", "failure"),
        (True, "failed", "failure"), (0, "failed", "success"), ("1", "is_failure", "failure"),
    ],
)  # fmt: skip
def test_words_and_numbers_of_results(cell: Any, column: str, outcome: str) -> None:
    assert parse_result(cell, column)[1] == outcome


@pytest.mark.parametrize(
    ("cell", "column"), [("weird", "result"), (256, "rc"), (2, "passed"), (1.5, "rc"), ("", "rc"), ("1" * 30, "rc")]
)
def test_what_is_no_result(cell: Any, column: str) -> None:
    assert reason_of(parse_result, cell, column)[0] == "bad_result"


def test_paths_lie_below_the_folder_of_logs() -> None:
    roots = ("/srv/ci logs", "logs")
    for cell, path in {
        "a/b.csv": "a/b.csv",
        "./a//b.csv": "a/b.csv",
        "/srv/ci logs/a.csv": "a.csv",
        "file:///srv/ci%20logs/a.csv": "a.csv",
        "logs/a.csv": "a.csv",
        "a/../b.csv": "b.csv",
    }.items():
        assert parse_path(cell, roots) == path
    assert parse_path("s3://bucket/ci/a.csv", ("s3://bucket/ci/",)) == "a.csv"
    for cell in "/etc/passwd ../a a/../../b https://h/a s3://other/a /srv/logs2/a . .. logs/..".split():
        assert reason_of(parse_path, cell, roots)[0] == "bad_path"


def test_texts_and_numbers() -> None:
    assert [text_of(cell) for cell in (" a ", 12, 12.0, 1.5, True, Decimal("3"))] == "a 12 12 1.5 true 3".split()
    assert [number_text(cell) for cell in ("12.0", "12.5", "v1.0", 7.0)] == ["12", "12.5", "v1.0", "7"]
    for cell in ("a\0b", "\ud800", "a\u202eb"):
        assert reason_of(text_of, cell) == ("bad_field", "holds an unprintable character")
    assert reason_of(text_of, b"caf\xe9".decode("utf-8", "surrogateescape")) == ("bad_field", "is not UTF-8")
    for cell in ([1], {"a": 1}, b"x", 1 << 63, float("inf")):
        assert reason_of(text_of, cell)[0] == "bad_field"
    assert [parse_attempt(cell) for cell in (1, "2", "3.0", 4.0)] == [1, 2, 3, 4]
    for cell in (0, -1, "x", 1.5, "1" * 10, True):
        assert reason_of(parse_attempt, cell)[0] == "bad_run_id"
    assert [parse_label(cell) for cell in ("x", 1, 0.5, True, float("nan"), [1], b"x", date(2026, 1, 2))] == [
        "x", 1, 0.5, True, None, None, None, "2026-01-02"
    ]  # fmt: skip

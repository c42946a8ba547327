"""Which column is which: the user's word first, then names, then content where it leaves one choice."""

from __future__ import annotations

import pytest

from ciml.errors import CimlError
from ciml.transforms.results.columns import SYNONYMS, find_columns, normal_name

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

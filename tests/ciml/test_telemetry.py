"""Names of columns, their selection by a pattern, and findings about a table."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciml.errors import CimlError
from ciml.telemetry import Anomaly, find_anomalies, select_columns, short_names, telemetry_columns, unique_names

#: Full names by the short name.
NAMES = {
    "usr": "total cpu usage:usr", "sys": "total cpu usage:sys", "1m": "load avg:1m", "5m": "load avg:5m",
    "15m": "load avg:15m", "used": "memory usage:used", "free": "memory usage:free", "swap:used": "swap:used",
    "swap:free": "swap:free", "read": "dsk/total:read", "io/total:read": "io/total:read", "recv": "net/lo:recv",
    "net/eth0:recv": "net/eth0:recv", "net/eth0:recv#2": "net/eth0:recv#2",
}  # fmt: skip
COLUMNS = tuple(NAMES.values())


def test_the_short_name_means_the_first_occurrence_and_is_none_of_our_own() -> None:
    assert short_names(["time", "boot", *COLUMNS]) == {full: short for short, full in NAMES.items()}
    assert short_names(own := ["system:time", "x:boot", "odd:"]) == dict(zip(own, own, strict=True))


@pytest.mark.parametrize(
    ("pattern", "want"),
    [
        ("(usr|1min)", ["total cpu usage:usr", "load avg:1m"]),
        ("(?i:USR)", ["total cpu usage:usr"]),
        ("^5min$", ["load avg:5m"]),
        ("15min", ["load avg:15m"]),
        ("^used$", ["memory usage:used"]),
        ("load avg:15min", ["load avg:15m"]),
        ("swap:", ["swap:used", "swap:free"]),
        (":read$", ["dsk/total:read", "io/total:read"]),
        ("nothing of the kind", []),
        ("", list(COLUMNS)),
    ],
)
def test_a_pattern_selects(pattern: str, want: list[str]) -> None:
    assert list(select_columns(["time", "boot", *COLUMNS], pattern)) == want


@pytest.mark.parametrize(
    "pattern", ["(", "[z-a]", "a{99999999999}", "(?P<x>a)(?P<x>b)", "x" * 1001, "(" * 900 + ")" * 900, "\\"]
)
def test_an_invalid_pattern_is_a_user_error(pattern: str) -> None:
    with pytest.raises(CimlError, match=r"features_regex has|not a regular expression"):
        select_columns(COLUMNS, pattern)


@given(st.text(max_size=30))
def test_any_text_selects_or_is_an_error(pattern: str) -> None:
    try:
        selected = select_columns(COLUMNS, pattern)
    except CimlError:
        return
    assert set(selected) <= set(COLUMNS)
    assert list(selected) == [name for name in COLUMNS if name in selected]


@given(st.lists(st.sampled_from(["a", "b", "a#2", "a#3", "", "b#2"]), max_size=12))
def test_unique_names_are_unique_and_keep_the_first(names: list[str]) -> None:
    unique = unique_names(names)
    assert [not name for name in unique] == [not name for name in names]
    filled = [name for name in unique if name]
    assert len(set(filled)) == len(filled)
    for name in set(filter(None, names)):
        assert unique[names.index(name)] == name


def table(times: list[int], **columns: list[float | None]) -> pa.Table:
    return pa.table(
        {
            "time": pa.array(times, pa.timestamp("us", tz="UTC")),
            "boot": pa.array([index == 0 for index in range(len(times))]),
            **{name.replace("_", ":"): pa.array(values, pa.float64()) for name, values in columns.items()},
        }
    )


def test_nothing_is_odd_about_a_clean_table() -> None:
    assert telemetry_columns(table([1], a_b=[1.0]).column_names) == ("a:b",)
    assert find_anomalies(table([0, 10, 20, 30], a_b=[0.0, 1.0, 2.0, 3.0])) == []
    assert find_anomalies(table([])) == []
    assert find_anomalies(table([5], a_b=[1.0])) == []
    assert find_anomalies(table([0, 10, 20, 120])) == []  # ten times the median step is no gap yet
    assert find_anomalies(table([0, 10, 20, 121])) == [Anomaly("gaps", "", 1, 1 / 3)]


def test_findings_in_order() -> None:
    odd = table([0, 10, 20, 5, 15, 400], a_x=[1.0, None, None, 1.0, 1.0, 1.0], b_x=[-1.0, 1.0, None, 1.0, 1.0, 1.0])
    assert find_anomalies(odd) == [
        Anomaly("clock_set_back", "", 1, 0.2),
        Anomaly("gaps", "", 1, 0.2),
        Anomaly("nulls", "a:x", 2, 2 / 6),
        Anomaly("nulls", "b:x", 1, 1 / 6),
        Anomaly("negative", "b:x", 1, 1 / 6),
    ]
    assert find_anomalies(odd)[2].to_json() == {"kind": "nulls", "column": "a:x", "count": 2, "share": 0.333333}
    complete = table([0, 10, 20, 30], a_x=[-1.0, 1.0, -2.0, None])
    assert [f.count for f in find_anomalies(complete.slice(1))] == [1, 1]
    assert find_anomalies(pa.concat_tables([complete.slice(0, 2), complete.slice(2)])) == find_anomalies(complete)

"""Stored runs in Python: their selection, their labels as columns, and their telemetry."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import ciml
from ciml.data_root import DataRoot
from ciml.events.records import OutcomeWord, RunFacts
from ciml.runs.arrow import text_maps
from ciml.runs.tables.row_tables import with_label_columns
from tests.runs.compacting import squeeze
from tests.runs.scenes import TRUSTED, UNTRUSTED, RawStore
from tests.transforms.samples import table

DAY_US = 86_400_000_000
HOUR_US = DAY_US // 24
JANUARY_US = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000


def run(
    number: int, job: str, outcome: OutcomeWord, day: int | None, source: str = "zuul", **labels: str
) -> tuple[RunFacts, pa.Table]:
    """A run of an hour, beginning at midnight of a day of January 2026, from 0; without a day its times are unknown."""
    start_us = None if day is None else JANUARY_US + day * DAY_US
    end_us = None if day is None else JANUARY_US + day * DAY_US + HOUR_US
    facts = RunFacts(
        f"{source}~{number}~1", str(number), job, outcome=outcome, start_us=start_us, end_us=end_us, labels=labels
    )
    first_us = start_us or 0
    times = [first_us + second * 1_000_000 for second in range(5)]
    return facts, table(times, usr=[number + second / 4 for second in range(5)])


RUNS = [
    run(0, "unit-linux", "success", 0, size="small"),
    run(1, "unit-mac", "failure", 1, size="large", node="n1"),
    run(2, "lint", "failure", 2),
    run(3, "lint", "timeout", 3, "github", exit_code="124"),
    run(4, "unit-linux", "failure", None, "github"),
]
#: Run 5 is untrusted.
UNTRUSTED_RUN = run(5, "unit-linux", "error", 5, "github", owner="a")
SECOND_DAY = datetime(2026, 1, 3, tzinfo=UTC)


@pytest.fixture
def raw(tmp_path: Path) -> RawStore:
    """Six runs of which nothing is packed. A correction made the failure of run 2 a success."""
    store = RawStore(DataRoot.open(tmp_path))
    store.add(RUNS, trust=TRUSTED)
    store.add([UNTRUSTED_RUN], trust=UNTRUSTED)
    store.add(corrections=[RUNS[2][0].replace(outcome="success")])
    return store


@pytest.mark.parametrize(
    ("criteria", "numbers"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"job": "unit-linux"}, [0, 4, 5]),
        ({"job": "unit-*"}, [0, 1, 4, 5]),
        ({"job": "unit"}, []),
        ({"job": ["lint", "*-mac"]}, [1, 2, 3]),
        ({"outcome": "failure"}, [1, 4]),
        ({"outcome": ("success", "timeout")}, [0, 2, 3]),
        ({"source": "github"}, [3, 4, 5]),
        ({"source": ["github", "zuul"], "trusted": False}, [5]),
        ({"trusted": True}, [0, 1, 2, 3, 4]),
        ({"since": SECOND_DAY}, [2, 3, 5]),
        ({"since": "2026-01-03T02:00+01:00"}, [2, 3, 5]),  # run 2 ends at that moment
        ({"since": "2026-01-03T02:00Z"}, [3, 5]),
        ({"until": SECOND_DAY}, [0, 1]),
        ({"since": "2026-01-02T00:00Z", "until": "2026-01-04T00:00Z", "job": "lint"}, [2]),
        ({"outcome": "failure", "job": "lint"}, []),
    ],
)
def test_runs_are_selected_before_and_after_they_are_packed(
    criteria: dict[str, Any], numbers: list[int], raw: RawStore, tmp_path: Path
) -> None:
    data = ciml.open(tmp_path)
    selected = data.runs(**criteria)
    assert [int(run_id.split("~")[1]) for run_id in selected["run_id"].to_pylist()] == numbers
    facts = [facts for facts, _ in (*RUNS, UNTRUSTED_RUN)]
    labels = [facts[number].labels for number in numbers]
    names = sorted({name for values in labels for name in values})
    assert [name for name in selected.column_names if name.startswith("label.")] == [f"label.{name}" for name in names]
    for name in names:
        assert selected[f"label.{name}"].to_pylist() == [values.get(name) for values in labels]
    assert [dict(values) for values in selected["labels"].to_pylist()] == labels
    squeeze(raw.store)
    assert data.runs(**criteria).equals(selected)


def test_runs_say_what_is_stored_of_their_output(raw: RawStore, tmp_path: Path) -> None:
    facts, samples = RUNS[0]
    runs = [(facts.replace(run_id=f"zuul~{name}~1"), samples) for name in "ab"]
    raw.add(runs, outputs={"zuul~a~1": b"one\ntwo"}, missing="log_forbidden")
    rows = {row["run_id"]: row for row in ciml.open(tmp_path).runs().to_pylist()}
    columns = ("output_bytes", "output_lines", "output_missing")
    assert [rows["zuul~a~1"][name] for name in columns] == [7, 2, ""]
    assert [rows["zuul~b~1"][name] for name in columns] == [None, None, "log_forbidden"]
    assert [rows[RUNS[0][0].run_id][name] for name in columns] == [None, None, "no_output"]


def test_the_most_frequent_labels_have_columns() -> None:
    values: list[Mapping[str, str]] = [{"b": "1", "c": "2"}, {}, {"c": "3", "a": "4"}, {"c": "5", "b": "6", "z": "7"}]
    runs = with_label_columns(pa.table({"labels": text_maps(values)}), most=3)
    assert runs.drop_columns("labels").to_pydict() == {
        "label.a": [None, None, "4", None],
        "label.b": ["1", None, None, "6"],
        "label.c": ["2", None, "3", "5"],
    }


def test_criteria_that_match_nothing_by_mistake_are_errors(raw: RawStore, tmp_path: Path) -> None:
    data = ciml.open(tmp_path)
    with pytest.raises(ciml.CimlError, match="unknown outcome 'failed'; choose from cancellation, error, failure"):
        data.runs(outcome="failed")  # type: ignore[arg-type]
    with pytest.raises(ciml.CimlError, match="since: '2026-01-03' has no time zone"):
        data.runs(since="2026-01-03")


def test_samples_are_those_of_the_log_whether_alone_packed_or_stored_again(raw: RawStore, tmp_path: Path) -> None:
    data = ciml.open(tmp_path)
    by_run = {facts.run_id: telemetry for facts, telemetry in (*RUNS, UNTRUSTED_RUN)}
    for _ in ("alone", "packed"):
        for run_id, telemetry in by_run.items():
            samples = data.samples(run_id)
            assert samples.to_pydict() == telemetry.to_pydict()
            assert samples.schema.field("time").type == pa.timestamp("us", "UTC")
        squeeze(raw.store)
    facts, _ = RUNS[0]
    _, longer = run(9, facts.build_name, "success", 0)
    raw.add(reclaims=[(facts, longer)])
    assert data.samples(facts.run_id).to_pydict() == longer.to_pydict()
    with pytest.raises(ciml.UnknownRunError, match=r"no stored run has the id 'zuul~77~1'; data\.runs\(\) lists"):
        data.samples("zuul~77~1")
    raw.add([run(77, "lint", "success", 9)])
    assert data.samples("zuul~77~1").num_rows == 5
    (path,) = data.runs(job="lint", since="2026-01-10T00:00Z")["path"].to_pylist()
    (tmp_path / "raw" / path).write_bytes(b"PAR1")
    with pytest.raises(ciml.IntegrityError):
        data.samples("zuul~77~1")


def test_lines_that_failed_runs_share_are_selected_by_job_and_time(tmp_path: Path) -> None:
    root = DataRoot.open(tmp_path / "data")
    store = RawStore(root)
    failed = [
        (run(number, "unit-linux", "failure", number), run(number + 3, "lint", "failure", number)) for number in (1, 2)
    ]
    for one, other in failed:
        texts = {
            one[0].run_id: b"error: mirror is unreachable\n",
            other[0].run_id: b"SyntaxError: invalid decimal literal\n",
        }
        store.add([one, other], outputs=texts)
    data = ciml.open(tmp_path / "data")
    assert [(shared.line, shared.runs) for shared in data.failures()] == [
        ("SyntaxError: invalid decimal literal", 2),
        ("error: mirror is unreachable", 2),
    ]
    (unit,) = data.failures(job="unit-*")
    assert isinstance(unit, ciml.FailedRuns)
    assert (unit.job, unit.jobs) == ("", {"unit-linux": 2})
    assert len(data.failures(since=SECOND_DAY)) == 2
    assert data.failures(since=SECOND_DAY.replace(day=9)) == []

"""A table that is loaded again, with a mapping or with further columns, completes the facts that stored runs lack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.events.records import RunFacts
from ciml.limits import MAX_LABELS
from ciml.pipelines import processor
from ciml.pipelines.backfill.load import load
from ciml.pipelines.backfill.load_report import LoadReport
from ciml.pipelines.datasets.update import create_dataset, update_dataset
from ciml.runs.run_log import find_rows
from ciml.runs.state import open_raw
from ciml.runs.verify import verify_raw
from ciml.training.data.examples import read_dataset
from ciml.training.evaluation.baselines import number_of
from ciml.trust import TrustPolicy
from tests.pipelines.backfill.tables import BEGIN, make_runs, write_csv
from tests.pipelines.backfill.test_load import ours
from tests.raw_manifest import forge

BEGIN_US = int(BEGIN.timestamp()) * 1_000_000


def renamed(rows: list[dict[str, Any]], old: str, new: str) -> list[dict[str, Any]]:
    return [{new if name == old else name: cell for name, cell in row.items()} for row in rows]


def stored(folder: Path) -> dict[str, RunFacts]:
    log, state = open_raw(DataRoot.open(folder / "data").raw)
    names = [f"backfill~run-{number}~1" for number in range(40)]
    assert state.version
    return {run_id: row.mention for run_id, row in find_rows(log, names).items()}


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, Any]]:
    return make_runs(tmp_path, 20)


def test_a_start_that_became_a_label_is_reported_with_the_mapping_that_repairs_it(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    table = write_csv(tmp_path / "results.csv", renamed(rows, "started_at", "began"))
    report = ours(tmp_path, table)
    assert report.columns.labels == ("began", "team")
    assert report.columns.not_found[:2] == ("attempt", "start_time")
    assert [(each.ours, each.theirs) for each in report.suggestions] == [("start_time", "began")]
    text = repr(report)
    assert "  not found     attempt, start_time, node_region" in text
    assert "  suggestion    --map began=start_time (column began holds times)" in text
    assert "Without start_time runs have no duration" in text
    assert {facts.start_us for facts in stored(tmp_path).values()} == {None}


def test_a_reload_with_a_mapping_completes_the_start_and_seals_a_new_version(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    table = write_csv(tmp_path / "results.csv", renamed(rows, "started_at", "began"))
    data = DataRoot.open(tmp_path / "data")
    ours(tmp_path, table)
    definition = DatasetDefinition(name="status", sample_interval="1s", span_runs=20)
    create_dataset(data, definition)
    update_dataset(data.dataset("status"))
    before = read_dataset(data.dataset("status"), TrustPolicy.load())
    assert number_of(data.raw, "duration", before.facts) is None

    report = ours(tmp_path, table, mapping={"began": "start_time"})
    assert (report.totals["reclaim"], report.completed, report.differing) == (20, {"start_time": 20}, {})
    assert repr(report).splitlines()[-2:] == ["20 completed runs.", "start_time completes 20 stored runs."]
    facts = stored(tmp_path)
    assert [facts[f"backfill~run-{number}~1"].start_us for number in range(20)] == [
        BEGIN_US + number * 60_000_000 for number in range(20)
    ]
    assert {each.labels["began"][:10] for each in facts.values()} == {"2026-11-24"}
    update_dataset(data.dataset("status"))
    after = read_dataset(data.dataset("status"), TrustPolicy.load())
    assert [span.version for span in after.snapshot.spans] == [2]
    assert number_of(data.raw, "duration", after.facts).tolist() == [5.0] * 20
    assert (after.rows.inputs == before.rows.inputs).all()
    assert verify_raw(data.raw).findings == []

    version = open_raw(data.raw)[1].version
    assert ours(tmp_path, table, mapping={"began": "start_time"}).before == 20
    assert open_raw(data.raw)[1].version == version


def test_a_table_with_a_further_column_completes_labels_and_other_values_stay(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    ours(tmp_path, write_csv(tmp_path / "results.csv", rows))
    changed = [{**row, "suite": "fast", "team": "red" if number else "blue"} for number, row in enumerate(rows)]
    changed[3]["started_at"] = BEGIN.isoformat()
    report = ours(tmp_path, write_csv(tmp_path / "more.csv", changed))
    assert (report.completed, report.differing) == ({"suite": 20}, {"start_time": 1, "team": 1})
    assert "start_time differs from that of 1 stored runs, which stays." in repr(report)
    facts = stored(tmp_path)
    assert {each.labels["suite"] for each in facts.values()} == {"fast"}
    assert facts["backfill~run-0~1"].labels["team"] == "red"
    assert facts["backfill~run-3~1"].start_us == BEGIN_US + 180_000_000


def test_a_completed_run_may_have_another_result_at_once(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    ours(tmp_path, write_csv(tmp_path / "results.csv", renamed(rows, "started_at", "began")))
    report = ours(tmp_path, write_csv(tmp_path / "more.csv", [{**row, "status": "failed"} for row in rows]))
    assert report.totals["reclaim"] == 20
    assert {facts.outcome for facts in stored(tmp_path).values()} == {"failure"}
    state = open_raw(DataRoot.open(tmp_path / "data").raw)[1]
    assert {state.index.run(f"backfill~run-{number}~1").outcome for number in range(20)} == {"failure"}


def test_facts_that_decide_on_trust_or_split_are_not_completed(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    ours(tmp_path, write_csv(tmp_path / "results.csv", rows))
    more = [{**row, "change": "7", "pipeline": "gate", "branch": "main", "review": "+2"} for row in rows]
    report = ours(tmp_path, write_csv(tmp_path / "more.csv", more))
    assert (report.completed, report.totals["repeat"]) == ({}, 20)
    assert {(each.change, each.pipeline, each.branch, each.review) for each in stored(tmp_path).values()} == {("",) * 4}


def test_an_untrusted_table_completes_no_trusted_run(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    table = write_csv(tmp_path / "results.csv", renamed(rows, "started_at", "began"))
    ours(tmp_path, table)
    none = TrustPolicy.parse('[[rule]]\nname = "none"\ntrusted = false\n')
    report = ours(tmp_path, table, mapping={"began": "start_time"}, trust=none)
    assert (report.totals["reclaim"], report.completed) == (0, {})
    assert {facts.start_us for facts in stored(tmp_path).values()} == {None}


def test_a_row_of_a_proved_sender_is_not_completed(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    ours(tmp_path, write_csv(tmp_path / "results.csv", rows))
    raw = DataRoot.open(tmp_path / "data").raw
    for version in range(1, open_raw(raw)[1].version + 1):
        forge(raw, version, lambda delta: [run["mention"].update(auth="signature") for run in delta["runs"]])
    processor._replicas._objects.clear()  # as in another process
    report = ours(tmp_path, write_csv(tmp_path / "more.csv", [{**row, "suite": "fast"} for row in rows]))
    assert (report.completed, report.totals["reclaim"]) == ({}, 0)


def test_a_completed_run_has_at_most_as_many_labels_as_the_limit(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    many = {f"label-{number:02}": "x" for number in range(MAX_LABELS - 2)}  # the team is a label too
    ours(tmp_path, write_csv(tmp_path / "results.csv", [{**row, **many} for row in rows]))
    report = ours(tmp_path, write_csv(tmp_path / "more.csv", [{**row, "more-1": "a", "more-2": "b"} for row in rows]))
    assert report.completed == {"more-1": 20}
    assert {len(facts.labels) for facts in stored(tmp_path).values()} == {MAX_LABELS}


def test_a_start_after_the_stored_end_completes_nothing(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    ours(tmp_path, write_csv(tmp_path / "results.csv", [{**row, "started_at": ""} for row in rows]))
    later = [{**row, "started_at": "2027-01-01T00:00:00Z", "finished_at": ""} for row in rows]
    report = ours(tmp_path, write_csv(tmp_path / "later.csv", later))
    assert (report.completed, report.differing) == ({}, {"start_time": 20})


def test_a_dry_run_says_what_it_would_complete(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    table = write_csv(tmp_path / "results.csv", renamed(rows, "started_at", "began"))
    ours(tmp_path, table)
    report: LoadReport = load(
        DataRoot.open(tmp_path / "data"), str(tmp_path / "logs"), table, mapping={"began": "start_time"}, dry_run=True
    )
    assert report.fact_lines() == ["start_time would complete 20 stored runs."]
    assert {facts.start_us for facts in stored(tmp_path).values()} == {None}


def test_the_same_table_again_names_what_the_first_load_named(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    (tmp_path / "logs" / rows[0]["log_file"]).unlink()
    rows[1]["status"] = "cancelled"
    table = write_csv(tmp_path / "results.csv", rows)
    how = {"source": "mine"}
    first, second = ours(tmp_path, table, **how), ours(tmp_path, table, **how)
    assert first.dead_letters == second.dead_letters == {"log_not_found": 1}
    assert first.untrusted == second.untrusted == 19
    assert second.counts_line() == "20 loaded before (18 runs, 1 ignored, 1 dead letters)."

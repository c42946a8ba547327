"""Load: own logs and a table of results become rows of the raw store, all that is usable or nothing."""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.errors import CimlError
from ciml.events.listing import Reading, open_listing
from ciml.events.records import RunFacts
from ciml.limits import MAX_LABELS
from ciml.pipelines import processor
from ciml.pipelines.backfill.backfill import backfill
from ciml.pipelines.backfill.load import load
from ciml.pipelines.backfill.load_report import LoadReport, RejectedTableError
from ciml.pipelines.backfill.plan import BackfillConfig, load_fetch_policy
from ciml.pipelines.datasets.update import create_dataset, update_dataset
from ciml.runs.reader import verify_run
from ciml.runs.run_log import find_rows
from ciml.runs.state import open_raw
from ciml.runs.verify import verify_raw
from ciml.training.data.examples import read_dataset
from ciml.training.evaluation.baselines import number_of
from ciml.trust import TrustPolicy
from tests.pipelines.backfill.tables import BEGIN, log_of, make_runs, write_csv
from tests.pipelines.ingest.ingesting import account, raw_rows
from tests.project.test_startup import loaded_by
from tests.raw_manifest import forge

BEGIN_US = int(BEGIN.timestamp()) * 1_000_000


def ours(folder: Path, table: Any, **how: Any) -> LoadReport:
    """Loads into ``folder/data``; each row is counted once, and the store holds what the report says."""
    data = DataRoot.open(folder / "data")
    before = len(raw_rows(account(data.raw)[1]))
    report = load(data, str(folder / "logs"), table, **how)
    assert report.complete
    settled = report.before + sum(report.totals.values())
    assert report.rows == report.bad.total() + report.not_selected + settled
    assert report.good + report.missing.total() == sum(report.totals.values())
    rows = raw_rows(account(data.raw)[1])
    assert len(rows) == before + report.totals["run"]
    assert [fault for run_id, file in rows.items() if (fault := verify_run(data.raw, run_id, file))] == []
    return report


def untouched(folder: Path) -> bool:
    return not (folder / "data").exists() and open_raw(DataRoot.open(folder / "data").raw)[1].version == 0


def rejected(folder: Path, table: Any, **how: Any) -> RejectedTableError:
    with pytest.raises(RejectedTableError) as error:
        load(DataRoot.open(folder / "data"), str(folder / "logs"), table, **how)
    assert error.value.exit_code == 2
    assert untouched(folder)
    return error.value


def digests(folder: Path, name: str = "data") -> dict[str, str]:
    rows = raw_rows(account(DataRoot.open(folder / name).raw)[1])
    return {run_id: file.digest for run_id, file in rows.items()}


def stored(folder: Path, name: str = "data") -> dict[str, RunFacts]:
    """The facts of all runs."""
    rows = find_rows(open_raw(DataRoot.open(folder / name).raw)[0], list(digests(folder, name)))
    return {run_id: row.mention for run_id, row in rows.items()}


def test_a_csv_of_other_names_gives_the_runs_of_a_listing(tmp_path: Path) -> None:
    rows = make_runs(tmp_path, 30)
    report = ours(tmp_path, write_csv(tmp_path / "results.csv", rows))
    assert (report.rows, report.good, report.totals["run"]) == (30, 30, 30)
    assert {guess.ours: guess.theirs for guess in report.columns.guesses} == {
        "build_uuid": "run_id", "build_name": "job_name", "result": "status", "start_time": "started_at",
        "end_time": "finished_at", "log_path": "log_file", "node_provider": "cloud",
    }  # fmt: skip
    assert report.columns.labels == ("team",)
    names = {guess.theirs: guess.ours for guess in report.columns.guesses}
    (tmp_path / "builds.jsonl").write_text(
        "".join(json.dumps({names.get(name, name): cell for name, cell in row.items()}) + "\n" for row in rows)
    )
    place = str(tmp_path / "logs")
    config = BackfillConfig(DataRoot.open(tmp_path / "listed").raw, Reading(logs=place), fetch=load_fetch_policy(place))
    backfill(config, open_listing(str(tmp_path / "builds.jsonl")))
    assert digests(tmp_path) == digests(tmp_path, "listed")
    assert stored(tmp_path) == stored(tmp_path, "listed")


def test_the_same_table_again_settles_nothing_and_a_grown_one_what_is_new(tmp_path: Path) -> None:
    rows = make_runs(tmp_path, 20)
    path = write_csv(tmp_path / "results.csv", rows)
    ours(tmp_path, path)
    version = account(DataRoot.open(tmp_path / "data").raw)[0].version
    again = ours(tmp_path, path)
    assert (again.before, again.good, sum(again.totals.values())) == (20, 0, 0)
    assert account(DataRoot.open(tmp_path / "data").raw)[0].version == version
    for row in rows[1:]:
        (tmp_path / "logs" / row["log_file"]).unlink()  # known runs need no log
    (tmp_path / "logs" / rows[0]["log_file"]).write_bytes(log_of(99))  # nor is one read
    changed = {**rows[3], "status": "failed" if rows[3]["status"] == "passed" else "passed"}
    grown = [*rows[:3], changed, *rows[4:], *make_runs(tmp_path, 5, first=20)]
    report = ours(tmp_path, write_csv(tmp_path / "grown.csv", grown))
    assert Counter({kind: count for kind, count in report.totals.items() if count}) == {
        "run": 5, "repeat": 19, "correction": 1
    }  # fmt: skip
    assert (report.known, report.missing) == (20, {})
    assert account(DataRoot.open(tmp_path / "data").raw)[0].counts["repeat", "run"] == 19


@pytest.mark.parametrize("form", ["csv", "csv with index", "semicolons", "parquet", "json", "frame", "frame of ns"])
def test_what_pandas_writes(tmp_path: Path, form: str) -> None:
    frame = pd.DataFrame(make_runs(tmp_path, 12))
    for name in ("started_at", "finished_at"):
        frame[name] = pd.to_datetime(frame[name])
    frame["pr"] = [1.0, None, 3.0] * 4
    path: Any = tmp_path / "results"
    match form:
        case "csv":
            frame.to_csv(path, index=False)
        case "csv with index":
            frame.to_csv(path)
        case "semicolons":
            frame.to_csv(path, sep=";", encoding="utf-8-sig", na_rep="NaN")
        case "parquet":
            frame.to_parquet(path)
        case "json":
            frame.to_json(path, orient="records", lines=True)
        case "frame":
            path = pa.Table.from_pandas(frame)
        case "frame of ns":
            frame["started_at"] = frame["started_at"].astype("datetime64[ns, UTC]")
            path = pa.Table.from_pandas(frame)
    report = ours(tmp_path, path)
    assert report.totals["run"] == 12
    facts = stored(tmp_path).values()
    assert {each.start_us for each in facts} == {round(at.timestamp() * 1e6) for at in frame["started_at"]}
    assert Counter(each.change for each in facts) == {"1": 4, "3": 4, "": 4}


def test_naive_times_need_a_zone(tmp_path: Path) -> None:
    frame = pd.DataFrame(make_runs(tmp_path, 12))
    for name in ("started_at", "finished_at"):
        frame[name] = pd.to_datetime(frame[name]).dt.tz_convert("Europe/Berlin").dt.tz_localize(None)
    error = rejected(tmp_path, pa.Table.from_pandas(frame))
    assert str(error).splitlines() == [
        "nothing was loaded: 12 of 12 rows of the table are unusable, and at most 10 % may be (--max-bad)",
        "  12 no_zone: name the zone of these times, such as --zone UTC or --zone Europe/Berlin (row 1, column "
        "started_at: 2026-11-24 13:00:00: 2026-11-24 13:00:00 has no time zone)",
    ]
    assert ours(tmp_path, pa.Table.from_pandas(frame), zone="Europe/Berlin").totals["run"] == 12
    assert min(each.start_us or 0 for each in stored(tmp_path).values()) == BEGIN_US


def test_twenty_bad_rows_of_a_hundred_are_too_many(tmp_path: Path) -> None:
    rows = make_runs(tmp_path, 100)
    for number in range(0, 24, 2):
        rows[number]["started_at"] = "soon"
    for number in range(1, 17, 2):
        rows[number]["run_id"] = "run-99"
    path = write_csv(tmp_path / "results.csv", rows)
    error = rejected(tmp_path, path)
    assert "20 of 100 rows of results.csv are unusable, and at most 10 % may be" in error.summary
    assert [(reason, count, [row.number for row in first]) for reason, count, first, _ in error.report.reasons()] == [
        ("bad_time", 12, [1, 3, 5]), ("duplicate_id", 8, [4, 6, 8])
    ]  # fmt: skip
    report = ours(tmp_path, path, max_bad=0.2)
    assert (report.totals["run"], report.bad) == (80, {"bad_time": 12, "duplicate_id": 8})
    assert report.examples[0][:4] == (1, "bad_time", "started_at", "'soon'")


def test_missing_logs_are_dead_letters_up_to_the_limit_and_load_nothing_beyond_it(tmp_path: Path) -> None:
    rows = make_runs(tmp_path, 40)
    for row in rows[:5]:
        (tmp_path / "logs" / row["log_file"]).unlink()
    rows[10]["status"], rows[10]["log_file"] = "cancelled", "none"  # such a run needs no log
    path = write_csv(tmp_path / "results.csv", rows)
    error = rejected(tmp_path, path)
    assert error.report.missing == {"log_not_found": 5}
    assert "5 of 40 rows" in error.summary
    report = ours(tmp_path, path, max_bad=0.125)
    assert (report.missing, report.dead_letters) == ({"log_not_found": 5}, {"log_not_found": 5})
    assert (report.totals["run"], report.totals["ignored"], report.totals["dead_letter"]) == (34, 1, 5)
    assert [(row.number, row.column) for row in report.examples] == [(1, "log_file"), (2, "log_file"), (3, "log_file")]
    assert report.examples[0].value == str(tmp_path / "logs" / rows[0]["log_file"])


def test_logs_outside_of_the_folder_are_unusable(tmp_path: Path) -> None:
    rows = make_runs(tmp_path, 3)
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "logs" / "link").symlink_to(tmp_path / "secret")
    rows[0]["log_file"], rows[1]["log_file"] = "link", "../secret"
    error = rejected(tmp_path, write_csv(tmp_path / "results.csv", rows))
    assert (error.report.missing, error.report.bad) == ({"address_not_allowed": 1}, {"bad_path": 1})


def test_paths_that_begin_with_the_folders_name(tmp_path: Path) -> None:
    rows = make_runs(tmp_path, 3)
    for row in rows:
        row["log_file"] = f"logs/{row['log_file']}"
    error = rejected(tmp_path, write_csv(tmp_path / "results.csv", rows))
    assert error.summary.endswith(f"; the paths begin with logs/: name {tmp_path} as the folder of logs")
    for row in rows:
        row["log_file"] = str(tmp_path / row["log_file"])
    assert ours(tmp_path, write_csv(tmp_path / "full.csv", rows)).totals["run"] == 3


def test_paths_of_windows_are_recognised(tmp_path: Path) -> None:
    rows = make_runs(tmp_path, 3)
    for row in rows:
        row["log_file"] = row["log_file"].replace("/", "\\")
    error = rejected(tmp_path, write_csv(tmp_path / "results.csv", rows))
    assert error.summary.endswith("; the paths have backslashes: write them with slashes")


def test_jobs_are_selected_and_the_others_wait(tmp_path: Path) -> None:
    rows = make_runs(tmp_path, 10)
    path = write_csv(tmp_path / "results.csv", rows)
    assert "no row of the selected jobs" in rejected(tmp_path, path, jobs=("none",)).summary
    report = ours(tmp_path, path, jobs=("un*",))
    assert (report.totals["run"], report.not_selected) == (5, 5)
    report = ours(tmp_path, path)
    assert (report.totals["run"], report.before) == (5, 5)


def test_an_interrupted_load_continues(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "results.csv", make_runs(tmp_path, 5))
    stop = threading.Event()
    stop.set()
    report = load(DataRoot.open(tmp_path / "data"), str(tmp_path / "logs"), path, stop=stop)
    assert (report.complete, sum(report.totals.values())) == (False, 0)
    assert ours(tmp_path, path).totals["run"] == 5


def test_progress_is_reported(tmp_path: Path) -> None:
    said: list[tuple[str, int, int | None]] = []
    ours(tmp_path, write_csv(tmp_path / "results.csv", make_runs(tmp_path, 5)), progress=lambda *now: said.append(now))
    assert ("looking for logs", 5, 5) in said
    assert said[-1] == ("loading runs", 5, 5)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"mapping": {"nothing": "result"}}, "no column 'nothing'"),
        ({"max_bad": 2.0}, "from 0 to 1, not 2"),
    ],
)
def test_mistakes_commit_nothing(tmp_path: Path, how: dict[str, Any], message: str) -> None:
    path = write_csv(tmp_path / "results.csv", make_runs(tmp_path, 3))
    with pytest.raises(CimlError, match=message):
        load(DataRoot.open(tmp_path / "data"), str(tmp_path / "logs"), path, **how)
    assert untouched(tmp_path)


def test_an_empty_table_or_no_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "empty.csv").write_text("run_id,job\n")
    for table, message in ((str(tmp_path / "empty.csv"), "has no row"), (pa.table({"run_id": []}), "has no row")):
        with pytest.raises(CimlError, match=message):
            load(DataRoot.open(tmp_path / "data"), str(tmp_path / "logs"), table)
    with pytest.raises(CimlError, match=r"LOGS .*none: no such folder"):
        load(DataRoot.open(tmp_path / "data"), str(tmp_path / "none"), pa.table({"run_id": ["x"]}))
    assert untouched(tmp_path)


@pytest.mark.engines
def test_logs_and_table_on_s3(tmp_path: Path, s3: Any) -> None:
    from ciml.storage import open_store

    rows = make_runs(tmp_path, 12)
    bucket = open_store(s3.bucket())
    for row in rows[1:]:
        bucket.create(f"ci/logs/{row['log_file']}", (tmp_path / "logs" / row["log_file"]).read_bytes())
    bucket.create("ci/results.csv", Path(write_csv(tmp_path / "results.csv", rows)).read_bytes())
    data = DataRoot.open(bucket.url("data"))
    assert not data.exists()
    report = load(data, bucket.url("ci/logs"), bucket.url("ci/results.csv"))
    assert data.exists()
    assert (report.totals["run"], report.missing) == (11, {"log_not_found": 1})
    assert report.examples[0].value == bucket.url(f"ci/logs/{rows[0]['log_file']}")


def test_it_is_light(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "results.csv", make_runs(tmp_path, 2))
    code = f"""
from ciml.data_root import DataRoot
from ciml.pipelines.backfill.load import load
assert load(DataRoot.open({str(tmp_path / "data")!r}), {str(tmp_path / "logs")!r}, {path!r}).totals["run"] == 2
"""
    assert loaded_by(code) == set()


# --- a table that is loaded again, with a mapping or with further columns, completes the facts that stored runs lack


def renamed(rows: list[dict[str, Any]], old: str, new: str) -> list[dict[str, Any]]:
    return [{new if name == old else name: cell for name, cell in row.items()} for row in rows]


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
    assert {run_id.split("~")[0] for run_id in stored(tmp_path)} == {"mine"}
    assert second.counts_line() == "20 loaded before (18 runs, 1 ignored, 1 dead letters)."

"""Load: own logs and a table of results become rows of the raw store, all that is usable or nothing."""

from __future__ import annotations

import json
import threading
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from ciml.data_root import DataRoot
from ciml.errors import CimlError
from ciml.events.listing import Reading, open_listing
from ciml.pipelines.backfill.backfill import backfill
from ciml.pipelines.backfill.load import load
from ciml.pipelines.backfill.load_report import LoadReport, RejectedTableError
from ciml.pipelines.backfill.plan import BackfillConfig, load_fetch_policy
from ciml.runs.reader import verify_run
from ciml.runs.state import open_raw
from tests.pipelines.backfill.tables import log_of, make_runs, write_csv
from tests.pipelines.ingest.ingesting import account, raw_rows
from tests.project.test_startup import loaded_by


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


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


def test_a_csv_of_other_names_gives_the_runs_of_a_listing(folder: Path) -> None:
    rows = make_runs(folder, 30)
    report = ours(folder, write_csv(folder / "results.csv", rows))
    assert (report.rows, report.good, report.totals["run"]) == (30, 30, 30)
    assert {guess.ours: guess.theirs for guess in report.columns.guesses} == {
        "build_uuid": "run_id", "build_name": "job_name", "result": "status", "start_time": "started_at",
        "end_time": "finished_at", "log_path": "log_file", "node_provider": "cloud",
    }  # fmt: skip
    assert report.columns.labels == ("team",)
    names = {guess.theirs: guess.ours for guess in report.columns.guesses}
    (folder / "builds.jsonl").write_text(
        "".join(json.dumps({names.get(name, name): cell for name, cell in row.items()}) + "\n" for row in rows)
    )
    place = str(folder / "logs")
    config = BackfillConfig(DataRoot.open(folder / "listed").raw, Reading(logs=place), fetch=load_fetch_policy(place))
    backfill(config, open_listing(str(folder / "builds.jsonl")))
    assert digests(folder) == digests(folder, "listed")
    loaded, listed = (
        {record["mention"]["run_id"]: record["mention"] for delta in account(DataRoot.open(folder / name).raw)[1]
         for record in delta["runs"]}
        for name in ("data", "listed")
    )  # fmt: skip
    assert loaded == listed


def test_the_same_table_again_settles_nothing_and_a_grown_one_what_is_new(folder: Path) -> None:
    rows = make_runs(folder, 20)
    path = write_csv(folder / "results.csv", rows)
    ours(folder, path)
    version = account(DataRoot.open(folder / "data").raw)[0].version
    again = ours(folder, path)
    assert (again.before, again.good, sum(again.totals.values())) == (20, 0, 0)
    assert account(DataRoot.open(folder / "data").raw)[0].version == version
    for row in rows[1:]:
        (folder / "logs" / row["log_file"]).unlink()  # known runs need no log
    (folder / "logs" / rows[0]["log_file"]).write_bytes(log_of(99))  # nor is one read
    changed = {**rows[3], "status": "failed" if rows[3]["status"] == "passed" else "passed"}
    grown = [*rows[:3], changed, *rows[4:], *make_runs(folder, 5, first=20)]
    report = ours(folder, write_csv(folder / "grown.csv", grown))
    assert Counter({kind: count for kind, count in report.totals.items() if count}) == {
        "run": 5, "repeat": 19, "correction": 1
    }  # fmt: skip
    assert (report.known, report.missing) == (20, {})
    assert account(DataRoot.open(folder / "data").raw)[0].counts["repeat", "run"] == 19


@pytest.mark.parametrize("form", ["csv", "csv with index", "semicolons", "parquet", "json", "frame", "frame of ns"])
def test_what_pandas_writes(folder: Path, form: str) -> None:
    frame = pd.DataFrame(make_runs(folder, 12))
    for name in ("started_at", "finished_at"):
        frame[name] = pd.to_datetime(frame[name])
    frame["pr"] = [1.0, None, 3.0] * 4
    path: Any = folder / "results"
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
    report = ours(folder, path)
    assert report.totals["run"] == 12
    facts = [record["mention"] for delta in account(DataRoot.open(folder / "data").raw)[1] for record in delta["runs"]]
    assert {each["start_us"] for each in facts} == {round(at.timestamp() * 1e6) for at in frame["started_at"]}
    assert Counter(each.get("change", "") for each in facts) == {"1": 4, "3": 4, "": 4}


def test_naive_times_need_a_zone(folder: Path) -> None:
    frame = pd.DataFrame(make_runs(folder, 12))
    for name in ("started_at", "finished_at"):
        frame[name] = pd.to_datetime(frame[name]).dt.tz_convert("Europe/Berlin").dt.tz_localize(None)
    error = rejected(folder, pa.Table.from_pandas(frame))
    assert str(error).splitlines() == [
        "nothing was loaded: 12 of 12 rows of the table are unusable, and at most 10 % may be (--max-bad)",
        "  12 no_zone: name the zone of these times, such as --zone UTC or --zone Europe/Berlin (row 1, column "
        "started_at: 2026-11-24 13:00:00: 2026-11-24 13:00:00 has no time zone)",
    ]
    assert ours(folder, pa.Table.from_pandas(frame), zone="Europe/Berlin").totals["run"] == 12
    facts = [record["mention"] for delta in account(DataRoot.open(folder / "data").raw)[1] for record in delta["runs"]]
    assert min(each["start_us"] for each in facts) == round(
        datetime.fromisoformat("2026-11-24T12:00Z").timestamp() * 1e6
    )


def test_one_bad_row_of_a_hundred_is_reported_and_left_out(folder: Path) -> None:
    rows = make_runs(folder, 100)
    rows[41]["status"] = "weird"
    report = ours(folder, write_csv(folder / "results.csv", rows))
    assert (report.totals["run"], report.bad) == (99, {"bad_result": 1})
    (bad,) = report.examples
    assert bad[:4] == (42, "bad_result", "status", "'weird'")


def test_twenty_bad_rows_of_a_hundred_are_too_many(folder: Path) -> None:
    rows = make_runs(folder, 100)
    for number in range(0, 24, 2):
        rows[number]["started_at"] = "soon"
    for number in range(1, 17, 2):
        rows[number]["run_id"] = "run-99"
    path = write_csv(folder / "results.csv", rows)
    error = rejected(folder, path)
    assert "20 of 100 rows of results.csv are unusable, and at most 10 % may be" in error.summary
    assert [(reason, count, [row.number for row in first]) for reason, count, first, _ in error.report.reasons()] == [
        ("bad_time", 12, [1, 3, 5]), ("duplicate_id", 8, [4, 6, 8])
    ]  # fmt: skip
    report = ours(folder, path, max_bad=0.2)
    assert (report.totals["run"], report.bad.total()) == (80, 20)


def test_missing_logs_are_dead_letters_up_to_the_limit(folder: Path) -> None:
    rows = make_runs(folder, 40)
    for row in rows[:4]:
        (folder / "logs" / row["log_file"]).unlink()
    rows[10]["status"], rows[10]["log_file"] = "cancelled", "none"  # such a run needs no log
    report = ours(folder, write_csv(folder / "results.csv", rows))
    assert (report.missing, report.dead_letters) == ({"log_not_found": 4}, {"log_not_found": 4})
    assert (report.totals["run"], report.totals["ignored"], report.totals["dead_letter"]) == (35, 1, 4)
    assert [(row.number, row.column) for row in report.examples] == [(1, "log_file"), (2, "log_file"), (3, "log_file")]
    assert report.examples[0].value == str(folder / "logs" / rows[0]["log_file"])


def test_too_many_missing_logs_load_nothing(folder: Path) -> None:
    rows = make_runs(folder, 40)
    for row in rows[:5]:
        (folder / "logs" / row["log_file"]).unlink()
    error = rejected(folder, write_csv(folder / "results.csv", rows))
    assert error.report.missing == {"log_not_found": 5}
    assert "5 of 40 rows" in error.summary


def test_logs_outside_of_the_folder_are_unusable(folder: Path) -> None:
    rows = make_runs(folder, 3)
    (folder / "secret").write_bytes(b"x")
    (folder / "logs" / "link").symlink_to(folder / "secret")
    rows[0]["log_file"], rows[1]["log_file"] = "link", "../secret"
    error = rejected(folder, write_csv(folder / "results.csv", rows))
    assert (error.report.missing, error.report.bad) == ({"address_not_allowed": 1}, {"bad_path": 1})


def test_paths_that_begin_with_the_folders_name(folder: Path) -> None:
    rows = make_runs(folder, 3)
    for row in rows:
        row["log_file"] = f"logs/{row['log_file']}"
    error = rejected(folder, write_csv(folder / "results.csv", rows))
    assert error.summary.endswith(f"; the paths begin with logs/: name {folder} as the folder of logs")
    for row in rows:
        row["log_file"] = str(folder / row["log_file"])
    assert ours(folder, write_csv(folder / "full.csv", rows)).totals["run"] == 3


def test_paths_of_windows_are_recognised(folder: Path) -> None:
    rows = make_runs(folder, 3)
    for row in rows:
        row["log_file"] = row["log_file"].replace("/", "\\")
    error = rejected(folder, write_csv(folder / "results.csv", rows))
    assert error.summary.endswith("; the paths have backslashes: write them with slashes")


def test_jobs_are_selected_and_the_others_wait(folder: Path) -> None:
    rows = make_runs(folder, 10)
    path = write_csv(folder / "results.csv", rows)
    assert "no row of the selected jobs" in rejected(folder, path, jobs=("none",)).summary
    report = ours(folder, path, jobs=("un*",))
    assert (report.totals["run"], report.not_selected) == (5, 5)
    report = ours(folder, path)
    assert (report.totals["run"], report.before) == (5, 5)


def test_a_source_that_no_rule_trusts_is_reported(folder: Path) -> None:
    report = ours(folder, write_csv(folder / "results.csv", make_runs(folder, 3)), source="mine")
    assert (report.untrusted, report.totals["run"]) == (3, 3)
    assert sorted(digests(folder)) == ["mine~run-0~1", "mine~run-1~1", "mine~run-2~1"]


def test_a_survey_does_nothing(folder: Path) -> None:
    path = write_csv(folder / "results.csv", make_runs(folder, 5))
    report = load(DataRoot.open(folder / "data"), str(folder / "logs"), path, dry_run=True)
    assert (report.good, report.complete, sum(report.totals.values())) == (5, False, 0)
    assert untouched(folder)


def test_an_interrupted_load_continues(folder: Path) -> None:
    path = write_csv(folder / "results.csv", make_runs(folder, 5))
    stop = threading.Event()
    stop.set()
    report = load(DataRoot.open(folder / "data"), str(folder / "logs"), path, stop=stop)
    assert (report.complete, sum(report.totals.values())) == (False, 0)
    assert ours(folder, path).totals["run"] == 5


def test_progress_is_reported(folder: Path) -> None:
    said: list[tuple[str, int, int | None]] = []
    ours(folder, write_csv(folder / "results.csv", make_runs(folder, 5)), progress=lambda *now: said.append(now))
    assert ("looking for logs", 5, 5) in said
    assert said[-1] == ("loading runs", 5, 5)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"zone": "Mars"}, "unknown time zone 'Mars'"),
        ({"mapping": {"nothing": "result"}}, "no column 'nothing'"),
        ({"max_bad": 2.0}, "from 0 to 1, not 2"),
        ({"source": "My CI"}, "'My CI' is not a source name"),
    ],
)
def test_mistakes_commit_nothing(folder: Path, how: dict[str, Any], message: str) -> None:
    path = write_csv(folder / "results.csv", make_runs(folder, 3))
    with pytest.raises(CimlError, match=message):
        load(DataRoot.open(folder / "data"), str(folder / "logs"), path, **how)
    assert untouched(folder)


def test_an_empty_table_or_no_folder_is_an_error(folder: Path) -> None:
    (folder / "logs").mkdir()
    (folder / "empty.csv").write_text("run_id,job\n")
    for table, message in ((str(folder / "empty.csv"), "has no row"), (pa.table({"run_id": []}), "has no row")):
        with pytest.raises(CimlError, match=message):
            load(DataRoot.open(folder / "data"), str(folder / "logs"), table)
    with pytest.raises(CimlError, match=r"LOGS .*none: no such folder"):
        load(DataRoot.open(folder / "data"), str(folder / "none"), pa.table({"run_id": ["x"]}))
    assert untouched(folder)


@pytest.mark.engines
def test_logs_and_table_on_s3(folder: Path, s3: Any) -> None:
    from ciml.storage import open_store

    rows = make_runs(folder, 12)
    bucket = open_store(s3.bucket())
    for row in rows[1:]:
        bucket.create(f"ci/logs/{row['log_file']}", (folder / "logs" / row["log_file"]).read_bytes())
    bucket.create("ci/results.csv", Path(write_csv(folder / "results.csv", rows)).read_bytes())
    data = DataRoot.open(bucket.url("data"))
    assert not data.exists()
    report = load(data, bucket.url("ci/logs"), bucket.url("ci/results.csv"))
    assert data.exists()
    assert (report.totals["run"], report.missing) == (11, {"log_not_found": 1})
    assert report.examples[0].value == bucket.url(f"ci/logs/{rows[0]['log_file']}")


def test_it_is_light(folder: Path) -> None:
    path = write_csv(folder / "results.csv", make_runs(folder, 2))
    code = f"""
from ciml.data_root import DataRoot
from ciml.pipelines.backfill.load import load
assert load(DataRoot.open({str(folder / "data")!r}), {str(folder / "logs")!r}, {path!r}).totals["run"] == 2
"""
    assert loaded_by(code) == set()

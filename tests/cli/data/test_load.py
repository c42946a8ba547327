"""``ciml load``: what it prints, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result

from ciml.api import open as open_data
from tests.cli.calling import ciml
from tests.pipelines.backfill.tables import make_runs, write_csv


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("CIML_DATA_PATH", raising=False)
    return tmp_path


def loaded(*words: str, code: int = 0) -> Result:
    return ciml("load", "logs", "--results", "results.csv", "--data-path", "data", *words, code=code)


def test_from_a_folder_and_a_table_to_the_next_command(folder: Path) -> None:
    rows = make_runs(folder, 30)
    rows[7]["status"] = "weird"
    write_csv(folder / "results.csv", rows, ";")
    done = loaded()
    assert done.output.splitlines()[:9] == [
        "results.csv: 30 rows, text with semicolons",
        "  build_uuid    is column run_id (by its name)",
        "  build_name    is column job_name (by its name)",
        "  result        is column status (by its name)",
        "  start_time    is column started_at (by its name)",
        "  end_time      is column finished_at (by its name)",
        "  log_path      is column log_file (by its name)",
        "  node_provider is column cloud (by its name)",
        "  labels        team",
    ]
    assert done.output.splitlines()[-2:] == [
        "29 runs, 1 bad rows left out.",
        "Next: ciml dataset build --dataset first --class-label status --data-path data",
    ]
    assert "bad_result" in done.output
    assert "│ 8, status │ 'weird' │" in done.output
    again = loaded()
    assert again.output.splitlines()[-2] == "29 loaded before, 1 bad rows left out."
    assert ciml("runs", "--count", "--data-path", "data").output == "29\n"


def test_a_report_in_python_reads_as_the_command_prints_it(folder: Path) -> None:
    rows = make_runs(folder, 6)
    rows[2]["job_name"] = "other"
    write_csv(folder / "results.csv", rows)
    for options, arguments in ((["--dry-run"], {"dry_run": True}), ([], {})):
        printed = loaded("--job", "unit", *options).output.splitlines()
        report = open_data("mine", create=True).load("logs", "results.csv", jobs=["unit"], **arguments)
        assert repr(report).splitlines() == [line for line in printed if not line.startswith("Next: ")]
    rows[0]["status"] = "weird"
    write_csv(folder / "results.csv", rows)
    lines = repr(open_data("mine").load("logs", "results.csv", max_bad=0.5)).splitlines()
    assert "1 bad_result: write success or failure, or name another column by --map COLUMN=result" in lines[-2]
    assert lines[-1].endswith("1 bad rows left out.")


def test_too_many_bad_rows_load_nothing(folder: Path) -> None:
    rows = make_runs(folder, 10)
    for row in rows[:2]:
        row["started_at"] = "2026-11-24 12:00:00"
    write_csv(folder / "results.csv", rows)
    done = loaded(code=2)
    assert done.output.splitlines()[-1] == (
        "ciml: nothing was loaded: 2 of 10 rows of results.csv are unusable, and at most 10 % may be (--max-bad)"
    )
    assert "│    2 │ no_zone │ 1, started_at │ '2026-11-24 12:00:00' │ " in done.output
    assert "\nno_zone: name the zone of these times, such as --zone UTC or --zone Europe/Berlin\n" in done.output
    assert not (folder / "data").exists()
    said = json.loads(loaded("--json", code=2).stdout)
    assert (said["rows"], said["bad"], said["examples"][0]["column"]) == (10, {"no_zone": 2}, "started_at")
    assert loaded("--zone", "UTC").output.splitlines()[-2] == "10 runs."


def test_a_survey_and_results_for_programs(folder: Path) -> None:
    write_csv(folder / "results.csv", make_runs(folder, 4))
    assert loaded("--dry-run").output.splitlines()[-1] == "4 rows would be loaded; nothing was done."
    assert not (folder / "data").exists()
    said = json.loads(loaded("--json", "--job", "unit", "--map", "team=-", "--map", "cloud=project").stdout)
    assert (said["totals"]["run"], said["not_selected"], said["left_out"]) == (2, 2, ["team"])
    assert {"ours": "project", "theirs": "cloud", "how": "given"} in said["columns"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--map", "x"], "--map 'x': not COLUMN=FIELD"),
        (["--map", "status=nothing"], "unknown field 'nothing'"),
        (["--zone", "Berlin"], "unknown time zone 'Berlin'"),
        (["--source", "My CI"], "'My CI' is not a source name"),
    ],
)
def test_mistakes_are_one_line(folder: Path, words: list[str], message: str) -> None:
    write_csv(folder / "results.csv", make_runs(folder, 2))
    assert message in loaded(*words, code=2).output.splitlines()[-1]
    assert not (folder / "data").exists()


def test_dead_letters_and_untrusted_rows_are_named(folder: Path) -> None:
    rows = make_runs(folder, 20)
    (folder / "logs" / rows[0]["log_file"]).unlink()
    write_csv(folder / "results.csv", rows)
    assert loaded("--source", "mine").output.splitlines()[-4:] == [
        "19 runs, 1 dead letters.",
        "20 rows are not trusted, so no model learns from them: see --trust-policy.",
        "Dead letters: 1 log_not_found: ciml dead-letters list --data-path data",
        "Next: ciml dataset build --dataset first --class-label status --data-path data",
    ]

"""``ciml exclude``: what it stores, lists, reverts and warns of."""

from __future__ import annotations

import json
import shutil
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from click.testing import Result

from ciml.data_root import DataRoot
from ciml.runs.run_log import RunRecord
from ciml.training.exclusions import read_state
from tests.cli.calling import ciml
from tests.training.conftest import GOLDEN
from tests.training.trainer.test_excluded_models import runs


@pytest.fixture
def data(tmp_path: Path) -> Path:
    shutil.copytree(GOLDEN, tmp_path / "data")
    return tmp_path / "data"


def on(data: Path, *words: str, code: int = 0) -> Result:
    return ciml("--data-path", data, *words, code=code)


def test_it_is_stored_listed_and_reverted_and_served_models_are_named(data: Path) -> None:
    run_id = runs(DataRoot.open(data), "train")[0]
    warning = f"warning: model provider version 1 (stable) learned 1 excluded run ({run_id}) and is still served"
    assert on(data, "exclude", "list").output == "no exclusions\n"
    made = on(data, "exclude", "--run", run_id, "--reason", "disk was full", "--author", "ann")
    assert made.stdout == f"exclusion 1: run {run_id}: disk was full; stored runs that match: 1\n"
    assert made.stderr.startswith(warning)
    for words in (["exclude", "list"], ["models", "list"], ["models", "list", "provider", "--json"]):
        assert on(data, *words).stderr.startswith(warning)
    assert f"run {run_id}: disk was full\n" in on(data, "exclude", "list").stdout
    assert "stable = 1" in on(data, "models", "list", "provider").stdout
    (listed,) = json.loads(on(data, "exclude", "list", "--json").stdout)
    assert (listed["id"], listed["run_id"], listed["reason"], listed["reverted_us"]) == (
        1, run_id, "disk was full", None,
    )  # fmt: skip

    assert on(data, "exclude", "revert", "1", "--author", "bob").output == f"reverted 1: run {run_id}: disk was full\n"
    assert on(data, "models", "list").stderr == ""
    assert on(data, "exclude", "list").output == "no exclusions\n"
    assert on(data, "exclude", "list", "--all").output.endswith(f"run {run_id}: disk was full  (reverted by bob)\n")
    assert "exclusion 1: reverted already; in force: none" in on(data, "exclude", "revert", "1", code=2).output


def test_conditions_are_combined_and_times_are_utc(data: Path) -> None:
    listed = [json.loads(line) for line in on(data, "runs", "list", "--last", "99", "--json").stdout.splitlines()]
    first = min(run["path"].partition("/date=")[2][:10] for run in listed)
    begin = datetime.fromisoformat(f"{first}T00:00:00+00:00")
    job = listed[0]["build_name"][:4]
    times = ["--since", first, "--until", f"{begin.date() + timedelta(1)}T01:00+01:00"]
    made = on(data, "exclude", "--job", f"{job}*", *times, "--source", "backfill", "--reason", "bad mirror")
    (kept,) = read_state(DataRoot.open(data).exclusions).active()
    bounds = [round((begin + timedelta(day)).timestamp() * 1e6) for day in (0, 1)]
    assert [kept.exclusion.since_us, kept.exclusion.until_us] == bounds
    assert made.stdout.startswith(f"exclusion 1: job {job}*, source backfill, since {first}T00:00:00Z, until ")
    matching = int(made.stdout.rsplit(" ", 1)[1])
    assert 0 < matching <= sum(f"date={first}" in run["path"] for run in listed) < len(listed)
    nothing = on(data, "exclude", "--job", "other", "--reason", "why")
    assert "warning: no stored run matches; later ones may\n" in nothing.stderr


def test_a_fact_that_came_before_its_run_counts(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an update, which is stored with the row; training sees it, too."""
    facts = RunRecord.facts
    monkeypatch.setattr(RunRecord, "facts", property(lambda record: facts.fget(record).replace(owner="mallory")))  # type: ignore[attr-defined]
    made = on(data, "exclude", "--owner", "mallory", "--reason", "why")
    assert int(made.stdout.rsplit(" ", 1)[1]) > 0


def test_stored_texts_do_not_control_a_terminal(data: Path) -> None:
    on(data, "exclude", "--job", "a", "--reason", "why", "--author", "ann\x1b[2J")
    on(data, "exclude", "revert", "1", "--author", "\u202ebob", "--reason", "line\rtwo")
    line = on(data, "exclude", "list", "--all").stdout
    assert line.endswith("  ann\ufffd[2J: job a: why  (reverted by \ufffdbob: line\ufffdtwo)\n")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--reason", "why"], "names no runs"),
        (["--run", "zuul~a~1"], "Missing option '--reason'"),
        (["--since", "yesterday", "--reason", "why"], "invalid time 'yesterday'; give ISO 8601"),
        (["--job", "a", "--until", "2026-01-01", "--reason", "why"], "until: want a time after since"),
    ],
)
def test_a_mistake_stores_nothing(data: Path, words: list[str], line: str) -> None:
    assert line in on(data, "exclude", *words, code=2).output
    assert not (data / "exclusions").exists()


def test_nothing_is_excluded_where_a_data_set_is_missing(data: Path, tmp_path: Path) -> None:
    (tmp_path / "excluded").write_text("zuul~elsewhere~1\n")
    words = ["experiment", "train", "--estimator", "random_forest", "--exclude", str(tmp_path / "excluded")]
    before = sorted(data.rglob("*"))
    for datasets in (["--dataset", "none"], ["--dataset", "provider", "--eval-dataset", "none"]):
        assert "no data set 'none'" in on(data, *words, *datasets, code=2).stderr
        assert sorted(data.rglob("*")) == before


def test_lines_of_a_file_become_exclusions(data: Path, tmp_path: Path) -> None:
    run_id = runs(DataRoot.open(data), "train")[0]
    (tmp_path / "excluded").write_text(f"{run_id} a leak\nzuul~elsewhere~1\n")
    on(data, "experiment", "define", "tiny", "--estimator", "random_forest", "-p", "n_estimators=2")
    words = ["experiment", "train", "--experiment", "tiny", "--dataset", "provider", "--json"]
    before = json.loads(on(data, *words).stdout)["snapshot"]
    with_file = json.loads(on(data, *words, "--exclude", str(tmp_path / "excluded")).stdout)["snapshot"]
    assert with_file["excluded"] == {"a leak": 1}
    later = json.loads(on(data, *words).stdout)["snapshot"]
    assert later == with_file != before
    active = read_state(DataRoot.open(data).exclusions).active()
    assert [kept.exclusion.reason for kept in active] == ["a leak", "excluded"]
    on(data, "exclude", "revert", "1", "2")
    assert json.loads(on(data, *words).stdout)["snapshot"] == before

"""Data sets straight from the logs of a listing: the same examples as by way of a raw store, and what is left out."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partialmethod
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from ciml.cli.commands.operate.backfill import BackfillOptions
from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.errors import CimlError, EngineError
from ciml.events.listing import Reading, open_listing
from ciml.events.run_facts import facts_from_listing
from ciml.pipelines.backfill.backfill import backfill
from ciml.pipelines.datasets import listed_runs
from ciml.pipelines.datasets.build import DEFINITION, build_dataset
from ciml.pipelines.datasets.listed_runs import ListedRuns
from ciml.pipelines.datasets.update import update_dataset, verify_dataset
from ciml.training.data.examples import read_dataset
from ciml.training.data.snapshot import make_snapshot
from ciml.transforms.examples.changes import SelectedRun
from ciml.transforms.examples.from_logs import LogOf, LogReader
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.transforms.ingest import run_stages as settle
from ciml.trust import TrustPolicy
from tests.corpus import CORPUS, passed_builds
from tests.pipelines.datasets.dataset_scenes import files
from tests.pipelines.poison import fail_for
from tests.transforms.samples import resolved

ROOT = Path(__file__).parents[3]


def listing(folder: Path, builds: list[dict[str, Any]]) -> Path:
    path = folder / "listing.jsonl"
    path.write_text("".join(f"{json.dumps(build)}\n" for build in builds))
    return path


def listed(path: Path, logs: Path = CORPUS, jobs: int = 1) -> ListedRuns:
    fetch = FetchPolicy().allowing(roots=(str(logs),))
    return ListedRuns(open_listing(str(path)), Reading(logs=str(logs)), TrustPolicy.load(None), fetch, jobs=jobs)


def defined(**keys: Any) -> DatasetDefinition:
    keys = {"class_label": "project", "span_runs": 40, "features_regex": "(usr|1min)", **keys}
    return DatasetDefinition.from_json({"name": "cpu", **keys})


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"slicer": "-50:", "max_windows": "auto"},
        {"sample_interval": "1s", "max_windows": 30, "features_regex": ".", "count_first_sample": False},
        {"aggregation_functions": ["mean", "std"], "build_name": ["numpy-*", "sympy-*"]},
    ],
)
def test_the_files_are_those_that_a_raw_store_gives(tmp_path: Path, keys: dict[str, Any]) -> None:
    path = listing(tmp_path, passed_builds(100))
    stored = DataRoot.open(tmp_path / "stored")
    backfill(BackfillOptions(data_path=stored.url, logs=str(CORPUS)).load_config(), open_listing(str(path)))
    by_store = build_dataset(stored, stored, defined(**keys))
    straight = DataRoot.open(tmp_path / "straight")
    by_logs = build_dataset(listed(path), straight, defined(**keys))
    assert files(straight) == files(stored)
    assert len(files(straight)) > 2
    assert [span.to_json() for span in by_logs.state.latest()] == [span.to_json() for span in by_store.state.latest()]
    assert not list(Path(straight.url).glob("raw/*"))
    assert verify_dataset(straight.dataset("cpu")) == []


def test_what_is_kept_of_the_logs_that_decide_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = listing(tmp_path, passed_builds(60))
    kept = DataRoot.open(tmp_path / "kept")
    build_dataset(listed(path), kept, defined())
    monkeypatch.setattr(listed_runs.LogReader, "__init__", partialmethod(listed_runs.LogReader.__init__, kept_bytes=0))
    monkeypatch.setattr(listed_runs, "_LOGS_AT_ONCE", 7)
    again = DataRoot.open(tmp_path / "again")
    build_dataset(listed(path), again, defined())
    assert files(again) == files(kept)


def test_several_processes_read_and_fail_as_one_does(tmp_path: Path) -> None:
    """In a program of its own: these have no threads."""
    builds = passed_builds(100)
    builds[7]["log_path"] = "nowhere.gz"
    path = listing(tmp_path, builds)
    one = DataRoot.open(tmp_path / "one")
    state = build_dataset(listed(path), one, defined(max_windows="auto")).state
    assert state.excluded()["log_not_found"] == 1
    line = ["--dataset", "cpu", "--class-label", "project", "--features-regex", "(usr|1min)", "--jobs", "3"]
    places = ["--listing", str(path), "--logs", str(CORPUS), "--data-path", str(tmp_path / "three")]
    definition = tmp_path / "definition.toml"
    definition.write_text("span_runs = 40\n")
    command = [sys.executable, "-m", "ciml", "dataset", "build", *line, *places]
    command += ["--definition", str(definition)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert all(line.startswith("warning: ") for line in done.stderr.splitlines())  # of padding: some runs are long
    assert "log_not_found 1" in done.stdout
    assert files(DataRoot.open(tmp_path / "three")) == files(one)


def test_the_order_of_runs_does_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    """Of layouts with equal votes, the earliest decides on the columns."""
    builds = passed_builds(12)
    builds[8]["log_path"] = "nowhere.gz"
    path = listing(tmp_path, builds)
    for jobs in (1, 5):
        source = listed(path, jobs=jobs)  # not entered, so this process reads for all of them
        ((_, delta),) = source.log.since(0)
        runs = [SelectedRun.of((1, index), record) for index, record in enumerate(delta.rows)]
        ids = [facts.run_id for facts, _ in source.tables(runs)]
        assert ids == [f"backfill~{build['build_uuid']}~1" for build in builds if build != builds[8]]
        assert len(source.columns(runs)) == 11


def test_lines_count_as_a_backfill_counts_them(tmp_path: Path) -> None:
    first, second, third, *rest = passed_builds(30)
    builds = [
        first,
        {"build_name": "no-uuid"},
        second,
        {**third, "result": "ABORTED"},
        first,  # again: a repeat
        {**second, "result": "FAILURE"},  # another outcome: a correction
        {**second, "log_path": "none?token=abc"},  # another log, whose address is not recorded: the first one counts
        *rest,
    ]
    path = listing(tmp_path, builds)
    stored, straight = DataRoot.open(tmp_path / "stored"), DataRoot.open(tmp_path / "straight")
    keys = {"class_label": "status", "span_runs": 200}
    backfill(BackfillOptions(data_path=stored.url, logs=str(CORPUS)).load_config(), open_listing(str(path)))
    build_dataset(stored, stored, defined(**keys))
    source = listed(path)
    state = build_dataset(source, straight, defined(**keys)).state
    assert files(straight) == files(stored)
    labels = {run.run_id: run.label_name for span in state.latest() for run in span.runs}
    assert labels[f"backfill~{second['build_uuid']}~1"] == "passed"
    assert len(labels) == 29
    assert dict(source.log.left_out) == {
        ("repeat", "run"): 1, ("correction", "outcome"): 2, ("ignored", "cancelled"): 1,
        ("dead_letter", "missing_field"): 1,
    }  # fmt: skip


def test_a_log_that_cannot_be_used_excludes_its_run(tmp_path: Path) -> None:
    builds = passed_builds(20)
    logs = tmp_path / "logs"
    for build in builds:
        file = logs / build["log_path"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes((CORPUS / build["log_path"]).read_bytes())
    (logs / builds[0]["log_path"]).unlink()
    (logs / builds[3]["log_path"]).write_bytes(b"nothing of the kind\n")
    builds[5]["log_path"] = "https://example.org/log.txt"
    state = build_dataset(listed(listing(tmp_path, builds), logs), DataRoot.open(tmp_path / "sets"), defined()).state
    excluded = {each["run_id"].split("~")[1]: each["reason"] for span in state.latest() for each in span.excluded}
    assert excluded == {
        builds[0]["build_uuid"]: "log_not_found",
        builds[3]["build_uuid"]: "not_telemetry",
        builds[5]["build_uuid"]: "address_not_allowed",
    }
    assert sum(state.counts().values()) == 17


def test_a_log_that_cannot_be_read_now_excludes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in the place of a file cannot be had by root otherwise than by an error of the disk: so it is faked."""
    real = settle.read_logs
    monkeypatch.setattr(settle, "read_logs", lambda logs, policy: real(logs, policy, sleep=lambda _: None))
    broken = Mock(side_effect=OSError(5, "Input/output error"))
    monkeypatch.setattr("ciml.transforms.fetch.fetch.os.read", broken)
    with pytest.raises(EngineError, match="log_unavailable"):
        build_dataset(listed(listing(tmp_path, passed_builds(5))), DataRoot.open(tmp_path / "sets"), defined())
    assert not (tmp_path / "sets").exists()


def test_of_lines_with_one_recorded_address_the_first_counts(tmp_path: Path) -> None:
    (build,) = passed_builds(1)
    path = listing(tmp_path, [{**build, "log_path": f"log?token={word}"} for word in ("first", "second")])
    log = listed(path).log
    assert len(log.read(1).runs) == 1
    assert [address.rpartition("token%3D")[2] for address in log.addresses.values()] == ["first"]


def test_a_line_that_breaks_the_policy_affects_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builds = passed_builds(20)
    poisoned = f"backfill~{builds[3]['build_uuid']}~1"
    is_poison = lambda batch, _: any(each.mention.run_id == poisoned for each in batch.pending_runs)  # noqa: E731
    fail_for(monkeypatch, listed_runs, "evaluate_batch", is_poison)
    source = listed(listing(tmp_path, builds))
    state = build_dataset(source, DataRoot.open(tmp_path / "sets"), defined()).state
    assert sum(state.counts().values()) == 19
    assert dict(source.log.left_out) == {("dead_letter", "internal_error"): 1}


def test_telemetry_is_kept_up_to_a_limit_of_all_calls(tmp_path: Path) -> None:
    """A log whose telemetry is kept is not read again."""
    (build,) = passed_builds(1)
    logs = []
    for name in ("a", "b"):
        (tmp_path / name).write_bytes((CORPUS / build["log_path"]).read_bytes())
        logs.append(
            LogOf((tmp_path / name).as_uri(), facts_from_listing({**build, "build_uuid": name, "log_path": ""}))
        )
    fetch = FetchPolicy().allowing(roots=(str(tmp_path),))
    (table,) = LogReader(fetch).tables(logs[:1])
    reader = LogReader(fetch, kept_bytes=8 * table.num_rows * table.num_columns * 3 // 2)
    made = resolved(table.column_names[2:])
    for log in logs:
        reader.columns([log])
        Path(log.address.removeprefix("file://")).unlink()
    reasons = [[rejected.reason for _, rejected in reader.windows([log], made).rejected] for log in logs]
    assert reasons == [[], ["log_not_found"]]


def test_it_is_that_listings_and_no_others(tmp_path: Path) -> None:
    path, target = listing(tmp_path, passed_builds(20)), DataRoot.open(tmp_path / "sets")
    first = build_dataset(listed(path), target, defined())
    assert build_dataset(listed(path), target, defined()).sealed == ()
    moved = path.rename(tmp_path / "moved.jsonl")
    assert build_dataset(listed(moved), target, defined()).state.version == first.state.version
    with pytest.raises(CimlError, match=r"was built straight from the logs of .*listing.jsonl; choose another name"):
        build_dataset(listed(listing(tmp_path, passed_builds(21))), target, defined())
    backfill(BackfillOptions(data_path=target.url, logs=str(CORPUS)).load_config(), open_listing(str(moved)))
    with pytest.raises(CimlError, match="was built straight from the logs"):
        build_dataset(target, target, defined())
    with pytest.raises(CimlError, match="build it from a raw store first"):
        update_dataset(target.dataset("cpu"))
    with pytest.raises(CimlError, match="build it from a raw store first"):
        make_snapshot(target.dataset("cpu"), TrustPolicy.load(None))


def test_an_experiment_takes_it(tmp_path: Path) -> None:
    target = DataRoot.open(tmp_path / "sets")
    build_dataset(listed(listing(tmp_path, passed_builds(20))), target, defined())
    material = read_dataset(target.dataset("cpu"), TrustPolicy.load(None))
    assert len(material.rows.labels) == 20
    assert material.raw is None
    state = target.dataset("cpu").state()
    assert state.listing is not None
    assert state.listing["logs"] == str(CORPUS)
    assert target.dataset("cpu").store.exists(DEFINITION)

"""Updates of data sets: what a span has, what corrections make of it, and runs that a stage fails for."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import ciml.transforms.examples.from_logs
import ciml.transforms.examples.spans
import ciml.transforms.parse.logs
from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.datasets.state import SpanVersion
from ciml.errors import CimlError, EngineError
from ciml.events.listing import Reading, open_listing
from ciml.manifest.log import ManifestLog
from ciml.pipelines.datasets.build import build_dataset
from ciml.pipelines.datasets.listed_runs import ListedRuns
from ciml.pipelines.datasets.update import update_dataset, verify_dataset
from ciml.transforms.examples.spans import read_span
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.transforms.parse.logs import Log, parse_logs
from ciml.trust import TrustPolicy
from tests.pipelines.backfill.backfilling import Listed, listed
from tests.pipelines.datasets.dataset_scenes import NOON, define, ids, resolved_of, run_ids, runs, telemetry
from tests.pipelines.poison import check_detail, fail_for
from tests.raw_manifest import forge
from tests.runs.scenes import TRUSTED, UNTRUSTED, RawStore
from tests.transforms.samples import LOAD, make_examples, make_facts, table


def test_a_span_is_the_next_selected_runs_in_the_raw_manifests_order(data: DataRoot, raw: RawStore) -> None:
    define(data)
    assert update_dataset(data.dataset("cpu")).sealed == ()
    raw.add(runs(1, 3))
    update = update_dataset(data.dataset("cpu"))
    assert (update.sealed, update.waiting, update.state.cursor) == ((), 3, (1, 0))
    raw.add(runs(4, 9))
    update = update_dataset(data.dataset("cpu"), now_us=17)
    assert [(span.span, span.version) for span in update.sealed] == [(1, 1), (2, 1)]
    assert run_ids(update.state) == [ids(1, 4), ids(5, 8)]
    assert update.waiting == 1
    assert (update.state.cursor, update.state.version, update.state.time_us) == ((2, 5), 3, 17)
    assert update.sealed[0].selected == ((1, 0), (1, 1), (1, 2), (2, 0))
    assert update_dataset(data.dataset("cpu")).sealed == ()
    update = update_dataset(data.dataset("cpu"), seal=True)
    assert run_ids(update.state) == [ids(1, 4), ids(5, 8), ["9"]]
    assert (update.state.cursor, update.waiting) == ((3, 0), 0)
    assert update_dataset(data.dataset("cpu"), seal=True).sealed == ()
    assert verify_dataset(data.dataset("cpu")) == []


def test_files_are_laid_out_by_span_version_and_split_and_hold_what_the_manifest_says(
    data: DataRoot, raw: RawStore
) -> None:
    raw.add(runs(1, 8))
    define(data, tdt_split=[1, 1, 1], span_runs=8)
    (span,) = update_dataset(data.dataset("cpu")).sealed
    root = data.dataset("cpu").store
    assert set(span.files) == {"train", "dev", "test"}
    assert root.list("span-1") == sorted(
        f"span-1/version-1/{split}/examples-{file.digest[:16]}.parquet"
        for split, files in span.files.items()
        for file in files
    )
    delta = ManifestLog(root).read(2)
    assert [SpanVersion.from_json(stored) for stored in delta["spans"]] == [span]
    assert (delta["cursor"], delta["corrections_to"], delta["corrections"]) == ([1, 8], 1, [])
    assert delta["resolved"]["features"] == ["usr", "1m"]
    state = data.dataset("cpu").state()
    rows = read_span(root, span)
    direct = make_examples([run for run, _ in runs(1, 8)], [each for _, each in runs(1, 8)], resolved_of(state)).table
    assert rows.sort_by("run_id").equals(direct.sort_by("run_id"))
    assert rows.column("split").to_pylist() == sorted(rows.column("split").to_pylist(), key=list(span.files).index)
    train = read_span(root, span, splits=["train"], columns=["run_id", "usr"])
    assert train.column_names == ["run_id", "usr"]
    assert train.num_rows == span.files["train"][0].rows


def test_only_selected_jobs_are_taken_and_a_late_data_set_starts_at_record_0(data: DataRoot, raw: RawStore) -> None:
    for first in (1, 5, 9):
        raw.add(runs(first, first + 1, build_name="unit-py3") + runs(first + 2, first + 3, build_name="docs"))
    define(data, build_name=["unit-*"], span_runs=3)
    update = update_dataset(data.dataset("cpu"))
    assert run_ids(update.state) == [["1", "2", "5"], ["6", "9", "10"]]
    assert update.waiting == 0


def test_excluded_runs_belong_to_their_span(data: DataRoot, raw: RawStore) -> None:
    raw.add(
        [
            *runs(1, 1),
            (make_facts(2, outcome="error"), telemetry(2)),
            (make_facts(3), telemetry(3).drop_columns([LOAD])),
            (make_facts(4), table([NOON], usr=[None], load=[1.0])),
        ]
    )
    define(data)
    (span,) = update_dataset(data.dataset("cpu")).sealed
    assert [run.run_id for run in span.runs] == ["zuul~1~1"]
    assert span.excluded == (
        {"run_id": "zuul~2~1", "reason": "no_label"},
        {"run_id": "zuul~3~1", "reason": "missing_column", "detail": LOAD},
        {"run_id": "zuul~4~1", "reason": "empty", "detail": "no window has a value in every selected column"},
    )
    assert data.dataset("cpu").state().excluded() == {"no_label": 1, "missing_column": 1, "empty": 1}
    raw.add([(make_facts(number, outcome="error"), telemetry(number)) for number in range(5, 9)])
    (span,) = update_dataset(data.dataset("cpu")).sealed
    assert (span.runs, span.files, len(span.excluded)) == ((), {}, 4)  # a span of excluded runs alone
    assert verify_dataset(data.dataset("cpu")) == []


def test_trusted_runs_decide_on_columns_and_classes(data: DataRoot, raw: RawStore) -> None:
    wide = telemetry(1).append_column("evil:usr2", pa.array([1.0] * 5))
    raw.add([(make_facts(number, provider="evil"), wide) for number in (1, 2)], trust=UNTRUSTED)
    raw.add(runs(3, 3, provider="north") + runs(4, 4, provider="south"))
    define(data, class_label="provider")
    state = update_dataset(data.dataset("cpu")).state
    assert resolved_of(state).classes == ("north", "south")
    assert resolved_of(state).features == ("usr", "1m")
    assert [each["reason"] for each in state.latest()[0].excluded] == ["unknown_class"] * 2


def test_a_change_of_trust_after_a_correction_leaves_the_outcome(data: DataRoot, raw: RawStore) -> None:
    define(data)
    raw.add(runs(1, 2), corrections=[make_facts(1, outcome="failure", result="FAILURE")])
    raw.add(runs(3, 3))
    raw.add(runs(4, 4))
    forge(data.raw, 2, lambda delta: delta.update(trust_changes=[{"run_id": "zuul~1~1", "trust": TRUSTED.to_json()}]))
    (span,) = update_dataset(data.dataset("cpu")).sealed
    assert [run.label_name for run in span.runs] == ["failed", "passed", "failed", "passed"]
    assert data.dataset("cpu").state().corrections == {"zuul~1~1": ("failure", "FAILURE")}
    RawStore(data).add(corrections=[make_facts(2, outcome="timeout", result="TIMED_OUT")])
    (again,) = update_dataset(data.dataset("cpu")).sealed
    assert [run.label_name for run in again.runs] == ["failed", "failed", "failed", "passed"]


def test_a_profile_is_made_of_the_first_passing_runs_of_each_job(
    data: DataRoot, raw: RawStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ciml.pipelines.datasets.update.MAX_PROFILE_RUNS", 2)
    raw.add([(make_facts(number, build_name=f"job-{number % 2}"), telemetry(number)) for number in range(1, 8)])
    raw.add([(make_facts(8, outcome="failure"), telemetry(8))])
    define(data, span_runs=8, context=["profile"])
    resolved = resolved_of(update_dataset(data.dataset("cpu")).state)
    assert resolved.profiles is not None
    assert {job: profile["runs"] for job, profile in resolved.profiles["jobs"].items()} == {"job-0": 2, "job-1": 2}


def test_a_late_correction_makes_a_new_version_of_its_span(data: DataRoot, raw: RawStore) -> None:
    define(data)
    raw.add([*runs(1, 5), (make_facts(6, outcome="error"), telemetry(6)), *runs(7, 8)])
    first, second = update_dataset(data.dataset("cpu")).sealed
    raw.add(corrections=[make_facts(2, outcome="timeout", result="TIMED_OUT", project="forged")])
    (new,) = update_dataset(data.dataset("cpu")).sealed
    assert (new.span, new.version, new.selected) == (1, 2, first.selected)
    assert [run.label_name for run in new.runs] == ["passed", "failed", "failed", "passed"]
    assert [run.digest for run in new.runs] == [run.digest for run in first.runs]
    rows = read_span(data.dataset("cpu").store, new).sort_by("run_id")
    assert rows.column("result").to_pylist() == ["SUCCESS", "TIMED_OUT", "FAILURE", "SUCCESS"]
    assert set(rows.column("project").to_pylist()) == {""}  # what trust is judged by is not corrected
    # a run that had no label gains one, and one that has one loses it
    raw.add(corrections=[make_facts(6), make_facts(5, outcome="cancellation", result="ABORTED")])
    (new,) = update_dataset(data.dataset("cpu")).sealed
    assert (new.span, new.version) == (2, 2)
    assert [run.run_id for run in new.runs] == ["zuul~6~1", "zuul~7~1", "zuul~8~1"]
    assert new.excluded == ({"run_id": "zuul~5~1", "reason": "no_label"},)
    assert update_dataset(data.dataset("cpu"), seal=True).sealed == ()
    state = data.dataset("cpu").state()
    assert [(span.span, span.version) for span in state.latest()] == [(1, 2), (2, 2)]
    assert state.spans[2][1] == second
    assert verify_dataset(data.dataset("cpu")) == []


def test_a_correction_without_effect_makes_no_version(data: DataRoot, raw: RawStore) -> None:
    define(data, build_name="unit-tests")
    raw.add(runs(1, 4) + runs(5, 6, build_name="docs"))
    assert len(update_dataset(data.dataset("cpu")).sealed) == 1
    raw.add(corrections=[make_facts(3, outcome="timeout"), make_facts(5, outcome="failure"), make_facts(99)])
    assert update_dataset(data.dataset("cpu")).sealed == ()


def test_creating_again_changes_nothing_and_another_definition_is_an_error(data: DataRoot) -> None:
    define(data)
    define(data)
    assert ManifestLog(data.dataset("cpu").store).read(1)["definition"]["span_runs"] == 4
    assert data.dataset("cpu").state().version == 1
    with pytest.raises(CimlError, match="data set 'cpu' exists with another sample_interval; choose another name"):
        define(data, sample_interval="1s")
    define(data, "other")
    assert data.dataset_names() == ["cpu", "other"]


def test_users_errors_get_one_clear_line_and_commit_nothing(data: DataRoot, raw: RawStore) -> None:
    with pytest.raises(CimlError, match=r"no data set 'cpu' in .*/datasets; create it with ciml dataset create"):
        update_dataset(data.dataset("cpu"))
    with pytest.raises(CimlError, match=r"'\.\./raw' is not valid"):
        update_dataset(data.dataset("../raw"))
    raw.add(runs(1, 4))
    define(data, "one", class_label="build_name")
    with pytest.raises(CimlError, match="all runs have the class 'unit-tests'; set classes"):
        update_dataset(data.dataset("one"))
    define(data, "good")
    with pytest.raises(CimlError, match="unknown runner 'spark'; choose from fnapi, flink"):
        update_dataset(data.dataset("good"), runner="spark")
    with pytest.raises(CimlError, match="needs the job server's host:port"):
        update_dataset(data.dataset("good"), runner="flink")
    assert [data.dataset(name).state().version for name in ("one", "good")] == [1, 1]


# --- a run that a stage raises an exception for is excluded; the others are as without it


def _begins_with_5(tables: Sequence[pa.Table], *_: Any) -> bool:
    return any(table.column("total cpu usage:usr")[0].as_py() == 5.0 for table in tables)


@pytest.mark.parametrize("runner", [None, "fnapi"])
def test_a_poisoned_run_is_excluded_and_the_others_are_examples(
    data: DataRoot, raw: RawStore, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, runner: str | None
) -> None:
    stored = runs(1, 8)
    raw.add(stored)
    define(data, span_runs=8, tdt_split=[1, 1, 1])
    other = DataRoot.open(tmp_path / "other")
    RawStore(other).add([each for number, each in enumerate(stored) if number != 4])
    define(other, span_runs=7, tdt_split=[1, 1, 1])
    update_dataset(other.dataset("cpu"))  # the direct computation on the others
    fail_for(monkeypatch, ciml.transforms.examples.spans, "downsample", _begins_with_5, FloatingPointError("five"))
    (span,) = update_dataset(data.dataset("cpu"), runner=runner).sealed
    (excluded,) = span.excluded
    assert (excluded["run_id"], excluded["reason"]) == (stored[4][0].run_id, "internal_error")
    check_detail(excluded["detail"], "examples: FloatingPointError: five [")
    wanted = update_dataset(other.dataset("cpu")).state.latest()[0]
    assert span.runs == wanted.runs
    assert {split: [file.digest for file in files] for split, files in span.files.items()} == {
        split: [file.digest for file in files] for split, files in wanted.files.items()
    }
    assert read_span(data.dataset("cpu").store, span).equals(read_span(other.dataset("cpu").store, wanted))
    assert verify_dataset(data.dataset("cpu")) == []
    monkeypatch.undo()
    # a later version of the span tries it again: here one with a corrected label
    failed = stored[0][0].replace(outcome="failure", result="FAILURE")
    raw.add(corrections=[failed])
    (again,) = update_dataset(data.dataset("cpu"), runner=runner).sealed
    assert (again.version, again.excluded, len(again.runs)) == (2, (), 8)


def test_a_store_that_does_not_answer_excludes_no_run(
    data: DataRoot, raw: RawStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw.add(runs(1, 8))
    define(data, span_runs=8)
    away = EngineError("the store is away")
    fail_for(monkeypatch, ciml.transforms.examples.spans, "downsample", _begins_with_5, away)
    with pytest.raises(EngineError, match="is away"):
        update_dataset(data.dataset("cpu"))
    monkeypatch.undo()
    (span,) = update_dataset(data.dataset("cpu")).sealed
    assert (span.excluded, len(span.runs)) == ((), 8)


@pytest.mark.parametrize("stage", ["parse", "examples"])
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_poisoned_line_of_a_listing_is_excluded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, jobs: int
) -> None:
    made = listed(tmp_path / "logs", 12, tricks=False)
    line = json.loads(made.lines[5])
    text = gzip.decompress((made.folder / line["log_path"]).read_bytes()).rstrip(b"\n")
    (made.folder / "poison.csv").write_bytes(text)
    made.lines[5] = json.dumps({**line, "log_path": "poison.csv"}).encode()
    (table,) = parse_logs([Log(text)])
    assert isinstance(table, pa.Table)
    found, error = {}, FloatingPointError("text")
    for name, poison in {"good": "", "bad": stage}.items():
        with monkeypatch.context() as patch:
            if poison == "parse":
                is_text = lambda logs, *_: any(log.data == text for log in logs)  # noqa: E731
                fail_for(patch, ciml.transforms.parse.logs, "parse_logs", is_text, error)
            if poison == "examples":
                is_table = lambda tables, *_: any(each.equals(table) for each in tables)  # noqa: E731
                fail_for(patch, ciml.transforms.examples.from_logs, "downsample", is_table, error)
            found[name] = _built(made, DataRoot.open(tmp_path / name), jobs)
    good, bad = found.values()
    assert good.excluded == ()
    (excluded,) = bad.excluded
    assert (excluded["run_id"], excluded["reason"]) == (f"zuul~{line['build_uuid']}~1", "internal_error")
    assert excluded["detail"].startswith(f"{stage}: FloatingPointError: ")
    assert len(excluded["detail"]) < 1500
    assert bad.runs == tuple(run for run in good.runs if run.run_id != excluded["run_id"])


def _built(made: Listed, target: DataRoot, jobs: int) -> SpanVersion:
    keys = {"name": "cpu", "class_label": "project", "features_regex": "(usr|1min)", "span_runs": 40}
    reading, fetch = Reading("backfill", "zuul", str(made.folder)), FetchPolicy(file_roots=(str(made.folder),))
    with (
        closing(open_listing(str(made.path))) as listing,
        ListedRuns(listing, reading, TrustPolicy.load(), fetch, jobs=jobs) as source,
    ):
        (span,) = build_dataset(source, target, DatasetDefinition.from_json(keys)).sealed
    assert verify_dataset(target.dataset("cpu")) == []
    return span

"""The other checks of the demo: green on correct data, red on every planted defect."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pyarrow as pa
import pytest

from ciml.cli.demo import checks as verify
from ciml.cli.demo.checks import check_accuracy, check_predictions, check_refreshes, check_topic
from ciml.cli.demo.corpus import POOL, STATUS
from ciml.cli.demo.demo import prediction_lines
from ciml.cli.demo.result import Metrics
from ciml.datasets.definition import DatasetDefinition
from ciml.datasets.state import DatasetState, SpanRun, SpanVersion
from ciml.digest import telemetry_digest
from ciml.events.records import Origin, Outcome, OutputFile, RawFile, RunFacts, Trust
from ciml.runs.outputs import store_output
from ciml.runs.writer import write_run
from ciml.storage import LocalStore
from ciml.transforms.logs.prepare import prepare_small
from tests.cli.demo.demo_fixture import refreshed
from tests.cli.demo.test_accounts import produced

RUNS = ["r0", "r1", "r2"]
LIST = [
    produced(0, "r0", "run", rows=3),
    produced(1, "r1", "run", rows=3, trusted=False),
    produced(2, "r2", "run", rows=3),
    produced(3, "", "dead_letter", "broken_json"),
]


def table(value: float) -> pa.Table:
    times = pa.array([0, 1_000_000, 12_000_000], pa.timestamp("us", tz="UTC"))
    return pa.table({"time": times, "boot": [False] * 3, "total cpu usage:usr": [value, value + 2.0, value + 6.0]})


def stored(raw: LocalStore) -> list[Outcome]:
    outcomes = []
    for number, run_id in enumerate(RUNS):
        telemetry = table(float(number))
        data = write_run(telemetry)
        path = f"runs/job=j/date=2020-01-01/{run_id}.parquet"
        raw.create(path, data)
        file = RawFile(path, telemetry_digest(run_id, telemetry), 3, len(data))
        mention = RunFacts(run_id, run_id, "j", provider="birch" if number else "alder")
        outcomes.append(Outcome("run", Origin("t", 0, number), "k", mention, trust=Trust(True, "g", "p"), file=file))
    return outcomes


def test_raw_objects_and_rows_are_those_of_the_list(tmp_path: Path) -> None:
    raw = LocalStore(tmp_path)
    runs = stored(raw)
    files = [one.file for one in runs if one.file is not None]
    paths = {file.path for file in files}
    check = verify.check_objects(raw, runs, paths)
    assert check.passed, check.detail
    assert verify.check_raw(LIST, runs).passed
    assert not verify.check_raw(LIST, runs[1:]).passed
    assert not verify.check_raw(LIST, [*runs, runs[0]]).passed
    short = runs[0].replace(file=files[0].replace(rows=2))
    assert verify.check_raw(LIST, [short, *runs[1:]]).detail == "r0: 2 samples, not 3 samples"
    raw.create("runs/job=j/date=2020-01-01/stray.parquet", b"x")
    assert "stray" in verify.check_objects(raw, runs, paths).detail
    raw.delete("runs/job=j/date=2020-01-01/stray.parquet")
    raw.replace(files[1].path, write_run(table(99.0)))
    assert "has the digest" in verify.check_objects(raw, runs, paths).detail
    raw.delete(files[1].path)
    assert not verify.check_objects(raw, runs, paths).passed


def test_each_output_that_is_served_is_stored_with_its_run(tmp_path: Path) -> None:
    raw = LocalStore(tmp_path)
    texts = {"r0": b"ok\n3 passed\n", "r1": b""}
    rows = stored(raw)
    outputs = dict(zip(texts, prepare_small(list(texts.values())), strict=True))
    runs = [
        run.replace(output=store_output(raw, run.file, outputs[run.run_id])) if run.run_id in outputs else run
        for run in rows
        if run.file is not None
    ]
    listed = [msgspec.structs.replace(line, output=line.run_id if line.run_id in texts else "") for line in LIST]
    check = verify.check_outputs(raw, listed, runs, texts.__getitem__)
    assert (check.passed, check.detail) == (True, "2 outputs, 4 lines")
    assert verify.check_outputs(raw, listed, rows, texts.__getitem__).detail == "r0: nothing, not 3 lines (and 1 more)"
    assert verify.check_outputs(raw, LIST, runs, texts.__getitem__).detail == "r0: 3 lines, not nothing (and 1 more)"
    missing = runs[1].replace(output=OutputFile(missing="log_not_found"))
    assert "log_not_found" in verify.check_outputs(raw, listed, [runs[0], missing, runs[2]], texts.__getitem__).detail
    other = {**texts, "r0": b"ok\n2 passed\n"}
    assert "differs" in verify.check_outputs(raw, listed, runs, other.__getitem__).detail
    assert not verify.check_outputs(raw, listed, runs, {**texts, "r0": b"ok\n"}.__getitem__).passed


def span(number: int, runs: list[str], excluded: tuple[dict[str, str], ...] = ()) -> SpanVersion:
    examples = tuple(SpanRun(run, "j", "train", 0, "birch", 1, "d") for run in runs)
    return SpanVersion(number, 1, (), examples, excluded, {})


def state(*spans: SpanVersion) -> DatasetState:
    made = DatasetState()
    made.definition = DatasetDefinition(name=STATUS)
    made.spans = {one.span: {1: one} for one in spans}
    return made


def test_each_run_is_one_example_or_excluded() -> None:
    excluded = ({"run_id": "r2", "reason": "empty"},)
    good = state(span(1, ["r0"]), span(2, ["r1"], excluded))
    assert verify.check_dataset(STATUS, RUNS, good).detail == "2 examples, 1 exclusions"
    assert verify.check_dataset(STATUS, RUNS, good).passed
    nameless = ({"run_id": "r2", "reason": ""},)
    for wrong in (
        state(span(1, ["r0", "r1"])),  # lost
        state(span(1, RUNS), span(2, ["r1"])),  # twice
        state(span(1, [*RUNS, "r3"])),  # from nowhere
        state(span(1, RUNS, excluded)),  # both
        state(span(1, ["r0", "r1"], nameless)),
    ):
        assert not verify.check_dataset(STATUS, RUNS, wrong).passed


def snapshot(*runs: tuple[str, str]) -> Any:
    return SimpleNamespace(runs=lambda: [SimpleNamespace(run_id=run_id, role=role) for run_id, role in runs])


def test_no_untrusted_run_is_in_a_snapshot() -> None:
    assert verify.check_snapshots(LIST, {"s": snapshot(("r0", "train"), ("r2", "test"))}).passed
    assert not verify.check_snapshots(LIST, {"s": snapshot(("r0", "train"), ("r1", "test"))}).passed  # untrusted
    assert not verify.check_snapshots(LIST, {"s": snapshot(("r9", "train"))}).passed  # unknown
    assert not verify.check_snapshots(LIST, {"s": snapshot(("r0", "train"), ("r0", "test"))}).passed  # on both sides
    assert not verify.check_snapshots(LIST, {}).passed


@pytest.mark.parametrize(
    ("served", "stable", "passed"),
    [
        ({"m": {"gRPC": 2, "REST": 2}}, {"m": 2}, True),
        ({"m": {"gRPC": 1, "REST": 2}}, {"m": 2}, False),
        ({"m": {"gRPC": 2, "REST": None}}, {"m": 2}, False),
        ({}, {"m": None}, False),
    ],
)
def test_the_served_version_is_the_stable_one(served: Any, stable: Any, passed: bool) -> None:
    assert verify.check_served(stable, served).passed is passed


@pytest.mark.parametrize(
    ("apart", "passed"),
    [
        ({"m": (9, 2e-7)}, True),
        ({"m": (9, 2e-5)}, False),
        ({"m": (9, float("nan"))}, False),
        ({"m": (0, 0.0)}, False),
        ({}, False),
    ],
)
def test_probabilities_are_the_same(apart: Any, passed: bool) -> None:
    assert verify.check_probabilities(apart).passed is passed


def prediction(run_id: str, number: int = 1, time_us: int = 9_000_000, latency_ms: float = 10.0) -> dict[str, Any]:
    return {"run_id": run_id, "model": "m", "version": number, "time_us": time_us, "latency_ms": latency_ms}


def test_each_raw_row_is_predicted_once() -> None:
    runs = {"r0": True, "r1": False, "r2": True}
    right = [prediction(run) for run in RUNS]
    assert check_predictions(runs, right, [1]).passed
    for wrong in (right[:2], [*right, right[0]], [*right, prediction("r9")]):  # missing, twice, from nowhere
        assert not check_predictions(runs, wrong, [1]).passed
    assert not check_predictions(runs, right, [2]).passed  # by a version that was never pushed


def test_a_topic_has_each_record_once() -> None:
    assert check_topic("t", ["a", "b"], ["b", "a"]).passed
    assert check_topic("t", {"b": False, "a": True}, ["a", "b"]).passed
    for published, expected in (("a", "ab"), ("aa", "a"), ("ax", "a")):
        assert not check_topic("t", [*expected], [*published]).passed


def test_latency_counts_from_the_first_model_on() -> None:
    records = [prediction("r0", 1, 10_000_000, 9_000.0), prediction("r1", 1), prediction("r2", 2, latency_ms=30.0)]
    (line,) = prediction_lines(records, {"r1"}, since_us=5_000_000)
    assert (line.by_version, line.untrusted) == ({"1": 2, "2": 1}, 1)
    assert (line.p50_ms, line.p99_ms) == (10.0, 30.0)
    (line,) = prediction_lines(records[:1], set(), since_us=5_000_000)
    assert line.p50_ms == 9_000.0


def test_every_refresh_ends_in_a_push_or_a_reason() -> None:
    first, second, pool = refreshed(STATUS, 1, 0.4), refreshed(STATUS, 2, 0.4), refreshed(POOL, 1, 0.4)
    right = [first, refreshed(STATUS, 2, 0.3, "worse"), second, pool]
    assert check_refreshes(right).passed
    assert check_refreshes([*right, refreshed(POOL, 2, 0.4)]).passed
    assert not check_refreshes(right[1:]).passed
    assert not check_refreshes(right[:3]).passed
    assert not check_refreshes([msgspec.structs.replace(first, version=None), *right[1:]]).passed


def test_the_model_is_better_than_the_base_rate() -> None:
    good = refreshed(STATUS, 1, 0.40)
    assert check_accuracy([good]).passed
    assert not check_accuracy([good, refreshed(STATUS, 2, 0.34)]).passed
    assert check_accuracy([good, refreshed(STATUS, 2, 0.34, "worse")]).passed
    assert not check_accuracy([refreshed(POOL, 1, 0.99)]).passed
    assert not check_accuracy([msgspec.structs.replace(good, metrics=Metrics())]).passed


def test_a_finding_without_a_text_fails_its_check() -> None:
    assert not verify.make_check("x", ["", "real"], "d").passed
    assert verify.make_check("x", [], "d").passed

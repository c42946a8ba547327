"""The other checks of the demo: green on correct data, red on every planted defect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pyarrow as pa
import pytest

from ciml.cli.demo import checks as verify
from ciml.cli.demo.corpus import read_corpus
from ciml.cli.demo.definitions import POOL, STATUS, definitions
from ciml.cli.demo.demo import check_accuracy, check_refreshes, version_line
from ciml.cli.demo.direct import check_examples, direct_example
from ciml.cli.demo.predictions import check_predictions, check_topic, prediction_lines, quantile
from ciml.datasets.definition import ResolvedDefinition
from ciml.datasets.state import DatasetState, SpanRun, SpanVersion
from ciml.digest import telemetry_digest
from ciml.events.records import Origin, Outcome, RawFile, RunFacts, Trust
from ciml.runs.writer import write_run
from ciml.storage import LocalStore
from tests.cli.demo.demo_fixture import demo_result, version
from tests.cli.demo.test_accounts import produced
from tests.corpus import CORPUS

RUNS = ["r0", "r1", "r2"]
POOLS = ("alder", "birch", "cedar", "dune")
LIST = [
    produced(0, "r0", "run", rows=3),
    produced(1, "r1", "run", rows=3, trusted=False),
    produced(2, "r2", "run", rows=3),
    produced(3, "", "dead_letter", "broken_json"),
]


def table(value: float) -> pa.Table:
    times = pa.array([0, 1_000_000, 12_000_000], pa.timestamp("us", tz="UTC"))
    return pa.table({"time": times, "boot": [False] * 3, verify.PROFILE_COLUMN: [value, value + 2.0, value + 6.0]})


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


def paths(runs: list[Outcome]) -> set[str]:
    return {one.file.path for one in runs if one.file}


def test_raw_objects_that_are_right(tmp_path: Path) -> None:
    raw = LocalStore(tmp_path)
    runs = stored(raw)
    tables, check = verify.read_raw(raw, runs, paths(runs))
    assert check.passed, check.detail
    assert list(tables) == RUNS
    assert verify.check_raw(LIST, runs).passed


def test_a_missing_raw_object(tmp_path: Path) -> None:
    raw = LocalStore(tmp_path)
    runs = stored(raw)
    raw.delete(next(iter(paths(runs))))
    assert not verify.read_raw(raw, runs, paths(runs))[1].passed


def test_a_raw_object_with_other_content(tmp_path: Path) -> None:
    raw = LocalStore(tmp_path)
    runs = stored(raw)
    assert runs[1].file is not None
    raw.replace(runs[1].file.path, write_run(table(99.0)))
    check = verify.read_raw(raw, runs, paths(runs))[1]
    assert not check.passed
    assert "another digest" in check.detail


def test_an_unreferenced_raw_object(tmp_path: Path) -> None:
    raw = LocalStore(tmp_path)
    runs = stored(raw)
    raw.create("runs/job=j/date=2020-01-01/stray.parquet", b"x")
    assert "stray" in verify.read_raw(raw, runs, paths(runs))[1].detail


def test_a_raw_row_that_is_missing_twice_or_too_short(tmp_path: Path) -> None:
    runs = stored(LocalStore(tmp_path))
    assert not verify.check_raw(LIST, runs[1:]).passed
    assert not verify.check_raw(LIST, [*runs, runs[0]]).passed
    assert runs[0].file is not None
    short = runs[0].replace(file=runs[0].file.replace(rows=2))
    assert verify.check_raw(LIST, [short, *runs[1:]]).detail == "r0 has 2 samples, not 3"


def span(number: int, runs: list[str], excluded: tuple[dict[str, str], ...] = ()) -> SpanVersion:
    examples = tuple(SpanRun(run, "j", "train", 0, "birch", 1, "d") for run in runs)
    return SpanVersion(number, 1, (), examples, excluded, {})


def state(*spans: SpanVersion) -> DatasetState:
    made = DatasetState()
    made.definition = definitions(20, POOLS)[0]
    made.spans = {one.span: {1: one} for one in spans}
    return made


def test_each_run_is_one_example_or_excluded() -> None:
    excluded = ({"run_id": "r2", "reason": "empty"},)
    good = state(span(1, ["r0"]), span(2, ["r1"], excluded))
    assert verify.check_dataset(good, RUNS).detail == "2 examples, 1 exclusions"
    assert verify.check_dataset(good, RUNS).passed
    assert not verify.check_dataset(state(span(1, ["r0", "r1"])), RUNS).passed  # lost
    assert not verify.check_dataset(state(span(1, RUNS), span(2, ["r1"])), RUNS).passed  # twice
    assert not verify.check_dataset(state(span(1, [*RUNS, "r3"])), RUNS).passed  # from nowhere
    assert not verify.check_dataset(state(span(1, RUNS, excluded)), RUNS).passed  # both
    nameless = ({"run_id": "r2", "reason": ""},)
    assert not verify.check_dataset(state(span(1, ["r0", "r1"], nameless)), RUNS).passed


def snapshot(*runs: tuple[str, str]) -> Any:
    return SimpleNamespace(runs=lambda: [SimpleNamespace(run_id=run_id, role=role) for run_id, role in runs])


def test_no_untrusted_run_is_in_a_snapshot() -> None:
    assert verify.check_snapshots({"s": snapshot(("r0", "train"), ("r2", "test"))}, LIST).passed
    assert not verify.check_snapshots({"s": snapshot(("r0", "train"), ("r1", "test"))}, LIST).passed  # untrusted
    assert not verify.check_snapshots({"s": snapshot(("r9", "train"))}, LIST).passed  # unknown
    assert not verify.check_snapshots({"s": snapshot(("r0", "train"), ("r0", "test"))}, LIST).passed  # on both sides
    assert not verify.check_snapshots({}, LIST).passed


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
    assert verify.check_served(served, stable).passed is passed


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
    assert not check_predictions(runs, right[:2], [1]).passed  # one is missing
    assert not check_predictions(runs, [*right, right[0]], [1]).passed  # twice
    assert not check_predictions(runs, [*right, prediction("r9")], [1]).passed  # from nowhere
    assert not check_predictions(runs, right, [2]).passed  # by a version that was never pushed


def test_a_topic_has_each_record_once() -> None:
    assert check_topic("t", ["a", "b"], ["b", "a"]).passed
    assert not check_topic("t", ["a"], ["a", "b"]).passed
    assert not check_topic("t", ["a", "a"], ["a"]).passed
    assert not check_topic("t", ["a", "x"], ["a"]).passed


def test_latency_counts_from_the_first_model_on() -> None:
    records = [prediction("r0", 1, 10_000_000, 9_000.0), prediction("r1", 1), prediction("r2", 2, latency_ms=30.0)]
    (line,) = prediction_lines(records, {"r1"}, since_us=5_000_000)
    assert (line.by_version, line.untrusted) == ({"1": 2, "2": 1}, 1)
    assert (line.latencies_ms, line.p50_ms, line.p99_ms) == ([10.0, 30.0], 10.0, 30.0)
    (line,) = prediction_lines(records[:1], set(), since_us=5_000_000)
    assert line.latencies_ms == [9_000.0]


def test_quantiles() -> None:
    assert [quantile(range(1, 101), share) for share in (0.5, 0.99, 1.0)] == [50, 99, 100]
    assert quantile([7.0], 0.5) == 7.0


def refreshed(model: str, number: int | None, reasons: tuple[str, ...] = ()) -> dict[str, Any]:
    figures = {"value": 0.8, "low": 0.7, "high": 0.9, "runs": 100, "right": 80}
    evaluation = {"accuracy": figures, "runs": 100, "trained_on": 300, "base_rate": {**figures, "value": 0.3}}
    metrics = {"evaluation": evaluation, "baselines": {"memory": {**figures, "value": 1.0}}, "champion": None}
    seconds = {"train": 2.0, "push": 1.0}
    return {"model": model, "version": number, "reasons": list(reasons), "metrics": metrics, "seconds": seconds}


def test_every_refresh_ends_in_a_push_or_a_reason() -> None:
    right = [
        refreshed(STATUS, 1),
        refreshed(STATUS, None, ("worse",)),
        refreshed(STATUS, 2),
        refreshed(POOL, 1),
    ]
    assert check_refreshes(right).passed
    assert check_refreshes([*right, refreshed(POOL, 2)]).passed
    assert not check_refreshes(right[1:]).passed
    assert not check_refreshes(right[:3]).passed
    assert not check_refreshes([refreshed(STATUS, None), *right[1:]]).passed
    line = version_line(right[1])
    assert (line.verdict, line.why, line.number, line.one_number, line.champion, line.took_s) == (
        "kept", "worse", "memory", 1.0, None, 3.0,
    )  # fmt: skip


def test_the_model_is_better_than_the_base_rate() -> None:
    good, bad = version(STATUS, 1, 0.40), version(STATUS, 2, 0.34)
    assert check_accuracy([good]).passed
    assert not check_accuracy([good, bad]).passed
    assert check_accuracy([good, msgspec.structs.replace(bad, verdict="kept")]).passed
    assert not check_accuracy([version(POOL, 1, 0.99)]).passed


def test_one_number_is_that_of_the_last_refresh_of_each_model() -> None:
    lines = [version(STATUS, 1, 0.8), version(POOL, 1, 0.7), version(STATUS, 2, 0.9)]
    lines[2] = msgspec.structs.replace(lines[2], number="duration", one_number=0.8)
    assert demo_result(versions=lines).one_number_line() == (
        "On the same held-out runs, duration alone is right for 80.0 % (25.0–37.5) of status, "
        "and memory alone is right for 31.0 % (25.0–37.5) of pool."
    )
    assert demo_result(versions=[]).one_number_line() == ""


@pytest.fixture(scope="module")
def examples() -> tuple[dict[str, Any], dict[str, str], ResolvedDefinition]:
    from ciml.datasets.definition import resolve
    from ciml.telemetry import telemetry_columns
    from ciml.transforms.examples.prepare import make_examples
    from ciml.transforms.parse.logs import Log, parse_logs

    samples = [sample for sample in read_corpus(CORPUS) if sample.facts.provider][:12]
    logs = [(CORPUS / sample.log_path).read_bytes() for sample in samples]
    tables: Any = parse_logs([Log(log) for log in logs])
    facts = [sample.facts for sample in samples]
    resolved = resolve(definitions(20, POOLS)[1], [telemetry_columns(one.column_names) for one in tables], facts)
    made = make_examples(facts, tables, resolved)
    import gzip

    texts = {one.run_id: gzip.decompress(log).decode() for one, log in zip(facts, logs, strict=True)}
    return {row["run_id"]: row for row in made.table.to_pylist()}, texts, resolved


def test_examples_equal_the_direct_computation(examples: Any) -> None:
    rows, texts, resolved = examples
    assert len(rows) == 12
    assert not resolved.definition.count_first_sample
    assert check_examples(rows, texts, resolved).passed


def _another_value(rows: dict[str, Any]) -> None:
    next(iter(rows.values()))["usr"][2] += 0.01


def _another_count(rows: dict[str, Any]) -> None:
    next(iter(rows.values()))["n_windows"] -= 1


def _nothing(rows: dict[str, Any]) -> None:
    rows.clear()


@pytest.mark.parametrize("defect", [_another_value, _another_count, _nothing])
def test_an_example_that_differs_is_seen(examples: Any, defect: Callable[[dict[str, Any]], None]) -> None:
    rows, texts, resolved = examples
    changed = {
        run_id: {name: list(v) if isinstance(v, list) else v for name, v in row.items()} for run_id, row in rows.items()
    }
    defect(changed)
    assert not check_examples(changed, texts, resolved).passed


def test_the_direct_computation_itself() -> None:
    text = (
        '"Dstat 0.7.4 CSV output"\n"Host:","h",,,,"User:","root"\n'
        '"Cmdline:","dstat",,,,"Date:","31 Dec 2020 23:59:50 UTC"\n"system","total cpu usage",,\n"time","usr","sys"\n'
        "31-12 23:59:58,1.0,5\n31-12 23:59:59,3.0,5\n"
    )
    values, n_windows = direct_example(text, ["total cpu usage:usr"], 10, (), 5)
    assert (values, n_windows) == ({"total cpu usage:usr": [2.0]}, 1)
    values, _ = direct_example(text, ["total cpu usage:usr"], 1, ("mean", "std", "min"), 3)
    assert values["total cpu usage:usr"] == [2.0, pytest.approx(2**0.5), 1.0]
    dool = text.replace("Dstat 0.7.4", "dool 1.3.8").replace("31-12", "Dec-31")
    assert direct_example(dool, ["total cpu usage:sys", "total cpu usage:usr"], 1, (), 5, first=False) == (
        {"total cpu usage:sys": [5.0], "total cpu usage:usr": [3.0]},
        1,
    )


def test_profiles_are_means_by_provider(tmp_path: Path) -> None:
    tables = {run_id: table(float(number)) for number, run_id in enumerate(RUNS)}
    tables["r2"] = tables["r2"].set_column(1, "boot", [[True, False, False]])
    alder, birch = verify.profiles(
        {**tables, "r3": tables["r0"]}, {"r0": "alder", "r1": "birch", "r2": "birch", "r3": ""}
    )
    assert (alder.provider, alder.runs, alder.means) == ("alder", 1, [1.0, 6.0])
    assert (birch.runs, birch.means) == (2, [3.0, 7.5])

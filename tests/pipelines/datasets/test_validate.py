"""Validation of data sets as they are stored: what is compared with what, and what is computed only once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ciml.data_root import DataRoot
from ciml.errors import CimlError
from ciml.events.records import RunFacts
from ciml.pipelines.datasets.update import update_dataset
from ciml.pipelines.datasets.validate import Piece, statistics_of_pieces, validate_dataset
from ciml.serving.push import push
from ciml.serving.registry import Decision
from ciml.training.data.snapshot import make_snapshot, write_snapshot
from ciml.transforms.drift.statistics import columns_needed, merge, statistics
from ciml.transforms.examples.spans import read_span
from ciml.trust import TrustPolicy
from tests.pipelines.datasets.dataset_scenes import NOON, SECOND, define, resolved_of
from tests.runs.scenes import RawStore
from tests.training.records import excluding
from tests.transforms.samples import make_facts, table

SPAN = 30
EVERYONE = TrustPolicy.parse('[[rule]]\nname = "all of zuul"\ntrusted = true\nsource = "zuul"\n')


def some_runs(first: int, *, factor: float = 1.0, drop: str = "", **more: Any) -> list[tuple[RunFacts, pa.Table]]:
    """A span of runs: of two jobs, one in three failed."""
    out = []
    for number in range(first, first + SPAN):
        random = np.random.default_rng(number)
        columns: dict[str, Any] = {"usr": random.normal(50, 5, 6) * factor, "load": random.lognormal(1, 0.3, 6), **more}
        columns.pop(drop, None)
        outcome = "success" if number % 3 else "failure"
        facts = {"build_name": f"job-{number % 2}", "provider": "ovh", "flavour": "m1"}
        run = make_facts(number, outcome=outcome, result=outcome.upper(), **facts)
        out.append((run, table([NOON + second * 10 * SECOND for second in range(6)], **columns)))
    return out


def fill(data: DataRoot, *spans: list[tuple[RunFacts, pa.Table]], name: str = "cpu") -> None:
    raw = RawStore(data)
    for runs in spans:
        raw.add(runs)
    define(data, name, span_runs=SPAN, max_windows=8)
    update_dataset(data.dataset(name))


def test_the_newest_spans_are_compared_with_those_before(data: DataRoot) -> None:
    fill(data, some_runs(1), some_runs(101), some_runs(201), some_runs(301, factor=1 / 100))
    (found,) = validate_dataset(data, "cpu").findings
    assert (found.kind, found.what, found.runs_before, found.runs_after) == ("unit", "usr", 3 * SPAN, SPAN)
    assert found.verdict.startswith("another unit: ÷ 100 (measured × 0.0")
    assert found.since == 4
    report = validate_dataset(data, "cpu", last=3)
    assert (report.before.name, report.after.name) == ("cpu, span 1", "cpu, spans 2 to 4")
    assert report.after.statistics.runs.sum() == 3 * SPAN
    with pytest.raises(CimlError, match="data set 'cpu' has 4 spans, none before the last 4"):
        validate_dataset(data, "cpu", last=4)


def test_statistics_are_those_of_the_examples_and_computed_once(data: DataRoot) -> None:
    fill(data, some_runs(1), some_runs(101), some_runs(201))
    state, root = data.dataset("cpu").state(), data.dataset("cpu").store
    resolved = resolved_of(state)
    steps: list[tuple[int, int | None]] = []
    first = validate_dataset(data, "cpu", progress=lambda _, *counts: steps.append(counts))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    needed = columns_needed(resolved)
    direct = merge(statistics(read_span(root, span, columns=needed), resolved) for span in state.latest()[:2])
    for name, series in direct.series.items():
        np.testing.assert_allclose(first.before.statistics.series[name].mean, series.mean, rtol=1e-8)
    kept = root.list("statistics")
    assert [path.rsplit("-", 1)[0] for path in kept] == [
        f"statistics/span-{span}/{what}" for span in (1, 2, 3) for what in ("columns", "version-1")
    ]
    for span in state.latest():
        for path in span.paths:
            root.delete(path)
    for path in data.store.list("raw/runs"):
        data.store.delete(path)
    assert validate_dataset(data, "cpu").to_json() == first.to_json()


def test_a_broken_cache_is_rebuilt(data: DataRoot) -> None:
    fill(data, some_runs(1), some_runs(101))
    root = data.dataset("cpu").store
    first = validate_dataset(data, "cpu").to_json()
    kept = {path: root.read(path) for path in root.list("statistics")}
    for path in kept:
        root.replace(path, b'{"cells": [["a"]], "series": [], "layouts": [], "groups": [["a", "b", 0, 1]]}')
    assert validate_dataset(data, "cpu").to_json() == first
    assert {path: root.read(path) for path in root.list("statistics")} == kept


def test_columns_come_from_the_raw_store(data: DataRoot) -> None:
    fill(data, some_runs(1), some_runs(101, gpu__temp=np.full(6, 40.0)), some_runs(201, drop="load"))
    found = validate_dataset(data, "cpu", last=2).findings
    assert [(each.kind, each.what, each.verdict) for each in found[:2]] == [
        ("lost_column", "load avg:1m", "column lost in 50% of the runs"),
        ("new_column", "gpu:temp", "column new in 50% of the runs"),
    ]
    (lost, *others) = validate_dataset(data, "cpu").findings
    assert (lost.what, lost.before, lost.after) == ("load avg:1m", 1.0, 0.0)
    assert {(each.kind, each.what) for each in others} == {("mix", "exclusions"), ("lost_column", "gpu:temp")}


def test_without_the_raw_store_columns_are_not_known(data: DataRoot, tmp_path: Path) -> None:
    fill(data, some_runs(1), some_runs(101, gpu__temp=np.full(6, 40.0)))
    alone = DataRoot.open(tmp_path / "alone")
    for path in data.store.list("datasets"):
        alone.store.create(path, data.store.read(path))
    for _ in range(2):
        report = validate_dataset(alone, "cpu")
        assert (report.findings, report.before.columns, report.after.columns) == ((), None, None)
        for first in (501, 601):  # then, a raw store with other runs in the same places
            RawStore(alone).add(some_runs(first))


def test_a_new_version_of_a_span_has_statistics_of_its_own(data: DataRoot) -> None:
    fill(data, some_runs(1), some_runs(101))
    before = validate_dataset(data, "cpu").after.categories("class")
    flipped = [make_facts(101, outcome="failure", result="FAILURE", build_name="job-1", provider="ovh", flavour="m1")]
    RawStore(data).add(corrections=flipped)
    update_dataset(data.dataset("cpu"))
    after = validate_dataset(data, "cpu").after.categories("class")
    assert after == {"failed": before["failed"] + 1, "passed": before["passed"] - 1}


def test_a_reclaim_has_the_columns_of_its_own_row(data: DataRoot) -> None:
    fill(data, some_runs(1), some_runs(101))
    assert not any("gpu:temp" in names for _, _, names in validate_dataset(data, "cpu").after.columns or ())
    RawStore(data).add(reclaims=some_runs(101, gpu__temp=np.full(6, 40.0))[:1])
    update_dataset(data.dataset("cpu"))
    columns = validate_dataset(data, "cpu").after.columns
    assert columns is not None
    assert sum(runs for (_, _, names), runs in columns.items() if "gpu:temp" in names) == 1
    assert sum(columns.values()) == SPAN


def test_another_data_set_is_compared_with_if_its_features_mean_the_same(data: DataRoot) -> None:
    fill(data, some_runs(1), some_runs(101, factor=8))
    define(data, "old", span_runs=2 * SPAN, max_windows=8)
    define(data, "slow", span_runs=SPAN, max_windows=8, sample_interval="20s")
    update_dataset(data.dataset("old"), seal=True)
    update_dataset(data.dataset("slow"), seal=True)
    report = validate_dataset(data, "cpu", last=2, against="old")
    assert (report.before.name, report.findings) == ("old", ())
    with pytest.raises(CimlError, match="'cpu' and 'slow' cannot be compared: sample_interval is '10s' in one"):
        validate_dataset(data, "cpu", against="slow")


def test_what_a_model_was_trained_on_is_its_snapshot_less_exclusions(data: DataRoot) -> None:
    fill(data, some_runs(1), some_runs(101))
    validate_dataset(data, "cpu")  # what is computed of all runs of a span is not that of a snapshot's runs
    purged = {f"zuul~{number}~1": "purge" for number in range(1, 11)}
    snapshot = make_snapshot(data.dataset("cpu"), EVERYONE, excluding(purged))
    write_snapshot(data.trainer("cpu"), snapshot)
    with pytest.raises(CimlError, match="model 'cpu' has no champion"):
        validate_dataset(data, "cpu", model="cpu")
    candidate = data.store.child("candidate")
    candidate.create("saved_model.pb", b"a model")
    push(data, "cpu", candidate, Decision(True), facts={"snapshot": snapshot.digest}, check=False)
    with pytest.raises(CimlError, match="data set 'cpu' has no span that model 'cpu' was not trained on"):
        validate_dataset(data, "cpu", model="cpu")
    RawStore(data).add(some_runs(201, factor=8))
    update_dataset(data.dataset("cpu"))
    report = validate_dataset(data, "cpu", model="cpu")
    assert (report.before.name, report.after.name) == ("training runs of cpu", "cpu, span 3")
    assert report.before.statistics.runs.sum() == 2 * SPAN - 10
    assert [(each.kind, each.what) for each in report.findings] == [("unit", "usr")]


def test_a_span_without_examples_has_empty_statistics(data: DataRoot) -> None:
    fill(data, some_runs(1), some_runs(101, drop="load"))
    state, root = data.dataset("cpu").state(), data.dataset("cpu").store
    span = state.latest()[1]
    (found,) = statistics_of_pieces(root, resolved_of(state), [Piece(span.span, span.version, span.files)])
    assert (found.cells, list(found.series)) == ((), ["usr", "1m", "n_windows"])
    report = validate_dataset(data, "cpu")
    assert not report.enough
    assert [(each.kind, each.what) for each in report.findings] == [
        ("lost_column", "load avg:1m"),
        ("mix", "exclusions"),
    ]

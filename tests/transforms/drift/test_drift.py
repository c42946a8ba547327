"""Drift is reported, and nothing else: against scipy and numpy, and on real runs with planted drift."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from ciml.datasets.definition import ResolvedDefinition
from ciml.datasets.schema import schema_of
from ciml.transforms.drift.compare import Finding, Report, Side, compare
from ciml.transforms.drift.counts import add_columns, exact_p, mix_of, one_sided_groups
from ciml.transforms.drift.detect import DriftPolicy, ks_p, psi_of, unit_of
from ciml.transforms.drift.statistics import Cell, Series, Statistics, buckets, merge, middles, statistics
from ciml.transforms.examples.spans import inputs_of
from tests.transforms.samples import PROJECTS, corpus, make_examples, resolved

COLUMNS = ("total cpu usage:usr", "load avg:1m", "memory usage:free", "dsk/total:writ")


def side(cells: Mapping[Cell, np.ndarray], **facts: Any) -> Side:
    """A side of runs with one window each, of one feature ``usr``."""
    names = tuple(sorted(cells))
    parts = []
    for name in names:
        values = np.asarray(cells[name], float)
        bucket, runs = np.unique(buckets(values), return_counts=True)
        numbers = [np.array([each]) for each in (values.size, values.mean(), values.std(), values.min(), values.max())]
        series = Series(*numbers, np.array([(values == 0).sum()]), np.zeros_like(bucket), bucket, runs)
        parts.append(Statistics((name,), np.array([values.size]), {"usr": series}))
    return Side("side", merge(parts), **facts)


def cell(job: str = "unit", provider: str = "ovh", flavour: str = "m1", label: str = "passed") -> Cell:
    return Cell(job, provider, flavour, label)


def summary(report: Report) -> list[tuple[str, str, str | None, str | None]]:
    return [(each.kind, each.what, each.build_name, each.provider) for each in report.findings]


def test_ks_and_psi_of_one_cell_are_those_of_scipy_and_numpy() -> None:
    random = np.random.default_rng(1)
    old, new = random.lognormal(3, 1, 400), random.lognormal(3.3, 1, 90)
    measure = compare(side({cell(): old}), side({cell(): new})).measures["usr"]
    # both see the middles of buckets, which are at most 0.4 % away
    old, new = middles(buckets(old)), middles(buckets(new))
    expected = stats.ks_2samp(old, new, method="asymp")
    for found in (measure[0], measure[1][0][1]):
        assert found.ks == pytest.approx(expected.statistic, abs=1e-12)
        assert found.p == pytest.approx(expected.pvalue, rel=1e-6)
        assert (found.before, found.after) == (pytest.approx(old.mean()), pytest.approx(new.mean()))
    rank = (stats.rankdata(old) - 0.5) / 400
    bins = np.floor(rank * 7).astype(int)  # n·m / (n + m) is 73 runs
    edges = [old[bins == number].max() for number in range(6)]
    p, q = (np.bincount(np.searchsorted(edges, values), minlength=7) + 0.5 for values in (old, new))
    p, q = p / p.sum(), q / q.sum()
    assert measure[0].psi == pytest.approx(((q - p) * np.log(q / p)).sum(), abs=0.02)


def test_psi_of_known_shares() -> None:
    before, after = np.full(10, 0.1), np.array([0.3, *[0.1] * 8, -0.1 + 1e-17]).clip(0)
    p, q = (before * 1000 + 0.5) / 1005, (after / after.sum() * 1000 + 0.5) / 1005
    expected = ((q - p) * np.log(q / p)).sum()
    assert psi_of(before, after / after.sum(), 1000, 1000, 500.0) == pytest.approx(expected)
    same = np.array([1.0, 0.0])  # all runs had one value, and have another one now
    assert psi_of(same, same[::-1], 100, 100, 50.0) > 5
    assert psi_of(same, same, 100, 100, 50.0) == 0


def test_another_mix_is_distinguished_from_a_shift() -> None:
    random = np.random.default_rng(2)

    def runs(job: str, count: int, shift: float = 0.0) -> tuple[Cell, np.ndarray]:
        return cell(job), random.normal({"small": 10, "large": 50}[job] + shift, 2, count)

    before = side(dict([runs("small", 500), runs("large", 100)]))
    mixed = compare(before, side(dict([runs("small", 60), runs("large", 140)])))
    assert summary(mixed) == [("mix", "job", None, None)]
    assert mixed.with_the_mix == ("usr",)
    assert mixed.findings[0].verdict == "another mix: large 16.7% → 70.0%"
    pooled, slices = mixed.measures["usr"]
    assert pooled.psi > 0.25 > 0.1 > slices[0][1].psi
    both = compare(before, side(dict([runs("small", 60), runs("large", 140, shift=3)])))
    assert summary(both) == [("shift", "usr", "large", None), ("mix", "job", None, None)]
    assert both.with_the_mix == ()


def test_the_weighted_comparison_is_that_of_the_cells() -> None:
    random = np.random.default_rng(3)
    # rounded, so that there are ties
    old = {cell("a"): random.normal(0, 1, 200).round(), cell("b"): random.normal(5, 1, 40), cell("only"): np.ones(50)}
    new = {cell("a"): random.normal(0.6, 1, 40).round(), cell("b"): random.normal(6, 1, 60)}
    measure = dict(compare(side(old), side(new)).measures["usr"][1])[(None, None)]
    weights = np.array([200 * 40 * 239 / 240**2, 40 * 60 * 99 / 100**2])
    ranks = {}  # of each run among those of its cell, of both sides
    for job, runs in (("a", 200), ("b", 40)):
        joined = stats.rankdata(buckets(np.concatenate([old[cell(job)], new[cell(job)]])))
        ranks[job] = np.split((joined - 0.5) / joined.size, [runs])
    grid = np.unique(np.concatenate([each for sides in ranks.values() for each in sides]))

    def share(side: int) -> np.ndarray:
        below = [(ranks[job][side][:, None] <= grid + 1e-12).mean(axis=0) for job in "ab"]
        return weights @ np.array(below) / weights.sum()

    assert measure.weight == pytest.approx(weights.sum())
    assert measure.ks == pytest.approx(np.abs(share(0) - share(1)).max())
    assert measure.p == pytest.approx(ks_p(np.array([measure.ks]), np.array([57.0]))[0])


def test_a_little_in_each_of_many_groups_that_lie_far_apart_is_seen() -> None:
    random = np.random.default_rng(8)
    places = [cell(f"job-{number}") for number in range(20)]
    old, new = (
        {each: 2.0**at * (1 + random.normal(shift, 1, runs) / 20) for at, each in enumerate(places)}
        for runs, shift in ((20, 0), (10, 2))
    )
    report = compare(side(old), side(new))
    assert summary(report) == [("shift", "usr", None, None)]
    assert report.findings[0].ks > 0.5 > 0.1 > report.measures["usr"][0].ks  # of all runs as they are


@pytest.mark.parametrize("runs", [3, 29])
def test_few_runs_say_nothing(runs: int) -> None:
    report = compare(side({cell(): np.arange(500.0)}), side({cell(): np.full(runs, 1e6)}))
    assert (report.findings, report.enough) == ((), False)
    assert compare(side({cell(): np.arange(500.0)}), side({cell(): np.full(30, 1e6)})).findings[0].kind == "shift"


def test_a_value_that_stands_still_is_said_to() -> None:
    report = compare(side({cell(): np.arange(1.0, 500.0)}), side({cell(): np.zeros(60)}))
    assert [(each.kind, each.verdict) for each in report.findings] == [("shift", "constant in all runs now")]


@pytest.mark.parametrize(
    ("factor", "name"),
    [(1024, "× 1000 or 1024"), (1000, "× 1000 or 1024"), (1 / 1024, "÷ 1000 or 1024"), (8, "× 8"), (0.01, "÷ 100"),
     (1024**2, "× 1000² or 1024²"), (4096, "× 4096"), (1 / 3600, "÷ 3600"), (3, None), (300, None)],
)  # fmt: skip
def test_another_unit_is_named(factor: float, name: str | None) -> None:
    random = np.random.default_rng(4)
    old, new = (np.where(random.random(runs) < 0.2, 0, random.lognormal(5, 0.7, runs)) for runs in (2000, 500))
    (found,) = compare(side({cell(): old}), side({cell(): new * factor})).findings
    if name is None:
        assert found.kind == "shift"
    else:
        assert found.verdict.startswith(f"another unit: {name} (measured × ")
        assert float(found.verdict.partition("measured × ")[2][:-1]) == pytest.approx(factor, rel=0.2)


def test_another_shape_is_no_unit() -> None:
    values = np.array([1.0, 10.0, 8.0, 80.0])
    order = np.argsort(values)
    before, after = np.array([0.5, 0.5, 0, 0])[order], np.array([0, 0, 0.5, 0.5])[order]
    assert unit_of(values[order], before, after, 100.0) is not None
    spread = np.array([0, 0.1, 0.1, 0.8])[order]
    assert unit_of(values[order], before, spread, 100.0) is None


def test_exact_p_is_fishers_and_adds_strata_up() -> None:
    one = [np.array([each]) for each in (30, 10, 27, 4)]
    table = [[27, 3], [4, 6]]
    tails = [stats.fisher_exact(table, alternative=side).pvalue for side in ("less", "greater")]
    assert exact_p(*one) == pytest.approx(2 * min(tails))
    # two strata, by drawing: the chance of as few in ``after`` as 1 + 0 of those that have it
    before, after, had, has = np.array([5, 4]), np.array([3, 3]), np.array([4, 3]), np.array([1, 0])
    random = np.random.default_rng(5)
    drawn = random.hypergeometric(5, 3, 3, 200_000) + random.hypergeometric(3, 4, 3, 200_000)
    assert exact_p(before, after, had, has) == pytest.approx(2 * (drawn <= 1).mean(), rel=0.05)
    assert exact_p(np.array([5]), np.array([5]), np.array([5]), np.array([5])) == 1.0


def test_the_mix_and_what_one_side_lacks() -> None:
    before, after = {"a": 300, "b": 95, "c": 5, "d": 1}, {"a": 20, "b": 60, "e": 20}
    mix = mix_of(before, after)
    assert mix is not None
    assert (mix.grown, mix.before, mix.after) == ("b", 95 / 401, 0.6)
    # of c and d one run each is expected on the smaller side, of e four: the three are taken together
    table = np.array([[300, 95, 6], [20, 60, 20]])
    assert mix.p == pytest.approx(stats.chi2_contingency(table, correction=False).pvalue, rel=1e-6, abs=0)
    groups = {group.name: group for group in one_sided_groups(before, after)}
    assert sorted(groups) == ["c", "d", "e"]
    assert groups["d"].p == pytest.approx(401 / 501)
    assert groups["c"].p == pytest.approx(np.prod([(401 - i) / (501 - i) for i in range(5)]))
    assert groups["e"].p < 1e-13
    assert mix_of({"a": 10}, {"a": 20}) is None
    two = mix_of({"a": 50, "b": 50}, {"a": 30, "b": 70})
    assert two is not None
    assert two.p == pytest.approx(stats.chi2_contingency(np.array([[50, 50], [30, 70]]), correction=False).pvalue)


@pytest.mark.parametrize("new_runs", [7, 14])
def test_the_probability_of_chance_is_shared_by_all_tests(new_runs: int) -> None:
    """A new job of seven runs would be significant by itself."""
    old = side({cell(): np.arange(60.0)})
    new = side({cell(): np.arange(60.0), cell("new"): np.arange(float(new_runs))})
    report = compare(old, new)
    assert report.tests == 2 + 1 + 1  # the feature over all runs and in one slice; the mix of jobs; the new job
    (group,) = one_sided_groups({"unit": 60}, {"unit": 60, "new": new_runs})
    assert group.p < report.policy.alpha
    found = [each.p for each in report.findings if each.kind == "new_group"]
    assert found == ([] if new_runs == 7 else [pytest.approx(4 * group.p)])


@pytest.mark.parametrize("runs", [29, 30])
def test_a_mix_and_a_slice_need_enough_runs_on_both_sides(runs: int) -> None:
    before = side({cell("a"): np.arange(400.0), cell("b"): np.arange(100.0)})
    after = side({cell("a"): np.arange(1.0), cell("b"): np.arange(runs - 1.0)})
    report = compare(before, after)
    assert [each.what for each in report.findings if each.kind == "mix"] == ["job"] * (runs == 30)
    assert ((None, None) in dict(report.measures["usr"][1])) == (runs == 30)


def test_the_columns_of_spans_add_up() -> None:
    unit = ("unit", "ovh", ("a", "b"))
    assert add_columns([{unit: 3}, {unit: 4, ("docs", "ovh", ("a",)): 1}]) == {unit: 7, ("docs", "ovh", ("a",)): 1}


Change = Callable[[Any, pa.Table], tuple[Any, pa.Table]]


@lru_cache
def real_runs() -> tuple[list[tuple[Any, pa.Table]], list[tuple[Any, pa.Table]]]:
    """The runs of the corpus, shuffled, as seven tenths before and the rest after: projects on one or two cores."""
    runs, tables, _ = corpus(240)
    order = np.random.default_rng(4).permutation(len(runs)).tolist()
    pairs = [
        (runs[at].replace(build_name=runs[at].project, provider=runs[at].flavour.partition("-")[0]), tables[at])
        for at in order
    ]
    return pairs[:150], pairs[150:]


@lru_cache
def real_side(change: Change | None, before: bool = False) -> Side:
    definition = resolved(COLUMNS, sample_interval="2s", max_windows=100)
    pairs = real_runs()[0] if before else [change(*pair) if change else pair for pair in real_runs()[1]]
    made = make_examples([run for run, _ in pairs], [table for _, table in pairs], definition)
    columns: dict[Any, int] = {}
    for run, table in pairs:
        key = (run.build_name, run.provider, tuple(table.column_names[2:]))
        columns[key] = columns.get(key, 0) + 1
    excluded = {"missing_column": len(made.excluded)} if made.excluded else {}
    return Side("real", statistics(made.table, definition), columns, excluded)


def real(change: Change | None = None) -> Report:
    return compare(real_side(None, before=True), real_side(change))


def times(column: str, factor: float) -> Change:
    def change(run: Any, table: pa.Table) -> tuple[Any, pa.Table]:
        at = table.column_names.index(column)
        return run, table.set_column(at, column, pa.array(table.column(at).to_numpy() * factor))

    return change


def only(change: Change, **facts: str) -> Change:
    def some(run: Any, table: pa.Table) -> tuple[Any, pa.Table]:
        return change(run, table) if all(getattr(run, key) == value for key, value in facts.items()) else (run, table)

    return some


def test_nothing_moved_between_halves_of_the_same_runs() -> None:
    report = real()
    assert report.findings == ()
    assert report.tests > 20


@pytest.mark.parametrize(
    ("column", "factor", "where", "kind", "verdict"),
    [
        ("memory usage:free", 1 / 1024, {}, "unit", "another unit: ÷ 1000 or 1024"),
        ("memory usage:free", 1024, {"provider": "two"}, "unit", "another unit: × 1000 or 1024"),
        ("total cpu usage:usr", 0.5, {"build_name": "networkx"}, "shift", ""),
    ],
)
def test_a_change_of_a_column_is_reported_once_for_its_slice(
    column: str, factor: float, where: dict[str, str], kind: str, verdict: str
) -> None:
    (found,) = real(only(times(column, factor), **where)).findings
    assert (found.kind, found.what) == (kind, column.partition(":")[2])
    assert (found.build_name, found.provider) == (where.get("build_name"), where.get("provider"))
    assert found.verdict.startswith(verdict)
    assert kind == "unit" or found.before > found.after


def test_a_lost_column_and_a_new_one_are_reported_for_their_slice() -> None:
    def drop(run: Any, table: pa.Table) -> tuple[Any, pa.Table]:
        return run, table.drop_columns(["load avg:1m"])

    def add(run: Any, table: pa.Table) -> tuple[Any, pa.Table]:
        return run, table.append_column("gpu:temp", pa.array(np.zeros(table.num_rows)))

    lost = real(only(drop, provider="one"))
    assert summary(lost)[0] == ("lost_column", "load avg:1m", None, "one")
    assert {("lost_group", "provider", None, "one"), ("mix", "exclusions", None, None)} <= set(summary(lost))
    new = real(only(add, build_name="numpy"))
    assert summary(new) == [("new_column", "gpu:temp", "numpy", None)]
    assert (new.findings[0].before, new.findings[0].after) == (0.0, pytest.approx(1.0))


def test_a_new_provider_is_reported() -> None:

    def move(run: Any, table: pa.Table) -> tuple[Any, pa.Table]:
        return run.replace(provider="ovh", flavour="b2-7"), table

    report = real(only(move, provider="one", build_name="networkx"))
    assert ("new_group", "provider", None, "ovh") in summary(report)
    assert "shift" not in {finding.kind for finding in report.findings}


def test_features_that_one_side_lacks_are_findings() -> None:
    other = side({cell(): np.arange(100.0)})
    renamed = Side(
        "other", Statistics(other.statistics.cells, other.statistics.runs, {"sys": other.statistics.series["usr"]})
    )
    assert summary(compare(other, renamed)) == [("lost_column", "usr", None, None), ("new_column", "sys", None, None)]


def test_a_report_is_json_and_its_p_is_of_all_its_tests() -> None:
    random = np.random.default_rng(7)
    report = compare(
        side({cell(): random.normal(0, 1, 300)}, excluded={"empty": 3}),
        side({cell(): random.normal(2, 1, 100)}),
        DriftPolicy(alpha=0.05),
    )
    value = json.loads(json.dumps(report.to_json(), allow_nan=False))
    (found,) = value["findings"]
    measure = value["features"]["usr"]["weighted_alike"][0]
    assert found["p"] == pytest.approx(measure["p"] * value["tests"])
    assert value["before"]["excluded"] == {"empty": 3}
    assert isinstance(report.findings[0], Finding)
    assert value["after"]["features"]["usr"]["count"] == 100


SUMMED = ("total cpu usage:usr", "load avg:1m", "memory usage:used", "tcp sockets:syn")


@lru_cache
def examples(**keys: object) -> tuple[pa.Table, ResolvedDefinition]:
    """120 real runs, some of them longer than the 20 windows that are looked at."""
    definition = resolved(SUMMED, sample_interval="2s", class_label="project", classes=PROJECTS, **keys)
    runs, tables, _ = corpus(120)
    return make_examples(runs, tables, definition).table, definition


def cell_of(table: pa.Table) -> np.ndarray:
    names = ("build_name", "provider", "flavour", "label_name")
    return np.array(["/".join(row.values()) for row in table.select(names).to_pylist()])


def test_statistics_are_those_of_each_cells_own_windows() -> None:
    table, definition = examples(max_windows=20)
    inputs, n_windows, cells = inputs_of(table, definition), table.column("n_windows").to_numpy(), cell_of(table)
    assert n_windows.min() < 20 == n_windows.max()  # there is padding, and something was cut
    found = statistics(table, definition)
    assert sorted("/".join(cell) for cell in found.cells) == sorted(set(cells))
    assert list(found.series) == [*definition.features, "n_windows"]
    for place, name in enumerate(found.cells):
        rows = np.flatnonzero(cells == "/".join(name))
        assert found.runs[place] == rows.size
        for feature, series in enumerate(definition.features):
            own = [inputs[row, : n_windows[row], feature].astype(float) for row in rows]
            values, one = np.concatenate(own), found.series[series]
            assert (one.count[place], one.zeros[place]) == (values.size, (values == 0).sum())
            assert (one.minimum[place], one.maximum[place]) == (values.min(), values.max())
            np.testing.assert_allclose([one.mean[place], one.std[place]], [values.mean(), values.std()], rtol=1e-9)
            sketch = dict(zip(one.bucket[one.cell == place], one.runs[one.cell == place], strict=True))
            means = buckets(np.array([each.mean() for each in own]))
            assert sketch == dict(zip(*np.unique(means, return_counts=True), strict=True))
        assert found.series["n_windows"].mean[place] == pytest.approx(n_windows[rows].mean())


def test_aggregations_are_series_of_their_own() -> None:
    table, definition = examples(aggregation_functions=("mean", "max"))
    found = statistics(table, definition)
    assert list(found.series) == [f"{how}({name})" for name in definition.features for how in ("mean", "max")]
    peaks = inputs_of(table, definition)[:, 1, 0].astype(float)
    one = found.series["max(usr)"]
    assert one.count.tolist() == found.runs.tolist()
    assert (one.count * one.mean).sum() == pytest.approx(peaks.sum())
    assert one.maximum.max() == peaks.max()


def test_parts_add_up_to_the_whole_however_they_are_cut() -> None:
    table, definition = examples(max_windows=20)
    whole = statistics(table, definition)
    empty = statistics(schema_of(definition).empty_table(), definition)
    assert (empty.cells, empty.runs.size) == ((), 0)
    parts = [empty, *(statistics(table.slice(row, 1), definition) for row in range(table.num_rows))]
    for merged in (merge(parts), merge(reversed(parts)), merge([whole])):
        assert merged.cells == whole.cells
        assert merged.runs.tolist() == whole.runs.tolist()
        for name, series in whole.series.items():
            for key in ("count", "zeros", "minimum", "maximum", "cell", "bucket", "runs"):
                assert getattr(merged.series[name], key).tolist() == getattr(series, key).tolist(), (name, key)
            for key in ("mean", "std"):
                np.testing.assert_allclose(
                    getattr(merged.series[name], key), getattr(series, key), rtol=1e-9, atol=1e-9
                )


def test_what_is_kept_reads_back_to_nine_digits() -> None:
    table, definition = examples(max_windows=20)
    kept = statistics(table, definition).to_json()
    assert Statistics.from_json(json.loads(json.dumps(kept))).to_json() == kept
    broken = json.loads(json.dumps(kept))
    broken["series"][0]["count"].pop()
    with pytest.raises(ValueError, match="reshape"):
        Statistics.from_json(broken)


def test_buckets_keep_the_order_and_are_less_than_a_hundredth_wide() -> None:
    values = np.array([-3e12, -1.0, -1e-9, 0.0, 1e-9, 0.5, 1.0, 99.9, 1e6, 1.024e6, 3e12])
    found = buckets(values)
    assert (np.diff(found) > 0).all()
    assert found[3] == 0 == middles(found)[3]
    np.testing.assert_allclose(middles(found), values, rtol=0.004)
    assert buckets(values * 1024)[4:].tolist() == (found[4:] + 10 * 128).tolist()
    assert buckets(np.array([0.0, -0.0])).tolist() == [0, 0]

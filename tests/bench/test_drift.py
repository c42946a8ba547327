"""How often a comparison is wrong, and what it finds: on real runs, split at random, with and without a planted drift.

python -m pytest tests/bench/test_drift.py -m bench -s
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pytest

from ciml.datasets.definition import ResolvedDefinition
from ciml.transforms.drift.change_points import with_change_points
from ciml.transforms.drift.compare import Report, Side, compare
from ciml.transforms.drift.statistics import merge, statistics
from tests.bench.measuring import real_runs
from tests.transforms.samples import make_examples, resolved

pytestmark = pytest.mark.bench
SPLITS, DRAWS = 40, 5
COLUMNS = (
    "total cpu usage:usr",
    "total cpu usage:wai",
    "memory usage:free",
    "net/total:recv",
    "dsk/total:writ",
    "load avg:1m",
)


@lru_cache
def examples() -> tuple[pa.Table, ResolvedDefinition]:
    """All real runs, as means, stds and maxima of 1 s windows."""
    runs, tables = real_runs()
    functions = ("mean", "std", "max")
    definition = resolved(COLUMNS, sample_interval="1s", aggregation_functions=functions)
    return make_examples(runs, tables, definition).table, definition


def rows_of(shares: tuple[float, float]) -> tuple[int, int]:
    """Numbers of runs, as shares of all real runs."""
    runs = examples()[0].num_rows
    return int(shares[0] * runs), int(shares[1] * runs)


def split(rows: tuple[int, int], seed: int, plant: Callable[[pa.Table], pa.Table] | None = None) -> Report:
    """A comparison of real runs drawn at random for each side: with replacement where there are not as many."""
    table, definition = examples()
    random = np.random.default_rng(seed)
    if sum(rows) <= table.num_rows:
        drawn = np.split(random.permutation(table.num_rows)[: sum(rows)], [rows[0]])
    else:
        drawn = [random.integers(0, table.num_rows, each) for each in rows]
    before, after = (table.take(pa.array(each)) for each in drawn)
    sides = [statistics(before, definition), statistics(plant(after) if plant else after, definition)]
    return compare(*(Side("real", each) for each in sides))


def scaled(name: str, factor: float, shift_std: float = 0.0, job: str | None = None) -> Callable[[pa.Table], pa.Table]:
    """Multiplies a feature, or shifts it by so many stds (of its runs' means) of the job."""

    def plant(table: pa.Table) -> pa.Table:
        jobs = np.array(table.column("build_name").to_pylist())
        chosen = np.ones(jobs.size, bool) if job is None else jobs == job
        values = table.column(name).combine_chunks().flatten().to_numpy().reshape(jobs.size, -1).copy()
        values[chosen] = values[chosen] * factor
        values[chosen, 0] += shift_std * values[chosen, 0].std()
        at = table.column_names.index(name)
        column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=table.schema.field(name).type)
        return table.set_column(at, table.schema.field(name), column)

    return plant


@pytest.mark.parametrize("shares", [(0.8, 0.2), (0.5, 0.5), (0.06, 0.04)])
def test_false_alarms(shares: tuple[float, float]) -> None:
    rows = rows_of(shares)
    kinds: Counter[str] = Counter()
    alarms = 0
    for seed in range(SPLITS):
        report = split(rows, seed)
        alarms += bool(report.findings)
        kinds.update(finding.kind for finding in report.findings)
    print(
        f"\n{rows}: {alarms} of {SPLITS} random splits told of something {dict(kinds)}; {report.tests} tests each",
        flush=True,
    )
    assert alarms <= SPLITS / 20


@pytest.mark.parametrize("shares", [(0.8, 0.2), (5, 1), (20, 4)])
def test_planted(shares: tuple[float, float]) -> None:
    rows = rows_of(shares)
    job = Counter(run.build_name for run in real_runs()[0]).most_common(1)[0][0]
    planted = {
        "free × 1024": (scaled("free", 1024), ("mean(free)", None), "unit"),
        "usr × 0.01": (scaled("usr", 0.01), ("mean(usr)", None), "unit"),
        "writ × 8": (scaled("writ", 8), ("mean(writ)", None), "unit"),
        f"usr + 1/2 std in {job}": (scaled("usr", 1, 0.5, job), ("mean(usr)", job), "shift"),
        f"usr + 1 std in {job}": (scaled("usr", 1, 1.0, job), ("mean(usr)", job), "shift"),
        f"1m + 1/2 std in {job}": (scaled("1m", 1, 0.5, job), ("mean(1m)", job), "shift"),
    }
    for name, (plant, (what, where), kind) in planted.items():
        reports = [split(rows, seed, plant) for seed in range(DRAWS)]
        found = [
            [(each.kind) for each in report.findings if each.what == what and each.build_name == where]
            for report in reports
        ]
        others = sum(any(each.what.partition("(")[2] != what.partition("(")[2] for each in r.findings) for r in reports)
        print(
            f"\n{rows} {name}: found there in {sum(map(bool, found))} of {DRAWS}, as {kind} in "
            f"{sum(kind in each for each in found)}; something else told in {others}",
            flush=True,
        )
        if shares[0] >= 20 or where is None:
            assert sum(map(bool, found)) >= DRAWS - 1


@pytest.mark.parametrize("shift_std", [0.02, 0.1, 0.5])
def test_the_span_of_a_planted_shift(shift_std: float) -> None:
    """Twenty spans of 50 real runs, of which the last ten are compared with the first; the shift begins among them."""
    table, definition = examples()
    distances = []
    for seed in range(SPLITS):
        random = np.random.default_rng(seed)
        first = int(random.integers(3, 19))
        plant = scaled("usr", 1, shift_std)
        spans = []
        for span in range(1, 21):
            rows = table.take(pa.array(random.integers(0, table.num_rows, 50)))
            spans.append(statistics(plant(rows) if span >= first else rows, definition))
        report = compare(Side("before", merge(spans[:10])), Side("after", merge(spans[10:])))
        dated = with_change_points(report, enumerate(spans, 1)).findings
        distances += [
            abs((each.since or 0) - first) for each in dated if (each.what, each.rest) == ("mean(usr)", False)
        ]
    counts = np.bincount(np.minimum(distances, 2), minlength=3).tolist()
    reported = f"usr + {shift_std} std: reported in {len(distances)} of {SPLITS}"
    print(f"\n{reported}; the span is right in {counts[0]}, next to it in {counts[1]}, else {counts[2]}", flush=True)
    assert counts[2] <= len(distances) / 4

from __future__ import annotations

from functools import cache

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciml.datasets.definition import DatasetDefinition, resolve
from ciml.telemetry import telemetry_columns
from ciml.transforms.examples.downsample import downsample
from ciml.transforms.examples.prepare import prepare_many
from ciml.transforms.parse.logs import Log, parse_logs
from tests.golden import make_logs
from tests.tier import part, tries
from tests.transforms import direct
from tests.transforms.samples import LOAD, USR, corpus, resolved, table

INTERVALS = ["1s", "10s", "1min", "10min", "7s"]
FUNCTIONS = ["mean", "std", "var", "min", "max", "median", "sum", "first", "last", "count"]
SECOND = 1_000_000
NOON = make_logs.instant("2026-11-24T12:00:00Z")


@pytest.mark.parametrize("interval", part(INTERVALS, 0, 3))
def test_runs_of_the_corpus_equal_pandas(interval: str) -> None:
    runs, tables, paths = corpus(120)
    bins = [direct.resampled(direct.read_log(path), interval) for path in paths]
    definition = DatasetDefinition(name="x", sample_interval=interval, features_regex=".", class_label="project")
    made = resolve(definition, [telemetry_columns(each.column_names) for each in tables], runs)
    assert len(made.columns) == len(bins[0].columns)
    inputs, n_windows, rejected = prepare_many(tables, made)
    assert rejected == []
    for row, run in enumerate(runs):
        wanted, valid = direct.unrolled(bins[row], made.columns, made.windows)
        assert n_windows[row] == valid
        direct.assert_equal(inputs[row], wanted, valid, run.run_id)


def _golden() -> list[make_logs.Golden]:
    return [make(zone) for make in make_logs.LARGE for zone in make_logs.ZONES]


@cache
def _golden_tables() -> list[pa.Table]:
    return parse_logs([Log(golden.data, golden.start_us, golden.end_us) for golden in _golden()])  # type: ignore[return-value]


@pytest.mark.parametrize("interval", part(INTERVALS, 1, 2))
@pytest.mark.parametrize("columns", [(USR, LOAD), tuple(make_logs.names_of(make_logs.USUAL))], ids=["usr-1m", "all"])
def test_golden_logs_equal_pandas(interval: str, columns: tuple[str, ...]) -> None:
    made = resolved(columns, sample_interval=interval)
    inputs, n_windows, rejected = prepare_many(_golden_tables(), made)
    assert rejected == []
    for row, golden in enumerate(_golden()):
        bins = direct.resampled(direct.frame_of(golden.times_us, golden.columns), interval)
        wanted, valid = direct.unrolled(bins, columns, made.windows)
        assert n_windows[row] == valid > 0
        direct.assert_equal(inputs[row], wanted, valid, golden.name)


def test_aggregations_equal_pandas_and_take_windows_beyond_the_cut() -> None:
    made = resolved(sample_interval="10s", aggregation_functions=FUNCTIONS)
    inputs, n_windows, _ = prepare_many(_golden_tables(), made)
    assert inputs.shape == (len(_golden()), len(FUNCTIONS), 2)
    assert n_windows.tolist() == [len(FUNCTIONS)] * len(_golden())
    for row, golden in enumerate(_golden()):
        bins = direct.resampled(direct.frame_of(golden.times_us, golden.columns), "10s")
        wanted, valid = direct.unrolled(bins, made.columns, made.windows, FUNCTIONS)
        direct.assert_equal(inputs[row], wanted, valid, golden.name)


def test_std_is_stable_and_zero_for_one_sample() -> None:
    times = [NOON, NOON + 1, NOON + 2, NOON + 10 * SECOND]
    made = resolved([USR], sample_statistic="std", max_windows=2)
    (inputs,), _, _ = prepare_many([table(times, usr=[1e9, 1e9 + 1, 1e9 + 2, 5.0])], made)
    assert inputs.tolist() == [[1.0], [0.0]]


def test_minus_zero_is_zero() -> None:
    (inputs,), _, _ = prepare_many([table([NOON], usr=[-0.0])], resolved([USR], max_windows=1))
    assert not np.signbit(inputs).any()


def test_refusals_name_their_reason_and_leave_the_others_alone() -> None:
    good = table([NOON], usr=[1.0], load=[2.0])
    no_time = good.set_column(0, "time", pa.array([None], pa.timestamp("us", tz="UTC")))
    boot_only = table([NOON], boot=[True], usr=[1.0], load=[2.0])
    tables = [
        table([NOON], usr=[1.0]),
        good,
        no_time,
        table([NOON, NOON + 1], usr=[None, 1.0], load=[None, None]),
        table([NOON], usr=[1e300], load=[1.0]),
        table([], usr=[], load=[]),
        boot_only,
        good,
    ]
    windows = downsample(tables, resolved(count_first_sample=False))
    assert [(index, rejected.reason, rejected.detail) for index, rejected in windows.rejected] == [
        (0, "missing_column", LOAD),
        (2, "no_time", "a sample has no time"),
        (3, "empty", "no window has a value in every selected column"),
        (4, "out_of_range", "a value exceeds the range of float32"),
        (5, "empty", "no window has a value in every selected column"),
        (6, "empty", "no window has a value in every selected column"),
    ]
    assert windows.n_windows.tolist() == [0, 1, 0, 0, 0, 0, 0, 1]
    assert windows.run.tolist() == [1, 7]
    assert windows.values.tolist() == [[1.0, 2.0]] * 2


def test_no_runs_make_no_windows() -> None:
    for made in (resolved(), resolved(aggregation_functions=FUNCTIONS), resolved(sample_statistic="std")):
        inputs, n_windows, rejected = prepare_many([], made)
        assert inputs.shape == (0, made.windows, 2)
        assert (n_windows.tolist(), rejected) == ([], [])


@pytest.mark.parametrize("keys", [{}, {"sample_statistic": "std"}, {"aggregation_functions": FUNCTIONS}])
def test_the_windows_of_a_run_do_not_depend_on_other_runs(keys: dict[str, object]) -> None:
    _, tables, _ = corpus(60)
    made = resolved(telemetry_columns(tables[0].column_names), sample_interval="7s", **keys)
    together, n_windows, _ = prepare_many(tables, made)
    backwards, n_backwards, _ = prepare_many(tables[::-1], made)
    assert together.tobytes() == backwards[::-1].tobytes()
    assert n_windows.tolist() == n_backwards[::-1].tolist()
    for row, each in enumerate(tables):
        alone, _, _ = prepare_many([each], made)
        assert alone[0].tobytes() == together[row].tobytes()


value = st.one_of(st.none(), st.just(float("nan")), st.floats(-(2.0**40), 2.0**40, width=32))
sample = st.tuples(
    st.integers(-200, 200).map(lambda tenths: make_logs.instant("2028-02-29T00:00:00Z") + tenths * SECOND // 10),
    st.booleans(),
    st.tuples(value, value),
)


@settings(max_examples=tries(150))
@given(
    runs=st.lists(st.lists(sample, min_size=1, max_size=12), min_size=1, max_size=5),
    interval=st.sampled_from(["100ms", "700ms", "1s", "7s", "10s", "1h"]),
    statistic=st.sampled_from(["mean", "min", "max", "std", "last"]),
    length=st.integers(1, 5),
    count_first=st.booleans(),
)
def test_equals_brute_force(
    runs: list[list[tuple[int, bool, tuple[float | None, float | None]]]],
    interval: str,
    statistic: str,
    length: int,
    count_first: bool,
) -> None:
    made = resolved(
        sample_interval=interval, sample_statistic=statistic, max_windows=length, count_first_sample=count_first
    )
    tables = [
        table(
            [time for time, _, _ in run],
            boot=[boot for _, boot, _ in run],
            usr=[values[0] for _, _, values in run],
            load=[values[1] for _, _, values in run],
        )
        for run in runs
    ]
    inputs, n_windows, rejected = prepare_many(tables, made)
    assert {index for index, _ in rejected} == set(np.flatnonzero(n_windows == 0).tolist())
    for row, run in enumerate(runs):
        wanted = direct.brute_force(run, made.definition.interval_us, statistic, length, count_first=count_first)
        assert n_windows[row] == len(wanted)
        assert inputs.dtype == np.float32
        padded = np.zeros((length, 2))
        padded[: len(wanted)] = np.array(wanted).reshape(-1, 2)
        largest = max((abs(each) for _, _, values in run for each in values if each and each == each), default=1.0)
        assert np.abs(inputs[row] - padded).max() <= 1e-6 * max(largest, 1.0)

"""Profiles of passing runs and departures from them, against direct computations."""

import json
import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciml.errors import CimlError
from ciml.transforms import profiles
from ciml.transforms.profiles import (
    MIN_RUNS,
    MINUTE_S,
    Profiles,
    departures,
    length_s,
    make_profiles,
    window_means,
    window_of,
)
from tests.tier import tries
from tests.transforms.profiles.tables import START_US, STEAL, USED, USR, facts_of, table_of


def _passing(rows: int = 240, runs: int = MIN_RUNS, job: str = "unit"):
    for number in range(runs):
        yield facts_of(job, number=number), table_of({USR: [50.0 + number] * rows, STEAL: [0.1 * number] * rows})


def test_window_means_equal_the_direct_computation() -> None:
    values = [float(row) if row % 7 else None for row in range(150)]
    found = window_means(table_of({USR: values}), [USR, "absent"], MINUTE_S)
    direct = [statistics.fmean(v for v in values[a : a + 60] if v is not None) for a in (0, 60, 120)]
    assert found.seconds.tolist() == [0, 60, 120]
    assert list(found.means) == [USR]
    assert found.means[USR] == pytest.approx(direct)


def test_samples_since_the_boot_and_values_that_are_none_do_not_count() -> None:
    table = table_of({USR: [99.0, 1.0, math.nan, math.inf, -math.inf, 1e300, 3.0]}, boot=True)
    assert window_means(table, [USR], MINUTE_S).means[USR].tolist() == [2.0]


def test_windows_without_samples_take_no_memory() -> None:
    table = table_of({USR: [1.0, 2.0]}, times=[START_US, START_US + 80 * 365 * 86_400_000_000])
    assert window_means(table, [USR], 5).means[USR].tolist() == [1.0, 2.0]


def test_every_run_weighs_the_same() -> None:
    long, short = table_of({USR: [10.0] * 6000}), table_of({USR: [90.0] * 60})
    profile = make_profiles([(facts_of(), long), *[(facts_of(), short)] * 9]).of("unit")
    assert profile.columns[USR] == pytest.approx((10.0, 90.0, 90.0), abs=5)


def test_only_passing_runs_count() -> None:
    bad = [(facts_of(outcome=word), table_of({USR: [99.0] * 60})) for word in ("failure", "timeout", "cancellation")]
    profiles = make_profiles([*bad, *_passing()])
    assert profiles.of("unit").runs == MIN_RUNS
    assert profiles.of("unit").columns[USR][2] < 55


def test_a_job_with_few_passing_runs_has_the_pooled_profile() -> None:
    profiles = make_profiles([*_passing(runs=MIN_RUNS - 1, job="rare"), *_passing(job="unit")])
    assert profiles.of("rare") == profiles.of("absent") == profiles.pooled
    assert profiles.pooled.runs == 2 * MIN_RUNS - 1
    assert profiles.of("unit").job == "unit"


def test_profiles_survive_json() -> None:
    profiles = make_profiles(_passing())
    assert Profiles.from_json(json.loads(json.dumps(profiles.to_json()))) == profiles
    assert make_profiles([]).pooled.runs == 0
    with pytest.raises(CimlError, match=r"profiles\.json: .*runs"):
        Profiles.from_json({"jobs": {}, "pooled": {"job": "", "runs": "many", "length_s": [0, 0, 0], "columns": {}}})


def test_columns_of_other_names_are_kept_only_on_demand() -> None:
    table = table_of({USR: [1.0] * 9, "<script>:x": [1.0] * 9})
    runs = [(facts_of(), table)] * MIN_RUNS
    assert set(make_profiles(runs).pooled.columns) == {USR}
    assert set(make_profiles(runs, ["<script>:x"]).pooled.columns) == {USR, "<script>:x"}


def test_a_departure_names_its_windows_and_its_mean() -> None:
    profile = make_profiles(_passing()).of("unit")
    steal = [0.0] * 180 + [41.0] * 120 + [0.0] * 60
    found = departures(table_of({USR: [52.0] * 360, STEAL: steal}), profile)
    assert [(one.column, one.from_s, one.until_s, one.mean) for one in found] == [(STEAL, 180, 300, 41.0)]
    assert (found[0].from_s // MINUTE_S, found[0].until_s // MINUTE_S) == (3, 5)
    assert (found[0].low, found[0].high) == pytest.approx((0.0, 0.4), abs=0.05)
    assert found[0].size == pytest.approx((41.0 - found[0].high) / 2.0 * (2 / 6) ** 0.5, abs=1e-3)  # of six minutes


def test_short_runs_are_compared_by_seconds_and_the_largest_departure_is_first() -> None:
    profile = make_profiles(_passing(rows=60)).of("unit")
    found = departures(table_of({USR: [52.0] * 20 + [20.0] * 30, STEAL: [0.0] * 10 + [60.0] * 40}), profile)
    assert [(one.column, one.from_s, one.until_s) for one in found] == [(STEAL, 10, 50), (USR, 20, 50)]
    assert found[0].size > found[1].size > 1 / 2


def test_a_missing_minute_does_not_interrupt_a_departure_or_change_its_mean() -> None:
    profile = make_profiles(_passing()).of("unit")
    steal = [0.0] * 60 + [41.0] * 60 + [None] * 60 + [71.0] * 20 + [None] * 40 + [0.0] * 60
    found = departures(table_of({USR: [52.0] * 300, STEAL: steal}), profile)
    mean = (60 * 41.0 + 20 * 71.0) / 80  # of the values: the windows have 60 and 20
    assert [(one.column, one.from_s, one.until_s, one.mean) for one in found] == [(STEAL, 60, 240, mean)]


def test_the_first_jobs_and_their_first_runs_have_profiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiles, "MAX_PROFILE_JOBS", 2)
    monkeypatch.setattr(profiles, "MAX_PROFILE_RUNS", 3)
    found = make_profiles([run for job in ("b", "a", "c") for run in _passing(rows=9, runs=4, job=job)])
    assert {job: profile.runs for job, profile in found.jobs.items()} == {"a": 3, "b": 3}
    assert found.pooled.runs == 6


def test_noise_is_no_departure() -> None:
    profile = make_profiles(_passing()).of("unit")
    assert departures(table_of({USR: [60.0] * 240, STEAL: [2.3] * 240}), profile) == ()
    assert departures(table_of({USR: [52.0] * 100 + [0.0] * 5 + [52.0] * 45}), profile) == ()  # a moment


def test_a_column_that_passing_runs_always_record_as_0_has_no_scale_of_departures() -> None:
    passing = [(facts_of(number=number), table_of({USR: [50.0] * 240, "own:x": [0.0] * 240})) for number in range(6)]
    profile = make_profiles(passing, ["own:x"]).of("unit")
    assert departures(table_of({USR: [50.0] * 240, "own:x": [6.4e7] * 240}), profile) == ()


def test_a_profile_of_few_runs_says_nothing() -> None:
    profiles = make_profiles(_passing(runs=MIN_RUNS - 1))
    assert departures(table_of({USR: [0.0] * 300}), profiles.of("unit")) == ()


_CELL = st.one_of(st.none(), st.floats(), st.sampled_from([0.0, 50.0, 100.0]))


@settings(max_examples=tries(60))
@given(st.lists(_CELL, min_size=1, max_size=400), st.sampled_from([0.0, 1.0, 7.0]), st.booleans())
def test_any_values_give_finite_departures_within_the_run(values: list, every_s: float, boot: bool) -> None:
    profile = make_profiles(_passing()).of("unit")
    table = table_of({USR: values, USED: values}, every_s=every_s, boot=boot)
    made = make_profiles([(facts_of(), table)] * MIN_RUNS).pooled
    for usual in [*made.columns.values(), *made.short.values()]:
        assert all(math.isfinite(value) for value in usual)
        assert list(usual) == sorted(usual)
    length, seconds = length_s(table), window_of(length_s(table))
    means = window_means(table, [USR], seconds)
    for one in departures(table, profile):
        assert 0 <= one.from_s < one.until_s <= length + 1
        assert one.mean > one.high or one.mean < one.low
        inside = (means.seconds >= one.from_s) & (means.seconds < one.until_s)
        counts = means.counts[USR][inside]
        direct = sum(m * c for m, c in zip(means.means[USR][inside], counts, strict=True) if c) / counts.sum()
        assert one.mean == pytest.approx(direct)

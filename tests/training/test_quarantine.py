"""Quarantine: runs unlike the others of their job and class are excluded until a person releases them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciml.data_root import DataRoot, StoredDataset
from ciml.datasets.definition import DatasetDefinition
from ciml.errors import CimlError, UnknownExclusionError
from ciml.pipelines.datasets.update import create_dataset, update_dataset
from ciml.training import quarantine as module
from ciml.training import refresh as refresh_module
from ciml.training.data.snapshot import make_snapshot
from ciml.training.exclusions import Exclusion, add
from ciml.training.experiment import Experiment
from ciml.training.quarantine import (
    AUTHOR,
    LEAST_RUNS,
    REFERENCE_RUNS,
    SHARE,
    in_quarantine,
    outliers,
    quarantine,
    release,
)
from ciml.training.refresh import Skipped, TrainConfig
from ciml.trust import TrustPolicy
from tests.runs.scenes import RawStore
from tests.transforms.samples import corpus

RULE = '[[rule]]\nname = "zuul"\ntrusted = true\nsource = "zuul"\n'
OPEN = TrustPolicy.parse(RULE)


def normal(number: int, features: int = 2) -> np.ndarray:
    return np.random.default_rng(0).normal(50, 2, (number, features))


def test_a_run_far_from_the_median_of_its_job_and_class_is_found():
    means = normal(100)
    means[70, 1] = 90
    (found,) = outliers(means, ["a"] * 100)
    assert (found.run, found.feature) == (70, 1)
    deviation = 1.4826 * np.median(np.abs(means[:, 1] - np.median(means[:, 1])))
    assert found.distance == pytest.approx((90 - np.median(means[:, 1])) / deviation)
    assert not outliers(means, ["a"] * 100, released=frozenset({70}))
    assert not outliers(means, ["a"] * 100, held=frozenset({70}))
    others = ["a" if index != 70 else "b" for index in range(100)]
    assert not outliers(means, others)  # the only one of its job


def test_a_job_needs_enough_runs_and_a_feature_some_deviation():
    means = normal(LEAST_RUNS)
    means[3, 0] = 900
    assert [outlier.run for outlier in outliers(means, ["a"] * LEAST_RUNS)] == [3]
    assert not outliers(means[:-1], ["a"] * (LEAST_RUNS - 1))
    constant = np.zeros((100, 1))
    constant[5] = 1
    assert not outliers(constant, ["a"] * 100)


@settings(max_examples=30)
@given(st.integers(0, 1500), st.integers(0, 100), st.integers(0, 40))
def test_no_more_than_a_share_is_held_however_many_are_far_away(number: int, percent: int, held: int):
    generator = np.random.default_rng(number)
    means = normal(number) * np.where(generator.random((number, 1)) < percent / 100, 10.0, 1.0)
    own = frozenset(range(min(held, number)))
    found = {outlier.run for outlier in outliers(means, ["a"] * number, own)}
    assert not found & own
    ends = [*range(100, number, 100), number]
    for end in ends:  # of each reference
        window = set(range(max(0, end - REFERENCE_RUNS), end))
        assert len(window & (found | own)) <= max(len(window & own), SHARE * len(window))


@pytest.fixture
def dataset(data: DataRoot, monkeypatch: pytest.MonkeyPatch) -> StoredDataset:
    """Return a data set with runs of a job, of which two are unlike the others."""
    monkeypatch.setattr(module, "LEAST_RUNS", 5)
    monkeypatch.setattr(module, "SHARE", 0.2)
    forged = []
    for number, (run, table) in enumerate(zip(*corpus(30)[:2], strict=True)):
        if number in (7, 11):
            column = next(index for index, name in enumerate(table.schema.names) if "usr" in name)
            values = pa.array([9000.0] * len(table), table.schema.types[column])
            table = table.set_column(column, table.schema.names[column], values)
        change = {"source": "zuul", "project": "", "change": f"other-{number}"}
        forged.append((run.replace(run_id=f"zuul~{number}~9", build_name="one", **change), table))
    RawStore(data).add(forged)
    definition = DatasetDefinition(
        name="status", max_windows=4, features_regex="usr", classes=("passed", "failed"), tdt_split=(1, 0, 0)
    )
    create_dataset(data, definition)
    update_dataset(data.dataset("status"), seal=True)
    return data.dataset("status")


def test_a_quarantined_run_is_left_out_until_it_is_released_and_stays_so(dataset: StoredDataset):
    before = {run.run_id for run in make_snapshot(dataset, OPEN).runs()}
    held = quarantine(dataset, OPEN, now_us=1)
    ids = {stored.exclusion.run_id for stored in held}
    assert ids >= {"zuul~7~9", "zuul~11~9"}
    assert {stored.author for stored in held} == {AUTHOR}
    assert next(stored for stored in held if stored.exclusion.run_id == "zuul~7~9").exclusion.reason == (
        "quarantine: unusual usr"
    )
    assert before - {run.run_id for run in make_snapshot(dataset, OPEN).runs()} == ids
    assert in_quarantine(dataset.root.exclusions) == held
    assert quarantine(dataset, OPEN) == []
    with pytest.raises(UnknownExclusionError, match="run 'zuul~1~1' is not in quarantine"):
        release(dataset.root.exclusions, ["zuul~7~9", "zuul~1~1"], author="ann", reason="a new test")
    twice = Exclusion("quarantine: unusual 1m", "zuul~7~9")  # by another trainer at the same time
    add(dataset.root.exclusions, [twice], author=AUTHOR)
    released = release(dataset.root.exclusions, sorted(ids), author="ann", reason="a new test")
    assert len(released) == len(held) + 1
    assert {(stored.reverted_by, stored.revert_reason) for stored in released} == {("ann", "a new test")}
    assert not ids & {stored.exclusion.run_id for stored in quarantine(dataset, OPEN)}
    assert {run.run_id for run in make_snapshot(dataset, OPEN).runs()} >= ids


def test_a_policy_turns_it_on():
    policy = TrustPolicy.parse("quarantine = true\n" + RULE)
    assert (policy.quarantine, OPEN.quarantine) == (True, False)
    assert policy.digest != OPEN.digest == TrustPolicy.parse("quarantine = false\n" + RULE).digest
    with pytest.raises(CimlError, match=r"p\.toml: quarantine must be true or false, not 0\.02"):
        TrustPolicy.parse("quarantine = 0.02\n" + RULE, "p.toml")


def test_a_refresh_looks_for_outliers_before_it_makes_its_snapshot(
    dataset: StoredDataset, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(refresh_module, "refresh_key", lambda *_: "the last one")
    for text, is_held in (("", False), ("quarantine = true\n", True)):
        config = TrainConfig(dataset.root, "status", "m", Experiment(), TrustPolicy.parse(text + RULE))
        skipped = refresh_module.refresh(config, last_key="the last one")
        assert isinstance(skipped, Skipped)
        assert ("zuul~7~9" in {run.run_id for run in skipped.snapshot.runs()}) is not is_held

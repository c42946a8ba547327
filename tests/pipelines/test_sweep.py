"""The order of the trials in a sweep: which earlier ones each of them knows, and which are trained, by a stand-in."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ciml.data_root import DataRoot
from ciml.errors import CimlError
from ciml.pipelines import sweep
from ciml.pipelines.sweep import SweepContext, Swept, run_sweep
from ciml.storage.json_files import without_seal
from ciml.training.sweeps.definition import Combination, Sweep
from ciml.training.sweeps.study import Outcome, store_baselines, store_outcome
from ciml.trust import TrustPolicy
from tests.pipelines.datasets.dataset_scenes import runs
from tests.runs.scenes import RawStore

KEYS: dict[str, Any] = {
    "name": "order",
    "dataset": {"class_label": "provider"},
    "experiment": {"estimator": "random_forest", "parameters": {"n_estimators": 1}},
    "trials": 6,
    "startup_trials": 2,
    "lag": 1,
}
MANY = {"parameters": {"max_features": {"low": 0.1, "high": 1.0}}}
TWO = {"parameters": {"criterion": ["gini", "entropy"]}}

Trained = list[tuple[Outcome, tuple[Outcome, ...]]]


@pytest.fixture
def trained(raw: RawStore, monkeypatch: pytest.MonkeyPatch) -> Trained:
    """The trials that were trained, each with the earlier ones that it knew."""
    raw.add(runs(1, 1))
    trials: Trained = []

    def train(context: SweepContext, initial: Outcome, _: Combination, past: tuple[Outcome, ...]) -> Outcome:
        trials.append((initial, past))
        return store_outcome(context.store, initial.replace(state="complete", value=initial.number / 10))

    monkeypatch.setattr(sweep, "_build", lambda *_: "")
    monkeypatch.setattr(sweep, "_train", train)
    monkeypatch.setattr(sweep, "_store_baseline", lambda own, question, _: store_baselines(own.store, question, {}))
    monkeypatch.setattr(sweep, "process_pool", lambda *_: ThreadPoolExecutor(1))
    return trials


def run(data: DataRoot, vary: dict[str, Any], **keys: Any) -> Swept:
    file = Sweep.from_json({**KEYS, "vary": {"experiment": vary}, **keys}, "tests.toml")
    return run_sweep(SweepContext(data, data, file, TrustPolicy.load()), jobs=1)


@pytest.mark.parametrize("lag", [1, 3])
def test_a_trial_starts_when_as_many_are_in_progress_as_the_lag_allows(
    lag: int, data: DataRoot, trained: Trained
) -> None:
    run(data, MANY, lag=lag)
    assert [[outcome.number for outcome in past] for _, past in trained] == [list(range(number)) for number in range(6)]
    in_progress = [sum(outcome.state == "running" for outcome in past) for _, past in trained]
    assert in_progress == [min(number, lag - 1) for number in range(6)]


def test_equal_trials_are_trained_once(data: DataRoot, trained: Trained) -> None:
    swept = run(data, TWO)
    first = {str(outcome.parameters): outcome for outcome in reversed(swept.outcomes)}
    assert [initial.number for initial, _ in trained] == sorted(outcome.number for outcome in first.values())
    assert swept.trained == len(trained)
    for outcome in swept.outcomes:
        origin = first[str(outcome.parameters)]
        assert outcome.value == origin.value
        assert outcome.same_as == (None if outcome is origin else origin.number)


def test_a_sweep_of_another_normalisation_trains_no_further_trial(data: DataRoot, trained: Trained) -> None:
    store = sweep.sweep_store(data.sweeps, "order")
    run(data, MANY, trials=2)
    begun = json.loads(without_seal(store.read("sweep.json")))
    store.replace("sweep.json", json.dumps({**begun, "normalisation": 1}).encode())
    run(data, MANY, trials=2)
    with pytest.raises(CimlError, match="was begun by a version of ciml that normalises otherwise"):
        run(data, MANY, trials=3)
    assert len(trained) == 2

"""Training on recent runs: a window, and weights that decay with age."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ciml.data_root import DataRoot
from ciml.errors import CimlError
from ciml.events.records import RunFacts
from ciml.settings import seconds_of
from ciml.training.data.examples import read_facts, read_snapshot_dataset, read_snapshot_examples
from ciml.training.data.materialise import Materialised
from ciml.training.data.snapshot import (
    JudgedRun,
    Role,
    Snapshot,
    SnapshotRun,
    make_snapshot,
    read_snapshot,
    write_snapshot,
)
from ciml.training.data.snapshot import _newest_training_us as newest_training_us
from ciml.training.estimators import Rows, check_experiment, check_use, fit
from ciml.training.estimators.boosted import BoostedViews
from ciml.training.estimators.networks import Trained
from ciml.training.experiment import Experiment
from ciml.training.experiments.results import experiment_of
from ciml.training.refresh import Candidate, TrainConfig, refresh
from ciml.training.train import NormalisedRows, train
from ciml.trust import TrustPolicy

POLICY = TrustPolicy.load()
FOREST = Experiment(name="forest", estimator="random_forest", parameters={"n_estimators": 5})


def ends_s(data: DataRoot, snapshot: Snapshot) -> np.ndarray:
    """Return when each run of a snapshot ended, seconds."""
    facts = read_facts(data.dataset("providers").store, snapshot)
    return np.array([(facts[run.run_id].end_us or 0) / 1e6 for run in snapshot.runs()])


def is_training(snapshot: Snapshot) -> np.ndarray:
    return np.array([run.role == "train" for run in snapshot.runs()])


def test_a_window_counts_back_from_the_newest_training_run(data: DataRoot, snapshot: Snapshot) -> None:
    ends = ends_s(data, snapshot)
    newest = ends[is_training(snapshot)].max()
    age_s = float(np.median(newest - ends))
    recent = make_snapshot(data.dataset("providers"), POLICY, window=f"{age_s:.0f}s")
    expected = [run for run, end in zip(snapshot.runs(), ends, strict=True) if newest - end <= round(age_s)]
    assert list(recent.runs()) == expected
    assert {run.role for run in expected} == {"train", "dev", "test"}
    omitted = len(ends) - len(expected)
    assert recent.withheld == {f"window: {age_s:.0f}s": omitted}
    assert recent.rejected()[f"window: {age_s:.0f}s"] == omitted
    assert recent.summary()["window"] == recent.window == f"{age_s:.0f}s"


def test_caps_are_shares_of_the_window(data: DataRoot, snapshot: Snapshot) -> None:
    capped = TrustPolicy.parse('[caps]\nauthor = 0.5\n[[rule]]\nname = "gated"\ntrusted = true\npipeline = "gate"\n')
    dataset = data.dataset("providers")
    window = f"{np.median(np.ptp(ends_s(data, snapshot))) / 2:.0f}s"
    facts = read_facts(dataset.store, snapshot)
    runs = list(make_snapshot(dataset, capped, window=window).runs("train", "dev"))
    for label in {run.label for run in runs}:
        owners = [facts[run.run_id].owner for run in runs if run.label == label]
        assert owners.count("ann") <= len(owners) / 2


def test_a_run_of_a_half_life_weighs_half_and_held_out_ones_are_not_weighted(
    data: DataRoot, snapshot: Snapshot
) -> None:
    assert snapshot.weights is None
    decayed = make_snapshot(data.dataset("providers"), POLICY, half_life="10h")
    assert list(decayed.runs()) == list(snapshot.runs())
    assert decayed.digest != snapshot.digest
    ends = ends_s(data, snapshot)
    ages = np.maximum(0, ends[is_training(snapshot)].max() - ends)
    held_out = np.array([run.role == "test" for run in snapshot.runs()])
    expected = np.where(held_out, 1, 0.5 ** (ages / seconds_of("10h")))
    assert decayed.weights is not None
    np.testing.assert_allclose(decayed.weights, expected, atol=1e-6)
    assert expected.min() < 0.9
    assert decayed.summary()["half_life"] == "10h"
    write_snapshot(data.trainer("m"), decayed)
    assert read_snapshot(data.trainer("m"), decayed.digest) == decayed


def test_age_counts_from_the_newest_run_that_is_trained_on() -> None:
    def judged(end_s: int, role: Role, omitted: tuple[str, str] | None = None) -> JudgedRun:
        run = SnapshotRun("zuul~a~1", role, role, 0, "rule", "unit", "")
        return JudgedRun(0, run, RunFacts("zuul~a~1", "a", end_us=end_s * 1_000_000), omitted)

    runs = [judged(9, "train"), judged(5, "train"), judged(20, "test"), judged(30, "train", ("untrusted", "rule"))]
    assert newest_training_us(runs, 9_000_000) == 9_000_000
    assert newest_training_us(runs[2:], 9_000_000) == 0
    day_s = 24 * 3600
    assert newest_training_us([*runs, judged(9 + day_s, "train")], 9_000_000) == (9 + day_s) * 1_000_000
    assert newest_training_us([*runs, judged(10 + day_s, "train")], 9_000_000) == 9_000_000  # of a wrong clock


def test_the_rows_of_a_snapshot_have_its_weights_in_each_order(
    data: DataRoot, snapshot: Snapshot, materialised: Materialised
) -> None:
    decayed = make_snapshot(data.dataset("providers"), POLICY, half_life="10h")
    store = data.dataset("providers").store
    runs, recorded = read_snapshot_examples(store, decayed, "train", "dev")
    of_run = dict(zip((run.run_id for run in decayed.runs()), decayed.weights.tolist(), strict=True))
    assert recorded.weights is not None
    assert recorded.weights.tolist() == [of_run[run.run_id] for run in runs]
    whole = read_snapshot_dataset(data.dataset("providers"), decayed)  # of the cross-validation
    assert whole.rows.take(np.arange(3)).weights.tolist() == list(of_run.values())[:3]
    normalised = NormalisedRows(materialised, snapshot.resolved, decayed.weights).rows("train", "dev")
    by_label = {label: sorted(recorded.weights[recorded.labels == label].tolist()) for label in range(4)}
    assert by_label == {label: sorted(normalised.weights[normalised.labels == label].tolist()) for label in range(4)}
    assert NormalisedRows(materialised, snapshot.resolved).rows("train").weights is None


NETWORK = Experiment(hidden_layers=(8,), epochs=4, l2=0.0, learning_rate=0.01, batch_size=16)


@pytest.fixture(scope="module")
def rows(materialised: Materialised, snapshot: Snapshot) -> Rows:
    return NormalisedRows(materialised, snapshot.resolved).rows("train")


def weighted(rows: Rows, weights: np.ndarray) -> Rows:
    return Rows(rows.inputs, rows.n_windows, rows.labels, weights=weights.astype(np.float32))


@pytest.mark.parametrize(
    "experiment",
    [
        NETWORK,
        FOREST.replace(parameters={"n_estimators": 5, "bootstrap": False, "max_features": None}),
        Experiment(estimator="hist_gradient_boosting", parameters={"max_iter": 5, "min_samples_leaf": 1}),
        experiment_of("sklearn.linear_model:LogisticRegression"),
    ],
    ids=lambda experiment: experiment.estimator,
)
def test_equal_weights_change_nothing_and_runs_without_weight_are_not_learned(
    rows: Rows, experiment: Experiment
) -> None:
    def answers(train: Rows) -> np.ndarray:
        return fit(experiment, train, None, 4).predict(rows.inputs, rows.n_windows)

    plain = answers(rows)
    np.testing.assert_allclose(answers(weighted(rows, np.full(len(rows), 0.3))), plain, atol=2e-5)
    old = rows.labels == rows.labels[0]
    unlearned = answers(weighted(rows, np.where(old, 0.0, 1.0)))
    mean = plain[old, rows.labels[0]].mean()
    assert unlearned[old, rows.labels[0]].mean() < 0.8 * mean


def test_boosted_summaries_and_pipelines_pass_the_weights_on(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    monkeypatch.setattr(BoostedViews, "fit", lambda self, *_, sample_weight: seen.append(sample_weight) or self)
    weights = np.arange(1.0, len(rows) + 1)
    fit(Experiment(estimator="boosted_summaries"), weighted(rows, weights), None, 4)
    np.testing.assert_allclose(seen[0], weights / weights.mean(), rtol=1e-6)
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scaled = experiment_of(make_pipeline(StandardScaler(), LogisticRegression()))
    plain, other = (fit(scaled, train, None, 4) for train in (rows, weighted(rows, weights)))
    differs = plain.predict(rows.inputs, rows.n_windows) != other.predict(rows.inputs, rows.n_windows)
    assert differs.any()


@pytest.mark.parametrize("are_weighted", [False, True])
def test_rows_that_do_not_fit_into_memory_are_trained_on_as_those_that_do(
    materialised: Materialised, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch, are_weighted: bool
) -> None:
    weights = np.linspace(0.1, 1, sum(1 for _ in snapshot.runs()), dtype=np.float32) if are_weighted else None
    source = NormalisedRows(materialised, snapshot.resolved, weights)
    # Each epoch is one step, whatever the order.
    experiment = NETWORK.replace(epochs=3, batch_size=1000, class_weights="balanced")
    resident = train(experiment, source, snapshot.resolved, dev_from_train=True)
    monkeypatch.setattr("ciml.training.train._MAX_RESIDENT_BYTES", 1)
    streamed = train(experiment, source, snapshot.resolved, dev_from_train=True)
    assert isinstance(resident, Trained)
    assert isinstance(streamed, Trained)
    assert streamed.history["loss"] == pytest.approx(resident.history["loss"], abs=1e-5)
    assert streamed.runs == resident.runs == materialised.counts["train"] + materialised.counts["dev"]


@pytest.mark.parametrize(
    "estimator",
    [
        "sklearn.neighbors:KNeighborsClassifier",
        {"class": "sklearn.calibration:CalibratedClassifierCV",
         "parameters": {"estimator": {"class": "sklearn.neighbors:KNeighborsClassifier", "parameters": {}}}},
    ],
)  # fmt: skip
def test_an_estimator_without_weights_is_refused_before_anything_is_trained(
    data: DataRoot, snapshot: Snapshot, estimator: str | dict[str, object]
) -> None:
    keys = {"estimator": estimator, "parameters": {}} if isinstance(estimator, str) else {
        "estimator": estimator["class"], "parameters": estimator["parameters"]
    }  # fmt: skip
    experiment = Experiment.from_json({**keys, "name": "near", "half_life": "30d"})
    with pytest.raises(
        CimlError, match=r"experiment 'near': half_life: estimator .* takes no weights of runs; use win"
    ):
        refresh(TrainConfig(data, "providers", "m", experiment))
    check_use(experiment.replace(half_life=None, window="30d"), snapshot.resolved)


@pytest.mark.parametrize("key", ["window", "half_life"])
def test_a_wrong_age_is_reported_with_file_and_key(tmp_path: Path, key: str) -> None:
    file = tmp_path / "forest.toml"
    for text, problem in {
        "90 days": "invalid time '90 days'; give a number with ms, s, min, h or d",
        "0d": "'0d' is not an age; choose one such as 90d",
    }.items():
        file.write_text(f'{key} = "{text}"\n')
        with pytest.raises(CimlError, match=f"^{file}: {key}: {problem}"):
            Experiment.load(file)
    assert key not in Experiment().to_json()
    with pytest.raises(CimlError, match=f"experiment: {key}: only a refresh uses it; remove it"):
        check_experiment(FOREST.replace(**{key: "90d"}))
    check_experiment(FOREST.replace(**{key: "90d"}), is_refreshed=True)


def test_a_refresh_of_a_window_with_decay_states_both(data: DataRoot) -> None:
    experiment = FOREST.replace(window="365d", half_life="12h")
    done = refresh(TrainConfig(data, "providers", "m", experiment))
    assert isinstance(done, Candidate)
    assert (done.snapshot.window, done.snapshot.half_life) == ("365d", "12h")
    assert done.metrics["snapshot"]["half_life"] == "12h"
    assert done.facts()["experiment"]["window"] == "365d"
    unweighted = refresh(TrainConfig(data, "providers", "m", FOREST))
    assert isinstance(unweighted, Candidate)
    assert unweighted.metrics["evaluation"]["brier"] != done.metrics["evaluation"]["brier"]

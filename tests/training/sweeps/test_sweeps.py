"""Sweeps: the meaning of a file, complete grids, and proposals and pruning that follow from earlier outcomes."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ciml.data_root import DataRoot
from ciml.errors import CimlError, IntegrityError
from ciml.storage import open_store
from ciml.storage.json_files import without_seal
from ciml.training.data.examples import InMemoryDataset
from ciml.training.estimators import Rows, fit
from ciml.training.estimators.description import build
from ciml.training.evaluation.baselines import first_memory
from ciml.training.evaluation.metrics import scores
from ciml.training.experiment import Experiment
from ciml.training.normalise import Normalisation
from ciml.training.sweeps.definition import Sweep, axes_of
from ciml.training.sweeps.study import (
    Judge,
    Outcome,
    begin_sweep,
    check_normalisation,
    propose,
    read_outcome,
    score_baselines,
    score_trial,
    store_outcome,
    sweep_store,
)

OWN = "tests.training.estimators.user_models"
MANY = list(range(101))  # an axis has at most 100 values
LARGE = {"max_windows": MANY[1:], "salt": ["a", "b"]}
LISTED = {"experiment": {"learning_rate": [0.1, 0.2]}}
FOREST = {"estimator": "random_forest", "parameters": {"n_estimators": 3}}


def sweep(**keys: Any) -> Sweep:
    values = {"name": "tests", "dataset": {"class_label": "provider"}, "experiment": FOREST, **keys}
    return Sweep.from_json(values, "tests.toml")


def rates(**keys: Any) -> Sweep:
    rate = {"low": 1e-4, "high": 1.0, "log": True}
    return sweep(experiment={}, vary={"experiment": {"learning_rate": rate}}, **{"trials": 30, **keys})


def test_a_grid_has_every_combination_once_in_an_order_that_is_the_seeds_alone() -> None:
    features, intervals, depths = ["usr", "1min", "(usr|1min)"], ["1s", "10s"], [2, 8]
    dataset = {"features_regex": features, "sample_interval": intervals}
    vary = {"dataset": dataset, "experiment": {"parameters": {"max_depth": depths}}}
    grid = sweep(vary=vary).grid
    found = [(cell["features_regex"], cell["sample_interval"], cell["parameters.max_depth"]) for cell in grid]
    assert sorted(found) == sorted(itertools.product(features, intervals, map(str, depths)))
    backwards = {"experiment": vary["experiment"], "dataset": {key: dataset[key][::-1] for key in reversed(dataset)}}
    assert sweep(vary=backwards).grid == grid
    assert sweep(vary=vary, seed=1).grid != grid
    assert len(sweep(vary=vary, seed=1).grid) == 12


def test_any_estimator_and_each_of_its_parameters_vary() -> None:
    vary = {
        "experiment": {
            "estimator": ["random_forest", "LogisticRegression", "GaussianNB"],
            "parameters": {"C": [0.1, 1.0], "n_estimators": [5], "var_smoothing": [1e-9]},
            "view": ["flat", "summary"],
        }
    }
    several = sweep(experiment={"seed": 2}, vary=vary)
    names = [(cell["estimator"], cell["view"], *(key for key in cell if "." in key)) for cell in several.grid]
    assert names.count(("LogisticRegression", "flat", "parameters.C")) == 2
    assert names.count(("GaussianNB", "summary", "parameters.var_smoothing")) == 1
    cell = next(cell for cell in several.grid if cell["estimator"] == "LogisticRegression")
    experiment = several.combine(cell).experiment
    assert experiment.estimator == "sklearn.linear_model:LogisticRegression"
    assert (experiment.seed, experiment.view, list(experiment.parameters)) == (2, cell["view"], ["C"])
    assert list(experiment.packages) == ["scikit-learn"]


def test_parameters_of_parts_vary() -> None:
    steps = [["scale", {"class": "StandardScaler"}], ["model", {"class": "LogisticRegression"}]]
    scalers = {"robust": {"class": "RobustScaler"}, "none": "passthrough"}
    deep = {"model__C": {"low": 0.01, "high": 10.0, "log": True}, "scale": scalers, "model__fit_intercept": [True]}
    fixed = {"estimator": "Pipeline", "parameters": {"steps": steps}}
    found = sweep(experiment=fixed, vary={"experiment": {"parameters": deep}}, trials=3)
    cell = {"parameters.model__C": 0.5, "parameters.scale": "robust", "parameters.model__fit_intercept": "true"}
    assert found.effective(cell) == cell
    model = build({"class": "Pipeline", "parameters": found.combine(cell).experiment.parameters})
    assert (model.named_steps["model"].C, type(model.named_steps["scale"]).__name__) == (0.5, "RobustScaler")
    for name, line in {"model__c": "did you mean C", "mdoel__C": "no part 'mdoel'"}.items():
        with pytest.raises(CimlError, match=line):
            sweep(experiment=fixed, vary={"experiment": {"parameters": {name: [1.0]}}})


def test_a_sweep_allows_the_modules_that_its_file_names_alone() -> None:
    names = ["GaussianNB", f"{OWN}:MeanThreshold", f"{OWN}:network"]
    keys = {"estimator": names, "parameters": {"column": [0, 1], "units": [3]}, "epochs": [5]}
    found = sweep(experiment={}, vary={"experiment": keys})
    assert found.modules == (OWN,)
    cells = {str(cell["estimator"]).rpartition(":")[2]: cell for cell in found.grid}
    assert cells["GaussianNB"].keys() == {"estimator"}
    assert cells["MeanThreshold"].keys() == {"estimator", "parameters.column"}
    assert cells["network"].keys() == {"estimator", "parameters.units", "epochs"}
    assert sweep(vary=LISTED | {"experiment": {"seed": [1, 2]}}).modules == ()


def test_keys_that_an_estimator_does_not_use_make_no_combinations() -> None:
    vary = {"experiment": {"estimator": ["dnn", "svm"], "hidden_layers": ["10", [100, 100]], "seed": [0, 1]}}
    one = sweep(experiment={"epochs": 7}, vary=vary)
    assert sorted(map(str, one.grid)) == sorted(
        [str({"estimator": "dnn", "hidden_layers": h, "seed": s}) for h in ("1×10", "2×100") for s in "01"]
        + [str({"estimator": "svm", "seed": s}) for s in "01"]
    )
    svm, dnn = one.combine({"estimator": "svm", "seed": "1"}), one.combine(one.effective(one.grid[0]))
    assert (svm.experiment.estimator, svm.experiment.seed, svm.experiment.epochs) == ("svm", 1, 150)
    wide = one.combine({"estimator": "dnn", "hidden_layers": "2×100", "seed": "0"}).experiment
    assert (wide.hidden_layers, wide.epochs, dnn.experiment.name) == ((100, 100), 7, "tests")


def test_values_have_names_and_a_data_set_is_named_by_its_content() -> None:
    merged = {"alder": "alder", "birch": "others", "cedar": "others", "dune": "others"}
    class_maps = {"four": {}, "two": merged}
    keys = {"sample_interval": ["10s"], "class_map": class_maps, "aggregation_functions": [["mean", "std"]]}
    one = sweep(vary={"dataset": keys})
    assert [axis.names for axis in one.axes] == [("10s",), ("four", "two"), ("mean, std",)]
    assert [dict(asked) for asked in one.questions] == [{"class_map": "four"}, {"class_map": "two"}]
    cell = {"sample_interval": "10s", "class_map": "two", "aggregation_functions": "mean, std"}
    made = one.combine(cell, 7).definition
    assert (made.class_map, made.aggregation_functions, made.raw_version) == (merged, ("mean", "std"), 7)
    assert (made.slicer, made.name[:10], one.question_of(cell)) == (":", "sweep-10s-", 1)
    assert sweep(name="other", metric="f1", vary={"dataset": keys}).combine(cell, 7).definition == made
    others = (one.combine(cell, 8), one.combine({**cell, "class_map": "four"}, 7))
    assert made.name not in [other.definition.name for other in others]
    (layers, text) = axes_of("experiment", {"hidden_layers": [[], "7", "9/8"], "class_weights": ["none", "balanced"]})
    assert (layers.names, text.names) == (("none", "1×7", "9/8"), ("none", "balanced"))


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"vary": {"experiment": {"hidden_layers": [100, 200]}}}, "vary.experiment.hidden_layers: expected"),
        ({"vary": {}}, "vary: no varying key"),
        ({"vary": {"dataset": {"sample_interval": []}}}, "vary.dataset.sample_interval: no values"),
        ({"vary": {"dataset": {"sample_interval": "1s"}}}, "vary.dataset.sample_interval: expected a list of values"),
        ({"vary": {"dataset": {"sample_interval": ["1x"]}}}, "vary.dataset.sample_interval: dataset: sample_interval:"),
        ({"vary": {"dataset": {"nosuch": [1]}}}, "vary.dataset.nosuch: dataset: nosuch: unknown key"),
        ({"vary": {"dataset": {"name": ["a"]}}}, "dataset.name: set by the sweep; remove it"),
        ({"dataset": {"raw_version": 3}}, "dataset.raw_version: set by the sweep; remove it"),
        ({"vary": {"dataset": {"max_windows": {"low": 1, "high": 9}}}}, "vary.dataset.max_windows: a range would need"),
        ({"vary": {"experiment": {"epochs": [1]}}}, "vary.experiment.epochs: experiment: epochs: not used by"),
        ({"vary": {"experiment": {"seed": {"low": 1, "high": 9}}}}, "vary.experiment.seed: a range has no finite"),
        ({"vary": {"experiment": {"seed": {"low": 9, "high": 9}}}, "trials": 2}, "vary.experiment.seed: expected a"),
        ({"vary": {"experiment": {"seed": [1, 1]}}}, "vary.experiment.seed: duplicate value"),
        ({"vary": {"experiment": {"seed": [1], "estimator": ["tree"]}}}, "experiment.estimator: both fixed and"),
        ({"experiment": {}, "vary": {"experiment": {"estimator": ["tree"]}}}, "vary.experiment.estimator: unknown"),
        ({"vary": {"experiment": {"parameters": {"depth": [1]}}}}, "vary.experiment.parameters.depth: random_forest:"),
        ({"vary": {"dataset": {"features_regex": ["a\nb"]}}}, "vary.dataset.features_regex: 'a\\nb' is not one line"),
        ({"vary": {"dataset": {"features_regex": ["x" * 200]}}}, "vary.dataset.features_regex: 'xxx"),
        ({"name": "../x"}, "name: '../x' is not valid"),
        ({"metric": "gain"}, "metric: 'gain' is unknown; choose from accuracy, f1"),
        ({"on": "test"}, "on: 'test' is unknown; choose from folds, dev"),
        ({"on": "dev", "hold_out": "job"}, "hold_out: not used on dev"),
        ({"experiment": {**FOREST, "epochs": 4}}, "vary.experiment.seed: experiment: epochs: not used by"),
        ({"dataset": {"sample_interval": "1s"}, "vary": {"dataset": {"sample_interval": ["1s"]}}}, "dataset.sample_"),
        ({"vary": {"experiment": {"seed": MANY}}}, "vary.experiment.seed: 101 values exceed 100"),
        ({"vary": {"experiment": {"seed": MANY[1:]}, "dataset": LARGE}}, "vary: 20,000 combinations"),
        ({"pruning": "median"}, "pruning: unknown key"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_names_file_and_key(keys: dict[str, Any], line: str) -> None:
    with pytest.raises(CimlError) as error:
        sweep(**{"vary": {"experiment": {"seed": [0, 1]}}, **keys})
    assert str(error.value).startswith(f"tests.toml: {line}"), str(error.value)
    assert "\n" not in str(error.value)


def earlier(state: Any, parameters: Any = None, **keys: Any) -> Outcome:
    return Outcome(number=0, question=0, parameters=parameters or {"learning_rate": 0.1}, state=state, **keys)


def test_proposals_follow_from_the_past_alone_and_go_where_it_was_good() -> None:
    one, past = rates(), []
    for _ in range(30):
        found = propose(one, 0, past)
        assert found == propose(one, 0, list(past))
        rate = float(found["learning_rate"])
        assert 1e-4 <= rate <= 1.0
        past.append(earlier("complete", found, value=-abs(math.log10(rate) + 2)))
    distances = [-each.value for each in past]
    assert sum(distances[20:]) < sum(distances[:10]) / 2
    assert propose(rates(seed=1), 0, []) != propose(one, 0, [])


def test_the_median_pruner_prunes_worse_trials_after_its_startup_trials() -> None:
    past = [earlier("complete", value=value, steps=((1, value), (2, value))) for value in (0.2, 0.4, 0.6)]
    unknown = [*past[:2], earlier("running"), earlier("failed")]

    def pruned(value: float, past: list[Outcome] = past, **keys: Any) -> bool:
        return Judge(rates(startup_trials=3, **keys), past).report_step(1, value)

    assert [pruned(value) for value in (0.1, 0.39, 0.41)] == [True, True, False]
    judge = Judge(rates(startup_trials=3), past)
    assert [judge.report_step(step, value) for step, value in ((1, 0.9), (2, 0.3))] == [False, False]  # its best so far
    assert not pruned(0.1, past[:2])
    assert not pruned(0.1, unknown)
    assert [pruned(value, metric="brier") for value in (0.1, 0.5)] == [False, True]
    assert not pruned(0.0, pruner="none")
    assert [pruned(0.0, warmup=steps) for steps in (0, 1, 2)] == [True, False, False]


@pytest.mark.parametrize("pruner", ["successive_halving", "hyperband"])
def test_a_rung_is_remembered_with_the_trial(pruner: str) -> None:
    one, past, ended = rates(pruner=pruner, folds=9), [], []
    for number in range(12):
        judge, value = Judge(one, past), 0.9 - 0.05 * number  # each worse than all before
        steps: list[tuple[int, float]] = []
        for step in range(1, 10):
            steps.append((step, value))
            if judge.report_step(step, value):
                ended.append(number)
                break
        state = "pruned" if number in ended else "complete"
        past.append(earlier(state, value=value, steps=tuple(steps), attrs=judge.attrs))
    assert any(past[0].attrs or {})
    assert 0 not in ended
    assert len(ended) >= 3


def outcome(number: int, **keys: Any) -> Outcome:
    return Outcome.from_json({"number": number, "question": 0, "parameters": {"seed": "0"}, "state": "failed", **keys})


def test_an_outcome_is_stored_once_and_a_foreign_one_is_reported(tmp_path: Path) -> None:
    store = sweep_store(DataRoot.open(tmp_path).sweeps, "tests")
    parameters = {"seed": "1", "learning_rate": 0.1}
    first = outcome(3, state="complete", value=0.1 + 0.2, steps=[[1, 0.25]], parameters=parameters)
    assert store_outcome(store, first) == first == read_outcome(store, 3)
    assert store_outcome(store, outcome(3)) == first
    assert read_outcome(store, 4) is None
    for number, text, line in [
        (5, "{", "is unreadable"),
        (6, "[]", "is unreadable"),
        (7, json.dumps(outcome(8).to_json()), "belongs to trial 8"),
        (9, json.dumps({**outcome(9).to_json(), "state": "blessed"}), "state: 'blessed' is unknown; choose from "),
    ]:
        store.create(f"trials/{number:06}.json", text.encode())
        with pytest.raises(IntegrityError, match=line):
            read_outcome(store, number)
    with pytest.raises(CimlError, match="is not valid"):
        sweep_store(DataRoot.open(tmp_path).sweeps, "../x")


def test_a_sweep_that_was_begun_may_have_other_trials_and_nothing_else(tmp_path: Path) -> None:
    store, facts = open_store(tmp_path), {"trust_policy": "a"}
    assert begin_sweep(store, rates(), facts, lambda: 4) == 4
    assert begin_sweep(store, rates(trials=90), facts, lambda: 5) == 4
    for other, inputs, line in [
        (rates(metric="f1", folds=4), facts, "with another folds, metric; choose another name"),
        (rates(), {"trust_policy": "b"}, "with another trust_policy; choose another name"),
    ]:
        with pytest.raises(CimlError, match=line):
            begin_sweep(store, other, inputs, lambda: 5)
    grid = sweep(experiment={}, vary=LISTED)  # every combination once: a number would sample them
    assert begin_sweep(open_store(tmp_path / "grid"), grid, facts, lambda: 4) == 4
    with pytest.raises(CimlError, match="with another trials; choose another name"):
        begin_sweep(open_store(tmp_path / "grid"), grid.replace(trials=9), facts, lambda: 5)
    store.replace("sweep.json", b"{}")
    with pytest.raises(IntegrityError, match="is not a sweep"):
        begin_sweep(store, rates(), facts, lambda: 5)


def test_a_sweep_of_an_older_normalisation_is_read_but_trains_no_further_trial(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    begin_sweep(store, rates(), {}, lambda: 4)
    check_normalisation(store, "rates")  # its trials may be trained
    begun = json.loads(without_seal(store.read("sweep.json")))
    assert begun.pop("normalisation") == 2
    store.replace("sweep.json", json.dumps(begun).encode())
    assert begin_sweep(store, rates(), {}, lambda: 5) == 4
    with pytest.raises(CimlError, match="'rates' was begun by a version of ciml that normalises otherwise"):
        check_normalisation(store, "rates")


def test_on_dev_the_base_rate_is_that_of_the_training_runs(dataset: InMemoryDataset) -> None:
    labels, dev, train = np.zeros(len(dataset.facts), np.int64), dataset.of("dev"), dataset.of("train")
    labels[dev] = labels[train[: len(train) // 2 - 1]] = 1  # most training runs are of class 0, most of both of class 1
    one = sweep(on="dev", vary={"experiment": {"seed": [0, 1]}})
    relabelled = dataclasses.replace(dataset, rows=dataclasses.replace(dataset.rows, labels=labels))
    experiment = Experiment(name="tests", estimator="random_forest", parameters={"n_estimators": 3})
    found = score_trial(one, experiment, relabelled, outcome(0, state="running"), lambda step, value: False)
    assert np.bincount(labels[[*train, *dev]]).argmax() == 1
    assert (found.state, found.held_out, found.scores["base_rate"]) == ("complete", len(dev), 0.0)


@pytest.mark.whole
def test_on_dev_a_network_reports_its_epochs_and_its_last_value_is_its_score(dataset: InMemoryDataset) -> None:
    experiment = Experiment(name="tests", hidden_layers=(8,), epochs=3, learning_rate=0.01)
    one = rates(on="dev", report_epochs=2, trials=1, metric="f1")
    reported: list[tuple[int, float]] = []
    begun = earlier("running")
    found = score_trial(one, experiment, dataset, begun, lambda step, value: reported.append((step, value)) or False)
    assert [step for step, _ in reported] == [2]
    assert list(found.steps) == reported
    dev, train = dataset.of("dev"), dataset.of("train")
    assert (found.state, found.trained_on, found.held_out) == ("complete", len(train), len(dev))
    normalisation = Normalisation.of(dataset.rows.inputs[train])

    def normal(positions: np.ndarray) -> Rows:
        rows = dataset.rows.take(positions)
        return Rows(normalisation.apply(rows.inputs), rows.n_windows, rows.labels)

    for epochs, value in [*reported, (3, found.value)]:
        asked = normal(dev)
        model = fit(experiment.replace(epochs=epochs), normal(train), None, 2)
        answers = model.predict(asked.inputs, asked.n_windows)
        right = scores(answers, asked.labels, "ab", asked.labels, resamples=0)["macro"]["f1"]["value"]
        assert value == pytest.approx(right)
    by_changes = scores(answers, asked.labels, "ab", asked.labels, changes=dataset.changes(dev))["macro"]["f1"]
    assert (found.low, found.high) == pytest.approx((by_changes["low"], by_changes["high"]))
    ended = score_trial(one, experiment, dataset, begun, lambda step, value: step == 2)
    assert (ended.state, ended.value, list(ended.steps), ended.low) == ("pruned", reported[0][1], reported, None)
    last = score_trial(one, experiment.replace(epochs=2), dataset, begun, lambda step, value: step == 2)
    assert (last.state, len(last.steps)) == ("complete", 1)
    number = score_baselines(one, dataset)["memory"]
    known, asked = (first_memory(dataset.raw, [dataset.facts[at].run_id for at in each]) for each in (train, dev))
    nearest = dataset.rows.labels[train][np.abs(asked[:, None] - known).argmin(axis=1)]
    labels = dataset.rows.labels
    macro = scores(np.eye(2)[nearest], labels[dev], "ab", labels[train], changes=dataset.changes(dev))["macro"]
    assert {key: number[key] for key in macro["f1"]} == pytest.approx(macro["f1"])

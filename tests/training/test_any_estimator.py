"""An estimator of scikit-learn, of the user's, or of Keras is trained, gated and exported like the built-in ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightgbm import LGBMClassifier
from sklearn.ensemble import BaggingClassifier, ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import ExtraTreeClassifier
from xgboost import XGBClassifier

from ciml.data_root import DataRoot
from ciml.errors import CimlError, IntegrityError
from ciml.serving.contract import check_candidate
from ciml.serving.predict.answers import Answer
from ciml.serving.registry import CandidateNotice
from ciml.storage import LocalStore
from ciml.training.candidate_model import CandidateModel
from ciml.training.data.examples import InMemoryDataset, read_snapshot_examples
from ciml.training.estimators import check_experiment, fit, identified, inputs_for, modules_named
from ciml.training.estimators.description import build
from ciml.training.evaluation.cross_validation import cross_validate
from ciml.training.evaluation.gate import GatePolicy
from ciml.training.experiment import Experiment
from ciml.training.experiments.results import create_experiment, experiment_of
from ciml.training.experiments.trials import Trial
from ciml.training.export import load_exported
from ciml.training.kept import load_kept
from ciml.training.refresh import Candidate, TrainConfig, refresh
from ciml.training.train import train
from ciml.training.trainer import run_once
from ciml.transforms.examples.prepare import prepare_many
from tests.tier import part
from tests.transforms.samples import corpus

USER = "tests.training.estimators.user_models"
SERVED: dict[str, tuple[Any, dict[str, Any]]] = {
    "a class of scikit-learn": (ExtraTreesClassifier(20), {}),
    "a pipeline": (make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)), {"calibration": "temperature"}),
    "a decision function alone": (make_pipeline(StandardScaler(), RidgeClassifier()), {}),
    "a search": (
        GridSearchCV(make_pipeline(StandardScaler(), LogisticRegression()), {"logisticregression__C": [0.1, 1]}),
        {},
    ),
    "xgboost": (XGBClassifier(n_estimators=10), {}),
    "lightgbm": (LGBMClassifier(n_estimators=10, verbose=-1), {}),
    "a function": (f"{USER}:network", {"epochs": 60, "learning_rate": 0.01, "parameters": {"units": 8}}),
    "a built-in forest": ("random_forest", {"parameters": {"n_estimators": 20}}),
    "a built-in forest on a view": ("random_forest", {"parameters": {"n_estimators": 20}, "view": "flat"}),
}
KEPT: dict[str, tuple[Any, dict[str, Any], str]] = {
    "neighbours": (
        make_pipeline(StandardScaler(), KNeighborsClassifier(3)),
        {"calibration": "temperature"},
        "kneighborsclassifier",
    ),
    "a class of the user's": (f"{USER}:Shares", {"parameters": {"weight": 0.5}}, "Shares"),
}


def refreshed(data: DataRoot, experiment: Experiment) -> Candidate:
    without_second_training = GatePolicy(min_agreement=0.0)
    allowed = modules_named(experiment)
    config = TrainConfig(data, "providers", "m", experiment, gate=without_second_training, allow_modules=allowed)
    candidate = refresh(config)
    assert isinstance(candidate, Candidate)
    return candidate


@pytest.mark.parametrize("name", part(list(SERVED), 1, 5))
def test_an_estimator_is_exported_and_its_export_gives_its_own_probabilities(data: DataRoot, name: str):
    estimator, keys = SERVED[name]
    experiment = experiment_of(estimator, keys, "tried")
    candidate = refreshed(data, experiment)
    assert candidate.decision.blessed, candidate.decision.reasons
    assert candidate.metrics["disagreement"] <= 1e-6
    assert candidate.experiment == experiment == identified(experiment, modules_named(experiment))
    assert check_candidate(LocalStore(candidate.folder)) == candidate.snapshot.resolved
    exported = load_exported(candidate.folder)
    _, test = read_snapshot_examples(data.dataset("providers").store, candidate.snapshot, "test")
    answers = exported.predict(test.inputs, test.n_windows)
    assert candidate.metrics["evaluation"]["accuracy"]["right"] == (answers.argmax(axis=1) == test.labels).sum()


@pytest.mark.parametrize("name", KEPT)
def test_an_estimator_without_a_conversion_is_kept_but_never_pushed(
    data: DataRoot, dataset: InMemoryDataset, name: str
):
    estimator, keys, step = KEPT[name]
    experiment = experiment_of(estimator, keys, "tried")
    allowed = modules_named(experiment)
    result = run_once(TrainConfig(data, "providers", "m", experiment, allow_modules=allowed))
    assert (result.outcome, result.version) == ("rejected", None)
    assert step in result.reasons[0]
    assert "cannot be converted" in result.reasons[0]
    assert result.folder is not None
    kept = load_kept(result.folder, allowed)
    test = dataset.rows.take(dataset.of("test"))
    right = (kept.predict(test.inputs, test.n_windows).argmax(axis=1) == test.labels).sum()
    assert right == result.metrics["evaluation"]["accuracy"]["right"] > len(test) / 2
    assert result.metrics["disagreement"] <= 1e-6
    as_candidate = CandidateModel(data, "m", allowed)
    assert as_candidate.candidate == CandidateNotice(result.candidate, False, result.reasons)
    _, tables, _ = corpus(20)
    inputs, n_windows, _ = prepare_many(tables, kept.definition)
    expected = kept.predict(inputs, n_windows)
    for answer, row in zip(as_candidate.predict(tables), expected, strict=True):
        assert isinstance(answer, Answer)
        np.testing.assert_allclose(list(answer.probabilities.values()), row, rtol=0, atol=1e-6)
    if allowed:
        with pytest.raises(CimlError, match=f"{USER}.* not allowed"):
            load_kept(result.folder)
    call = json.loads(Path(result.folder, "assets/kept.json").read_text())
    Path(result.folder, "assets/kept.json").write_text(json.dumps({**call, "present": [0, 7]}))
    with pytest.raises(IntegrityError, match="is not a kept model: present: not classes of the definition"):
        load_kept(result.folder, allowed)


@pytest.mark.parametrize("estimator", [LogisticRegression(), KNeighborsClassifier(3)], ids=["exported", "kept"])
def test_a_refresh_that_died_after_its_export_is_repeated(data: DataRoot, estimator: Any):
    experiment = experiment_of(estimator, {"view": "flat"}, "tried")
    first = refreshed(data, experiment)
    again = refreshed(data, experiment)  # nothing was registered, so the same candidate is trained again
    assert again.folder == first.folder
    assert again.metrics["evaluation"] == first.metrics["evaluation"]


def test_a_stored_experiment_imports_a_module_only_if_that_is_allowed(data: DataRoot):
    experiment = experiment_of(f"{USER}:Shares", {}, "shares")
    config = TrainConfig(data, "providers", "m", experiment)
    for forbidden in (
        lambda: refresh(config),
        lambda: create_experiment(data.experiments, experiment),
        lambda: check_experiment(experiment),
    ):
        with pytest.raises(CimlError, match=f"module {USER} is not allowed"):
            forbidden()
    assert create_experiment(data.experiments, experiment, [USER])


def test_an_experiment_is_identified_by_class_parameters_and_versions(dataset: InMemoryDataset):
    by_name = experiment_of("LogisticRegression", {"parameters": {"C": 0.1}})
    by_object = experiment_of(LogisticRegression(C=0.1))
    assert by_name == by_object
    assert by_name.name.startswith("LogisticRegression-")
    assert set(by_name.packages) == {"scikit-learn"}
    others = [experiment_of(LogisticRegression()), by_name.replace(packages={"scikit-learn": "0.1"})]
    assert len({by_name.digest, *(other.digest for other in others)}) == 3
    assert identified(others[1]) == by_name  # what is installed trains, whatever the experiment says
    nested = make_pipeline(StandardScaler(), LogisticRegression())
    deep = {"steps": experiment_of(nested).parameters["steps"], "logisticregression__C": 0.1}
    labels = np.arange(40) % 2
    rows = dataset.rows.take(np.arange(40))
    rows = type(rows)(rows.inputs, rows.n_windows, labels, rows.ordinals)
    fitted = fit(experiment_of("sklearn.pipeline:Pipeline", {"parameters": deep}), rows, None, 2)
    assert fitted.model[1].C == 0.1  # type: ignore[attr-defined]
    with pytest.raises(CimlError, match="did you mean LogisticRegression"):
        experiment_of("LogisticRegresion")
    with pytest.raises(CimlError, match="parameters: the estimator has its own"):
        experiment_of(LogisticRegression(), {"parameters": {"C": 1}})


def test_equal_seeds_give_equal_models_and_every_random_state_follows_from_the_seed(dataset: InMemoryDataset):
    rows = dataset.rows.take(dataset.of("train"))
    answers = []
    for seed in (0, 0, 1):
        experiment = experiment_of(ExtraTreesClassifier(5), {"seed": seed})
        answers.append(fit(experiment, rows, None, 4).predict(rows.inputs, rows.n_windows))
    model = fit(experiment, rows, None, 4).model  # type: ignore[attr-defined]
    assert model.random_state == 1
    own = experiment_of(ExtraTreesClassifier(5, random_state=7), {"seed": 1})
    assert fit(own, rows, None, 4).model.random_state == 7  # type: ignore[attr-defined]
    np.testing.assert_array_equal(answers[0], answers[1])


def test_the_model_of_another_seed_differs_where_an_estimator_sets_its_own_seed(
    data: DataRoot, monkeypatch: pytest.MonkeyPatch
):
    """Else the gate would compare a model with itself, and call it stable."""
    trained: list[Experiment] = []
    original = train

    def recorded(experiment: Experiment, *rows: Any, **keys: Any) -> Any:
        trained.append(experiment)
        return original(experiment, *rows, **keys)

    monkeypatch.setattr("ciml.training.train.train", recorded)
    bag = BaggingClassifier(ExtraTreeClassifier(random_state=42), 10, random_state=7)
    config = TrainConfig(data, "providers", "m", experiment_of(make_pipeline(StandardScaler(), bag)))
    candidate = refresh(config)
    assert isinstance(candidate, Candidate)
    assert candidate.decision.blessed, candidate.decision.reasons
    states = []
    for experiment in trained:
        model = build({"class": experiment.estimator, "parameters": experiment.parameters})
        states.append((experiment.seed, model[-1].random_state, model[-1].estimator.random_state))
    assert states == [(0, 7, 42), (1, 8, 43)]


def test_names_of_columns_reach_an_estimator_that_takes_frames(dataset: InMemoryDataset):
    rows = dataset.rows.take(dataset.of("train"))
    features = dataset.snapshot.resolved.features
    fitted = fit(experiment_of(ExtraTreesClassifier(5)), rows, None, 4, features=features)
    names = list(fitted.model.feature_names_in_)  # type: ignore[attr-defined]
    assert names[:2] == [f"{features[0]}_0", f"{features[0]}_1"]
    assert names[-1] == "n_windows"
    assert len(names) == rows.inputs.shape[1] * rows.inputs.shape[2] + 1


def test_trials_and_cross_validation_take_any_estimator(data: DataRoot, dataset: InMemoryDataset):
    experiment = experiment_of(f"{USER}:Shares", {}, "shares")
    trial = Trial(data.experiments, experiment, dataset, allow_modules=(USER,))
    result, new = trial.run()
    assert new
    assert result["test"]["runs"] == 40
    assert result["experiment"]["estimator"] == f"{USER}:Shares"
    folds = cross_validate(experiment, dataset, folds=2, allow_modules=(USER,))
    assert folds["pooled"]["accuracy"]["value"] > folds["pooled"]["base_rate"]["value"]


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"estimator": f"{USER}:network", "view": "flat"}, "experiment: view: a Keras model gets windows, not flat"),
        ({"estimator": f"{USER}:logits"}, "returns no probabilities: .*; end it with a softmax layer"),
        ({"estimator": f"{USER}:logits", "parameters": {"first": -0.5}}, r"returns no probabilities: \[-0\.5, 0\.5, "),
        ({"estimator": f"{USER}:network", "parameters": {"unit": 3}}, "unexpected keyword argument 'unit'"),
        ({"estimator": f"{USER}:nothing"}, "has no class or function nothing"),
        ({"estimator": "LinearRegression"}, "predicts no probabilities of classes"),
        ({"estimator": "LogisticRegression", "parameters": {"c": 1}}, r"parameters\.c: .*; did you mean C\?"),
        ({"estimator": "LogisticRegression", "epochs": 3}, "experiment: epochs: not used by estimator"),
        (
            {"estimator": "random_forest", "view": "image"},
            "experiment: view: 'image' is unknown; choose from windows",
        ),
        ({"estimator": "dnn", "view": "flat"}, "experiment: view: not used by estimator dnn"),
    ],
)
def test_what_an_estimator_cannot_take_is_reported(dataset: InMemoryDataset, keys: dict[str, Any], line: str):

    def tried() -> None:
        experiment = identified(Experiment.from_json(keys), [USER])
        check_experiment(experiment, [USER])
        rows = inputs_for(experiment, dataset.normalisation(), dataset.rows, [USER])
        fit(experiment, rows, None, 4, allow_modules=[USER])

    with pytest.raises(CimlError, match=line):
        tried()

"""Trials and candidates as MLflow's parameters, metrics and tags."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ciml.data_root import DataRoot
from ciml.errors import IntegrityError
from ciml.pipelines.mlflow import candidate_record, figures, metric_name, params_of, trial_records
from ciml.serving.registry import Decision, Registry
from ciml.storage import open_store
from ciml.training.evaluation.metrics import scores
from ciml.training.experiment import Experiment
from tests.pipelines.exports.exporting import RESULT, store_trial


def test_figures_have_the_base_rate_and_intervals() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 60)
    second = np.clip(labels * 0.6 + random.normal(0.2, 0.2, 60), 0, 1)
    answers = np.stack([1 - second, second], axis=1)
    test = scores(answers, labels, ("a b", "c:d"), labels, resamples=20)
    found = figures(test, {"memory": {"accuracy": {"value": 0.4, "low": 0.3, "high": 0.5}}})
    for name in ("accuracy", "base_rate", "brier"):
        assert [found[f"{name}{end}"] for end in ("", ".low", ".high")] == [
            test[name][end] for end in ("value", "low", "high")
        ]
    assert found["macro_f1"] == test["macro"]["f1"]["value"]
    assert found["class/a b/recall.low"] == test["classes"]["a b"]["recall"]["low"]
    assert found["class/c_d/runs"] == test["classes"]["c:d"]["runs"]
    assert found["calibration_error"] == test["calibration"]["ece"]
    assert (found["baseline/memory/accuracy"], found["baseline/memory/accuracy.high"]) == (0.4, 0.5)
    assert (found["test_runs"], found["trained_on"]) == (60, 60)


def test_undefined_figures_are_left_out() -> None:
    test: dict[str, Any] = {
        "accuracy": {"value": None, "low": 0.0, "high": 1.0},
        "log_loss": float("nan"),
        "runs": True,
    }
    assert figures(test, {"one": 3}) == {"accuracy.low": 0.0, "accuracy.high": 1.0}
    assert figures({}, {}) == {}


def test_parameters_are_one_a_key() -> None:
    experiment = Experiment(name="x", estimator="svm", hidden_layers=(8, 4), parameters={"C": 2.5, "kernel": "rbf"})
    found = params_of(experiment.to_json())
    assert (found["hidden_layers"], found["parameters.C"], found["parameters.kernel"]) == ("[8, 4]", "2.5", "rbf")
    assert (found["estimator"], found["seed"]) == ("svm", "0")
    assert not found.keys() & {"name", "parameters", "steps"}
    assert len(params_of({"a": "x" * 9000})["a"]) == 5000


def test_names_are_those_that_mlflow_accepts() -> None:
    assert metric_name("class/a:b\N{SNOWMAN}[0]/f1") == "class/a_b__0_/f1"
    assert len(metric_name("x" * 300)) == 250


def test_each_stored_trial_is_a_record(tmp_path: Path) -> None:
    data = DataRoot.open(tmp_path)
    store_trial(data, "dnn", "jobs", "a" * 24)
    store_trial(data, "dnn", "jobs", "b" * 24, accuracy=0.7)
    store_trial(data, "svm", "other", "c" * 24)
    (tmp_path / "experiments/svm/results/other/killed").mkdir()
    found = list(trial_records(data))
    assert [one.key for one in found] == [f"jobs/dnn/{'a' * 24}", f"jobs/dnn/{'b' * 24}", f"other/svm/{'c' * 24}"]
    assert [(one.experiment, one.name) for one in found] == [("jobs", "dnn"), ("jobs", "dnn"), ("other", "svm")]
    assert [one.metrics["accuracy"] for one in found] == [0.9, 0.7, 0.9]
    assert found[0].tags["ciml.snapshot"] == RESULT["snapshot"]["digest"]
    assert found[0].tags["ciml.spans"] == "[[1, 2]]"
    assert found[0].tags["ciml.data"] == data.url
    assert found[0].time_ms > 1_700_000_000_000
    (tmp_path / f"experiments/dnn/results/jobs/{'a' * 24}/result.json").write_text("[")
    with pytest.raises(IntegrityError, match="is unreadable"):
        list(trial_records(data))


def test_a_candidate_has_the_trainers_figures_and_the_gates_decision(tmp_path: Path) -> None:
    data = DataRoot.open(tmp_path / "data")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "saved_model.pb").write_bytes(b"x")
    registry = Registry(data, "m")
    facts = {"dataset": "jobs", "snapshot": "s" * 64, "refresh": "r" * 24, "experiment": Experiment().to_json()}
    one = registry.record_candidate(open_store(folder), facts)
    undecided = candidate_record(data, "m", registry.state, one)
    assert (undecided.metrics, "ciml.blessed" in undecided.tags) == ({}, False)
    registry.record_decision(one.id, Decision(False, ("worse", "slow"), {"accuracy": {"value": 0.25}}))
    decided = candidate_record(data, "m", registry.state, one)
    assert (decided.key, decided.experiment, decided.name) == (f"m/{one.id}", "jobs", f"m {one.id}")
    assert (decided.metrics, decided.tags["ciml.blessed"]) == ({"accuracy": 0.25}, "false")
    assert decided.tags["ciml.reasons"] == "worse\nslow"
    assert decided.tags["ciml.snapshot"] == "s" * 64
    data.trainer("m").create(f"metrics/{'r' * 24}.json", json.dumps({"evaluation": RESULT["test"]}).encode())
    assert candidate_record(data, "m", registry.state, one).metrics["accuracy.low"] == 0.8
    assert decided.params["epochs"] == "150"

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from ciml.errors import CimlError
from ciml.training.estimators import ESTIMATORS
from ciml.training.evaluation.gate import GatePolicy
from ciml.training.experiment import Experiment, refresh_key
from ciml.training.train import trained_roles
from tests.training.networks import build_model


def test_the_originals_estimator_and_layers_mean_the_same_network():
    one = Experiment.from_json({"estimator": "tf.estimator.DNNClassifier", "hidden_layers": "100/100/100"})
    assert one.estimator == "dnn"
    assert one.hidden_layers == (100, 100, 100)
    assert Experiment.from_json(one.to_json()) == one
    assert Experiment.from_json(one.to_json()).digest == one.digest
    assert Experiment(seed=1).digest != Experiment(seed=2).digest


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ({"hidden_layers": [10, 0]}, "experiment: hidden_layers: each hidden layer needs at least one unit"),
        ({"layers": [1]}, "experiment: layers: unknown key; did you mean hidden_layers?"),
        ({"name": "../up"}, "experiment: name: '../up' is not valid; use letters, digits, dashes, dots, underscores"),
        ({"epochs": 0}, "experiment: epochs: expected int >= 1"),
        ({"dropout": 1.0}, "experiment: dropout: expected float < 1.0"),
        ({"learning_rate": float("inf")}, "experiment: learning_rate: expected a finite number"),
        ({"parameters": {"C": float("nan")}}, "experiment: parameters.C: expected a finite number"),
        (
            {"calibration": "platt"},
            "experiment: calibration: 'platt' is unknown; choose from auto, temperature, isotonic",
        ),
        ({"calibration": "auto", "coverage": 1.0}, "experiment: coverage: expected float < 1.0"),
        ({"coverage": 0.8}, "experiment: coverage: requires calibration"),
        (
            {"calibration": "auto", "early_stopping": 3},
            "experiment: calibration: is fitted on the dev runs, on which early_stopping chooses; leave out one",
        ),
    ],
)
def test_a_wrong_experiment_is_one_clear_line(value: dict[str, object], line: str):
    with pytest.raises(CimlError) as error:
        Experiment.from_json(value)
    assert str(error.value) == line


def test_without_a_calibration_keys_and_digests_are_those_of_versions_that_had_none():
    assert refresh_key("s", Experiment()) == "aa96f6cab985ae2fe18e0f1b"
    assert not {"calibration", "coverage"} & Experiment().to_json().keys()
    calibrated = Experiment(calibration="auto")
    assert calibrated.to_json()["coverage"] == 0.9
    assert Experiment.from_json(calibrated.to_json()) == calibrated
    assert trained_roles(Experiment(), dev_from_train=True) == ("train", "dev")
    assert trained_roles(Experiment(), dev_from_train=False) == ("train",)
    assert trained_roles(Experiment(early_stopping=3), dev_from_train=True) == ("train",)
    assert trained_roles(calibrated, dev_from_train=True) == ("train",)


def test_a_file_and_what_takes_precedence_over_it(tmp_path: Path):
    path = tmp_path / "one.toml"
    path.write_text('name = "deep"\nhidden_layers = "5/5"\nsteps = 10\n')
    assert Experiment.load(path, steps=20) == Experiment(name="deep", hidden_layers=(5, 5), steps=20)
    path.write_text("name = ")
    with pytest.raises(CimlError, match=r"one\.toml is not TOML"):
        Experiment.load(path)
    with pytest.raises(CimlError, match="No such file"):
        Experiment.load(tmp_path / "none.toml")


def test_a_network_is_as_the_experiment_says_and_its_weights_follow_from_the_seed():
    experiment = Experiment(hidden_layers=(7, 5), dropout=0.5, batch_norm=True)
    model = build_model(experiment, 3, 4, 2)
    kinds = [type(layer).__name__ for layer in model.layers if type(layer).__name__ != "InputLayer"]
    assert " ".join(kinds) == "Flatten BatchNormalization Dense BatchNormalization Dropout Dense Dense"
    assert model.output_shape == (None, 2)
    assert [weights.shape for weights in model.get_weights() if weights.ndim == 2] == [(12, 7), (7, 5), (5, 2)]
    again, other = build_model(experiment, 3, 4, 2), build_model(experiment.replace(seed=1), 3, 4, 2)
    assert all((a == b).all() for a, b in zip(model.get_weights(), again.get_weights(), strict=True))
    assert (model.get_weights()[4] != other.get_weights()[4]).any()


TEXT = (Path(__file__).parents[2] / "docs" / "training.md").read_text()


def test_the_documents_experiment_names_every_key_and_is_one():
    block = re.search(r'(?m)^    name = "deep"\n((    .*)?\n)+', TEXT)
    assert block is not None
    value = tomllib.loads(re.sub(r"(?m)^    ", "", block[0]))
    assert set(value) == set(Experiment.__struct_fields__)
    with pytest.raises(CimlError, match="leave out one"):
        Experiment.from_json(value)
    for left_out in ({"early_stopping"}, {"calibration", "coverage"}):
        made = Experiment.from_json({key: each for key, each in value.items() if key not in left_out})
        assert made.hidden_layers == (100, 100, 100)


def test_the_documents_gate_is_the_default_one():
    rows = dict(re.findall(r"(?m)^\| `(\w+)` \| (\S+) \|", TEXT))
    defaults = {field.name: getattr(GatePolicy(), field.name) for field in fields(GatePolicy)}
    assert rows.pop("accept_baselines") == "none"
    assert defaults.pop("accept_baselines") == ()
    assert {name: float(value) for name, value in rows.items()} == defaults


def test_the_document_of_experiments_names_every_estimator():
    text = (Path(__file__).parents[2] / "docs" / "experiments.md").read_text()
    define = text.split("\n## Define\n")[1].split("\n## ")[0]
    assert sorted(re.findall(r"(?m)^\| `(\w+)` \|", define)) == sorted(ESTIMATORS)

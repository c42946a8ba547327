"""Which experiment a refresh trains if none is named: that of the last candidate, or the default of a new model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from ciml.data_root import DataRoot
from ciml.errors import CimlError
from ciml.serving.registry import Registry
from ciml.storage import open_store
from ciml.training import refresh as refresh_module
from ciml.training import trainer as trainer_module
from ciml.training.estimators import default_estimator
from ciml.training.experiment import Experiment
from ciml.training.experiments.results import default_experiment
from ciml.training.refresh import Skipped, TrainConfig, refresh
from ciml.training.trainer import last_experiment, run_once
from tests.serving.models_fixture import save_model

OLD = Experiment(epochs=7).to_json()  # as the default of earlier versions is stored


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return TrainConfig(DataRoot.open(tmp_path / "data"), "d", "m")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Experiment | None]:
    """The experiments that `run_once` passes to the training, which does nothing."""
    experiments: list[Experiment | None] = []

    def skip(config: TrainConfig, **_: Any) -> Skipped:
        experiments.append(config.experiment)
        return Skipped("nothing new", None)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer_module, "refresh", skip)
    return experiments


def record(config: TrainConfig, folder: Path, *, seed: int = 1, **facts: Any) -> None:
    Registry(config.data, config.model).record_candidate(open_store(save_model(folder, seed)), facts)


def test_a_new_model_is_a_random_forest(config: TrainConfig, trained: list[Experiment | None]) -> None:
    run_once(config)
    assert trained == [None]  # `refresh` replaces None
    forest = default_experiment()
    assert (forest.estimator, forest.parameters) == ("random_forest", {})
    assert forest.name.startswith("random_forest-")  # as --estimator random_forest names it


def test_refresh_alone_uses_the_default(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[Experiment] = []

    def key_of(snapshot: str, experiment: Experiment) -> str:
        keys.append(experiment)
        return "same"

    class Snapshot:
        digest, resolved = "s", None

    monkeypatch.setattr(refresh_module, "make_snapshot", lambda *_, **__: Snapshot())
    monkeypatch.setattr(refresh_module, "check_use", lambda *_, **__: None)
    monkeypatch.setattr(refresh_module, "refresh_key", key_of)
    assert isinstance(refresh(config, last_key="same"), Skipped)
    assert keys == [default_experiment()]


def test_a_model_keeps_the_experiment_of_its_last_candidate(
    config: TrainConfig, trained: list[Experiment | None], tmp_path: Path
) -> None:
    svm = Experiment(name="margins", estimator="svm", parameters={"C": 0.5})
    record(config, tmp_path / "first", experiment=OLD)
    run_once(config)
    record(config, tmp_path / "second", seed=2, experiment=svm.to_json())
    run_once(config)
    named = Experiment(name="named")
    run_once(TrainConfig(config.data, "d", "m", named))
    run_once(TrainConfig(config.data, "d", "another"))
    assert trained == [Experiment(epochs=7), svm, named, None]


def test_a_candidate_without_an_experiment_is_no_choice(config: TrainConfig, tmp_path: Path) -> None:
    record(config, tmp_path / "foreign", refresh="key")
    assert last_experiment(Registry(config.data, "m")) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"depth": 3}, "model m: experiment: depth: unknown key"), ({"epochs": 0}, "model m: experiment: epochs: ")],
)
def test_a_stored_experiment_is_checked(
    config: TrainConfig, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    record(config, tmp_path / "bad", experiment=OLD | changes)
    with pytest.raises(CimlError, match=message):
        run_once(config)


def test_a_stored_experiment_imports_no_module(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planted_models.py").write_text("class Tree:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    record(config, tmp_path / "planted", experiment={**OLD, "estimator": "planted_models:Tree"})
    with pytest.raises(CimlError, match="module planted_models is not allowed"):
        run_once(config)
    assert "planted_models" not in sys.modules


@pytest.mark.parametrize(
    ("keys", "estimator"),
    [
        ((), "random_forest"),
        (("seed", "class_weights", "calibration", "parameters", "view"), "random_forest"),
        (("hidden_layers",), "dnn"),
        (("seed", "epochs"), "dnn"),
        (("early_stopping",), "dnn"),
    ],
)
def test_a_key_of_networks_means_a_network(keys: tuple[str, ...], estimator: str) -> None:
    assert default_estimator(keys) == estimator

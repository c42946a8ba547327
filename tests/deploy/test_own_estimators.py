"""Steps of Tekton and of Kubeflow train classes of scikit-learn with parameters, and own modules that are allowed."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import pytest

from ciml.training import trainer
from ciml.training.refresh import TrainConfig
from ciml.training.trainer import TrainResult
from tests.deploy import test_tekton
from tests.deploy.steps import PATH, ciml, recorded, recorder
from tests.deploy.test_kubeflow import pipeline  # noqa: F401, a fixture

pytestmark = [pytest.mark.whole, pytest.mark.timeout(600)]

OWN = "deployed_models"
SOURCE = "from sklearn.tree import DecisionTreeClassifier\nclass Tree(DecisionTreeClassifier): pass\n"
REJECTED = f"{OWN}:Tree: module {OWN} is not allowed"


class Deployment(Protocol):
    """Runs steps; each returns the exit code of ciml, and the accuracy or the outcome."""

    def train(self, experiment: str, parameters: list[str], allow_module: str) -> tuple[int, float | None]: ...

    def refresh(self, experiment: str, allow_module: str) -> tuple[int, str]: ...


@dataclass(frozen=True)
class Tekton:
    data: Path

    def train(self, experiment: str, parameters: list[str], allow_module: str) -> tuple[int, float | None]:
        code, results = self._run("ciml-run-training", experiment, allow_module, parameters=parameters)
        return code, float(results["accuracy"]) if results else None

    def refresh(self, experiment: str, allow_module: str) -> tuple[int, str]:
        code, results = self._run("ciml-refresh", experiment, allow_module, model="own")
        return code, results.get("outcome", "")

    def _run(self, task: str, experiment: str, allow_module: str, **given: Any) -> tuple[int, dict[str, str]]:
        given |= {"data_path": str(self.data), "dataset": "cpu", "experiment": experiment, "allow_module": allow_module}
        code, results, text = test_tekton.run(task, self.data.parent, os.environ["PATH"], **given)
        os.write(2, text.encode())
        return code, results


@dataclass(frozen=True)
class Kubeflow:
    data: Path
    pipeline: ModuleType

    def train(self, experiment: str, parameters: list[str], allow_module: str) -> tuple[int, float | None]:
        from kfp import dsl

        given = {"parameters": parameters, "confusion": dsl.ClassificationMetrics()}
        code, outputs = self._run("train", experiment, allow_module, **given)
        return code, outputs[1] if outputs else None

    def refresh(self, experiment: str, allow_module: str) -> tuple[int, str]:
        code, outputs = self._run("push", experiment, allow_module, model="own", accept_baseline="")
        return code, outputs[0] if outputs else ""

    def _run(self, component: str, experiment: str, allow_module: str, **given: Any) -> tuple[int, Any]:
        from kfp import dsl

        given |= {"data_path": str(self.data), "dataset": "cpu", "experiment": experiment, "allow_module": allow_module}
        try:
            return 0, getattr(self.pipeline, component).python_func(**given, metrics=dsl.Metrics())
        except SystemExit as ended:
            return int(str(ended.code)), None


@pytest.fixture
def data(tmp_path: Path, learned_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root with the data set ``cpu`` and without experiments; programs find the own module."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / f"{OWN}.py").write_text(SOURCE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(modules), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("PATH", PATH)
    monkeypatch.syspath_prepend(modules)
    shutil.copytree(learned_data, tmp_path / "data", ignore=shutil.ignore_patterns("experiments"))
    return tmp_path / "data"


@pytest.fixture(params=["tekton", "kubeflow"])
def deployment(request: pytest.FixtureRequest, data: Path, pipeline: ModuleType) -> Deployment:  # noqa: F811
    return Tekton(data) if request.param == "tekton" else Kubeflow(data, pipeline)


def stored_result(data: Path) -> dict[str, Any]:
    (path,) = (data / "experiments").rglob("result.json")
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def test_a_class_of_scikit_learn_is_trained_with_its_parameters(
    deployment: Deployment, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", recorder(data.parent))
    deployment.train("LogisticRegression", ["C=0.3", "max_iter=300"], "")
    ciml(*recorded(data.parent)[-1], data=data)
    experiment = stored_result(data)["experiment"]
    assert experiment["estimator"] == "sklearn.linear_model:LogisticRegression"
    assert experiment["parameters"] == {"C": 0.3, "max_iter": 300}


def test_a_defined_estimator_of_an_own_module_needs_permission(
    deployment: Deployment, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ciml("experiment", "define", "mine", f"--estimator={OWN}:Tree", "-p", "max_depth=2", data=data)
    assert deployment.train("mine", [], "") == (2, None)
    assert REJECTED in capfd.readouterr().err
    code, accuracy = deployment.train("mine", ["max_depth=1"], OWN)  # its own parameters stay
    assert code == 0
    result = stored_result(data)
    assert (result["experiment"]["name"], result["experiment"]["parameters"]) == ("mine", {"max_depth": 2})
    assert result["test"]["accuracy"]["value"] == accuracy


def test_a_definition_in_a_parameter_allows_its_own_module(
    deployment: Deployment, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a file on the command line does: who writes the parameter could write the permission, too."""
    monkeypatch.setenv("PATH", recorder(data.parent))
    monkeypatch.chdir(data.parent)  # where the recorder keeps the definition
    deployment.refresh(f'name = "mine"\nestimator = "{OWN}:Tree"\n', "")
    configs: list[TrainConfig] = []

    def run_once(config: TrainConfig, **_: Any) -> TrainResult:
        configs.append(config)
        return TrainResult("rejected", ("it is not trained",))

    monkeypatch.setattr(trainer, "run_once", run_once)
    (words,) = recorded(data.parent)
    ciml(*words, "--experiment=experiment.toml", data=data)
    (config,) = configs
    assert config.experiment is not None
    assert (config.experiment.estimator, config.allow_modules) == (f"{OWN}:Tree", (OWN,))

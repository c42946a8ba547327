"""A data root with stored trials and pushed models, and the addresses of MLflow that hold for a whole process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ciml.data_root import DataRoot
from ciml.digest import canonical_json
from ciml.serving.push import push
from ciml.serving.registry import Decision
from ciml.storage import open_store
from ciml.training.experiment import Experiment
from tests.serving.models_fixture import save_model

ACCURACY = {"value": 0.9, "low": 0.8, "high": 0.95, "right": 9, "runs": 10}
RESULT: dict[str, Any] = {
    "snapshot": {"digest": "d" * 64, "spans": [[1, 2]]},
    "test": {"runs": 10, "accuracy": ACCURACY, "base_rate": {"class": "a", **ACCURACY, "value": 0.5}},
    "baselines": {},
}


def store_trial(
    data: DataRoot,
    experiment: str,
    dataset: str,
    trial: str,
    accuracy: float = 0.9,
    classes: int = 0,
    parameters: int = 0,
) -> None:
    """Store an experiment with so many parameters and a result of it, with the recall of so many classes."""
    named = {f"p{number}": number for number in range(parameters)}
    value = {**Experiment(name=experiment).to_json(), "parameters": named}
    data.experiments.create(f"{experiment}/experiment.json", canonical_json(value))
    recalls = {f"c{number}": {"recall": ACCURACY} for number in range(classes)}
    test = {**RESULT["test"], "accuracy": {**ACCURACY, "value": accuracy}, "classes": recalls}
    result = {**RESULT, "dataset": dataset, "experiment": value, "test": test}
    data.experiments.create(f"{experiment}/results/{dataset}/{trial}/result.json", json.dumps(result).encode())


def push_model(data: DataRoot, folder: Path, seed: int, label: str = "stable", blessed: bool = True) -> None:
    """Record a candidate of the model ``m``, and push it if it is blessed."""
    decision = Decision(blessed, ("better" if blessed else "worse",), {"accuracy": ACCURACY})
    facts = {"dataset": "jobs", "snapshot": "d" * 64, "refresh": f"key{seed}", "experiment": Experiment().to_json()}
    source = open_store(save_model(folder / f"model-{seed}", seed))
    try:
        push(data, "m", source, decision, label=label, facts=facts, check=False)
    except Exception:
        if blessed:
            raise


@contextmanager
def mlflow_at(uri: str) -> Iterator[None]:
    """Use a store for tracking and for models; afterwards none is set, for other tests of the process."""
    import mlflow

    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
        mlflow.set_registry_uri(None)  # type: ignore[arg-type]

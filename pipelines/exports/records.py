"""Trials and candidates as runs of MLflow (pure): parameters, metrics with their intervals, tags."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ciml.data_root import DataRoot
from ciml.serving.registry import Candidate, RegistryState
from ciml.storage.json_seal import read_object
from ciml.training.experiment import metrics_path
from ciml.training.experiments.trials import RESULT, experiment_names, experiment_store, read_stored
from ciml.version import __version__

#: The tag that identifies a run; no two runs have the same.
KEY = "ciml.key"
_FACTS = ("dataset", "snapshot", "definition", "refresh")
_MOST_CHARACTERS = 5000
_FORBIDDEN = re.compile(r"[^\w.\- /]")


@dataclass(frozen=True)
class RunRecord:
    """A run of MLflow.

    Attributes:
      key: of the trial or the candidate.
      experiment: MLflow's experiment: the data set, whose runs can be compared.
      name: for people.
      time_ms: when it was stored, epoch milliseconds.
      params: hyper-parameters.
      metrics: figures of held-out runs; undefined ones are left out.
      tags: digests and names.
    """

    key: str
    experiment: str
    name: str
    time_ms: int
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]


def trial_records(data: DataRoot) -> Iterator[RunRecord]:
    """Yield all stored trials of all experiments, the oldest results of an experiment included."""
    for name in experiment_names(data.experiments):
        store = experiment_store(data.experiments, name)
        for entry in sorted(store.entries("results")):
            parts = entry.path.split("/")
            if len(parts) != 4 or parts[3] != RESULT:
                continue
            result = read_stored(store, entry.path)
            if result is not None:
                yield _trial(data, name, parts[2], result, int(entry.modified_s * 1000))


def _trial(data: DataRoot, name: str, trial: str, result: Mapping[str, Any], time_ms: int) -> RunRecord:
    snapshot = result["snapshot"]
    tags = {"ciml.kind": "trial", "ciml.trial": trial, "ciml.experiment": name, "ciml.dataset": result["dataset"]}
    tags |= {"ciml.snapshot": snapshot["digest"], "ciml.spans": json.dumps(snapshot["spans"])}
    return RunRecord(
        key=f"{result['dataset']}/{name}/{trial}",
        experiment=result["dataset"],
        name=name,
        time_ms=time_ms,
        params=params_of(result["experiment"]),
        metrics=figures(result["test"], result.get("baselines") or {}),
        tags=_tags(data, tags),
    )


def candidate_record(data: DataRoot, model: str, state: RegistryState, candidate: Candidate) -> RunRecord:
    """Return a candidate of the registry, with the gate's decision."""
    facts, decision = candidate.facts, state.decisions.get(candidate.id)
    metrics = _metrics(data, model, facts) or (dict(decision.metrics) if decision else {})
    evaluation = metrics.get("evaluation") or {name: metrics.get(name) for name in ("accuracy", "base_rate")}
    tags = {"ciml.kind": "candidate", "ciml.model": model, "ciml.candidate": candidate.id}
    tags |= {"ciml.digest": candidate.digest}
    tags |= {f"ciml.{name}": str(facts[name]) for name in _FACTS if name in facts}
    if decision is not None:
        tags |= {"ciml.blessed": json.dumps(decision.blessed), "ciml.reasons": "\n".join(decision.reasons)}
    return RunRecord(
        key=f"{model}/{candidate.id}",
        experiment=str(facts.get("dataset", model)),
        name=f"{model} {candidate.id}",
        time_ms=candidate.time_us // 1000,
        params=params_of(facts.get("experiment") or {}),
        metrics=figures(evaluation, metrics.get("baselines") or {}),
        tags=_tags(data, tags),
    )


def _metrics(data: DataRoot, model: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures that the trainer stored for a candidate; {} for one that was made by other means."""
    if "refresh" not in facts:
        return {}
    path = metrics_path(facts["refresh"])
    try:
        stored = data.trainer(model).read(path)
    except FileNotFoundError:
        return {}
    return read_object(stored, data.trainer(model).url(path))


def _tags(data: DataRoot, tags: Mapping[str, str]) -> dict[str, str]:
    every = {**tags, "ciml.data": data.url, "ciml.version": __version__}
    return {name: value[:_MOST_CHARACTERS] for name, value in every.items()}


def params_of(experiment: Mapping[str, Any]) -> dict[str, str]:
    """Return the parameters of an experiment: one a key, those of scikit-learn as ``parameters.C``."""
    flat = {key: value for key, value in experiment.items() if key not in ("name", "parameters") and value is not None}
    flat |= {f"parameters.{key}": value for key, value in (experiment.get("parameters") or {}).items()}
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in flat.items()}
    return {metric_name(key): value[:_MOST_CHARACTERS] for key, value in sorted(texts.items())}


def figures(test: Mapping[str, Any], baselines: Mapping[str, Any]) -> dict[str, float]:
    """Return figures of held-out runs by MLflow's names.

    Args:
      test: of `ciml.training.evaluation.metrics.evaluate` or `ciml.training.evaluation.scores.scores`.
      baselines: the one-number baselines on the same runs, by name.

    Returns:
      ``accuracy``, ``accuracy.low`` and ``accuracy.high`` (95 %), ``base_rate``, ``macro_f1``, ``class/<class>/f1``, …
    """
    found: dict[str, Any] = {
        "test_runs": test.get("runs"),
        "trained_on": test.get("trained_on"),
        "log_loss": test.get("log_loss"),
        "calibration_error": (test.get("calibration") or {}).get("ece"),
        **_interval("accuracy", test.get("accuracy")),
        **_interval("base_rate", test.get("base_rate")),
        **_interval("brier", test.get("brier")),
    }
    for name, value in (test.get("macro") or {}).items():
        found |= _interval(f"macro_{name}", value)
    for label, values in (test.get("classes") or {}).items():
        for name, value in values.items():
            found |= _interval(f"class/{label}/{name}", value)
    for name, value in baselines.items():
        found |= _interval(f"baseline/{name}/accuracy", value.get("accuracy") if isinstance(value, Mapping) else None)
    return {metric_name(name): float(value) for name, value in found.items() if _is_number(value)}


def _interval(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {name: value}
    return {name: value.get("value"), f"{name}.low": value.get("low"), f"{name}.high": value.get("high")}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def metric_name(name: str) -> str:
    """Return a name that MLflow accepts: other characters than letters, digits, ``_-./`` and blanks become ``_``."""
    return _FORBIDDEN.sub("_", name)[:250]

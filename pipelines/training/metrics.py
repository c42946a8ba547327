"""Metrics of a trainer: its registry's history, and the times of its refreshes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from ciml.errors import CimlError, EngineError
from ciml.metrics import Family, Metric
from ciml.serving.registry import RegistryState

CANDIDATES = Metric(
    "ciml_training_candidates_total",
    "counter",
    "Trained models, by the gate's decision.",
    ("model", "verdict"),
)
REJECTED = Metric(
    "ciml_training_samples_rejected_total",
    "counter",
    "Examples left out of these models' snapshots, by trust rule, or excluded.",
    ("model", "reason"),
)
PUSHES = Metric("ciml_model_pushes_total", "counter", "Pushed versions.", ("model",))
CHAMPION = Metric("ciml_champion_version", "gauge", "The version that stable names.", ("model",))
CHAMPION_TIME = Metric(
    "ciml_champion_push_timestamp_seconds", "gauge", "Time of that version's push, epoch seconds.", ("model",)
)
STEPS = Metric("ciml_training_step_seconds", "summary", "Time of the steps of refreshes.", ("model", "step"))
REFRESHED = Metric(
    "ciml_training_refresh_timestamp_seconds", "gauge",
    "When the model was last up to date with its data set, epoch seconds.", ("model",),
)  # fmt: skip
ERRORS = Metric(
    "ciml_training_errors_total", "counter", "Failed refreshes: engine error or too little data.",
    ("model", "kind"),
)  # fmt: skip

METRICS = (CANDIDATES, REJECTED, PUSHES, CHAMPION, CHAMPION_TIME, STEPS, REFRESHED, ERRORS)


class Refreshes:
    """The metrics of this process's refreshes.

    Attributes:
      collectors: of steps, the last refresh, and errors.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._steps, self._refreshed, self._errors = STEPS.summary(), REFRESHED.gauge(), ERRORS.counter()
        self.collectors = self._steps, self._refreshed, self._errors
        for kind in ("engine", "data"):
            self._errors.labels(model, kind)

    def done(self, seconds: Mapping[str, float]) -> None:
        """Count a completed refresh, with its seconds by step; without any, that nothing is new."""
        for step, took in seconds.items():
            self._steps.labels(self._model, step).observe(took)
        self._refreshed.labels(self._model).set_to_current_time()

    def failed(self, error: CimlError) -> None:
        """Count a failed refresh."""
        self._errors.labels(self._model, "engine" if isinstance(error, EngineError) else "data").inc()


def registry_families(model: str, state: RegistryState) -> Iterator[Family]:
    """Yield the metrics of a model's registry."""
    decisions: Counter[tuple[str, str]] = Counter({(model, "blessed"): 0, (model, "refused"): 0})
    rejected: Counter[tuple[str, str]] = Counter()
    for candidate in state.candidates.values():
        decision = state.decisions.get(candidate.id)
        if decision is not None:
            decisions[model, "blessed" if decision.blessed else "refused"] += 1
        for reason, number in candidate.facts.get("rejected", {}).items():
            rejected[model, reason] += number
    champion = state.champion
    yield CANDIDATES.of(decisions)
    yield REJECTED.of(rejected)
    yield PUSHES.of({(model,): len(state.pushed())})
    yield CHAMPION.of({} if champion is None else {(model,): champion})
    yield CHAMPION_TIME.of({} if champion is None else {(model,): state.versions[champion].time_us / 1e6})

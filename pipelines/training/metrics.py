"""What a trainer shows: its registry's history, and what its refreshes took."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from ciml.errors import CimlError, EngineError
from ciml.metrics import Board, Family, Metric
from serving.registry import RegistryState

CANDIDATES = Metric(
    "ciml_training_candidates_total",
    "counter",
    "Models that were trained, by the gate's verdict.",
    ("model", "verdict"),
)
REJECTED = Metric(
    "ciml_training_samples_rejected_total",
    "counter",
    "Examples that the snapshots of these models left out: the trust rule that said no, or excluded.",
    ("model", "reason"),
)
PUSHES = Metric("ciml_model_pushes_total", "counter", "Versions that were pushed.", ("model",))
CHAMPION = Metric("ciml_champion_version", "gauge", "The version that stable names.", ("model",))
CHAMPION_TIME = Metric(
    "ciml_champion_push_timestamp_seconds", "gauge", "When that version was pushed, epoch seconds.", ("model",)
)
STEPS = Metric("ciml_training_step_seconds", "summary", "Time of the steps of refreshes.", ("model", "step"))
REFRESHED = Metric(
    "ciml_training_refresh_timestamp_seconds", "gauge",
    "When the last refresh ended without an error, be there something new or not, epoch seconds.", ("model",),
)  # fmt: skip
ERRORS = Metric(
    "ciml_training_errors_total", "counter", "Refreshes that an error ended: an engine's, or for want of data.",
    ("model", "kind"),
)  # fmt: skip

METRICS = (CANDIDATES, REJECTED, PUSHES, CHAMPION, CHAMPION_TIME, STEPS, REFRESHED, ERRORS)


class TrainBoard(Board):
    """What the trainer of a model shows."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self._model = model
        self._steps: defaultdict[str, tuple[int, float]] = defaultdict(lambda: (0, 0.0))
        self._errors: Counter[tuple[str, str]] = Counter({(model, "engine"): 0, (model, "data"): 0})
        self._refreshed: dict[tuple[str], float] = {}
        self._show()

    def see(self, state: RegistryState) -> None:
        """Take in the registry."""
        self.observed(_registry_families(self._model, state))

    def refreshed(self, seconds: Mapping[str, float]) -> None:
        """Take in a refresh that ended, with its seconds by step."""
        for step, took in seconds.items():
            number, total = self._steps[step]
            self._steps[step] = (number + 1, total + took)
        self._refreshed = {(self._model,): time.time()}
        self._show()

    def failed(self, error: CimlError) -> None:
        """Take in a refresh that an error ended."""
        self._errors[self._model, "engine" if isinstance(error, EngineError) else "data"] += 1
        self._show()

    def _show(self) -> None:
        steps = {(self._model, step): took for step, took in self._steps.items()}
        self.put("process", [STEPS.sums(steps), REFRESHED.of(self._refreshed), ERRORS.of(self._errors)])


def _registry_families(model: str, state: RegistryState) -> Iterator[Family]:
    verdicts: Counter[tuple[str, str]] = Counter({(model, "blessed"): 0, (model, "refused"): 0})
    rejected: Counter[tuple[str, str]] = Counter()
    for candidate in state.candidates.values():
        verdict = state.verdicts.get(candidate.id)
        if verdict is not None:
            verdicts[model, "blessed" if verdict.blessed else "refused"] += 1
        for reason, number in candidate.facts.get("rejected", {}).items():
            rejected[model, reason] += number
    champion = state.champion
    yield CANDIDATES.of(verdicts)
    yield REJECTED.of(rejected)
    yield PUSHES.of({(model,): len(state.pushed())})
    yield CHAMPION.of({} if champion is None else {(model,): champion})
    yield CHAMPION_TIME.of({} if champion is None else {(model,): state.versions[champion].time_us / 1e6})

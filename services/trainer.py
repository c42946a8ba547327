"""The trainer service: refreshes a model when its data set grows or runs are excluded. See `ciml.training.trainer`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from prometheus_client.registry import Collector

from ciml.errors import CimlError, EngineError, IntegrityError
from ciml.manifest.log import ManifestLog
from ciml.metrics import Family, metric
from ciml.progress import Progress, no_progress
from ciml.services.decide import ServiceProgress
from ciml.services.service import Service
from ciml.serving.registry import Registry, RegistryState
from ciml.training.refresh import TrainConfig
from ciml.training.trainer import TrainResult, run_once

CANDIDATES = metric("ciml_training_candidates_total")
REJECTED = metric("ciml_training_samples_rejected_total")
PUSHES = metric("ciml_model_pushes_total")
CHAMPION = metric("ciml_champion_version")
CHAMPION_TIME = metric("ciml_champion_push_timestamp_seconds")
STEPS = metric("ciml_training_step_seconds")
REFRESHED = metric("ciml_training_refresh_timestamp_seconds")
ERRORS = metric("ciml_training_errors_total")


class TrainerService(Service):
    """Refreshes a model. Waits for a data set that does not exist yet or is too small.

    Args:
      config: of the trainer.
      report: called with each result, except "nothing new".
      progress: called with each step, and with the reason of a wait.
    """

    poll_s = 2.0
    retry_s = (2.0, 60.0)

    def __init__(
        self,
        config: TrainConfig,
        report: Callable[[TrainResult], object] | None = None,
        progress: Progress = no_progress,
    ) -> None:
        super().__init__(f"ciml-trainer-{config.model}")
        self.config = config
        self._report = report
        self._progress = progress
        self._log = config.data.dataset(config.dataset).log
        self._registry = Registry(config.data, config.model)
        self._excluded = ManifestLog(config.data.exclusions)
        self._metrics = _RefreshMetrics(config.model)
        self._seen = -1, -1
        self._is_current = False

    def timings(self) -> Sequence[Collector]:
        return self._metrics.collectors

    def observe(self) -> ServiceProgress:
        with self._failures():
            state = self._registry.state
            self.board.put_observed(registry_families(self.config.model, state))
            counts = {"candidates": len(state.candidates), "versions": len(state.versions)}
            return ServiceProgress(self._ends()[0], facts={"counts": counts, "champion": state.champion})

    def _ends(self) -> tuple[int, int]:
        version, excluded = self._seen
        return self._log.end(max(version, 0)), self._excluded.end(max(excluded, 0))

    def plan(self, ends: Mapping[int, int] | None = None, *, bounded: bool = True) -> tuple[int, int] | None:
        """Return the versions of the data set's manifest and of the exclusions if one of them is new."""
        with self._failures():
            versions = self._ends()
        if versions != self._seen:
            return versions
        if self._is_current:
            self._metrics.done({})
        return None

    def run(self, work: tuple[int, int]) -> None:
        self._is_current = False
        try:
            with self._failures():
                result = run_once(self.config, progress=self._progress)
        except (EngineError, IntegrityError):
            raise
        except CimlError:  # too little data: wait for the next version
            self._seen = work
            return
        self._seen = work
        if result.outcome != "nothing_new" and self._report is not None:
            self._report(result)
        self._is_current = True
        self._metrics.done(result.seconds)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise
        except CimlError as error:
            self._progress(f"waits: {error}", 0, None)
            self._metrics.failed(error)
            raise


class _RefreshMetrics:
    """The metrics of this process's refreshes.

    Attributes:
      collectors: of steps, the last refresh, and errors.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._steps = STEPS.summary()
        self._refreshed = REFRESHED.gauge()
        self._errors = ERRORS.counter()
        self.collectors = (self._steps, self._refreshed, self._errors)
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

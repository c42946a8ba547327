"""The trainer service: refreshes a model when its data set, the exclusions or the trust policy change.

See `ciml.training.trainer`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from prometheus_client.registry import Collector

from ciml.errors import CimlError, EngineError, IntegrityError, NoTrainingDataError, UnknownDatasetError
from ciml.manifest.log import ManifestLog
from ciml.metrics import Family, metric
from ciml.progress import Progress, no_progress
from ciml.services.decide import ServiceProgress
from ciml.services.service import NotReadyError, Service
from ciml.serving.registry import Registry, RegistryState
from ciml.training.refresh import ModelLockedError, TrainConfig
from ciml.training.trainer import TrainResult, run_once

CANDIDATES = metric("ciml_training_candidates_total")
REJECTED_SAMPLES = metric("ciml_training_samples_rejected_total")
PUSHES = metric("ciml_model_pushes_total")
CHAMPION = metric("ciml_champion_version")
CHAMPION_TIME = metric("ciml_champion_push_timestamp_seconds")
STEPS = metric("ciml_training_step_seconds")
REFRESHED = metric("ciml_training_refresh_timestamp_seconds")
ERRORS = metric("ciml_training_errors_total")


class _Versions(NamedTuple):
    """The inputs of a refresh: versions of manifests, 0 while a manifest has no entry.

    Attributes:
      dataset: of the data set's manifest.
      exclusions: of the manifest of excluded runs.
      trust: of the manifest of trust policies.
    """

    dataset: int = 0
    exclusions: int = 0
    trust: int = 0


class TrainerService(Service):
    """Refreshes a model whenever its data set, the exclusions or the trust policy have a new version.

    While the data set does not exist, or holds too little to train on, the service waits for the next version. Any
    other error that a repeated refresh cannot repair, such as an unknown estimator, ends the service.

    Args:
      config: of the trainer.
      report: called with each result, except "nothing new".
      progress: called with each step, and with the reason of a wait or a failure.
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
        self._trust = ManifestLog(config.data.trust)
        self._steps = STEPS.summary()
        self._refreshed = REFRESHED.gauge()
        self._errors = ERRORS.counter()
        for kind in ("engine", "data"):
            self._errors.labels(config.model, kind)  # exported as 0, so that a rate exists before the second error
        self._handled: _Versions | None = None  # by the last refresh that trained, skipped, or lacked data
        self._is_current = False  # whether that refresh trained or skipped: the model is up to date

    def timings(self) -> Sequence[Collector]:
        return self._steps, self._refreshed, self._errors

    def observe(self) -> ServiceProgress:
        """Return the data set's version as progress, and count an up-to-date model as refreshed now."""
        with self._reported_errors():
            state = self._registry.state
            self.board.put_observed(registry_families(self.config.model, state))
            versions = self._present_versions()
        if self._is_current and versions == self._handled:
            self._count_refresh({})
        counts = {"candidates": len(state.candidates), "versions": len(state.versions)}
        return ServiceProgress(versions.dataset, facts={"counts": counts, "champion": state.champion})

    def _present_versions(self) -> _Versions:
        known = self._handled or _Versions()
        return _Versions(
            self._log.end(known.dataset), self._excluded.end(known.exclusions), self._trust.end(known.trust)
        )

    def plan(self, ends: Mapping[int, int] | None = None, *, bounded: bool = True) -> _Versions | None:
        """Return the present versions if the last refresh handled others."""
        with self._reported_errors():
            versions = self._present_versions()
        return None if versions == self._handled else versions

    def run(self, work: _Versions) -> None:
        self._is_current = False
        try:
            with self._reported_errors():
                result = run_once(self.config, progress=self._progress)
        except (NoTrainingDataError, UnknownDatasetError):
            self._handled = work  # only another version can have more data
            return
        except ModelLockedError as error:
            raise NotReadyError(str(error)) from error
        self._handled = work
        self._is_current = True
        if result.outcome != "nothing_new" and self._report is not None:
            self._report(result)
        self._count_refresh(result.seconds)

    def _count_refresh(self, seconds: Mapping[str, float]) -> None:
        """Count a completed refresh, with its seconds by step; without steps, only its time."""
        for step, took_s in seconds.items():
            self._steps.labels(self.config.model, step).observe(took_s)
        self._refreshed.labels(self.config.model).set_to_current_time()

    @contextmanager
    def _reported_errors(self) -> Iterator[None]:
        """Count and report errors of the context, and raise them again. `IntegrityError` only ends the service."""
        try:
            yield
        except IntegrityError:
            raise
        except CimlError as error:
            self._progress(f"waits: {error}", 0, None)
            self._errors.labels(self.config.model, "engine" if isinstance(error, EngineError) else "data").inc()
            raise


def registry_families(model: str, state: RegistryState) -> Iterator[Family]:
    """Yield the metrics of a model's registry.

    A candidate that the gate rejected has the label "refused", a stored word of version 0.1.
    """
    decisions: Counter[tuple[str, str]] = Counter({(model, "blessed"): 0, (model, "refused"): 0})
    rejected_samples: Counter[tuple[str, str]] = Counter()
    for candidate in state.candidates.values():
        decision = state.decisions.get(candidate.id)
        if decision is not None:
            decisions[model, "blessed" if decision.blessed else "refused"] += 1
        for reason, number in candidate.facts.get("rejected", {}).items():
            rejected_samples[model, reason] += number
    champion = state.champion
    yield CANDIDATES.of(decisions)
    yield REJECTED_SAMPLES.of(rejected_samples)
    yield PUSHES.of({(model,): len(state.pushed())})
    yield CHAMPION.of({} if champion is None else {(model,): champion})
    yield CHAMPION_TIME.of({} if champion is None else {(model,): state.versions[champion].time_us / 1e6})

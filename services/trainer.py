"""The trainer service: refreshes a model when its data set, the exclusions or the trust policy change.

`Triggers` bound how often new data lead to a refresh. Exclusions and trust always do, since a model may have learned
what it must not. A trainer that pushes canaries also settles them (`ciml.services.canary`), and trains no further one
meanwhile. See `ciml.training.trainer`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple, Self

from prometheus_client.registry import Collector

from ciml.errors import CimlError, EngineError, IntegrityError, NoTrainingDataError, UnknownDatasetError
from ciml.manifest.log import ManifestLog
from ciml.metrics import Family, metric
from ciml.progress import Progress, no_progress
from ciml.services.canary import CanaryRule, Shares, known_runs, settle_canary, settled, shares_of
from ciml.services.decide import ServiceProgress
from ciml.services.service import NotReadyError, Service
from ciml.serving.contract import DEFINITION, read_definition
from ciml.serving.lease import ModelLockedError
from ciml.serving.predict.log import is_served, read_predictions
from ciml.serving.push import HeldError
from ciml.serving.registry import CANARY, Registry, RegistryState
from ciml.training.data.snapshot import make_snapshot, read_snapshot
from ciml.training.evaluation.sequential import AccuracyDrop, Arm
from ciml.training.exclusions import add, read_lines
from ciml.training.experiment import Experiment
from ciml.training.refresh import TrainConfig
from ciml.training.trainer import TrainResult, last_experiment, run_once

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


@dataclass(frozen=True)
class Triggers:
    """When new data lead to a refresh: if any of these is due. Without one, each new version of the data set does.

    Attributes:
      every_s: seconds since the last candidate was trained; 0 for no schedule.
      new_runs: trusted runs that the last candidate did not have; 0 for no number.
      on_drift: the new spans drift from the runs that the champion learned (`ciml.transforms.drift`).
      on_accuracy: labelled predictions show that the champion is worse than at its gate (`ServedAccuracy`).
    """

    every_s: float = 0.0
    new_runs: int = 0
    on_drift: bool = False
    on_accuracy: bool = False

    def __bool__(self) -> bool:
        return self != Triggers()


@dataclass(frozen=True)
class ServedAccuracy:
    """How often the champion is right, compared with its gate.

    Attributes:
      shares: of its predictions.
      gate: its held-out runs at the gate; None if the decision has no figures.
      is_worse: whether it is shown to be worse (`ciml.training.evaluation.sequential.AccuracyDrop`).
    """

    shares: Shares
    gate: Arm | None
    is_worse: bool

    def text(self) -> str:
        """Return the figures as one line; before the first label, those that the probabilities expect."""
        shares = self.shares
        gate = self.gate
        if shares.labelled:
            share = f"{shares.right / shares.labelled:.2f} of {shares.labelled} labelled runs"
        elif shares.estimate is None:
            share = "no predictions yet"
        else:
            share = f"no labelled runs; {shares.estimate:.2f} ± {shares.error:.2f} expected of {shares.predictions}"
        at_gate = (
            "not known at its gate" if gate is None else f"at its gate {gate.right / gate.runs:.2f} of {gate.runs}"
        )
        return f"accuracy of version {shares.version}: {share}, {at_gate}"


class Drift(NamedTuple):
    """Drift of a data set.

    Attributes:
      findings: number of features and slices that drift.
      since: the first span with a changed feature; None if that is not known.
    """

    findings: int
    since: int | None = None

    def text(self) -> str:
        """Return one sentence part for people."""
        since = "" if self.since is None else f", the first since span {self.since}"
        return f"{self.findings} features or slices drift{since}"


@dataclass(frozen=True)
class News:
    """What has changed since the last candidate.

    Attributes:
      trained_us: when it was recorded, epoch microseconds; None without one.
      runs: trusted runs that it did not have.
      what: the plural of such runs, for people.
      drift: of the new spans from what the champion learned; None if that is not known.
      accuracy: of the champion; None without one.
    """

    trained_us: int | None
    runs: int
    what: str
    drift: Drift | None = None
    accuracy: ServedAccuracy | None = None

    def due(self, triggers: Triggers, now_us: int) -> str:
        """Return why a refresh is due; "" if it is not."""
        reasons = []
        if triggers.new_runs and self.runs >= triggers.new_runs:
            reasons.append(f"{self.runs} {self.what}")
        if triggers.on_drift and self.drift is not None and self.drift.findings:
            reasons.append(self.drift.text())
        if triggers.on_accuracy and self.accuracy is not None and self.accuracy.is_worse:
            reasons.append(self.accuracy.text())
        if triggers.every_s > 0 and self.trained_us is None:
            reasons.append("no candidate yet")
        elif triggers.every_s > 0 and now_us >= self._next_us(triggers):
            reasons.append(f"due since {_time_text(self._next_us(triggers))}")
        return "; ".join(reasons)

    def waits(self, triggers: Triggers) -> str:
        """Return what a refresh waits for."""
        causes = []
        if triggers.new_runs:
            causes.append(f"{self.runs} of {triggers.new_runs} {self.what}")
        if triggers.on_drift:
            causes.append("too few runs to see a drift" if self.drift is None else "no drift")
        if triggers.on_accuracy:
            causes.append("no champion" if self.accuracy is None else self.accuracy.text())
        if triggers.every_s and self.trained_us is not None:
            causes.append(f"due at {_time_text(self._next_us(triggers))}")
        return "; ".join(causes)

    def _next_us(self, triggers: Triggers) -> int:
        return (self.trained_us or 0) + round(triggers.every_s * 1e6)


def _time_text(time_us: int) -> str:
    return f"{datetime.fromtimestamp(time_us / 1e6, UTC):%Y-%m-%d %H:%M}"


class TrainerService(Service):
    """Refreshes a model when its data set, the exclusions or the trust policy have a new version.

    While the data set does not exist, or holds too little to train on, the service waits for the next version. Any
    other error that a repeated refresh cannot repair, such as an unknown estimator, ends the service.

    Args:
      config: of the trainer.
      report: called with each result, except "nothing new".
      progress: called with each step, and with the reason of a wait or a failure.
      triggers: when new data lead to a refresh.
      exclude: file of runs to exclude, which `open` stores; None for none.
    """

    poll_s = 2.0
    retry_s = (2.0, 60.0)
    canary_s = 300.0
    labels_s = 300.0  # after which labels that arrived meanwhile are read

    def __init__(
        self,
        config: TrainConfig,
        report: Callable[[TrainResult], object] | None = None,
        progress: Progress = no_progress,
        triggers: Triggers = Triggers(),
        exclude: str | None = None,
    ) -> None:
        super().__init__(f"ciml-trainer-{config.model}")
        self.config = config
        self._report = report
        self._progress = progress
        self._triggers = triggers
        self._exclude = exclude
        self._news: tuple[_Versions, News] | None = None  # of the versions for which it was counted
        self._labels_due_s = 0.0
        self._waits = ""
        self._canary = ""  # what is known of the canary; "" without one
        self._canary_due_s = 0.0
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

    def check(self) -> None:
        read_lines(self._exclude)

    def open(self) -> None:
        add(self.config.data.exclusions, read_lines(self._exclude))

    def impatient(self) -> Self:
        """Return the service without triggers: counting what a refresh waits for takes long, and the worker does it."""
        self._triggers = Triggers()
        return self

    def timings(self) -> Sequence[Collector]:
        return self._steps, self._refreshed, self._errors

    def observe(self) -> ServiceProgress:
        """Return the data set's version as progress, and count an up-to-date model as refreshed now."""
        with self._reported_errors():
            state = self._registry.state
            self.board.put_observed(registry_families(self.config.model, state))
            versions = self._present_versions()
            if self._triggers:
                self._wait_for(self._due_or_waits(versions))
        if self._is_current and versions == self._handled:
            self._count_refresh({})
        counts = {"candidates": len(state.candidates), "versions": len(state.versions)}
        waits = "; ".join(filter(None, (self._canary, self._waits)))
        facts = {"counts": counts, "champion": state.champion, "waits_for": waits}
        return ServiceProgress(versions.dataset, facts=facts)

    def _present_versions(self) -> _Versions:
        handled = self._handled or _Versions()
        return _Versions(
            self._log.end(handled.dataset), self._excluded.end(handled.exclusions), self._trust.end(handled.trust)
        )

    def plan(self, ends: Mapping[int, int] | None = None, *, bounded: bool = True) -> _Versions | None:
        """Return the present versions if the last refresh handled others, and a trigger is due."""
        with self._reported_errors():
            versions = self._present_versions()
            if versions == self._handled:
                return None
            is_due = self._must_refresh(versions) or not self._due_or_waits(versions)
        has_room = not self._canary or self._excludes_more(versions)
        return versions if is_due and has_room else None

    def maintain(self) -> None:
        """Compare the canary with the stable version, and promote or withdraw it if that is decided."""
        if self.config.label != CANARY or time.monotonic() < self._canary_due_s:
            return
        self._canary_due_s = time.monotonic() + self.canary_s
        try:
            with self._reported_errors():
                report = settle_canary(self.config.data, self.config.model, self.config.trust)
        except HeldError as error:
            self._canary = f"the canary would be promoted, but {error}"
            return
        self._canary = ""
        if report is not None and report.decision:
            self._progress("; ".join(report.lines()), 0, None)
        elif report is not None:
            self._canary = f"canary, version {report.canary.version}: {report.canary.text()}"

    def _must_refresh(self, versions: _Versions) -> bool:
        """Return whether there are no triggers, or the exclusions or the trust policy changed since the last refresh.

        A service that was started again does not know them; a refresh by the first trigger uses the present ones.
        """
        return not self._triggers or self._excludes_more(versions)

    def _excludes_more(self, versions: _Versions) -> bool:
        """Return whether exclusions or the trust policy changed since the last refresh of this process."""
        handled = self._handled
        return handled is not None and handled[1:] != versions[1:]

    def _reason(self, versions: _Versions) -> str:
        """Return why this service refreshes."""
        handled = self._handled
        changes = []
        if handled is not None and handled.exclusions != versions.exclusions:
            changes.append("the exclusions changed")
        if handled is not None and handled.trust != versions.trust:
            changes.append("the trust policy changed")
        if self._news is not None and self._news[0] == versions:
            changes.append(self._news[1].due(self._triggers, self._registry.now_us()))
        return "; ".join(filter(None, changes)) or f"version {versions.dataset} of data set {self.config.dataset}"

    def _due_or_waits(self, versions: _Versions) -> str:
        """Return what a refresh waits for; "" if it is due."""
        if self._triggers.on_accuracy and time.monotonic() >= self._labels_due_s:
            self._news = None
            self._labels_due_s = time.monotonic() + self.labels_s
        if self._news is None or self._news[0] != versions:
            try:
                self._news = versions, news_of(self.config, self._registry, self._triggers)
            except (NoTrainingDataError, UnknownDatasetError) as error:
                return str(error)
        news = self._news[1]
        is_due = news.due(self._triggers, self._registry.now_us())
        return "" if is_due else news.waits(self._triggers)

    def _wait_for(self, text: str) -> None:
        if text and text != self._waits:
            self._progress(f"waits: {text}", 0, None)
        self._waits = text

    def run(self, work: _Versions) -> None:
        self._is_current = False
        self._canary_due_s = 0.0  # it may push one, and no other is trained until that is settled
        try:
            with self._reported_errors():
                result = run_once(self.config, progress=self._progress, reason=self._reason(work))
        except (NoTrainingDataError, UnknownDatasetError) as error:
            self._handled = work  # only another version can have more data
            self._waits = str(error)
            return
        except ModelLockedError as error:
            raise NotReadyError(str(error)) from error
        self._handled = work
        self._waits = ""
        self._news = None  # counted from the candidate before
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


def news_of(config: TrainConfig, registry: Registry, triggers: Triggers) -> News:
    """Return what has changed since the last candidate of the model of a registry.

    Raises:
      NoTrainingDataError, UnknownDatasetError: if the data set does not exist, or has no sealed span.
      IntegrityError: if the stored data are inconsistent.
    """
    experiment = config.experiment or last_experiment(registry) or Experiment()
    dataset = config.data.dataset(config.dataset)
    snapshot = make_snapshot(dataset, config.trust.current(), window=experiment.window)
    state = registry.state
    last = state.candidates.get(state.last_candidate)
    learned_ids: set[str] = set()
    if last is not None and isinstance(last.facts.get("snapshot"), str):
        try:
            stored = read_snapshot(config.data.trainer(config.model), last.facts["snapshot"])
        except (EngineError, IntegrityError):
            raise
        except CimlError:  # it was removed: all runs are new
            pass
        else:
            learned_ids = {run.run_id for run in stored.runs()}
    runs = sum(run.run_id not in learned_ids for run in snapshot.runs())
    of_cause = " with a known cause" if snapshot.resolved.definition.class_label == "cause" else ""
    drift = _drift_of(config) if triggers.on_drift and state.champion is not None else None
    accuracy = served_accuracy(config, registry) if triggers.on_accuracy else None
    return News(None if last is None else last.time_us, runs, f"new trusted runs{of_cause}", drift, accuracy)


def served_accuracy(config: TrainConfig, registry: Registry) -> ServedAccuracy | None:
    """Compare the champion's labelled predictions with its gate; None without a champion.

    Only runs that are trusted now count, the first labelled one of each change, in the order of their predictions.

    Args:
      config: of the trainer.
      registry: of the model.
    """
    state = registry.state
    version = state.champion
    if version is None:
        return None
    decision = state.decisions.get(state.versions[version].candidate)
    figures = (decision.metrics if decision else {}).get("accuracy") or {}
    gate = Arm(figures["right"], figures["runs"]) if figures.get("runs") else None
    predictions = [
        prediction
        for prediction in read_predictions(config.data.predictions, state.versions[version].time_us)
        if prediction["model"] == registry.model and is_served(prediction) and prediction["version"] == version
    ]
    definition = read_definition(registry.read_asset(version, DEFINITION), f"model {registry.model}, version {version}")
    known = known_runs(config.data, config.trust, predictions, {version: definition})
    settled_runs, _ = settled(predictions, known, CanaryRule().wait_s, time.time())
    drop = AccuracyDrop(gate or Arm(), figures.get("independent"))
    for _, is_right in settled_runs:
        drop.add(is_right=is_right)
    return ServedAccuracy(shares_of(version, drop.served, predictions), gate, gate is not None and drop.is_shown)


def _drift_of(config: TrainConfig) -> Drift | None:
    """Return the drift of the new spans from what the champion learned; None if that is unknown."""
    from ciml.pipelines.datasets.validate import validate_dataset

    try:
        report = validate_dataset(config.data, config.dataset, model=config.model)
    except (EngineError, IntegrityError):
        raise
    except CimlError:  # there are no new spans, or its snapshot is gone
        return None
    spans = [finding.since for finding in report.findings if finding.since is not None]
    return Drift(len(report.findings), min(spans, default=None)) if report.enough else None


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

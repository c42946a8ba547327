"""The continuous trainer: refresh, the gate's decision, the registry, and the push.

After a kill, the next run repeats what was not recorded, and pushes a blessed candidate that was not pushed. The module
also declares the trainer's metrics, and lists served models that learned from runs which were excluded later: an
exclusion withdraws no model; it warns.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ciml.data_root import DataRoot
from ciml.errors import CimlError, EngineError, IntegrityError
from ciml.events.records import RunFacts
from ciml.lineage.emitter import lineage_of
from ciml.lineage.steps import Lineage
from ciml.metrics import Family, metric
from ciml.progress import Progress, no_progress
from ciml.serving.model_files import check_digests, copy_model
from ciml.serving.push import NotBlessedError, push, push_candidate, reconcile
from ciml.serving.registry import STABLE, Decision, Registry, RegistryState, registered_models
from ciml.storage import open_store
from ciml.training.data.snapshot import facts_of_spans, read_snapshot
from ciml.training.evaluation.candidate import Champion
from ciml.training.evaluation.text import figure_lines
from ciml.training.exclusions import exclusions_of, stored_exclusions
from ciml.training.refresh import Candidate, Skipped, TrainConfig, refresh

CANDIDATES = metric("ciml_training_candidates_total")
REJECTED = metric("ciml_training_samples_rejected_total")
PUSHES = metric("ciml_model_pushes_total")
CHAMPION = metric("ciml_champion_version")
CHAMPION_TIME = metric("ciml_champion_push_timestamp_seconds")
STEPS = metric("ciml_training_step_seconds")
REFRESHED = metric("ciml_training_refresh_timestamp_seconds")
ERRORS = metric("ciml_training_errors_total")
#: Run ids that a warning names; it counts the rest.
_NAMED = 3


class Refreshes:
    """The metrics of this process's refreshes.

    Attributes:
      collectors: of steps, the last refresh, and errors.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._steps = STEPS.summary()
        self._refreshed = REFRESHED.gauge()
        self._errors = ERRORS.counter()
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


@dataclass(frozen=True)
class LearnedExcluded:
    """A served version of a model that learned from excluded runs.

    Attributes:
      model: its name.
      version: of the model.
      labels: of the version, such as ``stable``; none for the champion's predecessor.
      runs: ids of the excluded training runs, in the snapshot's order.
      fault: why they cannot be determined; "" if they can.
    """

    model: str
    version: int
    labels: tuple[str, ...]
    runs: tuple[str, ...] = ()
    fault: str = ""

    def __str__(self) -> str:
        version = f"model {self.model} version {self.version} ({', '.join(self.labels) or 'kept for a rollback'})"
        if self.fault:
            return f"{version}: cannot determine whether it learned excluded runs: {self.fault}"
        count = len(self.runs)
        named = ", ".join(self.runs[:_NAMED]) + (f" and {count - _NAMED} more" if count > _NAMED else "")
        runs = "1 excluded run" if count == 1 else f"{count} excluded runs"
        return f"{version} learned {runs} ({named}) and is still served; replace it by ciml refresh, or roll back"


def learned_excluded(data: DataRoot, models: Sequence[str] | None = None) -> list[LearnedExcluded]:
    """Return the served versions that learned from runs which are excluded now.

    Args:
      data: the data root of the models.
      models: their names; all by default.
    """
    return [
        learned
        for model in (registered_models(data) if models is None else models)
        for learned in _of_model(data, model)
        if learned.runs or learned.fault
    ]


def _of_model(data: DataRoot, model: str) -> Iterator[LearnedExcluded]:
    state = Registry(data, model).state
    for version in state.served():
        labels = tuple(sorted(label for label, number in state.labels.items() if number == version))
        facts = state.candidates[state.versions[version].candidate].facts
        if "snapshot" not in facts or "dataset" not in facts:
            continue  # pushed by other means than a refresh
        try:
            runs = _excluded_runs(data, model, facts["dataset"], facts["snapshot"])
        except EngineError:
            raise
        except CimlError as error:  # its data set or its snapshot was removed, or altered
            yield LearnedExcluded(model, version, labels, fault=str(error))
            continue
        yield LearnedExcluded(model, version, labels, tuple(runs))


def _excluded_runs(data: DataRoot, model: str, dataset_name: str, digest: str) -> list[str]:
    dataset = data.dataset(dataset_name)
    try:
        state = dataset.state()
    except CimlError:
        if not exclusions_of(data):
            return []  # nothing that a removed data set's runs could match
        raise
    exclusions = stored_exclusions(dataset, state)
    if not exclusions:
        return []
    snapshot = read_snapshot(data.trainer(model), digest)
    learned = [(run.run_id, run.build_name) for run in snapshot.runs("train", "dev")]
    facts = {run_id: RunFacts(run_id, "", job) for run_id, job in learned}
    if exclusions.needs_facts:
        versions = [state.spans[span.span][span.version] for span in snapshot.spans]
        facts |= facts_of_spans(dataset.raw(state), versions)
    return [run_id for run_id, _ in learned if exclusions.reason(facts[run_id]) is not None]


@dataclass(frozen=True)
class TrainResult:
    """The result of a refresh.

    Attributes:
      outcome: ``pushed``; ``rejected`` by the gate or the model server; ``nothing_new``.
      reasons: of the outcome, a line each.
      version: the pushed version.
      champion: the version that was served before.
      candidate: id in the registry.
      metrics: of the candidate; empty if nothing was trained.
      folder: the candidate's SavedModel.
      seconds: by step, with ``push``.
      warnings: served versions of the model that learned from excluded runs, a line each.
    """

    outcome: Literal["pushed", "rejected", "nothing_new"]
    reasons: tuple[str, ...]
    version: int | None = None
    champion: int | None = None
    candidate: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def lines(self, model: str) -> list[str]:
        """Return the result as lines of text."""
        pushed = f"pushed version {self.version}"
        heads = {"pushed": pushed, "rejected": "not pushed", "nothing_new": "nothing to do"}
        further = [*figure_lines(self.metrics), *self.reasons]
        return [f"{model}: {heads[self.outcome]}", *(f"  {line}" for line in further)]

    def to_json(self, model: str) -> dict[str, Any]:
        """Return the result as JSON."""
        values = {name: value for name, value in vars(self).items() if name != "folder"}
        if self.outcome == "rejected":
            values["outcome"] = "refused"  # the name of version 0.1
        values["seconds"] = {name: round(seconds, 3) for name, seconds in self.seconds.items()}
        return {"model": model, **values}


def run_once(config: TrainConfig, *, progress: Progress = no_progress, work: Path | None = None) -> TrainResult:
    """Refresh a model once: train, judge, and push a blessed candidate.

    Args:
      config: of the trainer.
      progress: called with each step.
      work: folder of candidates; see `ciml.training.refresh.refresh`.

    Raises:
      CimlError: if the data set does not exist or holds nothing to train on.
      IntegrityError: if stored data are inconsistent: for example, an altered champion.
    """
    registry = Registry(config.data, config.model)
    with lineage_of(config.data, config.lineage) as lineage:
        result = _refreshed(registry, config, progress, work, lineage)
    return replace(result, warnings=tuple(map(str, learned_excluded(config.data, [config.model]))))


def _refreshed(
    registry: Registry, config: TrainConfig, progress: Progress, work: Path | None, lineage: Lineage
) -> TrainResult:
    reconcile(registry)
    recovered = _push_pending(registry, config, progress, lineage)
    if recovered is not None:
        return recovered
    champion_version = registry.state.champion
    with tempfile.TemporaryDirectory(prefix="ciml-champion-") as temporary:
        candidate = refresh(
            config,
            champion=_champion(registry, champion_version, Path(temporary)),
            last=_last(registry),
            work=work,
            progress=progress,
            lineage=lineage,
        )
    if isinstance(candidate, Skipped):
        return TrainResult("nothing_new", (candidate.reason,), champion=champion_version)
    return _push(registry, config, candidate, champion_version, progress, lineage)


def _push(
    registry: Registry,
    config: TrainConfig,
    trained: Candidate,
    champion: int | None,
    progress: Progress,
    lineage: Lineage,
) -> TrainResult:
    progress("push", 1, 1)
    start = time.perf_counter()
    decision = trained.decision
    facts = {**trained.facts(), "champion": champion}
    version = None
    reasons = decision.reasons
    folder = open_store(trained.folder)
    try:
        version = push(
            config.data, config.model, folder, decision, label=config.label, facts=facts, lineage=lineage
        ).version
    except NotBlessedError:
        pass  # candidate and decision are recorded
    except IntegrityError as error:
        # The gate passed it, but the server cannot load it.
        reasons = (str(error),)
        candidate = registry.record_candidate(folder, facts)
        registry.record_decision(candidate.id, Decision(False, reasons, decision.metrics))
    return TrainResult(
        outcome="rejected" if version is None else "pushed",
        reasons=tuple(reasons),
        version=version,
        champion=champion,
        candidate=registry.state.last_candidate,
        metrics=trained.metrics,
        folder=trained.folder,
        seconds={**trained.timings, "push": time.perf_counter() - start},
    )


def _push_pending(registry: Registry, config: TrainConfig, progress: Progress, lineage: Lineage) -> TrainResult | None:
    """Push a candidate that was blessed by a trainer which died before the push, if the decision is still valid."""
    state = registry.state
    candidate = state.pending()
    # The decision compared it with the champion of its time; it does not hold for another one.
    if candidate is None or candidate.facts.get("champion") != state.champion:
        return None
    progress("push", 1, 1)
    try:
        pushed = push_candidate(registry, candidate.id, label=config.label, lineage=lineage)
    except EngineError:
        raise
    except CimlError:
        return None  # its files are missing or altered: train again
    return TrainResult(
        outcome="pushed",
        reasons=("blessed earlier; its push was interrupted",),
        version=pushed.version,
        champion=candidate.facts.get("champion"),
        candidate=candidate.id,
    )


def _last(registry: Registry) -> str | None:
    """Return the digest of the last candidate's inputs if it was rejected or pushed."""
    state = registry.state
    last = state.candidates.get(state.last_candidate)
    if last is None or last.id not in state.decisions or state.pending() is not None:
        return None
    key = last.facts.get("refresh")
    return key if isinstance(key, str) else None


def _champion(registry: Registry, version: int | None, folder: Path) -> Champion | None:
    """Return a checked copy of the served version. Raises `IntegrityError` if it was altered."""
    if version is None:
        return None
    source = registry.folder(version)
    copy = folder / "model"
    try:
        digests = copy_model(source, copy)
    except FileNotFoundError:
        raise IntegrityError(f"{source.root} is served as {STABLE} but is missing; run ciml models rollback") from None
    check_digests(source.root, digests, registry.state.files(version))
    return Champion(copy, version)

"""The trainer: refreshes a model, and pushes a candidate that the gate blessed.

After a kill, the next refresh repeats what was not recorded, and pushes a blessed candidate that was not pushed. An
exclusion withdraws no served version: a refresh only warns of those that learned from runs which are excluded now, and
`ciml.training.purge` withdraws them. What was excluded while a candidate was trained is not served, though.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ciml.errors import CimlError, EngineError, IntegrityError
from ciml.lineage import Lineage, lineage_of
from ciml.progress import Progress, no_progress
from ciml.serving.lease import leased
from ciml.serving.ledger import withdraw
from ciml.serving.model_files import check_digests, copy_model
from ciml.serving.push import (
    ChampionChangedError,
    HeldError,
    NotBlessedError,
    WithdrawnError,
    push_candidate,
    reconcile,
)
from ciml.serving.registry import CANARY, STABLE, Decision, Registry, Signature
from ciml.storage import open_store
from ciml.training.evaluation.candidate import Champion
from ciml.training.evaluation.gate import GatePolicy
from ciml.training.evaluation.text import figure_lines
from ciml.training.experiment import Experiment
from ciml.training.learned import candidate_learned_excluded, models_with_excluded_runs
from ciml.training.refresh import Candidate, Skipped, TrainConfig, refresh


@dataclass(frozen=True)
class TrainResult:
    """The result of `run_once`.

    Attributes:
      outcome: ``pushed``; ``rejected`` by the gate or the model server, or overtaken by a person's decision; ``held``:
        blessed, but a person holds the model; ``nothing_new``.
      reasons: of the outcome, a line each.
      version: the pushed version.
      champion: the version that was served before.
      candidate: id in the registry.
      metrics: of the candidate; empty if nothing was trained.
      folder: the candidate's SavedModel.
      seconds: by step, with ``push``.
      warnings: served versions of the model that learned from excluded runs, a line each.
    """

    outcome: Literal["pushed", "rejected", "held", "nothing_new"]
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
        summaries = {
            "pushed": f"pushed version {self.version}",
            "rejected": "not pushed",
            "held": "blessed, and not pushed yet",
            "nothing_new": "nothing to do",
        }
        details = [*figure_lines(self.metrics), *self.reasons]
        return [f"{model}: {summaries[self.outcome]}", *(f"  {line}" for line in details)]

    def to_json(self, model: str) -> dict[str, Any]:
        """Return the result as JSON."""
        values = {name: value for name, value in vars(self).items() if name != "folder"}
        if self.outcome == "rejected":
            values["outcome"] = "refused"  # the name of version 0.1
        values["seconds"] = {name: round(seconds, 3) for name, seconds in self.seconds.items()}
        return {"model": model, **values}


def run_once(
    config: TrainConfig,
    *,
    progress: Progress = no_progress,
    work: Path | None = None,
    reason: str = "requested",
) -> TrainResult:
    """Refresh a model once: train, judge, and push a blessed candidate.

    Args:
      config: of the trainer.
      progress: called with each step.
      reason: of the refresh, for the ledger, one line.
      work: folder of candidates; see `ciml.training.refresh.refresh`.

    Raises:
      CimlError: if the data set does not exist or holds nothing to train on.
      ModelLockedError: another trainer refreshes the model.
      LostLeaseError: this trainer did not renew its lease in time, and another one has taken over.
      IntegrityError: if stored data are inconsistent: for example, an altered champion.
    """
    registry = Registry(config.data, config.model)
    with leased(registry), lineage_of(config.data, config.lineage) as lineage:
        result = _refresh_and_push(registry, config, progress, work, lineage, reason)
    return replace(result, warnings=tuple(map(str, models_with_excluded_runs(config.data, [config.model]))))


def _refresh_and_push(
    registry: Registry, config: TrainConfig, progress: Progress, work: Path | None, lineage: Lineage, reason: str
) -> TrainResult:
    reconcile(registry)
    pending_result = _push_pending(registry, config, progress, lineage)
    if pending_result is not None:
        return pending_result
    champion_version = registry.state.champion
    with tempfile.TemporaryDirectory(prefix="ciml-champion-") as temporary:
        candidate = refresh(
            replace(config, experiment=config.experiment or last_experiment(registry)),
            champion=_copy_champion(registry, champion_version, Path(temporary)),
            last_key=_last_key(registry, config.gate),
            work=work,
            progress=progress,
            lineage=lineage,
        )
    if isinstance(candidate, Skipped):
        return TrainResult("nothing_new", (candidate.reason,), champion=champion_version)
    return _push(registry, config, candidate, champion_version, progress, lineage, reason)


def _push_pending(registry: Registry, config: TrainConfig, progress: Progress, lineage: Lineage) -> TrainResult | None:
    """Push the candidate of a trainer that died between decision and push, if its decision is still valid.

    The decision compared the candidate with the champion of that time; it is invalid for another champion, and for a
    candidate that learned from runs which were excluded since.

    Returns:
      The result of the push; None if there is no such candidate, or its files are missing or altered.
    """
    state = registry.state
    candidate = state.pending()
    if candidate is None or candidate.facts.get("champion") != state.champion:
        return None
    try:
        if candidate_learned_excluded(config.data, config.model, candidate):
            return None
    except EngineError:
        raise
    except CimlError:  # its runs are not known any more
        return None
    progress("push", 1, 1)
    try:
        pushed = push_candidate(
            registry, candidate.id, label=_label(config, state.champion), lineage=lineage, champion=state.champion
        )
    except EngineError:
        raise
    except CimlError:
        return None
    if excluded := _withdraw_excluded(registry, pushed.version):
        return TrainResult("rejected", (excluded,), champion=candidate.facts.get("champion"), candidate=candidate.id)
    return TrainResult(
        outcome="pushed",
        reasons=("blessed earlier; its push was interrupted",),
        version=pushed.version,
        champion=candidate.facts.get("champion"),
        candidate=candidate.id,
    )


def _last_key(registry: Registry, gate: GatePolicy) -> str | None:
    """Return the `refresh_key` of the last candidate.

    None if its push is pending, or it has no decision, or another policy of the gate rejected it.
    """
    state = registry.state
    last = state.candidates.get(state.last_candidate)
    is_due = state.pending() is not None and state.hold is None
    if last is None or last.id not in state.decisions or is_due:
        return None
    decision = state.decisions[last.id]
    if not decision.blessed and decision.metrics.get("gate", gate.to_json()) != gate.to_json():
        return None
    key = last.facts.get("refresh")
    return key if isinstance(key, str) else None


def last_experiment(registry: Registry) -> Experiment | None:
    """Return the experiment of the model's last candidate; None before the first one.

    Raises:
      CimlError: it is not one that this version knows.
    """
    state = registry.state
    last = state.candidates.get(state.last_candidate)
    stored = last.facts.get("experiment") if last else None
    return Experiment.from_json(stored, f"model {registry.model}: experiment") if stored is not None else None


def _copy_champion(registry: Registry, version: int | None, folder: Path) -> Champion | None:
    """Copy the served version to a local folder. Raises `IntegrityError` if it was altered."""
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


def _push(
    registry: Registry,
    config: TrainConfig,
    candidate: Candidate,
    champion: int | None,
    progress: Progress,
    lineage: Lineage,
    reason: str,
) -> TrainResult:
    progress("push", 1, 1)
    start = time.perf_counter()
    decision = candidate.decision
    facts = {**candidate.facts(), "champion": champion, "reason": reason}
    version = None
    outcome: Literal["pushed", "rejected", "held"] = "rejected"
    reasons = decision.reasons
    folder = open_store(candidate.folder)
    try:
        recorded = registry.record_candidate(folder, facts)
        registry.record_decision(recorded.id, decision)
        label = _label(config, champion)
        version = push_candidate(registry, recorded.id, label=label, lineage=lineage, champion=champion).version
        outcome = "pushed"
    except NotBlessedError:
        pass  # the push has recorded the candidate and its decision
    except (HeldError, WithdrawnError, ChampionChangedError) as error:
        outcome = "held" if isinstance(error, HeldError) else "rejected"
        reasons = (str(error), *reasons)
    except IntegrityError as error:
        # The gate passed it, but the server cannot load it.
        reasons = (str(error),)
        recorded = registry.record_candidate(folder, facts)
        registry.record_decision(recorded.id, Decision(False, reasons, decision.metrics))
    if version is not None and (excluded := _withdraw_excluded(registry, version)):
        version = None
        outcome = "rejected"
        reasons = (excluded,)
    return TrainResult(
        outcome=outcome,
        reasons=tuple(reasons),
        version=version,
        champion=champion,
        candidate=registry.state.last_candidate,
        metrics=candidate.metrics,
        folder=candidate.folder,
        seconds={**candidate.timings, "push": time.perf_counter() - start},
    )


def _label(config: TrainConfig, champion: int | None) -> str:
    """Return the label of a version to push. The first version is stable, since nothing else is served."""
    return STABLE if champion is None and config.label == CANARY else config.label


def _withdraw_excluded(registry: Registry, version: int) -> str:
    """Withdraw a version that was just pushed, if its runs were excluded while it was trained.

    A purge stores the exclusion first, and then withdraws the versions that it finds. So either it has found this
    version, or the exclusion is found here.

    Returns:
      The reason; "" for a version that may stay.
    """
    candidate = registry.state.candidates[registry.state.versions[version].candidate]
    excluded = candidate_learned_excluded(registry.data, registry.model, candidate)
    if not excluded:
        return ""
    runs = "1 run that was" if len(excluded) == 1 else f"{len(excluded)} runs that were"
    reason = f"learned {runs} excluded while it was trained"
    withdraw(registry, [version], Signature("the trainer", f"version {version} {reason}"))
    return f"version {version} {reason}, and is withdrawn; refresh again"

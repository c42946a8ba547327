"""The continuous trainer: refresh, the gate's decision, the registry, and the push.

After a kill, the next run repeats what was not recorded, and pushes a blessed candidate that was not pushed.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ciml.data_root import DataRoot
from ciml.decision import Decision
from ciml.errors import CimlError, EngineError, IntegrityError
from ciml.lineage.open import lineage_of
from ciml.lineage.steps import Lineage
from ciml.pipelines.training.excluded_models import learned_excluded
from ciml.serving.model_files import check_digests, copy_model
from ciml.serving.push import NotBlessedError, push, push_candidate, reconcile
from ciml.serving.registry import STABLE, Registry
from ciml.storage.open import open_store
from ciml.training.evaluation.champion import Champion
from ciml.training.evaluation.gate import GatePolicy
from ciml.training.evaluation.text import figure_lines
from ciml.training.experiment import Experiment
from ciml.training.refresh import Candidate, Progress, Skipped, refresh
from ciml.transforms.ingest.trust import TrustPolicy


@dataclass(frozen=True)
class TrainConfig:
    """Configuration of a trainer.

    Attributes:
      data: the data root.
      dataset: name of the training data set.
      model: the name under which its models are served.
      experiment: the estimator and its parameters.
      trust: decides which runs are trusted for training.
      gate: the requirements on a candidate.
      label: the label of a pushed version; ``stable`` makes it the champion.
      lineage: whether OpenLineage events are sent.
    """

    data: DataRoot
    dataset: str
    model: str
    experiment: Experiment = field(default_factory=Experiment)
    trust: TrustPolicy = field(default_factory=TrustPolicy.load)
    gate: GatePolicy = field(default_factory=GatePolicy)
    label: str = STABLE
    lineage: bool = False


@dataclass(frozen=True)
class TrainResult:
    """The result of a refresh.

    Attributes:
      outcome: ``pushed``; ``refused`` by the gate or the model server; ``nothing_new``.
      reasons: of the outcome, a line each.
      version: the pushed version.
      champion: the version that was served before.
      candidate: id in the registry.
      metrics: of the candidate; empty if nothing was trained.
      folder: the candidate's SavedModel.
      seconds: by step, with ``push``.
      warnings: served versions of the model that learned from excluded runs, a line each.
    """

    outcome: Literal["pushed", "refused", "nothing_new"]
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
        lines = figure_lines(self.metrics)
        heads = {
            "pushed": f"pushed version {self.version}",
            "refused": "not pushed",
            "nothing_new": "nothing to do",
        }
        return [f"{model}: {heads[self.outcome]}", *(f"  {line}" for line in [*lines, *self.reasons])]

    def to_json(self, model: str) -> dict[str, Any]:
        """Return the result as JSON."""
        return {
            "model": model,
            "outcome": self.outcome,
            "reasons": list(self.reasons),
            "version": self.version,
            "champion": self.champion,
            "candidate": self.candidate,
            "seconds": {name: round(seconds, 3) for name, seconds in self.seconds.items()},
            "metrics": dict(self.metrics),
            "warnings": list(self.warnings),
        }


def run_once(config: TrainConfig, *, progress: Progress | None = None, work: Path | None = None) -> TrainResult:
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
    registry: Registry, config: TrainConfig, progress: Progress | None, work: Path | None, lineage: Lineage
) -> TrainResult:
    reconcile(registry)
    recovered = _push_pending(registry, config, progress, lineage)
    if recovered is not None:
        return recovered
    champion_version = registry.state.champion
    with tempfile.TemporaryDirectory(prefix="ciml-champion-") as temporary:
        made = refresh(
            config.data,
            config.dataset,
            config.experiment,
            model=config.model,
            champion=_champion(registry, champion_version, Path(temporary)),
            last=_last(registry),
            policy=config.trust,
            gate=config.gate,
            work=work,
            progress=progress,
            lineage=lineage,
        )
    if isinstance(made, Skipped):
        return TrainResult("nothing_new", (made.reason,), champion=champion_version)
    return _push(registry, config, made, champion_version, progress, lineage)


def _push(
    registry: Registry,
    config: TrainConfig,
    made: Candidate,
    champion: int | None,
    progress: Progress | None,
    lineage: Lineage,
) -> TrainResult:
    if progress is not None:
        progress("push")
    began = time.perf_counter()
    decision = made.decision
    facts = {**made.facts(), "champion": champion}
    version, reasons = None, decision.reasons
    folder = open_store(made.folder)
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
        outcome="refused" if version is None else "pushed",
        reasons=tuple(reasons),
        version=version,
        champion=champion,
        candidate=registry.state.last_candidate,
        metrics=made.metrics,
        folder=made.folder,
        seconds={**made.timings, "push": time.perf_counter() - began},
    )


def _push_pending(
    registry: Registry, config: TrainConfig, progress: Progress | None, lineage: Lineage
) -> TrainResult | None:
    """Push a candidate that was blessed by a trainer which died before the push, if the decision is still valid."""
    state = registry.state
    candidate = state.pending()
    # The decision compared it with the champion of its time; it does not hold for another one.
    if candidate is None or candidate.facts.get("champion") != state.champion:
        return None
    if progress is not None:
        progress("push")
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
    found = last.facts.get("refresh")
    return found if isinstance(found, str) else None


def _champion(registry: Registry, version: int | None, folder: Path) -> Champion | None:
    """Return a checked copy of the served version. Raises `IntegrityError` if it was altered."""
    if version is None:
        return None
    source, copy = registry.folder(version), folder / "model"
    try:
        digests = copy_model(source, copy)
    except FileNotFoundError:
        raise IntegrityError(f"{source.root} is served as {STABLE} but is missing; run ciml models rollback") from None
    check_digests(source.root, digests, registry.state.files(version))
    return Champion(copy, version)

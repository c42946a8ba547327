"""The continuous trainer: a refresh of training's, the gate's verdict, the registry, and the push.

`run_once` does one of each, or says why not; `watch` does so whenever the data set has something new. Whatever is
killed on the way: what was not recorded is done again, and what was blessed and not pushed is pushed by the next.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ciml.data_root import DataRoot
from ciml.errors import CimlError, EngineError, IntegrityError
from ciml.storage.open import open_store
from serving.model_files import check_digests, copy_model
from serving.push import NotBlessedError, push, push_candidate, reconcile
from serving.registry import STABLE, Registry, Verdict
from training.evaluation.champion import Champion
from training.evaluation.gate import GatePolicy
from training.experiment import Experiment
from training.refresh import Candidate, Progress, Skipped, refresh
from transforms.ingest.trust import TrustPolicy


@dataclass(frozen=True)
class TrainConfig:
    """What a trainer does.

    Attributes:
      data: the data root.
      dataset: what it learns from.
      model: the name under which its models are served.
      experiment: what it trains.
      trust: who may be learned from.
      gate: what a candidate has to show.
      exclusions: reasons by run id of runs that must not be learned from.
      label: what names a pushed version; ``stable`` makes it the champion.
    """

    data: DataRoot
    dataset: str
    model: str
    experiment: Experiment = field(default_factory=Experiment)
    trust: TrustPolicy = field(default_factory=TrustPolicy.load)
    gate: GatePolicy = field(default_factory=GatePolicy)
    exclusions: Mapping[str, str] = field(default_factory=dict)
    label: str = STABLE


@dataclass(frozen=True)
class TrainResult:
    """What a refresh came to.

    Attributes:
      outcome: ``pushed``; ``refused`` by the gate, or because the model server would not take it; ``nothing_new``.
      reasons: why not, one line each; where it was pushed, what spoke for it.
      version: that was pushed.
      champion: the version that was served before.
      candidate: id in the registry.
      metrics: of the candidate, as training wrote them; empty where nothing was trained.
      folder: the candidate's SavedModel.
      seconds: by step, with ``push``.
    """

    outcome: Literal["pushed", "refused", "nothing_new"]
    reasons: tuple[str, ...]
    version: int | None = None
    champion: int | None = None
    candidate: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)


def run_once(config: TrainConfig, *, progress: Progress | None = None, work: Path | None = None) -> TrainResult:
    """Refresh a model once: train, judge, and push a blessed candidate.

    Args:
      config: what to do.
      progress: told of each step.
      work: where candidates are made; see `training.refresh.refresh`.

    Raises:
      CimlError: when the data set does not exist or holds nothing to train on.
      IntegrityError: when what is stored contradicts itself: a champion that was altered, for example.
    """
    registry = Registry(config.data, config.model)
    reconcile(registry)
    recovered = _push_pending(registry, config, progress)
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
            exclusions=config.exclusions,
            work=work,
            progress=progress,
        )
    if isinstance(made, Skipped):
        return TrainResult("nothing_new", (made.reason,), champion=champion_version)
    return _push(registry, config, made, champion_version, progress)


def _push(
    registry: Registry, config: TrainConfig, made: Candidate, champion: int | None, progress: Progress | None
) -> TrainResult:
    if progress is not None:
        progress("push")
    began = time.perf_counter()
    verdict = Verdict(made.verdict.blessed, made.verdict.reasons, made.verdict.metrics)
    facts = {**made.facts(), "champion": champion}
    version, reasons = None, verdict.reasons
    folder = open_store(made.folder)
    try:
        version = push(config.data, config.model, folder, verdict, label=config.label, facts=facts).version
    except NotBlessedError:
        pass  # candidate and verdict are recorded, and that is all there is to do
    except IntegrityError as error:
        # The gate was content and the server would not be. That is the last word on this candidate.
        reasons = (str(error),)
        registry.record_verdict(registry.record_candidate(folder, facts).id, Verdict(False, reasons, verdict.metrics))
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


def _push_pending(registry: Registry, config: TrainConfig, progress: Progress | None) -> TrainResult | None:
    """Push what was blessed by a trainer that died before the push, where that still holds."""
    state = registry.state
    candidate = state.pending()
    # The verdict compared it with the champion of its time: against another one it says nothing.
    if candidate is None or candidate.facts.get("champion") != state.champion:
        return None
    if progress is not None:
        progress("push")
    try:
        pushed = push_candidate(registry, candidate.id, label=config.label)
    except EngineError:
        raise
    except CimlError:
        return None  # its files are gone or were altered: it is made again
    return TrainResult(
        outcome="pushed",
        reasons=("it was blessed before, and its push had been interrupted",),
        version=pushed.version,
        champion=candidate.facts.get("champion"),
        candidate=candidate.id,
    )


def _last(registry: Registry) -> str | None:
    """What the last candidate was made of, where its story has ended: refused, or pushed."""
    state = registry.state
    last = state.candidates.get(state.last_candidate)
    if last is None or last.id not in state.verdicts or state.pending() is not None:
        return None
    found = last.facts.get("refresh")
    return found if isinstance(found, str) else None


def _champion(registry: Registry, version: int | None, folder: Path) -> Champion | None:
    """Return a checked copy of the version that is served now. Raises `IntegrityError` where it was altered."""
    if version is None:
        return None
    source, copy = registry.folder(version), folder / "model"
    try:
        digests = copy_model(source, copy)
    except FileNotFoundError:
        raise IntegrityError(f"{source.root} is served as {STABLE}, and is gone: ciml models rollback") from None
    check_digests(source.root, digests, registry.state.files(version))
    return Champion(copy, version)

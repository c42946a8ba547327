"""A purge makes sure that no served model has learned from given runs, or states what is left to do.

It has three steps, each of which may be repeated, so a purge that was killed is completed by the same command:

1. the runs are excluded from training;
2. every version that learned from them is withdrawn, and the last clean version serves, or none;
3. each of these models is trained again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ciml.data_root import DataRoot
from ciml.errors import CimlError, EngineError
from ciml.serving.ledger import withdraw
from ciml.serving.registries import known_registries
from ciml.serving.registry import Registry, Signature
from ciml.training.exclusions import Exclusion, Exclusions, add
from ciml.training.learned import AffectedVersion, versions_that_learned
from ciml.training.trainer import TrainResult

#: Trains a model again, given its name and that of its data set.
Retrain = Callable[[str, str], TrainResult]


@dataclass(frozen=True)
class Purged:
    """What a purge did to a model.

    Attributes:
      model: its name.
      withdrawn: versions that this call withdrew.
      champion: the version that serves now and is known to be clean; None if there is none.
      result: of the training; None without one.
      missing: what is left to do, a line each. A clean version may serve nevertheless.
    """

    model: str
    withdrawn: tuple[int, ...]
    champion: int | None
    result: TrainResult | None
    missing: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return the result as lines of text."""
        withdrawn = ", ".join(map(str, self.withdrawn)) or "none"
        lines = [f"{self.model}: versions withdrawn: {withdrawn}"]
        if self.result is not None:
            lines += [f"  {line}" for line in self.result.lines(self.model)]
        if self.champion is not None:
            lines.append(f"{self.model}: version {self.champion} serves, and never learned from these runs")
        return [*lines, *(f"{self.model}: {line}" for line in self.missing)]


def purge(
    data: DataRoot,
    exclusion: Exclusion,
    signed: Signature,
    retrain: Retrain | None,
    *,
    models: Sequence[str] | None = None,
) -> list[Purged]:
    """Exclude runs, withdraw the versions that learned from them, and train the models again.

    Args:
      data: the data root.
      exclusion: the runs; its reason is that of the withdrawals.
      signed: who purges, and why.
      retrain: trains a model again; None leaves that to the trainer.
      models: names of the models to purge; all by default.

    Returns:
      The models of which a version learned from the runs, or may have: its snapshot cannot be read.

    Raises:
      UnknownModelError: there is no such model. Nothing is excluded then.
      EngineError: a store does not answer. The same call completes the purge.
    """
    signed.check()
    for model in models or ():
        known_registries(data, model)
    add(data.exclusions, [exclusion], author=signed.author)
    exclusions = Exclusions((exclusion,))
    by_model: dict[str, list[AffectedVersion]] = {}
    for version in versions_that_learned(data, exclusions, models):
        by_model.setdefault(version.model, []).append(version)
    purged = []
    for model, versions in by_model.items():
        try:
            purged.append(_purge_model(Registry(data, model), versions, exclusions, signed, retrain))
        except EngineError:
            raise
        except CimlError as error:  # the other models are purged nevertheless
            purged.append(Purged(model, (), None, None, (f"cannot be purged: {error}",)))
    return purged


def _purge_model(
    registry: Registry,
    versions: Sequence[AffectedVersion],
    exclusions: Exclusions,
    signed: Signature,
    retrain: Retrain | None,
) -> Purged:
    withdrawn = _withdraw(registry, versions, signed)
    result, missing = _retrain(registry, versions, retrain)
    # A trainer may have pushed a version meanwhile, and may be killed before it sees the exclusion.
    versions = versions_that_learned(registry.data, exclusions, [registry.model])
    withdrawn += _withdraw(registry, versions, signed)
    doubtful = [version for version in versions if version.fault and not version.withdrawn]
    missing += [
        f"cannot determine whether version {version.version} learned from these runs: {version.fault}; "
        f"withdraw it by ciml models withdraw {registry.model} {version.version}"
        for version in doubtful
    ]
    champion = registry.state.champion
    if champion is None:
        reasons = "; ".join(result.reasons) if result is not None else "it was not trained again"
        missing.append(f"nothing serves: {reasons}")
    if champion in {version.version for version in doubtful}:
        champion = None
    return Purged(registry.model, tuple(withdrawn), champion, result, tuple(missing))


def _withdraw(registry: Registry, versions: Sequence[AffectedVersion], signed: Signature) -> list[int]:
    """Withdraw the versions that learned from the runs, and return those that were not withdrawn before."""
    numbers = [version.version for version in versions if version.runs and not version.withdrawn]
    withdraw(registry, numbers, signed)
    return numbers


def _retrain(
    registry: Registry, versions: Sequence[AffectedVersion], retrain: Retrain | None
) -> tuple[TrainResult | None, list[str]]:
    """Train a model again, if a version of it learned from the runs. Return the result, and why there is none."""
    learned = [version.version for version in versions if version.runs]
    if not learned or retrain is None:
        return None, []
    state = registry.state
    dataset = state.candidates[state.versions[learned[-1]].candidate].facts["dataset"]
    try:
        return retrain(registry.model, dataset), []
    except EngineError:
        raise
    except CimlError as error:
        return None, [f"was not trained again: {error}"]

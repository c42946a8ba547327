"""A purge: no served model has learned from some runs, or it is stated what is missing.

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
from ciml.serving.registry import Registry, Signature
from ciml.training.exclusions import Exclusion, Exclusions, add
from ciml.training.learned import ModelWithExcludedRuns, versions_that_learned
from ciml.training.trainer import TrainResult

#: Trains a model again, given its name and that of its data set.
Retrain = Callable[[str, str], TrainResult]


@dataclass(frozen=True)
class Purged:
    """What a purge did to a model.

    Attributes:
      model: its name.
      withdrawn: versions that this call withdrew.
      learned: all versions that learned from the runs, also those that were withdrawn before.
      champion: the version that serves now; None if none does.
      result: of the training; None without one.
      missing: what a person must do, a line each; none if a clean version serves.
    """

    model: str
    withdrawn: tuple[int, ...]
    learned: tuple[int, ...]
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
      models: their names; all by default.

    Returns:
      The models of which a version learned from the runs, or may have: its snapshot cannot be read.

    Raises:
      EngineError: a store does not answer. The same call completes the purge.
    """
    signed.check()
    add(data.exclusions, [exclusion], author=signed.author)
    by_model: dict[str, list[ModelWithExcludedRuns]] = {}
    for version in versions_that_learned(data, Exclusions((exclusion,)), models):
        by_model.setdefault(version.model, []).append(version)
    return [_purge_model(Registry(data, model), versions, signed, retrain) for model, versions in by_model.items()]


def _purge_model(
    registry: Registry, versions: Sequence[ModelWithExcludedRuns], signed: Signature, retrain: Retrain | None
) -> Purged:
    learned = [version.version for version in versions if version.runs]
    serving = [version.version for version in versions if version.runs and not version.withdrawn]
    withdraw(registry, serving, signed)
    state = registry.state
    result = None
    missing = [
        f"cannot determine whether version {version.version} learned from these runs: {version.fault}; "
        f"withdraw it by ciml models withdraw {registry.model} {version.version}"
        for version in versions
        if version.fault and not version.withdrawn
    ]
    if learned and retrain is not None:
        dataset = state.candidates[state.versions[learned[-1]].candidate].facts["dataset"]
        try:
            result = retrain(registry.model, dataset)
        except EngineError:
            raise
        except CimlError as error:
            missing.append(f"was not trained again: {error}")
    champion = registry.state.champion
    if champion is None:
        reasons = "; ".join(result.reasons) if result is not None else "it was not trained again"
        missing.append(f"nothing serves: {reasons}")
    faulty = [version.version for version in versions if version.fault]
    clean = None if champion in faulty else champion
    return Purged(registry.model, tuple(serving), tuple(learned), clean, result, tuple(missing))

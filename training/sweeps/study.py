"""Proposes and prunes trials with optuna, from earlier outcomes. A study is built for each call and not stored.

Optuna's own storages are a database or a journal in a local file. A study that is rebuilt from stored outcomes works on
any store, and repeated calls give the same result.

The stored outcome of a sweep's trial: JSON, created once; a sweep has no other state.

The files of a sweep: its first definition, and its trials' outcomes. There is no other state.

sweeps/<sweep>/sweep.json              first: the inputs of all trials
sweeps/<sweep>/trials/000000.json      outcome of each trial, created once
sweeps/<sweep>/baselines/0.json        one-number baselines of each question
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from msgspec import Meta, field

from ciml.digest import canonical_json
from ciml.errors import CimlError, IntegrityError, InvalidSettingError
from ciml.settings import Settings
from ciml.storage import Store
from ciml.storage.json_files import seal
from ciml.training.experiment import NORMALISATION
from ciml.training.experiments.trials import read_stored
from ciml.training.sweeps.definition import Axis, Sweep, Value, differences

if TYPE_CHECKING:
    from optuna import Study

State = Literal["complete", "pruned", "failed", "running"]


class Outcome(Settings, frozen=True, kw_only=True):
    """The outcome of a trial.

    Attributes:
      format: version of the file format.
      number: the trial's number, from 0.
      question: index of the sweep's question.
      parameters: value by axis.
      state: ``pruned`` trials were worse than earlier ones, ``failed`` ones could not be trained. ``running`` is the
        state of a trial whose outcome is unknown or not used; it is never stored.
      reason: why a trial failed, one line.
      value: the metric over all held-out runs; for a pruned trial, over those scored last.
      low: lower bound of its 95 % interval, or None.
      high: upper bound, or None.
      steps: reported (step, value): for folds, over the folds so far; for epochs, on dev.
      scores: further figures of a complete trial: ``accuracy``, ``f1`` and ``base_rate``.
      dataset: name of the data set.
      experiment: the experiment, as JSON.
      snapshot: digest of the runs.
      trained_on: training runs of the last fold.
      held_out: scored runs.
      same_as: number of an earlier trial with the same parameters, whose outcome is reused.
      seconds: wall clock of training and scoring.
      attrs: attributes of optuna's pruner.
    """

    title: ClassVar[str] = "outcome of a trial"

    format: Literal[1] = 1
    number: Annotated[int, Meta(ge=0)]
    question: Annotated[int, Meta(ge=0)]
    parameters: dict[str, str | int | float]
    state: State
    reason: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    steps: tuple[tuple[int, float], ...] = ()
    scores: dict[str, float | None] = field(default_factory=dict)
    dataset: str = ""
    experiment: dict[str, Any] = field(default_factory=dict)
    snapshot: str = ""
    trained_on: int = 0
    held_out: int = 0
    same_as: int | None = None
    seconds: float = 0.0
    attrs: dict[str, str | int | float | None] = field(default_factory=dict)


_FORMAT = 1


def sweep_store(sweeps: Store, name: str) -> Store:
    """Return the folder of a sweep. The name is validated, since it may come from a user."""
    Sweep.from_json({"name": name, "vary": {"dataset": {"sample_interval": ["1s"]}}}, "sweep")
    return sweeps.child(name)


def begin_sweep(store: Store, sweep: Sweep, inputs: Mapping[str, Any], raw_version: Callable[[], int]) -> int:
    """Begin or resume a sweep.

    Args:
      store: its folder.
      sweep: its present file; for a begun sweep only ``trials`` may have changed.
      inputs: digests of other inputs that decide the runs; they must not change.
      raw_version: returns the raw manifest's version for a new sweep.

    Returns:
      The version of the raw manifest that its data sets are pinned to.

    Raises:
      CimlError: if a different sweep has that name.
    """
    new = {"format": _FORMAT, "sweep": sweep.to_json(), **inputs}
    first = {**new, "normalisation": NORMALISATION}
    there = read_stored(store, "sweep.json")
    if there is None:
        store.create("sweep.json", seal(canonical_json({**first, "raw_version": raw_version()})))
        there = read_stored(store, "sweep.json") or {}
    version = there.get("raw_version")
    if not isinstance(version, int) or not isinstance(there.get("sweep"), dict):
        raise IntegrityError(f"{store.url('sweep.json')} is not a sweep")
    old = {key: value for key, value in there.items() if key not in ("raw_version", "normalisation")}
    sampled = sweep.trials is not None and old["sweep"].get("trials") is not None
    if sampled:
        old["sweep"] = {**old["sweep"], "trials": sweep.trials}
    if keys := [key.removeprefix("sweep.") for key in differences(old, new)]:
        raise CimlError(
            f"sweep {sweep.name!r} was begun with another {', '.join(keys)}; choose another name (data sets are shared)"
        )
    return version


def check_normalisation(store: Store, name: str) -> None:
    """Check that a begun sweep may train further trials: all trials of a sweep are normalised alike.

    Raises:
      CimlError: if an older version of ciml began it with another normalisation.
    """
    there = read_stored(store, "sweep.json") or {}
    if there.get("normalisation", 1) != NORMALISATION:
        raise CimlError(
            f"sweep {name!r} was begun by a version of ciml that normalises otherwise: its finished trials stay "
            "readable, but new trials would not be comparable; choose another name (data sets are shared)"
        )


def read_outcome(store: Store, number: int) -> Outcome | None:
    """Read the outcome of a trial, or None. Raises `IntegrityError` for an invalid file."""
    value = read_stored(store, _path(number))
    if value is None:
        return None
    try:
        outcome = Outcome.from_json(value)
    except InvalidSettingError as error:
        raise IntegrityError(f"{store.url(_path(number))}: {error}") from None
    if outcome.number != number or outcome.state == "running":
        raise IntegrityError(f"{store.url(_path(number))} belongs to trial {outcome.number}, {outcome.state}")
    return outcome


def keep_outcome(store: Store, outcome: Outcome) -> Outcome:
    """Store the outcome of a trial and return it; if another process was first, return its outcome."""
    if store.create(_path(outcome.number), seal(canonical_json(outcome.to_json()))):
        return outcome
    return read_outcome(store, outcome.number) or outcome


def read_baseline(store: Store, question: int) -> dict[str, Any] | None:
    """Read the one-number baselines of a question, or None."""
    return read_stored(store, f"baselines/{question}.json")


def keep_baseline(store: Store, question: int, baselines: Mapping[str, Any]) -> None:
    """Store the one-number baselines of a question once."""
    store.create(f"baselines/{question}.json", seal(canonical_json(baselines)))


def _path(number: int) -> str:
    return f"trials/{number:06}.json"


_STATES = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL", "running": "RUNNING"}


def propose(sweep: Sweep, question: int, past: Sequence[Outcome]) -> dict[str, Value]:
    """Propose the next parameters with optuna's TPE. Deterministic.

    Args:
      sweep: its axes and seed.
      question: index of the question.
      past: all earlier trials of that question, by number.
    """
    from optuna.samplers import TPESampler

    seed = int(np.random.SeedSequence((sweep.seed, question, len(past))).generate_state(1)[0])
    axes = sorted((axis for axis in sweep.axes if not axis.question), key=lambda axis: axis.key)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about experimental arguments
        study = _study(sweep, past, sampler=TPESampler(seed=seed, constant_liar=True))
        trial = study.ask({axis.key: _distribution(axis) for axis in axes})
    parameters = {**sweep.questions[question], **trial.params}
    return sweep.effective({axis.key: parameters[axis.key] for axis in sweep.axes})


class Judge:
    """Decides whether a running trial should be pruned.

    Args:
      sweep: its pruner.
      past: all earlier trials of the same question, by number.
    """

    def __init__(self, sweep: Sweep, past: Sequence[Outcome]) -> None:
        from optuna.samplers import RandomSampler

        self._study = _study(sweep, past, sampler=RandomSampler(seed=0), pruner=_pruner(sweep))
        self._trial = self._study.ask()

    def hopeless(self, step: int, value: float) -> bool:
        """Return whether to prune the trial after this step, from 1, with its value."""
        self._trial.report(value, step)
        return self._trial.should_prune()

    @property
    def attrs(self) -> dict[str, Any]:
        """Attributes of the pruner, stored with the trial."""
        return dict(self._study.get_trials(deepcopy=False)[-1].system_attrs)


def _study(sweep: Sweep, past: Sequence[Outcome], *, sampler: Any, pruner: Any = None) -> Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        study_name=sweep.name,  # hyperband assigns brackets by it
        direction="maximize" if sweep.maximise else "minimize",
        sampler=sampler,
        pruner=pruner or optuna.pruners.NopPruner(),
    )
    distributions = {axis.key: _distribution(axis) for axis in sweep.axes if not axis.question}
    for outcome in past:
        params = {key: value for key, value in outcome.parameters.items() if key in distributions}
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState[_STATES[outcome.state]],
                value=outcome.value if outcome.state == "complete" else None,
                params=params,
                distributions={key: distributions[key] for key in params},
                intermediate_values=dict(outcome.steps),
                system_attrs=outcome.attrs,
            )
        )
    return study


def _distribution(axis: Axis) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if axis.values:
        return CategoricalDistribution(sorted(axis.names))
    if isinstance(axis.low, int) and isinstance(axis.high, int):
        return IntDistribution(axis.low, axis.high, log=axis.log)
    return FloatDistribution(axis.low, axis.high, log=axis.log)


def _pruner(sweep: Sweep) -> Any:
    from optuna import pruners

    least = sweep.warmup + 1
    if sweep.pruner == "median":
        return pruners.MedianPruner(sweep.startup_trials, sweep.warmup)
    if sweep.pruner == "hyperband":
        return pruners.HyperbandPruner(least, max(least, sweep.most_steps))
    return pruners.SuccessiveHalvingPruner(least) if sweep.pruner == "successive_halving" else pruners.NopPruner()

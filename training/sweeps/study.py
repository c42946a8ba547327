"""Proposing and pruning by optuna, of what earlier trials came to. Nothing is kept: a study is made for each question.

Optuna's own storages are a database or a journal in a local file; a study that is refilled from the stored outcomes
goes on wherever they are, and gives the same answer to whoever asks again.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from training.sweeps.axes import Axis, Value
from training.sweeps.definition import Sweep
from training.sweeps.outcome import Outcome

if TYPE_CHECKING:
    from optuna import Study

_STATES = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL", "running": "RUNNING"}


@dataclass(frozen=True)
class Past:
    """An earlier trial of the same question.

    Attributes:
      parameters: by axis its value.
      state: as `Outcome.state`, or ``running`` where its outcome is not looked at.
      value: the last one.
      steps: (step, value) as reported.
      attrs: what the pruner noted.
    """

    parameters: Mapping[str, Value]
    state: str = "running"
    value: float | None = None
    steps: tuple[tuple[int, float], ...] = ()
    attrs: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, outcome: Outcome) -> Past:
        return cls(outcome.parameters, outcome.state, outcome.value, outcome.steps, outcome.attrs)


def propose(sweep: Sweep, question: int, past: Sequence[Past]) -> dict[str, Value]:
    """Return the next parameters by optuna's TPE. The same arguments give the same ones.

    Args:
      sweep: its axes and seed.
      question: which of its questions.
      past: all earlier trials of that question, by their numbers.
    """
    from optuna.samplers import TPESampler

    seed = int(np.random.SeedSequence((sweep.seed, question, len(past))).generate_state(1)[0])
    axes = sorted((axis for axis in sweep.axes if not axis.question), key=lambda axis: axis.key)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that an argument is experimental
        study = _study(sweep, past, sampler=TPESampler(seed=seed, constant_liar=True))
        trial = study.ask({axis.key: _distribution(axis) for axis in axes})
    found = {**sweep.questions[question], **trial.params}
    return sweep.effective({axis.key: found[axis.key] for axis in sweep.axes})


class Judge:
    """Decides whether a trial that runs is worth going on with.

    Args:
      sweep: its pruner.
      past: all earlier trials of the same question, by their numbers.
    """

    def __init__(self, sweep: Sweep, past: Sequence[Past]) -> None:
        from optuna.samplers import RandomSampler

        self._study = _study(sweep, past, sampler=RandomSampler(seed=0), pruner=_pruner(sweep))
        self._trial = self._study.ask()

    def hopeless(self, step: int, value: float) -> bool:
        """Return whether the trial is to be ended after this step, from 1, and its value."""
        self._trial.report(value, step)
        return self._trial.should_prune()

    @property
    def attrs(self) -> dict[str, Any]:
        """What the pruner noted, to be kept with the trial."""
        return dict(self._study.get_trials(deepcopy=False)[-1].system_attrs)


def _study(sweep: Sweep, past: Sequence[Past], *, sampler: Any, pruner: Any = None) -> Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        study_name=sweep.name,  # by which hyperband spreads trials over its brackets
        direction="maximize" if sweep.maximise else "minimize",
        sampler=sampler,
        pruner=pruner or optuna.pruners.NopPruner(),
    )
    distributions = {axis.key: _distribution(axis) for axis in sweep.axes if not axis.question}
    for each in past:
        params = {key: value for key, value in each.parameters.items() if key in distributions}
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState[_STATES[each.state]],
                value=each.value if each.state == "complete" else None,
                params=params,
                distributions={key: distributions[key] for key in params},
                intermediate_values=dict(each.steps),
                system_attrs=dict(each.attrs or {}),
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

    if sweep.pruner == "median":
        return pruners.MedianPruner(sweep.startup_trials, sweep.warmup)
    least = max(1, sweep.warmup + 1)
    if sweep.pruner == "hyperband":
        return pruners.HyperbandPruner(min_resource=least, max_resource=max(least, sweep.most_steps))
    if sweep.pruner == "successive_halving":
        return pruners.SuccessiveHalvingPruner(min_resource=least)
    return pruners.NopPruner()

"""Proposes and prunes trials with optuna, from earlier outcomes. A study is built for each call and not stored.

Optuna's own storages are a database or a journal in a local file. A study that is rebuilt from stored outcomes works on
any store, and repeated calls give the same result.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ciml.training.sweeps.axes import Axis, Value
from ciml.training.sweeps.definition import Sweep
from ciml.training.sweeps.outcome import Outcome

if TYPE_CHECKING:
    from optuna import Study

_STATES = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL", "running": "RUNNING"}


@dataclass(frozen=True)
class Past:
    """An earlier trial of the same question.

    Attributes:
      parameters: value by axis.
      state: as `Outcome.state`, or ``running`` if its outcome is not used.
      value: the last reported value.
      steps: reported (step, value).
      attrs: attributes of the pruner.
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
    found = {**sweep.questions[question], **trial.params}
    return sweep.effective({axis.key: found[axis.key] for axis in sweep.axes})


class Judge:
    """Decides whether a running trial should be pruned.

    Args:
      sweep: its pruner.
      past: all earlier trials of the same question, by number.
    """

    def __init__(self, sweep: Sweep, past: Sequence[Past]) -> None:
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


def _study(sweep: Sweep, past: Sequence[Past], *, sampler: Any, pruner: Any = None) -> Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        study_name=sweep.name,  # hyperband assigns brackets by it
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

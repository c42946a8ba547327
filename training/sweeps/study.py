"""The trials of a sweep: proposed and pruned with optuna, scored on held-out runs, and stored as JSON.

A study of optuna is built for each call from the earlier outcomes, and not stored: optuna's own storages are a database
or a journal in a local file. So a sweep works on any store, and repeated calls give the same result. The test runs are
never used: a sweep selects an experiment, which is then tested once.

These files are the whole state of a sweep:

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
from ciml.errors import CimlError, IntegrityError, InvalidSettingError, NoTrainingDataError
from ciml.settings import Settings
from ciml.storage import Store
from ciml.storage.json_files import read_stored, seal
from ciml.training.data.examples import InMemoryDataset
from ciml.training.estimators import check_experiment, check_use
from ciml.training.evaluation.baselines import NUMBERS
from ciml.training.evaluation.cross_validation import CVSplit, Fold, predict_by_numbers, predict_fold, split_folds
from ciml.training.evaluation.metrics import scores
from ciml.training.experiment import NORMALISATION, Experiment
from ciml.training.sweeps.definition import Axis, Metric, Sweep, Value, differences

if TYPE_CHECKING:
    from optuna import Study


State = Literal["complete", "pruned", "failed", "running"]
#: Called with a step, from 1, and the metric after it; True prunes the trial unless it was the last step.
Report = Callable[[int, float], bool]
_FORMAT = 1
#: Optuna's names of the states.
_OPTUNA_STATES = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL", "running": "RUNNING"}


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
      steps: the reported (step, value). A step is a fold, and its value that of all folds so far; or it is an epoch,
        and its value that of the dev runs.
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
    stored = read_stored(store, "sweep.json")
    if stored is None:
        begun = {**new, "normalisation": NORMALISATION, "raw_version": raw_version()}
        store.create("sweep.json", seal(canonical_json(begun)))
        stored = read_stored(store, "sweep.json") or {}  # another process may have created it first
    version = stored.get("raw_version")
    if not isinstance(version, int) or not isinstance(stored.get("sweep"), dict):
        raise IntegrityError(f"{store.url('sweep.json')} is not a sweep")
    old = {key: value for key, value in stored.items() if key not in ("raw_version", "normalisation")}
    both_sampled = sweep.trials is not None and old["sweep"].get("trials") is not None
    if both_sampled:
        old["sweep"] = {**old["sweep"], "trials": sweep.trials}
    changed_keys = [key.removeprefix("sweep.") for key in differences(old, new)]
    if changed_keys:
        raise CimlError(
            f"sweep {sweep.name!r} was begun with another {', '.join(changed_keys)}; "
            "choose another name (data sets are shared)"
        )
    return version


def check_normalisation(store: Store, name: str) -> None:
    """Check that a begun sweep may train further trials: all trials of a sweep are normalised alike.

    Raises:
      CimlError: if an older version of ciml began the sweep with another normalisation.
    """
    stored = read_stored(store, "sweep.json") or {}
    if stored.get("normalisation", 1) != NORMALISATION:
        raise CimlError(
            f"sweep {name!r} was begun by a version of ciml that normalises otherwise: its finished trials stay "
            "readable, but new trials would not be comparable; choose another name (data sets are shared)"
        )


def propose(sweep: Sweep, question: int, past: Sequence[Outcome]) -> dict[str, Value]:
    """Propose the next parameters with Optuna's TPE sampler. Deterministic.

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
    """Judges a running trial by its steps: should it be pruned?

    Args:
      sweep: its pruner.
      past: all earlier trials of the same question, by number.
    """

    def __init__(self, sweep: Sweep, past: Sequence[Outcome]) -> None:
        from optuna.samplers import RandomSampler

        self._study = _study(sweep, past, sampler=RandomSampler(seed=0), pruner=_pruner(sweep))
        self._trial = self._study.ask()

    def report_step(self, step: int, value: float) -> bool:
        """Report a step, from 1, and the metric after it. Return whether to prune the trial."""
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
                state=optuna.trial.TrialState[_OPTUNA_STATES[outcome.state]],
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

    first_step = sweep.warmup + 1
    if sweep.pruner == "median":
        return pruners.MedianPruner(sweep.startup_trials, first_step)
    if sweep.pruner == "hyperband":
        return pruners.HyperbandPruner(first_step, max(first_step, sweep.most_steps))
    if sweep.pruner == "successive_halving":
        return pruners.SuccessiveHalvingPruner(first_step)
    return pruners.NopPruner()


def score_trial(
    sweep: Sweep, experiment: Experiment, dataset: InMemoryDataset, running: Outcome, report: Report
) -> Outcome:
    """Train and score a trial.

    Args:
      sweep: the sweep, with metric and folds.
      experiment: the experiment to train.
      dataset: the data set; its test runs are not used.
      running: the trial, without its outcome.
      report: called after each step.

    Returns:
      The outcome: ``complete``, or ``pruned`` with the last value.

    Raises:
      CimlError: if it cannot be trained, or the metric is undefined.
    """
    check_experiment(experiment, sweep.modules)
    check_use(experiment, dataset.snapshot.resolved, sweep.modules)
    split = cv_split(sweep, dataset)
    labels = dataset.rows.labels[split.positions]
    classes = dataset.snapshot.resolved.classes
    answers = np.zeros((len(labels), len(classes)))
    is_scored = np.zeros(len(labels), bool)
    steps: list[tuple[int, float]] = []
    last_step = len(split.folds) if sweep.on == "folds" else experiment.epochs

    def record(step: int, probabilities: np.ndarray, rows: np.ndarray) -> None:
        figures = scores(probabilities, labels[rows], classes, labels[rows], resamples=0)
        value = _defined_figure(figures, sweep.metric)["value"] or 0.0
        steps.append((step, value))
        if report(step, value) and step < last_step:
            raise _Pruned

    def record_epoch(epoch: int, predict_held_out: Callable[[], np.ndarray]) -> None:
        if epoch % sweep.report_epochs == 0:
            record(epoch, predict_held_out(), split.folds[0].held_out)  # on dev there is one fold

    for number, (train, held_out) in enumerate(split.folds):
        try:
            on_epoch = record_epoch if sweep.on == "dev" else None
            answers[held_out] = predict_fold(experiment, dataset, split, number, on_epoch, sweep.modules)
            is_scored[held_out] = True
            if sweep.on == "folds":
                record(number + 1, answers[is_scored], is_scored)
        except _Pruned:
            return running.replace(
                state="pruned",
                value=steps[-1][1],
                steps=tuple(steps),
                trained_on=len(train),
                held_out=int(np.count_nonzero(is_scored)) or len(held_out),
            )
    train_labels = labels if sweep.on == "folds" else labels[split.folds[0].train]
    resamples = _resamples(sweep.metric)
    changes = dataset.changes(split.positions)[is_scored]
    figures = scores(answers[is_scored], labels[is_scored], classes, train_labels, changes=changes, resamples=resamples)
    return running.replace(
        state="complete",
        **_defined_figure(figures, sweep.metric),
        steps=tuple(steps),
        scores={
            "accuracy": figures["accuracy"]["value"],
            "f1": figures["macro"]["f1"]["value"],
            "base_rate": figures["base_rate"]["value"],
        },
        trained_on=len(split.folds[-1].train),
        held_out=figures["runs"],
    )


class _Pruned(Exception):
    """Ends the training of a pruned trial."""


def cv_split(sweep: Sweep, dataset: InMemoryDataset) -> CVSplit:
    """Split the runs of a data set for a sweep: into folds, or into train and dev.

    Raises:
      CimlError: if there are too few runs.
    """
    if sweep.on == "folds":
        return split_folds(dataset, folds=sweep.folds, hold_out=sweep.hold_out, seed=sweep.seed)
    positions = dataset.of("train", "dev")
    is_dev = dataset.roles[positions] == "dev"
    if not is_dev.any() or is_dev.all():
        raise NoTrainingDataError(f"data set {dataset.snapshot.dataset!r} has no training runs, or no dev runs")
    return CVSplit(positions, (Fold(np.flatnonzero(~is_dev), np.flatnonzero(is_dev)),), held_out_is_dev=True)


def _defined_figure(figures: dict[str, Any], metric: Metric) -> dict[str, float | None]:
    """Return `_figure`. Raises `CimlError` if its value is undefined."""
    figure = _figure(figures, metric)
    if figure["value"] is None:
        raise CimlError(f"{metric} is undefined: only one class was held out")
    return figure


def _resamples(metric: Metric) -> int | None:
    """Return the number of bootstrap resamples, None for the default. Accuracy has Wilson's interval and needs none."""
    return 0 if metric in ("accuracy", "log_loss") else None


def _figure(figures: dict[str, Any], metric: Metric) -> dict[str, float | None]:
    """Return ``value``, ``low`` and ``high`` of a metric, from the figures of `scores`."""
    if metric == "log_loss":
        return {"value": figures["log_loss"], "low": None, "high": None}
    figure = figures[metric] if metric in ("accuracy", "brier") else figures["macro"][metric]
    return {"value": figure["value"], "low": figure["low"], "high": figure["high"]}


def score_baselines(sweep: Sweep, dataset: InMemoryDataset) -> dict[str, Any]:
    """Score the one-number baselines on the same split: ``what``, ``value``, ``low`` and ``high`` by name."""
    split = cv_split(sweep, dataset)
    baselines = {}
    labels = dataset.rows.labels[split.positions]
    classes = dataset.snapshot.resolved.classes
    rows = np.sort(np.concatenate([fold.held_out for fold in split.folds]))
    changes = dataset.changes(split.positions)[rows]
    resamples = _resamples(sweep.metric)
    for name, answers in predict_by_numbers(dataset, split):
        figures = scores(answers[rows], labels[rows], classes, labels, changes=changes, resamples=resamples)
        baselines[name] = {"what": NUMBERS[name], **_figure(figures, sweep.metric)}
    return baselines


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


def store_outcome(store: Store, outcome: Outcome) -> Outcome:
    """Store the outcome of a trial and return it; if another process was first, return its outcome."""
    if store.create(_path(outcome.number), seal(canonical_json(outcome.to_json()))):
        return outcome
    return read_outcome(store, outcome.number) or outcome


def read_baselines(store: Store, question: int) -> dict[str, Any] | None:
    """Read the one-number baselines of a question, or None."""
    return read_stored(store, f"baselines/{question}.json")


def store_baselines(store: Store, question: int, baselines: Mapping[str, Any]) -> None:
    """Store the one-number baselines of a question unless they are already stored."""
    store.create(f"baselines/{question}.json", seal(canonical_json(baselines)))


def _path(number: int) -> str:
    return f"trials/{number:06}.json"

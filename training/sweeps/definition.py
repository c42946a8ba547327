"""Definition of a sweep: settings common to all trials, the compared metric, and the axes.

An axis is a key of a data set's definition or of an experiment, and its values.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, field

from ciml.datasets.definition import DatasetDefinition
from ciml.digest import canonical_json, sha256_json
from ciml.errors import CimlError
from ciml.settings import Settings, as_value_error, check_name
from ciml.training.estimators import check_experiment, estimator_of, identified, takes_parameter
from ciml.training.estimators.description import modules_of
from ciml.training.experiment import Experiment

Part = Literal["dataset", "experiment"]
#: A value in reports, files and optuna: the name of a listed value, or a number of a range.
Value = str | int | float

#: Keys that decide the runs and their classes: trials that differ in one of them answer different questions.
QUESTION_KEYS = frozenset({"build_name", "class_label", "class_map", "classes", "salt", "tdt_split"})
_RANGE_KEYS = frozenset({"low", "high", "log"})
_MOST_VALUES = 100
#: Shorter than other names, since a trial's experiment is named by the sweep and the trial's number.
_MOST_LETTERS = 80
#: Runs of a span, as of ``ciml dataset build``.
_SPAN_RUNS = 5000
_MOST_TRIALS = 10_000


@dataclass(frozen=True)
class Axis:
    """A varying key.

    Attributes:
      part: whether the key belongs to the data set or the experiment.
      key: of the definition or the experiment; ``parameters.NAME`` is one of the estimator's, where ``step__NAME`` is
        one of a part.
      values: values of a list by name; empty for a range.
      low: lower bound of a range, included; an int if ``high`` is.
      high: upper bound of a range, included.
      log: whether the range is sampled on a log scale.
    """

    part: Part
    key: str
    values: Mapping[str, Any]
    low: int | float = 0
    high: int | float = 0
    log: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the values in file order; none for a range."""
        return tuple(self.values)

    @property
    def question(self) -> bool:
        """Whether its values define different questions."""
        return self.part == "dataset" and self.key in QUESTION_KEYS

    def setting_of(self, value: Value) -> Any:
        """Return the key's setting that a value stands for. Raises `CimlError` for an unknown value."""
        if self.values:
            if isinstance(value, str) and value in self.values:
                return self.values[value]
        elif isinstance(value, int | float) and self.low <= value <= self.high:
            return value
        raise CimlError(f"{self.key}: {value!r:.60} is not a value of the sweep")


def axes_of(part: Part, keys: Mapping[str, Any]) -> list[Axis]:
    """Parse the axes of a table of the file.

    Raises:
      ValueError: naming the key and the defect.
    """
    axes = []
    for key, value in keys.items():
        if key == "parameters" and part == "experiment":
            if not isinstance(value, Mapping):
                raise ValueError("vary.experiment.parameters: expected a table of parameters and their values")
            axes += [_axis(part, f"parameters.{name}", values) for name, values in value.items()]
        else:
            axes.append(_axis(part, key, value))
    return axes


def _axis(part: Part, key: str, value: Any) -> Axis:
    place = f"vary.{part}.{key}"
    if isinstance(value, Mapping) and _RANGE_KEYS >= value.keys() >= {"low", "high"} and _is_number(value["low"]):
        if part == "dataset":
            raise ValueError(f"{place}: a range would need a data set for each trial; list the values")
        return _range(place, part, key, value)
    named = value if isinstance(value, Mapping) else _name_values(place, value)
    if not named:
        raise ValueError(f"{place}: no values")
    if len(named) > _MOST_VALUES:
        raise ValueError(f"{place}: {len(named)} values exceed {_MOST_VALUES}")
    for name in named:
        if not name.strip() or not name.isprintable() or len(name) > _MOST_LETTERS:
            remedy = "name the values in a table"
            raise ValueError(f"{place}: {name!r:.40} is not one line of at most {_MOST_LETTERS} characters; {remedy}")
    return Axis(part, key, dict(named))


def _range(place: str, part: Part, key: str, value: Mapping[str, Any]) -> Axis:
    low = value["low"]
    high = value["high"]
    log = value.get("log", False)
    if not _is_number(high) or not low < high:
        raise ValueError(f"{place}: expected a range from a lower to a higher number")
    if not isinstance(log, bool):
        raise ValueError(f"{place}.log: expected true or false")
    if log and low <= 0:
        raise ValueError(f"{place}: a log range must begin above 0")
    if not (isinstance(low, int) and isinstance(high, int)):
        low = float(low)
        high = float(high)
    return Axis(part, key, {}, low, high, log)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _name_values(place: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{place}: expected a list of values, a table of named ones, or a range {{low = …, high = …}}")
    named = {name_of(place, value_item): value_item for value_item in value}
    if len(named) != len(value):
        raise ValueError(f"{place}: duplicate value")
    return named


def name_of(key: str, value: Any) -> str:
    """Return the default name of a value: ``3×100`` for three hidden layers of 100 units."""
    if key.endswith("hidden_layers"):
        if not isinstance(value, str | list | tuple):
            raise ValueError(f"{key}: expected a list of units for each value, such as [[100, 200], [32]]")
        units = value.split("/") if isinstance(value, str) else [str(unit) for unit in value]
        units = [unit for unit in units if unit]
        return f"{len(units)}×{units[0]}" if units and len(set(units)) == 1 else "/".join(units) or "none"
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and value and all(isinstance(unit, str) for unit in value):
        return ", ".join(value)
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


Metric = Literal["accuracy", "f1", "roc_auc", "pr_auc", "brier", "log_loss"]
#: Metrics for which lower is better.
LOSSES = frozenset({"brier", "log_loss"})
#: Keys that the sweep sets itself.
_OWN_KEYS: Mapping[Part, tuple[str, ...]] = {"dataset": ("name", "version", "raw_version"), "experiment": ("name",)}


class Vary(Settings, frozen=True):
    """Varying keys: each a list of values, a table of named values, or a range.

    Attributes:
      dataset: keys of a data set's definition.
      experiment: keys of an experiment.
    """

    dataset: dict[str, Any] = field(default_factory=dict)
    experiment: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Combination:
    """One point of a sweep's space.

    Attributes:
      parameters: value by axis, without axes that the estimator does not use.
      definition: of the data set; its name is derived from its content.
      experiment: the experiment to train on it.
    """

    parameters: Mapping[str, Value]
    definition: DatasetDefinition
    experiment: Experiment


class Sweep(Settings, frozen=True, kw_only=True):
    """A sweep.

    Attributes:
      name: its name, and its folder below ``sweeps``.
      dataset: common keys of all definitions, except the name.
      experiment: common keys of all experiments, except the name.
      vary: the varying keys.
      metric: ``accuracy``, macro ``f1``, ``roc_auc`` or ``pr_auc`` (higher is better), ``brier`` or ``log_loss`` (lower
        is better).
      on: ``folds`` cross-validates on train and dev runs; ``dev`` scores on the dev runs. Never test.
      folds: number of folds.
      hold_out: facts of a run whose values are never in two folds, such as ``flavour``.
      trials: number of trials sampled by optuna's TPE; None runs every combination of the lists once.
      seed: of the sampler, the grid's order and the folds.
      pruner: ends trials that are worse than earlier ones; ``none`` never does.
      startup_trials: completed trials of a question before ``median`` prunes.
      warmup: steps (folds, or epochs on dev) without pruning.
      report_epochs: on dev, number of epochs between two scores of a network.
      lag: a trial is proposed and pruned by the outcomes of trials at least ``lag`` numbers before it. This limits
        parallel trials, and results do not depend on their number.
    """

    title: ClassVar[str] = "sweep"
    lists: ClassVar[tuple[str, ...]] = ("hold_out",)

    name: str
    dataset: dict[str, Any] = field(default_factory=dict)
    experiment: dict[str, Any] = field(default_factory=dict)
    vary: Vary
    metric: Metric = "accuracy"
    on: Literal["folds", "dev"] = "folds"
    folds: Annotated[int, Meta(ge=2, le=100)] = 3
    hold_out: tuple[str, ...] = ()
    trials: Annotated[int, Meta(ge=1, le=_MOST_TRIALS)] | None = None
    seed: Annotated[int, Meta(ge=0, lt=2**31)] = 0
    pruner: Literal["median", "hyperband", "successive_halving", "none"] = "median"
    startup_trials: Annotated[int, Meta(ge=0)] = 5
    warmup: Annotated[int, Meta(ge=0)] = 0
    report_epochs: Annotated[int, Meta(ge=1)] = 10
    lag: Annotated[int, Meta(ge=1, le=1000)] = 4

    def __post_init__(self) -> None:
        check_name(self.name, most=_MOST_LETTERS)
        if self.hold_out and self.on == "dev":
            raise ValueError("hold_out: not used on dev, whose runs come from the data set's split; remove it")
        for part, fixed, varied in self._parts():
            for key in _OWN_KEYS[part]:
                if key in fixed or key in varied:
                    raise ValueError(f"{part}.{key}: set by the sweep; remove it")
            if both := sorted(fixed.keys() & varied.keys() - {"parameters"}):
                raise ValueError(f"{part}.{both[0]}: both fixed and varying; remove one")
        axes = self.axes
        if not axes:
            raise ValueError("vary: no varying key")
        if self.trials is None:
            for axis in axes:
                if not axis.values:
                    raise ValueError(f"vary.{axis.part}.{axis.key}: a range has no finite grid; set trials = N")
            count = math.prod(len(axis.names) for axis in axes)
            if count > _MOST_TRIALS:
                raise ValueError(f"vary: {count:,} combinations are too many; set trials = N, or list fewer values")
        self._check_values()

    def _parts(self) -> tuple[tuple[Part, dict[str, Any], dict[str, Any]], ...]:
        return ("dataset", self.dataset, self.vary.dataset), ("experiment", self.experiment, self.vary.experiment)

    @cached_property
    def axes(self) -> tuple[Axis, ...]:
        """The varying keys in file order."""
        return tuple(axis for part, _, varied in self._parts() for axis in axes_of(part, varied))

    @cached_property
    def questions(self) -> tuple[Mapping[str, Value], ...]:
        """Combinations of the axes that decide runs and classes. Trials are compared within one question.

        The order does not depend on the file's.
        """
        return tuple(sorted(_combinations(axis for axis in self.axes if axis.question), key=canonical_json))

    @property
    def maximise(self) -> bool:
        """Whether higher is better."""
        return self.metric not in LOSSES

    @property
    def most_steps(self) -> int:
        """The last step that a trial can report: of its folds, or of its epochs on dev."""
        if self.on == "folds":
            return self.folds
        for axis in self.axes:
            if axis.key == "epochs":
                return int(max([*axis.values.values(), axis.high]))
        return self._experiment({"experiment": self.experiment}).epochs

    def axis(self, key: str) -> Axis:
        """Return the axis of a key. Raises `CimlError` if the key does not vary."""
        for axis in self.axes:
            if axis.key == key:
                return axis
        raise CimlError(f"{key!r:.60} does not vary in the sweep {self.name!r}")

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """Modules of estimators that the file names, and thereby allows: see `estimator_of`."""
        return modules_of({"estimators": self._estimators, "fixed": self.experiment, "varied": self.vary.experiment})

    @cached_property
    def _estimators(self) -> list[dict[str, Any]]:
        """All values of the key ``estimator``, each as a description."""
        names = [self.experiment.get("estimator")]
        names += [name for axis in self.axes if axis.key == "estimator" for name in axis.values.values()]
        return [{"class": name} for name in names if isinstance(name, str) and ":" in name]

    def effective(self, parameters: Mapping[str, Value]) -> dict[str, Value]:
        """Return the values of the axes that the estimator uses."""
        return {
            axis.key: parameters[axis.key]
            for axis in self.axes
            if axis.key in parameters and (axis.part == "dataset" or self._uses(self._estimator(parameters), axis.key))
        }

    def _uses(self, estimator: str, key: str) -> bool:
        """Return whether an estimator uses a key of an experiment, or a parameter, ``parameters.NAME``.

        If the estimator varies, it need not use all of them. If it does not, another key or parameter is an error.
        """
        cached = self._used.get((estimator, key))
        if cached is None:
            experiment = Experiment.from_json(
                {"estimator": estimator, "parameters": self.experiment.get("parameters", {})}
            )
            head, _, parameter = key.partition(".")
            cached = head in estimator_of(experiment, self.modules).keys
            if cached and parameter and self._several:
                cached = takes_parameter(experiment, parameter, self.modules)
            self._used[estimator, key] = cached
        return cached

    @cached_property
    def _used(self) -> dict[tuple[str, str], bool]:
        """What `_uses` answered, since a grid asks it for each combination."""
        return {}

    @property
    def _several(self) -> bool:
        """Whether the estimator varies."""
        return "estimator" in self.vary.experiment

    @cached_property
    def grid(self) -> tuple[dict[str, Value], ...]:
        """Every combination once; equivalent ones are merged. The order follows from the seed."""
        cells = map(self.effective, _combinations(self.axes))
        unique = {sha256_json([self.seed, cell]): cell for cell in cells}
        return tuple(unique[digest] for digest in sorted(unique))

    def question_of(self, parameters: Mapping[str, Value]) -> int:
        """Return the index of the question that a combination answers."""
        answers = {axis.key: parameters[axis.key] for axis in self.axes if axis.question}
        return self.questions.index(answers)

    def combine(self, parameters: Mapping[str, Value], raw_version: int | None = None) -> Combination:
        """Build the definition and the experiment for values of the axes.

        Args:
          parameters: value by axis, from `effective`.
          raw_version: raw manifest version to pin the data sets to.

        Raises:
          CimlError: if the values are incompatible.
        """
        keys = self._keys(parameters)
        if self._several:  # then an estimator need not use all common keys
            name = self._estimator(parameters)
            used = {key: value for key, value in keys["experiment"].items() if self._uses(name, key)}
            if "parameters" in used:
                items = used["parameters"].items()
                used["parameters"] = {key: value for key, value in items if self._uses(name, f"parameters.{key}")}
            keys["experiment"] = used
        experiment = identified(self._experiment(keys), self.modules)
        return Combination(parameters, _definition(keys["dataset"], raw_version), experiment)

    def _keys(self, parameters: Mapping[str, Value]) -> dict[Part, dict[str, Any]]:
        keys: dict[Part, dict[str, Any]] = {"dataset": dict(self.dataset), "experiment": dict(self.experiment)}
        for key, value in parameters.items():
            axis = self.axis(key)
            head, _, parameter = key.partition(".")
            setting = axis.setting_of(value)
            keys[axis.part][head] = {**keys[axis.part].get(head, {}), parameter: setting} if parameter else setting
        return keys

    def _experiment(self, keys: Mapping[Part, dict[str, Any]]) -> Experiment:
        return Experiment.from_json({**keys["experiment"], "name": self.name})

    def _estimator(self, parameters: Mapping[str, Value]) -> str:
        """Return the name of a combination's estimator. Raises `CimlError` if it is none."""
        name: Any = self.experiment.get("estimator", "dnn")
        if "estimator" in parameters:
            name = self.axis("estimator").setting_of(parameters["estimator"])
        return Experiment.from_json({"estimator": name}).estimator

    def _check_values(self) -> None:
        """Check each value by itself with the common keys. Incompatible combinations become failed trials."""
        one_estimator = not self._several
        if one_estimator:
            with as_value_error():
                self.combine({})
        for axis in self.axes:
            for value in axis.names or (axis.low, axis.high):
                with as_value_error(f"vary.{axis.part}.{axis.key}: "):
                    self._check_value(axis, value, one_estimator)

    def _check_value(self, axis: Axis, value: Value, one_estimator: bool) -> None:
        keys = self._keys({axis.key: value})
        if axis.part == "dataset":
            _definition(keys["dataset"], None)
            return
        experiment = self._experiment(keys)
        if axis.key == "estimator":
            estimator_of(experiment, self.modules)
        if one_estimator:
            check_experiment(identified(experiment, self.modules), self.modules)


def _combinations(axes: Iterable[Axis]) -> Iterator[dict[str, Value]]:
    """Yield every combination of the axes' values."""
    names = {axis.key: axis.names for axis in axes}
    return (dict(zip(names, cell, strict=True)) for cell in itertools.product(*names.values()))


def _definition(keys: Mapping[str, Any], raw_version: int | None) -> DatasetDefinition:
    """Return a pinned definition of these keys, named by its content so that sweeps share data sets."""
    values = {"span_runs": _SPAN_RUNS, "slicer": ":", **keys}
    plain = DatasetDefinition.from_json({**values, "name": "sweep", "raw_version": raw_version}, "dataset")
    name = f"sweep-{plain.sample_interval}-{plain.digest[:16]}"
    return DatasetDefinition.from_json({**plain.to_json(), "name": name})


def differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Yield the dotted keys in which two JSON objects differ."""
    for key in {**old, **new}:
        old_value = old.get(key)
        new_value = new.get(key)
        if isinstance(old_value, Mapping) and isinstance(new_value, Mapping):
            yield from differences(old_value, new_value, f"{path}{key}.")
        elif old_value != new_value:
            yield f"{path}{key}"

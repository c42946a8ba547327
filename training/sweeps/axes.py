"""The axes of a sweep: keys of a definition or an experiment, and their values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ciml.errors import CimlError

Part = Literal["dataset", "experiment"]
#: A value in reports, files and optuna: the name of a listed value, or a number of a range.
Value = str | int | float

#: Keys that decide the runs and their classes: trials that differ in one of them answer different questions.
QUESTION_KEYS = frozenset({"build_name", "class_label", "class_map", "classes", "salt", "tdt_split"})
_RANGE_KEYS = frozenset({"low", "high", "log"})
_MOST_VALUES = 100
_MOST_LETTERS = 80


@dataclass(frozen=True)
class Axis:
    """A varying key.

    Attributes:
      part: whether the key belongs to the data set or the experiment.
      key: of the definition or the experiment; ``parameters.NAME`` is one of scikit-learn's.
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

    def meant(self, value: Value) -> Any:
        """Return the key's setting for a value. Raises `CimlError` for an unknown value."""
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
    found = []
    for key, value in keys.items():
        if key == "parameters" and part == "experiment":
            if not isinstance(value, Mapping):
                raise ValueError("vary.experiment.parameters: expected a table of parameters and their values")
            found += [_axis(part, f"parameters.{name}", each) for name, each in value.items()]
        else:
            found.append(_axis(part, key, value))
    return found


def _axis(part: Part, key: str, value: Any) -> Axis:
    place = f"vary.{part}.{key}"
    if isinstance(value, Mapping) and _RANGE_KEYS >= value.keys() >= {"low", "high"} and _number(value["low"]):
        if part == "dataset":
            raise ValueError(f"{place}: a range would need a data set for each trial; list the values")
        return _range(place, part, key, value)
    named = value if isinstance(value, Mapping) else _named(place, value)
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
    low, high, log = value["low"], value["high"], value.get("log", False)
    if not _number(high) or not low < high:
        raise ValueError(f"{place}: expected a range from a lower to a higher number")
    if not isinstance(log, bool):
        raise ValueError(f"{place}.log: expected true or false")
    if log and low <= 0:
        raise ValueError(f"{place}: a log range must begin above 0")
    if not (isinstance(low, int) and isinstance(high, int)):
        low, high = float(low), float(high)
    return Axis(part, key, {}, low, high, log)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _named(place: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{place}: expected a list of values, a table of named ones, or a range {{low = …, high = …}}")
    named = {name_of(place, each): each for each in value}
    if len(named) != len(value):
        raise ValueError(f"{place}: duplicate value")
    return named


def name_of(key: str, value: Any) -> str:
    """Return the default name of a value: ``3×100`` for three hidden layers of 100 units."""
    if key.endswith("hidden_layers"):
        units = value.split("/") if isinstance(value, str) else [str(each) for each in value]
        units = [each for each in units if each]
        return f"{len(units)}×{units[0]}" if units and len(set(units)) == 1 else "/".join(units) or "none"
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and value and all(isinstance(each, str) for each in value):
        return ", ".join(value)
    return json.dumps(value, sort_keys=True, ensure_ascii=False)

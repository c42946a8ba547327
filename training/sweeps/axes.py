"""The axes of a sweep: the values that a key of a definition or an experiment takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ciml.errors import CimlError

Part = Literal["dataset", "experiment"]
#: A value as it is shown, stored and given to optuna: the name of a listed value, or a number of a range.
Value = str | int | float

#: Keys that decide which runs there are, and of which class: trials that differ in one of these answer other questions.
QUESTION_KEYS = frozenset({"build_name", "class_label", "class_map", "classes", "salt", "tdt_split"})
_RANGE_KEYS = frozenset({"low", "high", "log"})
_MOST_VALUES = 100
_MOST_LETTERS = 80


@dataclass(frozen=True)
class Axis:
    """What varies.

    Attributes:
      part: what has the key.
      key: of the definition or the experiment; ``parameters.NAME`` is one of scikit-learn's.
      values: by its name each value of a list; empty for a range.
      low: of a range, included; both are whole numbers, or neither is.
      high: of a range, included.
      log: whether the range is even in its logarithm.
    """

    part: Part
    key: str
    values: Mapping[str, Any]
    low: int | float = 0
    high: int | float = 0
    log: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the values, in the order of the file; none of a range."""
        return tuple(self.values)

    @property
    def question(self) -> bool:
        """Whether its values ask other questions."""
        return self.part == "dataset" and self.key in QUESTION_KEYS

    def meant(self, value: Value) -> Any:
        """What the key is given for a value. Raises `CimlError` for one that the axis has not."""
        if self.values:
            if isinstance(value, str) and value in self.values:
                return self.values[value]
        elif isinstance(value, int | float) and self.low <= value <= self.high:
            return value
        raise CimlError(f"{self.key} {value!r:.60} is none of the sweep's values")


def axes_of(part: Part, keys: Mapping[str, Any]) -> list[Axis]:
    """Return the axes that a table of the file describes.

    Raises:
      ValueError: names the key and what is wrong with it.
    """
    found = []
    for key, value in keys.items():
        if key == "parameters" and part == "experiment":
            if not isinstance(value, Mapping):
                raise ValueError("vary.experiment.parameters: want a table of parameters and their values")
            found += [_axis(part, f"parameters.{name}", each) for name, each in value.items()]
        else:
            found.append(_axis(part, key, value))
    return found


def _axis(part: Part, key: str, value: Any) -> Axis:
    place = f"vary.{part}.{key}"
    if isinstance(value, Mapping) and _RANGE_KEYS >= value.keys() >= {"low", "high"} and _number(value["low"]):
        if part == "dataset":
            raise ValueError(f"{place}: a range would make a data set for each trial: list the values")
        return _range(place, part, key, value)
    named = value if isinstance(value, Mapping) else _named(place, value)
    if not named:
        raise ValueError(f"{place}: names no value")
    if len(named) > _MOST_VALUES:
        raise ValueError(f"{place}: {len(named)} values, and at most {_MOST_VALUES} make sense")
    for name in named:
        if not name.strip() or not name.isprintable() or len(name) > _MOST_LETTERS:
            remedy = "give the values names: a table in place of the list"
            raise ValueError(f"{place}: {name!r:.40} cannot be shown in one line of {_MOST_LETTERS} letters: {remedy}")
    return Axis(part, key, dict(named))


def _range(place: str, part: Part, key: str, value: Mapping[str, Any]) -> Axis:
    low, high, log = value["low"], value["high"], value.get("log", False)
    if not _number(high) or not low < high:
        raise ValueError(f"{place}: want a range from a lower to a higher number")
    if not isinstance(log, bool):
        raise ValueError(f"{place}.log: want true or false")
    if log and low <= 0:
        raise ValueError(f"{place}: a logarithmic range begins above 0")
    if not (isinstance(low, int) and isinstance(high, int)):
        low, high = float(low), float(high)
    return Axis(part, key, {}, low, high, log)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _named(place: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{place}: want a list of values, a table of named ones, or a range {{low = …, high = …}}")
    named = {name_of(place, each): each for each in value}
    if len(named) != len(value):
        raise ValueError(f"{place}: each value only once")
    return named


def name_of(key: str, value: Any) -> str:
    """Return the name of a value that was given none: ``3×100`` for three hidden layers of 100 units."""
    if key.endswith("hidden_layers"):
        units = value.split("/") if isinstance(value, str) else [str(each) for each in value]
        units = [each for each in units if each]
        return f"{len(units)}×{units[0]}" if units and len(set(units)) == 1 else "/".join(units) or "none"
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and value and all(isinstance(each, str) for each in value):
        return ", ".join(value)
    return json.dumps(value, sort_keys=True, ensure_ascii=False)

"""Parameters of estimators as JSON, and back. Values that JSON lacks have forms of their own.

======================================  ==========================================================
``{"float": "nan"}``                    a float that is not finite: ``nan``, ``inf`` or ``-inf``
``{"tuple": [1, 2]}``                   a tuple
``{"dict": [[0, 1.0], [1, 2.0]]}``      a dict whose keys are not texts
``{"array": [...], "dtype": "int64"}``  a small array
``{"range": [0, 5, 1]}``                a range; ``{"slice": [0, 5, null]}`` is a slice
``{"type": "float32"}``                 a type of numbers; ``{"dtype": "float32"}`` is a dtype
``{"function": "numpy:log1p"}``         a function
``{"distribution": "loguniform", …}``   a distribution of scipy.stats, with ``arguments`` and ``keywords``
``{"class": "MODULE:NAME", …}``         an object with parameters, such as an estimator (`Decoder.component`)
======================================  ==========================================================
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ciml.digest import canonical_json
from ciml.errors import InvalidSettingError
from ciml.limits import MAX_DESCRIPTION_BYTES, MAX_JSON_DEPTH, MAX_PARAMETER_ITEMS
from ciml.training.estimators.names import import_allowed, is_open, name_of

#: Types of elements by name. ``str`` has no length: numpy chooses it.
_TYPES: dict[str, Any] = {
    **{name: getattr(np, name) for name in ("float16", "float32", "float64", "int8", "int16", "int32", "int64")},
    **{name: getattr(np, name) for name in ("uint8", "uint16", "uint32", "uint64", "bool_")},
    "float": float,
    "int": int,
    "bool": bool,
    "str": str,
}
_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
#: The key that identifies each form. An object without one is a plain dict. The first match counts, because an array
#: has the key ``dtype``, too.
_FORMS = ("class", "array", "distribution", "float", "tuple", "dict", "range", "slice", "type", "dtype", "function")
#: The other keys of a form, all required. `Decoder.component` checks those of a class.
_OTHER_KEYS = {"array": {"dtype"}, "distribution": {"arguments", "keywords"}}
_SEEDED = (np.random.RandomState, np.random.Generator)


class _PlacedError(InvalidSettingError):
    """An error whose message begins with the parameter's place."""


@contextmanager
def place(path: str) -> Iterator[None]:
    """Begin errors of the block with the place of a parameter, unless they begin with a more exact one."""
    try:
        yield
    except _PlacedError:
        raise
    except InvalidSettingError as error:
        raise _PlacedError(f"{path}: {error}") from None


def check_description_json(value: Any) -> None:
    """Raise `InvalidSettingError` if a description is not JSON, nested too deep, or too large."""
    _check_structure(value, MAX_JSON_DEPTH)
    try:
        size = len(canonical_json(value))
    except ValueError:
        raise InvalidSettingError('estimator: JSON has no NaN; write {"float": "nan"}') from None
    if size > MAX_DESCRIPTION_BYTES:
        raise InvalidSettingError(
            f"estimator: its description has {size:,} bytes, at most {MAX_DESCRIPTION_BYTES:,} (MAX_DESCRIPTION_BYTES)"
        )


def _check_structure(value: Any, levels: int) -> None:
    """Raise `InvalidSettingError` if keys or items are not JSON, or nest deeper than ``levels``."""
    if levels < 0:
        raise InvalidSettingError(f"estimator: parameters nest deeper than {MAX_JSON_DEPTH} (MAX_JSON_DEPTH)")
    if isinstance(value, dict):
        if not all(type(key) is str for key in value):
            raise InvalidSettingError("estimator: keys of a description must be texts")
        for item in value.values():
            _check_structure(item, levels - 1)
    elif isinstance(value, list):
        for item in value:
            _check_structure(item, levels - 1)
    elif value is not None and type(value) not in (bool, int, float, str):
        raise InvalidSettingError(f"estimator: {type(value).__name__} is not a JSON value")


def encode(value: Any, path: str, component: Callable[[Any, str], Any] | None = None) -> Any:
    """Return a parameter as JSON.

    Args:
      value: the parameter.
      path: its place, for errors, such as ``parameters.steps[1]``.
      component: describes an estimator, or another object with parameters; None if there can be none.

    Raises:
      InvalidSettingError: it has no form in JSON; with the place and the remedy.
    """
    with place(path):
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, (bool, int, float, str)):
            return _encode_scalar(value)
        if isinstance(value, (list, tuple)):
            items = [encode(item, f"{path}[{number}]", component) for number, item in enumerate(value)]
            return {"tuple": items} if isinstance(value, tuple) else items
        if isinstance(value, dict):
            return _encode_dict(value, path, component)
        if isinstance(value, np.ndarray):
            return _encode_array(value, path)
        return _encode_object(value, path, component)


def _encode_scalar(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float):
        number = float(value)
        return number if math.isfinite(number) else {"float": str(number)}
    return int(value) if isinstance(value, int) else str(value)


def _encode_dict(value: dict[Any, Any], path: str, component: Callable[[Any, str], Any] | None) -> dict[str, Any]:
    if all(type(key) is str for key in value) and value.keys().isdisjoint(_FORMS):
        return {key: encode(item, f"{path}.{key}", component) for key, item in value.items()}
    pairs = [[encode(key, path), encode(item, f"{path}.{key!s:.80}", component)] for key, item in value.items()]
    return {"dict": sorted(pairs, key=lambda pair: canonical_json(pair[0]))}


def _encode_array(value: np.ndarray, path: str) -> dict[str, Any]:
    if value.size > MAX_PARAMETER_ITEMS:
        raise InvalidSettingError(
            f"an array of {value.size:,} values, at most {MAX_PARAMETER_ITEMS:,} (MAX_PARAMETER_ITEMS); compute it in "
            "a class of your own"
        )
    name = {"U": "str", "b": "bool_"}.get(value.dtype.kind, value.dtype.name)
    if name not in _TYPES:
        raise InvalidSettingError(f"an array of {value.dtype} has no form in JSON; use numbers or texts")
    return {"array": encode(value.tolist(), path), "dtype": name}


def _encode_object(value: Any, path: str, component: Callable[[Any, str], Any] | None) -> Any:
    """Encode a value that is not a number, text, list, tuple, dict or array."""
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    if isinstance(value, slice):
        return {"slice": [encode(item, path) for item in (value.start, value.stop, value.step)]}
    if isinstance(value, np.dtype) and value.name in _TYPES:
        return {"dtype": value.name}
    if inspect.isclass(value):
        # A class's own name does not identify it: both ``bool`` and ``np.bool_`` are called "bool".
        type_name = next((name for name, kind in _TYPES.items() if kind is value), None)
        if type_name is None:
            raise InvalidSettingError(f"the class {value.__name__} itself; give an object, {value.__name__}()")
        return {"type": type_name}
    if isinstance(value, _SEEDED):
        raise InvalidSettingError(f"a {type(value).__name__} has a state; give a whole number as the seed")
    if hasattr(value, "dist") and hasattr(value, "kwds"):
        return _encode_distribution(value, path)
    if inspect.isfunction(value) or type(value).__name__ in ("ufunc", "_ArrayFunctionDispatcher"):
        name = name_of(value)
        if is_open(name):
            import_allowed(name)  # raises for functions that no description may name
        return {"function": name}
    if component is None or inspect.isroutine(value) or not hasattr(value, "__dict__"):
        raise InvalidSettingError(f"a {type(value).__name__} cannot be described; {_REMEDY}")
    return component(value, path)


_REMEDY = "give a number, a text, or a function or class at the top level of a module"


def _encode_distribution(value: Any, path: str) -> dict[str, Any]:
    _find_distribution(value.dist.name)  # raises for a distribution that is not one of scipy.stats
    arguments = [encode(item, path) for item in value.args]
    keywords = {key: encode(item, f"{path}.{key}") for key, item in value.kwds.items()}
    return {"distribution": value.dist.name, "arguments": arguments, "keywords": keywords}


def _find_distribution(name: Any) -> Any:
    from scipy import stats

    distribution = getattr(stats, name, None) if isinstance(name, str) else None
    if not isinstance(distribution, (stats.rv_continuous, stats.rv_discrete)):
        raise InvalidSettingError(f"{name!r:.80} is not a distribution of scipy.stats")
    return distribution


@dataclass(frozen=True)
class Decoder:
    """Decodes parameters.

    Attributes:
      component: builds the object that a description with the key ``class`` stands for, given (description, place);
        None if there can be none.
      allowed: modules whose functions a description may name.
    """

    component: Callable[[Any, str], Any] | None = None
    allowed: tuple[str, ...] = ()

    def decode(self, value: Any, path: str) -> Any:
        """Return the parameter that JSON stands for. Raises `InvalidSettingError` with its place."""
        if isinstance(value, list):
            return [self.decode(item, f"{path}[{number}]") for number, item in enumerate(value)]
        if not isinstance(value, dict):
            return value
        form = next((name for name in _FORMS if name in value), None)
        if form is None:
            return {key: self.decode(item, f"{path}.{key}") for key, item in value.items()}
        with place(path):
            try:
                return self._decode_form(form, value, path)
            except (TypeError, ValueError, OverflowError, AttributeError, KeyError) as error:
                line = " ".join(str(error).split())
                raise InvalidSettingError(f"not a valid form of {form}: {type(error).__name__}: {line}") from None

    def _decode_form(self, form: str, value: dict[str, Any], path: str) -> Any:
        """Decode an object with a reserved key."""
        if form == "class":
            if self.component is None:
                raise InvalidSettingError("no estimator is expected here")
            return self.component(value, path)
        if value.keys() != {form} | _OTHER_KEYS.get(form, set()):
            raise InvalidSettingError(f"unknown keys next to {form!r}")
        content = value[form]
        if form == "float":
            return _FLOATS[content]
        if form in ("type", "dtype"):
            return _TYPES[content] if form == "type" else np.dtype(_TYPES[content])
        if form in ("range", "slice"):
            start, stop, step = self.decode(content, path)
            return range(start, stop, step) if form == "range" else slice(start, stop, step)
        if form == "tuple":
            return tuple(self.decode(content, path))
        if form == "dict":
            return {self.decode(key, path): self.decode(item, f"{path}.{key!s:.80}") for key, item in content}
        if form == "array":
            return np.array(self.decode(content, path), _TYPES[value["dtype"]])
        if form == "function":
            return self._function(content)
        arguments = self.decode(value["arguments"], path)
        keywords = self.decode(value["keywords"], path)
        return _find_distribution(content)(*arguments, **keywords)

    def _function(self, name: str) -> Any:
        function = import_allowed(name, self.allowed)
        if inspect.isclass(function):
            raise InvalidSettingError(f"{name} is a class, not a function")
        return function

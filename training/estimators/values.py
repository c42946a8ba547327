"""Encode parameters of estimators as JSON and decode them. Values that JSON lacks have forms of their own.

======================================  ==========================================================
``{"float": "nan"}``                    a float that is not finite: ``nan``, ``inf`` or ``-inf``
``{"tuple": [1, 2]}``                   a tuple
``{"dict": [[0, 1.0], [1, 2.0]]}``      a dict with a key that is not a text, or that identifies a form
``{"array": [...], "dtype": "int64"}``  a small array
``{"range": [0, 5, 1]}``                a range; ``{"slice": [0, 5, null]}`` is a slice
``{"type": "float32"}``                 a type of numbers; ``{"dtype": "float32"}`` is a dtype
``{"function": "numpy:log1p"}``         a function
``{"distribution": "loguniform", …}``   a distribution of scipy.stats, with ``arguments`` and ``keywords``
``{"class": "MODULE:NAME", …}``         an object with parameters, such as an estimator (`Decoder.build`)
======================================  ==========================================================
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ciml.digest import canonical_json
from ciml.errors import InvalidSettingError
from ciml.limits import MAX_DESCRIPTION_BYTES, MAX_JSON_DEPTH, MAX_PARAMETER_ITEMS
from ciml.training.estimators.names import import_allowed, is_open, name_of

#: Describes an object with parameters as JSON with the key ``class``, given (object, path).
Describe: TypeAlias = Callable[[Any, str], Any]
#: Builds an object from its description, given (description, path).
Build: TypeAlias = Callable[[Any, str], Any]

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
_SEEDED = (np.random.RandomState, np.random.Generator)
#: The types of numpy's functions: ``numpy.log1p`` is a ufunc, and ``numpy.mean`` an _ArrayFunctionDispatcher, which
#: numpy does not export.
_NUMPY_FUNCTIONS = ("ufunc", "_ArrayFunctionDispatcher")
_REMEDY = "give a number, a text, or a function or class at the top level of a module"


class _PlacedError(InvalidSettingError):
    """An error whose message begins with the parameter's path."""


@contextmanager
def place(path: str) -> Iterator[None]:
    """Prefix errors from the block with the parameter's path, unless they already have a more specific one."""
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
    except UnicodeEncodeError:
        raise InvalidSettingError("estimator: a text has a lone surrogate, which UTF-8 cannot encode") from None
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


def encode(value: Any, path: str, describe: Describe | None = None) -> Any:
    """Return a parameter as JSON.

    Args:
      value: the parameter.
      path: where the parameter is, for errors, such as ``parameters.steps[1]``.
      describe: describes an estimator, or another object with parameters; None if the parameter cannot hold any.

    Raises:
      InvalidSettingError: the value cannot be expressed in JSON; the message gives the path and a remedy.
    """
    with place(path):
        if isinstance(value, np.generic):
            value = value.item()
        form = next((form for form in _FORMS if form.matches(value)), None)
        if form is not None:
            contents = zip(form.keys, form.write(value, path), strict=True)
            return {key: encode(content, path, describe) for key, content in contents}
        if isinstance(value, list):
            return [encode(item, f"{path}[{number}]", describe) for number, item in enumerate(value)]
        if isinstance(value, dict):
            return {key: encode(item, f"{path}.{key}", describe) for key, item in value.items()}
        if value is None or isinstance(value, (bool, int, float, str)):
            return _encode_scalar(value)
        if isinstance(value, _SEEDED):
            raise InvalidSettingError(f"a {type(value).__name__} has a state; give a whole number as the seed")
        if describe is None or inspect.isroutine(value) or not hasattr(value, "__dict__"):
            raise InvalidSettingError(f"a {type(value).__name__} cannot be described; {_REMEDY}")
        return describe(value, path)


def _encode_scalar(value: bool | float | str | None) -> bool | float | str | None:
    """Return the value as a plain JSON type: subclasses, such as members of an enumeration, lose their class."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # str() of a member of an enumeration is its name
    return int(value) if isinstance(value, int) else float(value)


@dataclass(frozen=True)
class Decoder:
    """Decodes parameters.

    Attributes:
      build: builds the object of a description with the key ``class``; None if the parameters cannot hold any.
      allowed: modules whose functions a description may name.
    """

    build: Build | None = None
    allowed: tuple[str, ...] = ()

    def decode(self, value: Any, path: str) -> Any:
        """Return the parameter that JSON stands for. Raises `InvalidSettingError`; the message gives the path."""
        if isinstance(value, list):
            return [self.decode(item, f"{path}[{number}]") for number, item in enumerate(value)]
        if not isinstance(value, dict):
            return value
        form = next((form for form in _FORMS if form.name in value), None)
        with place(path):
            if _CLASS in value:
                if self.build is None:
                    raise InvalidSettingError("no estimator is expected here")
                return self.build(value, path)
            if form is not None:
                return self._decode_form(form, value, path)
        return {key: self.decode(item, f"{path}.{key}") for key, item in value.items()}

    def _decode_form(self, form: _Form, value: dict[str, Any], path: str) -> Any:
        form.check_contents(value)
        contents = [self.decode(value[key], path) for key in form.keys]
        try:
            return form.read(self, *contents)
        except (TypeError, ValueError, OverflowError, AttributeError, KeyError) as error:
            line = " ".join(str(error).split())
            raise InvalidSettingError(f"not a valid form of {form.name}: {type(error).__name__}: {line}") from None


@dataclass(frozen=True)
class _Form:
    """A JSON object for values that JSON lacks.

    Attributes:
      keys: the keys, all required, with the type of each one's content. The first key identifies the form.
      matches: whether a value has this form.
      write: returns the content of each key, given (value, path); `encode` encodes the contents in turn.
      read: returns the value, given the decoder and the decoded contents.
    """

    keys: Mapping[str, type]
    matches: Callable[[Any], bool]
    write: Callable[[Any, str], Sequence[Any]]
    read: Callable[..., Any]

    @property
    def name(self) -> str:
        """The key that identifies the form."""
        return next(iter(self.keys))

    def check_contents(self, value: dict[str, Any]) -> None:
        """Raise `InvalidSettingError` if an object has other keys, or contents of other types."""
        if value.keys() - self.keys:
            raise InvalidSettingError(f"unknown keys next to {self.name!r}")
        for key, kind in self.keys.items():
            if key not in value:
                raise InvalidSettingError(f"{key!r} is missing next to {self.name!r}")
            if not isinstance(value[key], kind):
                raise InvalidSettingError(f"{key!r} must be {_JSON_TYPES[kind]}, not {value[key]!r:.80}")


_JSON_TYPES: Mapping[type, str] = {str: "a text", list: "a list", dict: "an object"}


def _needs_pairs(value: Any) -> bool:
    """Return whether a value is a dict that an object of JSON cannot hold."""
    if not isinstance(value, dict):
        return False
    reserved = {_CLASS, *(form.name for form in _FORMS)}
    return not all(type(key) is str and key not in reserved for key in value)


def _write_pairs(value: dict[Any, Any], path: str) -> Sequence[Any]:
    """Return the pairs in one order, so that equal dicts have equal descriptions."""
    return [sorted(map(list, value.items()), key=lambda pair: canonical_json(encode(pair[0], path)))]


def _read_pairs(decoder: Decoder, pairs: list[Any]) -> dict[Any, Any]:
    if not all(isinstance(pair, list) for pair in pairs):
        raise TypeError("expected a list of pairs")
    return dict(pairs)


def _write_array(value: np.ndarray, path: str) -> Sequence[Any]:
    if value.size > MAX_PARAMETER_ITEMS:
        raise InvalidSettingError(
            f"an array of {value.size:,} values, at most {MAX_PARAMETER_ITEMS:,} (MAX_PARAMETER_ITEMS); compute it in "
            "a class of your own"
        )
    name = {"U": "str", "b": "bool_"}.get(value.dtype.kind, value.dtype.name)
    if name not in _TYPES:
        raise InvalidSettingError(f"an array of {value.dtype} has no form in JSON; use numbers or texts")
    if isinstance(value, np.ma.MaskedArray):
        raise InvalidSettingError("a masked array has no form in JSON; fill the masked values")
    items = value.tolist()
    if np.shape(items) != value.shape:
        raise InvalidSettingError(f"an array of shape {value.shape} has no form in JSON; give one with values")
    return items, name


def _bounds_form(kind: type[range | slice]) -> _Form:
    def read(decoder: Decoder, bounds: list[Any]) -> range | slice:
        start, stop, step = bounds
        return kind(start, stop, step)

    return _Form(
        {kind.__name__: list},
        lambda value: isinstance(value, kind),
        lambda value, path: [[value.start, value.stop, value.step]],
        read,
    )


def _write_type(value: type, path: str) -> Sequence[Any]:
    # The name of a class does not identify it: both ``bool`` and ``np.bool_`` are called "bool".
    names = [name for name, kind in _TYPES.items() if kind is value]
    if not names:
        raise InvalidSettingError(f"the class {value.__name__} itself; give an object, {value.__name__}()")
    return names


def _is_known_dtype(value: Any) -> bool:
    return isinstance(value, np.dtype) and value.name in _TYPES and np.dtype(_TYPES[value.name]) == value


def _is_function(value: Any) -> bool:
    return inspect.isfunction(value) or type(value).__name__ in _NUMPY_FUNCTIONS


def _write_function(value: Any, path: str) -> Sequence[Any]:
    name = name_of(value)
    if is_open(name):
        import_allowed(name)  # raises for functions that no description may name
    return [name]


def _read_function(decoder: Decoder, name: str) -> Any:
    function = import_allowed(name, decoder.allowed)
    if inspect.isclass(function):
        raise InvalidSettingError(f"{name} is a class, not a function")
    return function


def _write_distribution(value: Any, path: str) -> Sequence[Any]:
    _find_distribution(value.dist.name)  # raises for a distribution that is not one of scipy.stats
    return value.dist.name, list(value.args), value.kwds


def _find_distribution(name: str) -> Any:
    from scipy import stats

    distribution = getattr(stats, name, None)
    if not isinstance(distribution, (stats.rv_continuous, stats.rv_discrete)):
        raise InvalidSettingError(f"{name!r:.80} is not a distribution of scipy.stats")
    return distribution


#: The key of an object with parameters, which `encode` and `Decoder` leave to their callers.
_CLASS = "class"
#: The other forms. Order matters: an array also has the key ``dtype``, so ``array`` must come first.
_FORMS = (
    _Form(
        {"array": object, "dtype": str},
        lambda value: isinstance(value, np.ndarray),
        _write_array,
        lambda decoder, items, dtype: np.array(items, _TYPES[dtype]),
    ),
    _Form(
        {"distribution": str, "arguments": list, "keywords": dict},
        lambda value: hasattr(value, "dist") and hasattr(value, "kwds"),  # its class is private to scipy.stats
        _write_distribution,
        lambda decoder, name, arguments, keywords: _find_distribution(name)(*arguments, **keywords),
    ),
    _Form(
        {"float": str},
        lambda value: isinstance(value, float) and not math.isfinite(value),
        lambda value, path: [str(float(value))],
        lambda decoder, text: _FLOATS[text],
    ),
    _Form(
        {"tuple": list},
        lambda value: isinstance(value, tuple),
        lambda value, path: [list(value)],
        lambda decoder, items: tuple(items),
    ),
    _Form({"dict": list}, _needs_pairs, _write_pairs, _read_pairs),
    _bounds_form(range),
    _bounds_form(slice),
    _Form({"type": str}, inspect.isclass, _write_type, lambda decoder, name: _TYPES[name]),
    _Form(
        {"dtype": str},
        _is_known_dtype,
        lambda value, path: [value.name],
        lambda decoder, name: np.dtype(_TYPES[name]),
    ),
    _Form({"function": str}, _is_function, _write_function, _read_function),
)

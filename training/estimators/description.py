"""Estimators as JSON: class and parameters, from which an equal estimator is built again.

A description names the class and the parameters that differ from its defaults, at any depth::

    {"class": "sklearn.pipeline:Pipeline",
     "parameters": {"steps": [["scale", {"class": "sklearn.preprocessing:StandardScaler", "parameters": {}}],
                              ["model", {"class": "sklearn.linear_model:LogisticRegression",
                                         "parameters": {"C": 0.1}}]]}}

Values that JSON lacks are objects with a reserved key, such as ``{"float": "nan"}``: see
`ciml.training.estimators.values`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from ciml.digest import canonical_json
from ciml.errors import CimlError, InvalidSettingError
from ciml.training.estimators import keras_models, values
from ciml.training.estimators.constructors import check_parameter, constructor_of
from ciml.training.estimators.names import find_component, import_allowed, is_open, name_of

__all__ = ["KerasFunction", "build", "describe", "has_parameter", "modules_of", "packages_of"]

#: Parameters that hold lists of (name, estimator) or (name, transformer, columns).
_NAMED_STEPS = frozenset({"steps", "transformers", "transformer_list", "estimators"})
_OUTPUTS = ("default", "pandas", "polars")


@dataclass(frozen=True)
class KerasFunction:
    """A function that makes a Keras model, and its parameters.

    Attributes:
      function: called with (shape, classes, **parameters), where shape is (L, F); returns a Keras model with a softmax
        over the classes.
      parameters: JSON values by name.
    """

    function: Callable[..., Any]
    parameters: dict[str, Any] = field(default_factory=dict)

    def __call__(self, shape: tuple[int, int], classes: int) -> Any:
        return self.function(shape, classes, **self.parameters)


def describe(estimator: Any) -> dict[str, Any]:
    """Describe an estimator that is not fitted, as JSON.

    Args:
      estimator: an object with ``fit``, a Keras model, a function (shape, classes) -> Keras model, or a
        `KerasFunction`.

    Returns:
      ``{"class": "module:Name", "parameters": {...}}``, with the parameters that differ from the class's defaults.
      Equal descriptions build equal estimators. Of a Keras model, weights and optimizer are left out.

    Raises:
      InvalidSettingError: it cannot be described; with the parameter, the reason and the remedy.

    >>> from sklearn.linear_model import LogisticRegression
    >>> describe(LogisticRegression(C=0.1))
    {'class': 'sklearn.linear_model:LogisticRegression', 'parameters': {'C': 0.1}}
    """
    if inspect.isfunction(estimator):
        estimator = KerasFunction(estimator)
    if isinstance(estimator, KerasFunction):
        with values.place("estimator"):
            name = name_of(estimator.function)
        parameters = {key: values.encode(value, f"parameters.{key}") for key, value in estimator.parameters.items()}
        description = {"class": name, "parameters": parameters}
    elif keras_models.is_model(estimator):
        description = {"class": keras_models.CLASS, "parameters": {"config": keras_models.config_of(estimator)}}
    elif inspect.isclass(estimator):
        raise InvalidSettingError(f"estimator: expected an object, got the class; write {estimator.__name__}()")
    elif not hasattr(estimator, "fit"):
        raise InvalidSettingError(f"estimator: a {type(estimator).__name__} has no method fit")
    else:
        description = _describe(estimator, "")
    values.check_description_json(description)
    return description


def _describe(component: Any, path: str) -> dict[str, Any]:
    """Describe an estimator or a part of one. ``path`` is its place, for errors."""
    kind: Any = type(component)
    with values.place(path or "estimator"):
        name = name_of(kind)
        if is_open(name):
            import_allowed(name)  # raises for classes that cannot be built again
        constructor = constructor_of(kind)
        held = constructor.values_of(component)
    prefix = f"{path}." if path else "parameters."
    parameters = {}
    for key, value in sorted(held.items()):
        with values.place(f"{prefix}{key}"):
            encoded = _encode_parameter(key, value, f"{prefix}{key}", constructor.defaults.get(key))
            if _is_default(constructor.defaults, key, encoded):
                continue
            check_parameter(kind, key, value)
        parameters[key] = encoded
    description: dict[str, Any] = {"class": name, "parameters": parameters}
    if output := getattr(component, "_sklearn_output_config", {}).get("transform"):
        description["output"] = output
    return description


def _encode_parameter(key: str, value: Any, path: str, default: Any) -> Any:
    if key in _NAMED_STEPS and isinstance(value, (list, tuple)):
        return [_encode_step(step, f"{path}[{number}]") for number, step in enumerate(value)]
    encoded = values.encode(value, path, _describe)
    # Where the default is a tuple, a plain list stands for one, so that people can write it.
    return encoded["tuple"] if isinstance(value, tuple) and isinstance(default, tuple) else encoded


def _encode_step(step: Any, path: str) -> Any:
    if not isinstance(step, (list, tuple)):
        return values.encode(step, path, _describe)
    return [values.encode(item, f"{path}[{number}]", _describe) for number, item in enumerate(step)]


def _is_default(defaults: dict[str, Any], key: str, encoded: Any) -> bool:
    """Return whether an encoded value is the default. 1, 1.0 and True differ: scikit-learn tells them apart."""
    if key not in defaults:
        return False
    try:
        default = _encode_parameter(key, defaults[key], key, defaults[key])
    except CimlError:
        return False
    return canonical_json(default) == canonical_json(encoded)


def build(description: dict[str, Any], allowed: Iterable[str] = (), seed: int = 0) -> Any:
    """Build the estimator of a description.

    Args:
      description: of `describe`, or written by a person: classes of scikit-learn may have their bare names, and
        parameters scikit-learn's deep names, such as ``model__C``.
      allowed: modules that may be imported besides scikit-learn, xgboost, lightgbm and Keras.
      seed: of the weights of a Keras model.

    Returns:
      An estimator, a Keras model with new weights, or a `KerasFunction`.

    Raises:
      InvalidSettingError: the description is not valid, or names something that it may not name. Nothing outside the
        libraries and the allowed modules was imported or called.
    """
    values.check_description_json(description)
    return _build(description, "", tuple(allowed), seed)


def _build(description: Any, path: str, allowed: tuple[str, ...], seed: int = 0) -> Any:
    where = path or "estimator"
    kind, parameters = _parts(description, where)
    if kind == keras_models.CLASS:
        if path:
            raise InvalidSettingError(f"{where}: a Keras model cannot be part of an estimator of scikit-learn")
        return keras_models.model_of(parameters, seed)
    with values.place(where):
        factory = import_allowed(find_component(kind), allowed)
    if not inspect.isclass(factory):
        if path or is_open(kind):
            raise InvalidSettingError(f"{where}: {kind} is a function; name a class")
        decoder = values.Decoder(allowed=allowed)
        return KerasFunction(factory, {key: decoder.decode(value, key) for key, value in parameters.items()})
    prefix = f"{path}." if path else "parameters."

    def component(value: Any, place: str) -> Any:
        return _build(value, place, allowed)

    decoder = values.Decoder(component, allowed)
    arguments = _arguments(factory, _with_deep(factory, parameters, where), prefix, decoder)
    with values.place(where):
        built = _call(factory, arguments)
        if "output" in description:
            built.set_output(transform=description["output"])
    return built


def _parts(description: Any, where: str) -> tuple[str, dict[str, Any]]:
    """Return the name of the class, and the parameters, of a description."""
    if not isinstance(description, dict) or not {"class"} <= description.keys() <= {"class", "parameters", "output"}:
        raise InvalidSettingError(f"{where}: expected an object with the keys class and parameters")
    kind = description["class"]
    parameters = description.get("parameters", {})
    if not isinstance(kind, str) or not isinstance(parameters, dict):
        raise InvalidSettingError(f"{where}: class must be a text, and parameters an object")
    if description.get("output", "default") not in _OUTPUTS:
        raise InvalidSettingError(f"{where}.output: choose from {', '.join(_OUTPUTS)}")
    return kind, parameters


def _call(factory: type, arguments: dict[str, Any]) -> Any:
    try:
        return factory(**arguments)
    except Exception as error:  # noqa: BLE001 - a constructor of the user's may raise anything
        line = " ".join(str(error).split())
        raise InvalidSettingError(f"{factory.__name__}: {type(error).__name__}: {line}") from None


def _arguments(factory: type, parameters: dict[str, Any], prefix: str, decoder: values.Decoder) -> dict[str, Any]:
    """Decode the arguments of a constructor."""
    constructor = constructor_of(factory)
    arguments = {}
    for key, value in parameters.items():
        path = f"{prefix}{key}"
        with values.place(path):
            constructor.check_name(key)
            argument = _decode_parameter(key, value, path, decoder)
            if isinstance(argument, list) and isinstance(constructor.defaults.get(key), tuple):
                argument = tuple(argument)
            check_parameter(factory, key, argument)
        arguments[key] = argument
    return arguments


def _decode_parameter(key: str, value: Any, path: str, decoder: values.Decoder) -> Any:
    if key in _NAMED_STEPS and isinstance(value, list):
        return [tuple(step) if isinstance(step, list) else step for step in decoder.decode(value, path)]
    return decoder.decode(value, path)


def _with_deep(factory: type, parameters: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the parameters with those of parts put into the parts: ``model__C``, or ``model`` for all of one."""
    names = constructor_of(factory).names
    steps = {step[0] for key in _NAMED_STEPS & parameters.keys() for step in _steps(parameters[key])} - names
    merged = {key: value for key, value in parameters.items() if key in names or ("__" not in key and key not in steps)}
    for key in sorted(parameters.keys() - merged.keys()):  # "model" before "model__C"
        part, _, subname = key.partition("__")
        merged = _set_deep(merged, part, subname, parameters[key], where)
    return merged


def _steps(value: Any) -> list[list[Any]]:
    """Return the steps of a parameter that have a name and an estimator."""
    steps = value if isinstance(value, list) else []
    return [step for step in steps if isinstance(step, list) and len(step) > 1 and isinstance(step[0], str)]


def _set_deep(parameters: dict[str, Any], part: str, rest: str, value: Any, where: str) -> dict[str, Any]:
    """Return the parameters with a parameter of one part set, or without ``rest`` the part itself."""

    def changed(component: Any) -> Any:
        if not rest:
            return value
        if not isinstance(component, dict) or "class" not in component:
            raise InvalidSettingError(f"{where}: {part}__{rest}: {part} is not an estimator")
        return {**component, "parameters": {**component.get("parameters", {}), rest: value}}

    if part in parameters:
        return {**parameters, part: changed(parameters[part])}
    for key in _NAMED_STEPS & parameters.keys():
        steps = [list(step) if isinstance(step, list) else step for step in parameters[key]]
        for step in steps:
            if isinstance(step, list) and len(step) > 1 and step[0] == part:
                step[1] = changed(step[1])
                return {**parameters, key: steps}
    raise InvalidSettingError(f"{where}: {part}__{rest}: no part {part!r:.80}")


def has_parameter(description: dict[str, Any], name: str, allowed: Iterable[str] = ()) -> bool:
    """Return whether a description can have a parameter, perhaps a deep one such as ``model__C``.

    Raises:
      InvalidSettingError: a class may not be named.
    """
    factory: Any = import_allowed(find_component(description["class"]), tuple(allowed))
    if not inspect.isclass(factory):
        return name in inspect.signature(factory).parameters
    kind: Any = factory
    constructor = constructor_of(kind)
    part, _, subname = name.partition("__")
    accepted = {key: value for key, value in description.get("parameters", {}).items() if constructor.has(key)}
    component = None if name in constructor.names else _part(accepted, part)
    if component is None:
        return "__" not in name and constructor.has(name)
    return not subname or has_parameter(component, subname, allowed)


def _part(parameters: dict[str, Any], name: str) -> dict[str, Any] | None:
    """Return the description of a part of an estimator; None if there is none of this name."""
    steps = [step for key in _NAMED_STEPS & parameters.keys() for step in _steps(parameters[key])]
    candidates = [parameters.get(name), *(step[1] for step in steps if step[0] == name)]
    return next((part for part in candidates if isinstance(part, dict) and "class" in part), None)


def modules_of(description: dict[str, Any]) -> tuple[str, ...]:
    """Return the modules that a caller must allow to build a description: those of no known library, sorted."""
    names = (name for name in names_in(description) if not is_open(name) and name != keras_models.CLASS)
    return tuple(sorted({name.partition(":")[0] for name in names}))


def names_in(value: Any) -> Iterator[str]:
    """Yield the names ``module:Name`` of all classes and functions in a description."""
    if isinstance(value, list):
        for item in value:
            yield from names_in(item)
    elif isinstance(value, dict):
        kind = value.get("class", value.get("function"))
        if isinstance(kind, str):
            yield find_component(kind)
        if kind != keras_models.CLASS:
            yield from names_in(list(value.values()))


def packages_of(description: dict[str, Any]) -> dict[str, str]:
    """Return the versions of the packages that a description's classes come from.

    Args:
      description: of `describe`, or one that has been built: its modules are imported.

    Returns:
      ``{"scikit-learn": "1.9.0"}``. A module that belongs to no installed package has the digest of its source file:
      ``{"models": "sha256:…"}``.

    Raises:
      InvalidSettingError: a module is not imported, or has no source file.
    """
    packages = {}
    for name in names_in(description):
        module = name.partition(":")[0]
        path = _source(module)
        if distribution := _distribution(module.partition(".")[0], path):
            if distribution not in _LASTING:
                packages[distribution] = metadata.version(distribution)
        else:
            packages[module] = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    return dict(sorted(packages.items()))


#: Packages of which a description names functions alone, which do not change.
_LASTING = ("numpy", "scipy")


def _source(module: str) -> Path:
    """Return the path of a module's source file, of a library that of its package."""
    if is_open(f"{module}:") or module == "keras":
        spec = importlib.util.find_spec(module.partition(".")[0])
        path = spec.origin if spec else None
    else:
        path = getattr(sys.modules.get(module), "__file__", None)
    if path is None or not path.endswith(".py"):
        raise InvalidSettingError(f"{module}: is not a module that is imported from a source file")
    return Path(path)


@cache
def _distribution(top: str, path: Path) -> str | None:
    """Return the name of the installed package that a source file belongs to; None if there is none.

    Args:
      top: its top-level module. Several packages may have one of this name, such as ``tests``.
      path: the file.
    """
    for name in metadata.packages_distributions().get(top, ()):
        files = metadata.files(name) or ()
        if any(file.name == path.name and Path(file.locate()).resolve() == path.resolve() for file in files):
            return name
    return None

"""Keras models as JSON: their architecture alone, of Keras's own layers.

A config is read only after each class in it was checked: layers that run code (Lambda), read files (StringLookup) or
load models (TFSMLayer) are rejected, and so are layers of the user's, whose code a config does not hold.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from ciml.errors import InvalidSettingError
from ciml.tensorflow import keras, seeded

__all__ = ["CLASS", "config_of", "is_model", "model_of"]

#: The class of a description.
CLASS = "keras:Model"
_MODELS = ("Functional", "Sequential")
#: Layers that run code or read files.
_REJECTED = frozenset(
    {"Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer", "StringLookup", "IntegerLookup"}
    | {"TextVectorization", "IndexLookup", "HashedCrossing", "FeatureSpace"}
)
_REMEDY = "build such a model in a function (shape, classes) of a module, and name it package.module:function"


def is_model(value: Any) -> bool:
    """Return whether an object is a Keras model. Imports nothing."""
    module = sys.modules.get("keras")
    return module is not None and isinstance(value, module.Model)


def config_of(model: Any) -> dict[str, Any]:
    """Return the architecture of a model, without weights, optimizer and loss.

    Names that Keras counts up in a process (``dense_3``) are counted from the beginning, so that equal models have
    equal configs.

    Raises:
      InvalidSettingError: it has layers that cannot be built from a config.
    """
    if type(model).__name__ not in _MODELS or not type(model).__module__.startswith("keras."):
        raise InvalidSettingError(f"estimator: {type(model).__name__} is a subclass of keras.Model; {_REMEDY}")
    for layer in model._flatten_layers():
        _check_class(type(layer).__module__, type(layer).__name__)
    try:
        config = json.loads(json.dumps(keras().saving.serialize_keras_object(model)))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise InvalidSettingError(f"estimator: {' '.join(str(error).split())}; {_REMEDY}") from None
    config.pop("compile_config", None)
    _check(config)
    renamed: dict[str, Any] = _renamed(config, _names(config))
    return renamed


def model_of(parameters: dict[str, Any], seed: int) -> Any:
    """Build a model with new weights.

    Args:
      parameters: ``{"config": …}`` of `config_of`.
      seed: of the weights.

    Raises:
      InvalidSettingError: the config is not valid, or names something else than Keras's layers.
    """
    config = parameters.get("config")
    if parameters.keys() != {"config"} or not isinstance(config, dict) or config.get("class_name") not in _MODELS:
        raise InvalidSettingError(f"parameters.config: expected the config of a {' or '.join(_MODELS)} model")
    _check(config)
    with seeded(seed):
        try:
            return keras().saving.deserialize_keras_object(deepcopy(config), safe_mode=True)  # it removes keys
        except Exception as error:  # noqa: BLE001 - Keras raises of all kinds
            line = " ".join(str(error).split())[:300]
            raise InvalidSettingError(f"parameters.config: {type(error).__name__}: {line}") from None


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the serialised objects of a config, the outermost first."""
    if isinstance(value, dict):
        if "class_name" in value:
            yield value
        for item in value.values():
            yield from _objects(item)
    elif isinstance(value, list):
        for item in value:
            yield from _objects(item)


def _check(config: dict[str, Any]) -> None:
    """Raise `InvalidSettingError` if a config names something else than Keras's layers and their parts."""
    for item in _objects(config):
        name = item["class_name"]
        if name == "__keras_tensor__":
            continue
        registered = item.get("registered_name")
        if registered not in (None, name):
            raise InvalidSettingError(f"parameters.config: {registered!s:.80} is not a layer of Keras; {_REMEDY}")
        _check_class(str(item.get("module")), str(name))


def _check_class(module: str, name: str) -> None:
    """Raise `InvalidSettingError` if a class is none of Keras's layers, operations, or their parts."""
    library = keras()
    exported = [getattr(getattr(library, part), name, None) for part in _PARTS] if module.startswith("keras") else []
    kinds = [getattr(library, kind) for kind in ("Layer", "Initializer", "Regularizer", "DTypePolicy", "Operation")]
    kinds.append(library.constraints.Constraint)
    operation = re.fullmatch(r"keras\.src\.ops\.\w+", module) and _operation(module, name)
    candidates = [*exported, operation, library.DTypePolicy if name == "DTypePolicy" else None]
    allowed = any(isinstance(kind, type) and issubclass(kind, tuple(kinds)) for kind in candidates)
    model = name in _MODELS and module.split(".")[0] == "keras"
    if not (allowed or model) or name in _REJECTED:
        raise InvalidSettingError(
            f"parameters.config: {module}.{name} is not a layer that a config may name; {_REMEDY}"
        )


_PARTS = ("layers", "initializers", "regularizers", "constraints")


def _operation(module: str, name: str) -> Any:
    """Return a class of Keras's operations, which its models import; None if there is none."""
    return getattr(sys.modules.get(module), name, None)


def _names(config: dict[str, Any]) -> dict[str, str]:
    """Return new names for names that Keras counted: the class in lower case, then its number in this model."""
    counts: Counter[str] = Counter()
    names: dict[str, str] = {}
    for item in _objects(config):
        layer_name = item["config"].get("name") if isinstance(item.get("config"), dict) else None
        if not isinstance(layer_name, str) or layer_name in names or item["class_name"] == "DTypePolicy":
            continue
        base = re.sub(r"_\d+$", "", layer_name)
        if base.replace("_", "") != item["class_name"].lower():
            continue  # a name that a person chose
        names[layer_name] = f"{base}_{counts[base]}" if counts[base] else base
        counts[base] += 1
    return names


def _renamed(value: Any, names: dict[str, str], key: str = "") -> Any:
    """Return a config with names replaced where they are names: not in ``activation = "softmax"``."""
    if isinstance(value, dict):
        return {key: _renamed(item, names, key) for key, item in value.items()}
    if isinstance(value, list):
        referring = key in ("keras_history", "input_layers", "output_layers")
        return [_renamed(item, names, key if referring or isinstance(item, list) else "") for item in value]
    if isinstance(value, str) and key in ("name", "keras_history", "input_layers", "output_layers"):
        return names.get(value, value)
    return value

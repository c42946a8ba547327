"""The self-description of a model: the outputs of its signature ``describe``, and the signature ``classify``.

`ciml.training.export` writes both into a SavedModel. Each output of ``describe`` is a constant, repeated for each
row of the request, because TensorFlow Serving answers in rows. Any client reads it with one call of Predict.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from ciml.datasets.definition import DEFAULT_SALT, ResolvedDefinition
from ciml.errors import CimlError, IntegrityError
from ciml.limits import MAX_DESCRIPTION_CHARACTERS
from ciml.telemetry import unit_of

#: The signature with the class names next to the probabilities; its inputs are those of ``serving_default``.
CLASSIFY = "classify"
#: The signature that describes the model.
DESCRIBE = "describe"
#: The input of ``describe``, int32 [batch]: any numbers. TensorFlow Serving's REST API needs at least one input.
ROW = "row"
#: Outputs of ``describe`` that must agree with the definition. Later versions may know other units, and more outputs.
_COMPARED = frozenset(
    {"classes", "columns", "log_columns", "window_seconds", "windows", "statistic", "label", "functions"}
)

#: A value of an output for one row.
Value: TypeAlias = Sequence[str] | str | float | int
#: Dtype and shape by output; -1 is the number of rows.
Specs: TypeAlias = Mapping[str, tuple[str, tuple[int, ...]]]


def describe_values(resolved: ResolvedDefinition, model: str) -> dict[str, tuple[str, Value]]:
    """Return the outputs of ``describe`` for one row, as (dtype, value) by name.

    Args:
      resolved: the data set definition of the model.
      model: its name.
    """
    definition = resolved.definition
    public = published_definition(resolved)
    values: dict[str, tuple[str, Value]] = {
        "classes": ("string", resolved.classes),
        "columns": ("string", resolved.features),
        "units": ("string", units_of(resolved)),
        "log_columns": ("string", resolved.columns),
        "window_seconds": ("float64", definition.interval_us / 1e6),
        "windows": ("int32", resolved.windows),
        "statistic": ("string", definition.sample_statistic),
        "label": ("string", definition.class_label),
        "model": ("string", model),
        "definition": ("string", json.dumps(public.to_json(), sort_keys=True, separators=(",", ":"))),
    }
    if definition.aggregation_functions:
        values["functions"] = ("string", definition.aggregation_functions)
    return values


def units_of(resolved: ResolvedDefinition) -> tuple[str, ...]:
    """Return the unit of each feature; "" if it is unknown, and for context features."""
    return (*map(unit_of, resolved.columns), *[""] * len(resolved.context_features))


def published_definition(resolved: ResolvedDefinition) -> ResolvedDefinition:
    """Return a definition as ``describe`` publishes it to any client.

    Profiles, which describe the passing runs of each job, and the salt, the key of the split, are left out: a client
    does not need them.
    """
    return resolved.replace(profiles=None, definition=resolved.definition.replace(salt=DEFAULT_SALT))


def classify_outputs(resolved: ResolvedDefinition) -> Specs:
    """Return dtype and shape of the outputs of ``classify``."""
    classes = len(resolved.classes)
    return {
        "class": ("string", (-1,)),
        "classes": ("string", (-1, classes)),
        "probabilities": ("float32", (-1, classes)),
    }


def read_description(outputs: Mapping[str, Any], where: str) -> ResolvedDefinition:
    """Return the definition in an answer of ``describe``, whose other outputs must agree with it.

    Args:
      outputs: the outputs of the first row, as arrays or as JSON values.
      where: the model, for errors.

    Raises:
      IntegrityError: an output is missing or malformed, or contradicts the definition.
    """
    values = {name: _plain(value) for name, value in outputs.items()}
    text = values.get("definition")
    if not isinstance(text, str) or len(text) > MAX_DESCRIPTION_CHARACTERS:
        raise IntegrityError(
            f"{where}: signature {DESCRIBE!r} has no definition of at most {MAX_DESCRIPTION_CHARACTERS} characters"
        )
    try:
        resolved = ResolvedDefinition.from_json(json.loads(text))
    except (ValueError, RecursionError, TypeError, CimlError) as error:
        raise IntegrityError(f"{where}: signature {DESCRIBE!r} has an invalid definition: {error}") from None
    for name, (_, expected) in describe_values(resolved, "").items():
        if name in _COMPARED and values.get(name) != _plain(expected):
            raise IntegrityError(
                f"{where}: signature {DESCRIBE!r} has {name} {values.get(name)!r:.100}, not {expected!r:.100}"
            )
    return resolved


def _plain(value: Any) -> Any:
    """Return a value with bytes as text, and arrays and tuples as lists."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, np.generic):
        return value.item()
    return [_plain(item) for item in value] if isinstance(value, list | tuple | np.ndarray) else value

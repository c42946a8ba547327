"""Checks before a push: a candidate's signatures, assets and answers."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from ciml.errors import CimlError, IntegrityError
from ciml.http.intake import RequestError
from ciml.serving.description import (
    CLASSIFY,
    DESCRIBE,
    ROW,
    Specs,
    classify_outputs,
    published_definition,
    read_description,
)
from ciml.serving.server.model.loaded_model import DEFAULT_SIGNATURE, LoadedModel, load_model
from ciml.storage import Store
from ciml.verdict_rules import VERDICTS, read_rules

if TYPE_CHECKING:
    from ciml.datasets.definition import ResolvedDefinition

DEFINITION = "definition.json"
EXAMPLES = "examples"
#: One run takes a fraction of a millisecond; a slower model would delay predictions.
MAX_CALL_S = 1.0
_TOLERANCE = 1e-4


def read_definition(data: bytes, where: str) -> ResolvedDefinition:
    """Parse the data set definition of a model. Raises `IntegrityError` if it is invalid."""
    from ciml.datasets.definition import ResolvedDefinition

    try:
        return ResolvedDefinition.from_json(json.loads(data))
    except (ValueError, KeyError, TypeError, CimlError) as error:
        raise IntegrityError(f"{where} is not a data set definition: {error}") from None


def check_candidate(folder: Store) -> ResolvedDefinition:
    """Load a candidate as the model server does, and call both signatures.

    Returns:
      The data set definition in its assets.

    Raises:
      IntegrityError: naming the first defect.
    """
    where = folder.root
    try:
        definition = read_definition(folder.read(f"assets/{DEFINITION}"), f"{where}/assets/{DEFINITION}")
    except FileNotFoundError:
        raise IntegrityError(f"{where} has no assets/{DEFINITION}") from None
    with suppress(FileNotFoundError):  # a model of another label than the cause has none
        data = folder.read(f"assets/{VERDICTS}")
        read_rules(data, definition.classes, definition.features, f"{where}/assets/{VERDICTS}")
    model = load_model(folder)
    try:
        _check_signatures(model, definition, where)
        _query(model, definition, where)
    except RequestError as error:
        raise IntegrityError(f"{where} fails a test query: {error}") from None
    finally:
        model.close()
    return definition


def _check_signatures(model: LoadedModel, definition: ResolvedDefinition, where: str) -> None:
    rows = -1
    runs = {
        "inputs": ("float32", (rows, definition.windows, len(definition.features))),
        "n_windows": ("int32", (rows,)),
    }
    probabilities = {"probabilities": ("float32", (rows, len(definition.classes)))}
    by_definition: dict[str, tuple[Specs, Specs]] = {
        DEFAULT_SIGNATURE: (runs, probabilities),
        EXAMPLES: ({"examples": ("string", (rows,))}, probabilities),
        CLASSIFY: (runs, classify_outputs(definition)),
    }
    for name, (inputs, outputs) in by_definition.items():
        signature = model.signatures.get(name)
        if signature is None and name == CLASSIFY:
            continue  # a model of an earlier version
        if signature is None:
            raise IntegrityError(f"{where} has no signature {name!r}")
        for specs, expected in ((signature.inputs, inputs), (signature.outputs, outputs)):
            actual = {key: (spec.dtype, spec.shape) for key, spec in specs.items()}
            if actual != expected:
                raise IntegrityError(f"{where}: signature {name!r} has {actual}, expected {expected} by its definition")


def _query(model: LoadedModel, definition: ResolvedDefinition, where: str) -> None:
    windows = definition.windows
    features = len(definition.features)
    random = np.random.default_rng(0)
    inputs = np.concatenate([np.zeros((1, windows, features)), random.gamma(2.0, 50.0, (3, windows, features))]).astype(
        np.float32
    )
    n_windows = np.array([1, 1, max(windows // 2, 1), windows], np.int32)
    for row, count in enumerate(n_windows):
        inputs[row, count:] = 0.0
    answers = model.predict("", {"inputs": inputs, "n_windows": n_windows})["probabilities"]
    if not np.isfinite(answers).all():
        raise IntegrityError(f"{where} answers with probabilities that are not finite")
    if answers.min() < 0 or np.abs(answers.sum(axis=1) - 1).max() > _TOLERANCE:
        raise IntegrityError(f"{where} answers with values that are not probabilities")
    parsed = model.predict(EXAMPLES, {"examples": _examples(inputs, n_windows, definition)})["probabilities"]
    if not np.allclose(parsed, answers, rtol=0.0, atol=_TOLERANCE):
        raise IntegrityError(f"{where}: signatures {DEFAULT_SIGNATURE!r} and {EXAMPLES!r} give different answers")
    _check_description(model, definition, {"inputs": inputs, "n_windows": n_windows}, answers, where)
    started_s = time.perf_counter()
    model.predict("", {"inputs": inputs[:1], "n_windows": n_windows[:1]})
    if time.perf_counter() - started_s > MAX_CALL_S:
        raise IntegrityError(f"{where} takes longer than {MAX_CALL_S} s for one run")


def _check_description(
    model: LoadedModel, definition: ResolvedDefinition, runs: dict[str, Any], answers: np.ndarray, where: str
) -> None:
    """Raise `IntegrityError` if the classes or the description contradict the definition or the other answers."""
    if CLASSIFY in model.signatures:
        named = model.predict(CLASSIFY, runs)
        classes = np.array([name.encode() for name in definition.classes], object)
        same = (named["classes"] == classes).all() and (named["class"] == classes[answers.argmax(axis=1)]).all()
        if not same or not np.allclose(named["probabilities"], answers, rtol=0.0, atol=_TOLERANCE):
            raise IntegrityError(f"{where}: signatures {DEFAULT_SIGNATURE!r} and {CLASSIFY!r} give different answers")
    if DESCRIBE in model.signatures:
        outputs = model.predict(DESCRIBE, {ROW: np.zeros(1, np.int32)})
        described = read_description({name: values[0] for name, values in outputs.items()}, where)
        if described != published_definition(definition):
            raise IntegrityError(
                f"{where}: signature {DESCRIBE!r} describes another definition than assets/{DEFINITION}"
            )


def _examples(inputs: np.ndarray, n_windows: np.ndarray, definition: ResolvedDefinition) -> np.ndarray:
    import tensorflow as tf

    serialized = np.empty(len(inputs), dtype=object)
    for row, count in enumerate(n_windows):
        example = tf.train.Example()
        for number, name in enumerate(definition.features):
            example.features.feature[name].float_list.value.extend(inputs[row, :, number].tolist())
        example.features.feature["n_windows"].int64_list.value.append(int(count))
        serialized[row] = example.SerializeToString()
    return serialized

"""Exports a fitted estimator as a SavedModel of plain operations for TensorFlow Serving.

The model takes runs prepared by `ciml.transforms.examples.prepare.prepare`. If the estimator learned normalised inputs,
the export contains the graph that tf.Transform wrote for the training data, so training and serving cannot differ.

It describes itself by the signatures ``classify`` and ``describe``, whose outputs `ciml.serving.description` names.
``serving_default`` has numbers alone, so that tools without texts, such as OpenVINO, convert it.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ciml.datasets.definition import ResolvedDefinition
from ciml.errors import CimlError, EngineError, IntegrityError
from ciml.http.intake import RequestError
from ciml.limits import MAX_MODEL_CALL_S, MAX_MODEL_LOAD_S
from ciml.serving.description import CLASSIFY, DESCRIBE, ROW, describe_values
from ciml.serving.server.model.loaded_model import LoadedModel, load_model
from ciml.storage import open_store
from ciml.tensorflow import load_tensorflow
from ciml.training.calibration.calibrators import Calibrator
from ciml.training.conversion.step import Variables
from ciml.training.estimators.base import Fitted

SERVING = "serving_default"
EXAMPLES = "examples"
DEFINITION_ASSET = "assets/definition.json"
WARMUP = "assets.extra/tf_serving_warmup_requests"
#: Signatures and numbers of rows of the warm-up requests.
_WARMUP_CALLS = ((SERVING, 1), (SERVING, 32), (CLASSIFY, 1))
#: Runs in a call of `Exported.predict`.
_BATCH = 1024


#: Normalises a tensor ``inputs`` float32 [batch, L, F].
Normalise = Callable[[Any], Any]


def export(
    fitted: Fitted,
    normalise: Normalise | None,
    resolved: ResolvedDefinition,
    folder: Path,
    *,
    name: str,
    calibrator: Calibrator | None = None,
    assets: Mapping[str, bytes] | None = None,
) -> Path:
    """Write a SavedModel.

    Signatures:
      ``serving_default``: ``inputs`` float32 [batch, L, F], not normalised, and ``n_windows`` int32 [batch] to
        ``probabilities`` float32 [batch, C].
      ``examples``: ``examples`` string [batch], serialized ``tf.Example`` (each feature by its name, L floats;
        ``n_windows``, an int64), to the same.
      ``classify`` and ``describe``: see `described_signatures`.

    Args:
      fitted: the estimator.
      normalise: normalises its inputs, for an estimator that takes them so: `transform_of` or
        `ciml.training.normalise.Normalisation.graph`.
      resolved: the definition, stored as ``assets/definition.json``.
      folder: the folder to create; must not exist.
      name: the model's name, for the warm-up requests.
      calibrator: of the model's probabilities; in the graph, so that all callers get calibrated ones.
      assets: further files of ``assets/`` by name.

    Returns:
      ``folder``.

    Raises:
      ConversionError: a step of the estimator cannot be converted; the message names it.
    """
    tf = load_tensorflow()
    module = _module(fitted, normalise, resolved, calibrator)
    staging = folder.with_name(f"{folder.name}.staging")
    shutil.rmtree(staging, ignore_errors=True)
    signatures = {
        SERVING: module.serve,
        EXAMPLES: module.serve_examples,
        **described_signatures(module.serve, resolved, name),
    }
    tf.saved_model.save(module, str(staging), signatures=signatures)
    asset = staging / DEFINITION_ASSET
    warmup = staging / WARMUP
    asset.parent.mkdir(parents=True, exist_ok=True)
    asset.write_bytes(resolved.to_asset())
    for file_name, content in (assets or {}).items():
        asset.with_name(file_name).write_bytes(content)
    warmup.parent.mkdir(parents=True, exist_ok=True)
    _write_warmup(warmup, resolved, name)
    os.rename(staging, folder)
    return folder


def transform_of(transform_folder: Path) -> Normalise:
    """Return the transform that `ciml.training.data.materialise` wrote."""
    import tensorflow_transform as tft

    tf = load_tensorflow()
    transform = tft.TFTransformOutput(str(transform_folder))

    def normalise(inputs: Any) -> Any:
        # The transform requires the other columns of an example; the model does not use them.
        nothing = tf.zeros([tf.shape(inputs)[0]], tf.int64)
        raw = {"inputs": inputs, "n_windows": nothing, "label": nothing, "ordinal": nothing}
        return transform.transform_raw_features(raw)["inputs"]

    return normalise


def _module(
    fitted: Fitted, normalise: Normalise | None, resolved: ResolvedDefinition, calibrator: Calibrator | None
) -> Any:
    tf = load_tensorflow()
    windows = resolved.windows
    features = len(resolved.features)
    spec: dict[str, Any] = {feature: tf.io.FixedLenFeature([windows], tf.float32) for feature in resolved.features}
    spec["n_windows"] = tf.io.FixedLenFeature([], tf.int64)
    variables = Variables()
    graph = fitted.graph(variables)

    class Served(tf.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.stored = variables.all  # only tracked variables are saved

        def probabilities(self, inputs: Any, n_windows: Any) -> Any:
            answers = tf.cast(graph(inputs if normalise is None else normalise(inputs), n_windows), tf.float32)
            return {"probabilities": answers if calibrator is None else calibrator.graph(answers)}

        @tf.function(
            input_signature=[
                tf.TensorSpec([None, windows, features], tf.float32, "inputs"),
                tf.TensorSpec([None], tf.int32, "n_windows"),
            ],
            autograph=False,
        )
        def serve(self, inputs: Any, n_windows: Any) -> Any:
            return self.probabilities(inputs, n_windows)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "examples")], autograph=False)
        def serve_examples(self, examples: Any) -> Any:
            rows = tf.io.parse_example(examples, spec)
            inputs = tf.stack([rows[feature] for feature in resolved.features], axis=2)
            return self.probabilities(inputs, tf.cast(rows["n_windows"], tf.int32))

    return Served()


def _write_warmup(path: Path, resolved: ResolvedDefinition, name: str) -> None:
    """Write warm-up requests, since the first call of a model is slow."""
    tf = load_tensorflow()
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, rows in _WARMUP_CALLS:
            request = predict_pb2.PredictRequest()
            request.model_spec.name = name
            request.model_spec.signature_name = signature
            inputs = np.zeros((rows, resolved.windows, len(resolved.features)), np.float32)
            request.inputs["inputs"].CopyFrom(tf.make_tensor_proto(inputs))
            request.inputs["n_windows"].CopyFrom(tf.make_tensor_proto(np.ones(rows, np.int32)))
            log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
            writer.write(log.SerializeToString())


class Timed:
    """A model with ``predict``, whose latency can be measured."""

    predict: Callable[[np.ndarray, np.ndarray], np.ndarray]

    def latency_ms(self, inputs: np.ndarray, n_windows: np.ndarray, *, calls: int = 30) -> float:
        """Return the median latency in milliseconds of calls for the first run, after a few warm-up calls."""
        times = []
        for number in range(calls + 3):
            start = time.perf_counter()
            self.predict(inputs[:1], n_windows[:1])
            if number >= 3:
                times.append(time.perf_counter() - start)
        return median(times) * 1000


@dataclass(frozen=True)
class Exported(Timed):
    """A SavedModel loaded from its folder, without any code of the trainer."""

    folder: Path
    definition: ResolvedDefinition
    signatures: Mapping[str, Any]
    _loaded: Any

    def predict(self, inputs: np.ndarray, n_windows: np.ndarray) -> np.ndarray:
        """Predict probabilities float32 [n, C] of inputs float32 [n, L, F], not normalised, and n_windows int32 [n]."""
        tf = load_tensorflow()
        answers = np.zeros((len(inputs), len(self.definition.classes)), np.float32)
        for start in range(0, len(inputs), _BATCH):
            rows = slice(start, start + _BATCH)
            call = {"inputs": tf.constant(inputs[rows]), "n_windows": tf.constant(n_windows[rows])}
            answers[rows] = self.signatures[SERVING](**call)["probabilities"]
        return answers


class UnservedError(CimlError):
    """A model server could not load the model, or got no answer from it in time."""


class Served(Timed):
    """A SavedModel as a model server runs it: in a process of its own, which is killed if it does not answer.

    Raises:
      UnservedError: by `predict`.
    """

    def __init__(self, model: LoadedModel, classes: int) -> None:
        self._model = model
        self._classes = classes

    def predict(self, inputs: np.ndarray, n_windows: np.ndarray) -> np.ndarray:
        """Predict probabilities float32 [n, C] of inputs float32 [n, L, F], not normalised, and n_windows int32 [n]."""
        answers = np.zeros((len(inputs), self._classes), np.float32)
        for start in range(0, len(inputs), _BATCH):
            rows = slice(start, start + _BATCH)
            call = {"inputs": inputs[rows], "n_windows": n_windows[rows]}
            try:
                answers[rows] = self._model.predict(SERVING, call)["probabilities"]
            except RequestError as error:
                raise UnservedError(f"the exported model does not answer: {error}") from None
        return answers


@contextmanager
def load_served(folder: Path, *, call_s: float = MAX_MODEL_CALL_S) -> Iterator[Served]:
    """Load a model that `export` wrote in a process of its own, which ends with the context.

    Args:
      folder: on local disk.
      call_s: limit of a call, seconds.

    Raises:
      UnservedError: it cannot be loaded, or not in time.
    """
    definition = _definition_in(folder)
    try:
        model = load_model(open_store(folder), call_s=call_s, load_s=MAX_MODEL_LOAD_S)
    except (IntegrityError, EngineError) as error:
        raise UnservedError(f"the exported model cannot be loaded: {error}") from None
    try:
        yield Served(model, len(definition.classes))
    finally:
        model.close()


def _definition_in(folder: Path) -> ResolvedDefinition:
    return ResolvedDefinition.from_json(json.loads((folder / DEFINITION_ASSET).read_bytes()))


def load_exported(folder: Path | str) -> Exported:
    """Load a model that `export` wrote, from local disk.

    Raises:
      IntegrityError: if there is none, or its signatures are missing.
    """
    folder = Path(folder)
    tf = load_tensorflow()
    try:
        definition = _definition_in(folder)
        loaded = tf.saved_model.load(str(folder))
    except (OSError, ValueError, CimlError, tf.errors.OpError) as error:
        raise IntegrityError(f"{folder} is not an exported model: {str(error).splitlines()[0]}") from None
    for name in (SERVING, EXAMPLES):
        if name not in loaded.signatures:
            raise IntegrityError(f"{folder} has no signature {name!r}")
    return Exported(folder, definition, loaded.signatures, loaded)


def described_signatures(
    serve: Callable[..., Mapping[str, Any]], resolved: ResolvedDefinition, name: str
) -> dict[str, Any]:
    """Return the functions of ``classify`` and ``describe`` by the name of their signature.

    Args:
      serve: the function of ``serving_default``; ``classify`` calls it.
      resolved: the data set definition of the model.
      name: the model's name.
    """
    tf = load_tensorflow()
    values = describe_values(resolved, name)

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, resolved.windows, len(resolved.features)], tf.float32, "inputs"),
            tf.TensorSpec([None], tf.int32, "n_windows"),
        ]
    )
    def classify(inputs: Any, n_windows: Any) -> Any:
        probabilities = serve(inputs, n_windows)["probabilities"]
        classes = tf.constant(resolved.classes)
        return {
            "class": tf.gather(classes, tf.argmax(probabilities, axis=1)),
            "classes": _repeat(classes, n_windows),
            "probabilities": probabilities,
        }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, ROW)])
    def describe(row: Any) -> Any:
        return {key: _repeat(tf.constant(value, dtype), row) for key, (dtype, value) in values.items()}

    return {CLASSIFY: classify, DESCRIBE: describe}


def _repeat(value: Any, rows: Any) -> Any:
    """Return a constant once for each row: [batch, …]."""
    tf = load_tensorflow()
    return tf.broadcast_to(value, tf.concat([tf.shape(rows), tf.shape(value)], axis=0))

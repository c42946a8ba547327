"""Exports a trained model, with tf.Transform's normalisation inside, as a SavedModel for TensorFlow Serving.

The export contains the graph that tf.Transform wrote for the training data, so training and serving cannot differ. The
model takes runs prepared by `ciml.transforms.examples.prepare.prepare`.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ciml.datasets.definition import ResolvedDefinition
from ciml.errors import CimlError, IntegrityError
from ciml.serving.description import CLASSIFY
from ciml.tensorflow import load_tensorflow
from ciml.training.calibration.calibrators import Calibrator
from ciml.training.signatures import described_signatures

SERVING = "serving_default"
EXAMPLES = "examples"
DEFINITION_ASSET = "assets/definition.json"
WARMUP = "assets.extra/tf_serving_warmup_requests"
#: Signatures and numbers of rows of the warm-up requests.
_WARMUP_CALLS = ((SERVING, 1), (SERVING, 32), (CLASSIFY, 1))


def export(
    model: Any,
    transform_folder: Path,
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
      ``classify`` and ``describe``: see `ciml.training.signatures`.

    Args:
      model: a Keras model over normalised inputs.
      transform_folder: the transform written by `ciml.training.data.materialise`.
      resolved: the definition, stored as ``assets/definition.json``.
      folder: the folder to create; must not exist.
      name: the model's name, for the warm-up requests.
      calibrator: of the model's probabilities; in the graph, so that all callers get calibrated ones.
      assets: further files of ``assets/`` by name.

    Returns:
      ``folder``.
    """
    tf = load_tensorflow()
    module = _module(model, transform_folder, resolved, calibrator)
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


def _module(
    model: Any, transform_folder: Path, resolved: ResolvedDefinition, calibrator: Calibrator | None = None
) -> Any:
    tf = load_tensorflow()
    import tensorflow_transform as tft

    windows = resolved.windows
    features = len(resolved.features)
    transform = tft.TFTransformOutput(str(transform_folder))
    spec: dict[str, Any] = {feature: tf.io.FixedLenFeature([windows], tf.float32) for feature in resolved.features}
    spec["n_windows"] = tf.io.FixedLenFeature([], tf.int64)

    class Served(tf.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            # Own variables: the export contains no Keras objects and no optimizer.
            self.trainable = _variables(model.trainable_variables, "trainable")
            self.fixed = _variables(model.non_trainable_variables, "fixed")

        def probabilities(self, inputs: Any, n_windows: Any) -> Any:
            # The transform requires label and ordinal; the model does not use them.
            nothing = tf.zeros_like(n_windows, tf.int64)
            raw = {"inputs": inputs, "n_windows": tf.cast(n_windows, tf.int64), "label": nothing, "ordinal": nothing}
            normalised = transform.transform_raw_features(raw)
            rows = {"inputs": normalised["inputs"], "n_windows": n_windows}
            answers, _ = model.stateless_call(self.trainable, self.fixed, rows, training=False)
            answers = tf.cast(answers, tf.float32)
            return {"probabilities": answers if calibrator is None else calibrator.graph(answers)}

        @tf.function(
            input_signature=[
                tf.TensorSpec([None, windows, features], tf.float32, "inputs"),
                tf.TensorSpec([None], tf.int32, "n_windows"),
            ]
        )
        def serve(self, inputs: Any, n_windows: Any) -> Any:
            return self.probabilities(inputs, n_windows)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "examples")])
        def serve_examples(self, examples: Any) -> Any:
            rows = tf.io.parse_example(examples, spec)
            inputs = tf.stack([rows[feature] for feature in resolved.features], axis=2)
            return self.probabilities(inputs, tf.cast(rows["n_windows"], tf.int32))

    return Served()


def _variables(weights: Sequence[Any], kind: str) -> list[Any]:
    tf = load_tensorflow()
    return [
        tf.Variable(weight.numpy(), trainable=kind == "trainable", name=f"{kind}_{number}")
        for number, weight in enumerate(weights)
    ]


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


@dataclass(frozen=True)
class Exported:
    """A SavedModel loaded from its folder, without any code of the trainer."""

    folder: Path
    definition: ResolvedDefinition
    signatures: Mapping[str, Any]
    _loaded: Any

    def predict(self, inputs: np.ndarray, n_windows: np.ndarray, *, batch: int = 1024) -> np.ndarray:
        """Predict probabilities float32 [n, C] of inputs float32 [n, L, F], not normalised, and n_windows int32 [n]."""
        tf = load_tensorflow()
        answers = np.zeros((len(inputs), len(self.definition.classes)), np.float32)
        for start in range(0, len(inputs), batch):
            rows = slice(start, start + batch)
            call = {"inputs": tf.constant(inputs[rows]), "n_windows": tf.constant(n_windows[rows])}
            answers[rows] = self.signatures[SERVING](**call)["probabilities"]
        return answers

    def latency_ms(self, inputs: np.ndarray, n_windows: np.ndarray, *, calls: int = 30) -> float:
        """Return the median latency in milliseconds of calls for the first run, after a few warm-up calls."""
        times = []
        for number in range(calls + 3):
            start = time.perf_counter()
            self.predict(inputs[:1], n_windows[:1])
            if number >= 3:
                times.append(time.perf_counter() - start)
        return median(times) * 1000


def load_exported(folder: Path | str) -> Exported:
    """Load a model that `export` wrote, from local disk.

    Raises:
      IntegrityError: if there is none, or its signatures are missing.
    """
    import json

    folder = Path(folder)
    tf = load_tensorflow()
    try:
        definition = ResolvedDefinition.from_json(json.loads((folder / DEFINITION_ASSET).read_bytes()))
        loaded = tf.saved_model.load(str(folder))
    except (OSError, ValueError, CimlError, tf.errors.OpError) as error:
        raise IntegrityError(f"{folder} is not an exported model: {str(error).splitlines()[0]}") from None
    for name in (SERVING, EXAMPLES):
        if name not in loaded.signatures:
            raise IntegrityError(f"{folder} has no signature {name!r}")
    return Exported(folder, definition, loaded.signatures, loaded)

"""The signatures by which an exported model describes itself: ``classify`` and ``describe``.

`ciml.serving.description` names their outputs. ``serving_default`` has numbers alone, so that tools without texts, such
as OpenVINO, convert it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ciml.datasets.definition import ResolvedDefinition
from ciml.serving.description import CLASSIFY, DESCRIBE, ROW, describe_values
from ciml.tensorflow import load_tensorflow


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

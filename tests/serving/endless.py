"""SavedModels that TensorFlow never finishes, and cannot interrupt: it folds a constant or runs one operation."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

Kind = Literal["folding", "operation", "crash"]


def save_endless(folder: Path, kind: Kind) -> Path:
    """Write a model.

    Args:
      folder: of the SavedModel.
      kind: ``folding``: the first call folds one constant for hours; ``operation``: a call with an input above 1 runs
        one operation for hours; ``crash``: such a call takes more memory than there is.
    """
    import tensorflow as tf

    class Model(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
        def serve(self, x: Any) -> dict[str, Any]:
            return {"y": x + 0.0 * _endless(tf, kind, x)}

    model = Model()
    # Saved without Grappler, which would fold the constants here.
    tf.saved_model.save(model, str(folder), signatures={"serving_default": model.serve})
    return folder


def _endless(tf: Any, kind: Kind, x: Any) -> Any:
    if kind == "folding":
        return tf.reduce_sum(tf.nn.max_pool2d(tf.ones([1, 1500, 1500, 1]), 1000, 1, "SAME"))
    large = tf.reduce_max(tf.concat([x, [0.0]], 0)) > 1.0
    if kind == "operation":
        size = tf.where(large, 1500, 1)
        image = tf.fill(tf.stack([1, size, size, 1]), 1.0)
        return tf.reduce_sum(tf.nn.max_pool2d(image, 1000, 1, "SAME"))
    elements = tf.where(large, tf.constant(1 << 42, tf.int64), 1)
    return tf.reduce_sum(tf.cast(tf.fill(tf.stack([elements]), tf.constant(1, tf.int8)), tf.float32))

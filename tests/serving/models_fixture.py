"""Small SavedModels with the signatures that ciml serves, and defective ones."""

from __future__ import annotations

import atexit
import functools
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition, ResolvedDefinition
from ciml.serving.push import push
from ciml.serving.registry import Decision
from ciml.serving.server.model.loaded_model import masked_crc
from ciml.storage import Store, open_store
from ciml.training.export import described_signatures

L, F, C = 5, 3, 4
DEFINITION = ResolvedDefinition(
    definition=DatasetDefinition(name="small", sample_interval="10s", class_label="provider", max_windows=L),
    columns=("total cpu usage:usr", "total cpu usage:sys", "load avg:1m"),
    features=("usr", "sys", "1m"),
    classes=("a", "b", "c", "d"),
    windows=L,
)

#: Models that this process has written, by what they depend on.
_kept: dict[tuple[object, ...], Path] = {}


def save_model(
    folder: Path,
    seed: int = 1,
    *,
    definition: ResolvedDefinition = DEFINITION,
    scale: float = 0.01,
    spoil: str = "",
    warmup: int = 0,
    described: ResolvedDefinition | None = None,
) -> Path:
    """Write a SavedModel whose answers depend on ``seed``. ``spoil`` names its defect.

    With ``described`` it describes itself by that definition; without, it is a model of an earlier version of ciml.
    """
    if spoil in ("write", "save"):  # the address of its file is in the model
        return _save_model(folder, seed, definition, scale, spoil, warmup)
    key = (seed, definition.to_asset(), scale, spoil, warmup, described and described.to_asset())
    if key not in _kept:
        made = Path(tempfile.mkdtemp(prefix="ciml-model-"))
        _kept[key] = _save_model(made, seed, definition, scale, spoil, warmup, described)
        atexit.register(shutil.rmtree, _kept[key], ignore_errors=True)
    shutil.copytree(_kept[key], folder, dirs_exist_ok=True)
    return folder


def _save_model(
    folder: Path,
    seed: int,
    definition: ResolvedDefinition,
    scale: float,
    spoil: str,
    warmup: int,
    described: ResolvedDefinition | None = None,
) -> Path:
    import tensorflow as tf

    windows, features, classes = definition.windows, len(definition.features), len(definition.classes)
    random = np.random.default_rng(seed)

    class Model(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = tf.Variable(random.normal(size=(windows * features, classes)).astype("f4") * scale)
            self.bias = tf.Variable(random.normal(size=(classes,)).astype("f4"))
            self.folder = tf.Variable("nowhere")

        def answer(self, inputs: Any, n_windows: Any) -> Any:
            mask = tf.sequence_mask(n_windows, windows, tf.float32)[:, :, None]
            logits = tf.reshape(inputs * mask, [-1, windows * features]) @ self.weights + self.bias
            out = tf.nn.softmax(logits)
            if spoil == "nan":
                out = out / 0.0 * 0.0
            if spoil == "overflow":  # not finite for inputs beyond a million
                out = out * tf.where(tf.reduce_max(inputs, [1, 2], keepdims=True)[:, 0] > 1e6, np.nan, 1.0)
            if spoil == "hang":  # for inputs beyond a million
                turns = tf.while_loop(
                    lambda turn: tf.logical_and(tf.reduce_max(inputs) > 1e6, turn < 10**15),
                    lambda turn: turn + 1,
                    [tf.constant(0, tf.int64)],
                )
                out = out + 0.0 * tf.cast(turns[0], tf.float32)
            if spoil == "strict":  # fails for inputs beyond a million
                with tf.control_dependencies([tf.debugging.assert_less(tf.reduce_max(inputs), 1e6)]):
                    out = tf.identity(out)
            if spoil == "read":
                out = out + 0.0 * tf.cast(tf.strings.length(tf.io.read_file("/etc/hostname")), tf.float32)
            if spoil == "write":
                with tf.control_dependencies([tf.io.write_file(str(folder) + ".written", "x")]):
                    out = tf.identity(out)
            if spoil == "python":
                out = tf.py_function(lambda x: x, [out], tf.float32)
                out.set_shape([None, classes])
            if spoil == "save":
                with tf.control_dependencies([tf.raw_ops.SaveV2(
                    prefix=str(folder) + ".written", tensor_names=["x"], shape_and_slices=[""], tensors=[1.0]
                )]):  # fmt: skip
                    out = tf.identity(out)
            return out

        @tf.function(
            input_signature=[
                tf.TensorSpec([None, windows, features], tf.float32, "inputs"),
                tf.TensorSpec([None], tf.int32, "n_windows"),
            ]
        )
        def serve(self, inputs: Any, n_windows: Any) -> Any:
            return {"probabilities": self.answer(inputs, n_windows)}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "examples")])
        def examples(self, examples: Any) -> Any:
            spec: dict[str, Any] = {name: tf.io.FixedLenFeature([windows], tf.float32) for name in definition.features}
            spec["n_windows"] = tf.io.FixedLenFeature([], tf.int64)
            parsed = tf.io.parse_example(examples, spec)
            inputs = tf.stack([parsed[name] for name in definition.features], axis=2)
            return {"probabilities": self.answer(inputs, tf.cast(parsed["n_windows"], tf.int32))}

        @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, "x"), tf.TensorSpec([None], tf.string, "s")])
        def several(self, x: Any, s: Any) -> Any:
            return {"double": x * 2.0, "s_bytes": s, "text": tf.strings.join([s, tf.constant("!")])}

    model = Model()
    signatures = {"serving_default": model.serve, "examples": model.examples, "several": model.several}
    if described:
        signatures |= described_signatures(model.serve, described, "m")
    if spoil == "signature":
        del signatures["examples"]
    tf.saved_model.save(model, str(folder), signatures=signatures)
    (folder / "assets").mkdir(exist_ok=True)
    (folder / "assets" / "definition.json").write_bytes(definition.to_asset())
    if warmup:
        write_warmup(folder, warmup)
    return folder


def stand_in(folder: Path, number: int) -> Store:
    """Write files that stand for a model, other ones for each number, where nothing loads it; return their folder."""
    (folder / "assets").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(bytes([number]))
    (folder / "assets" / "definition.json").write_bytes(DEFINITION.to_asset())
    return open_store(folder)


def push_models(data: DataRoot, *folders: Path, model: str = "m", **options: Any) -> int:
    """Push folders as blessed and unchecked candidates; return the last version."""
    return [push(data, model, open_store(folder), Decision(True), check=False, **options) for folder in folders][
        -1
    ].version


def frame(record: bytes) -> bytes:
    """Return a record in TFRecord framing."""
    length = struct.pack("<Q", len(record))
    checksums = [struct.pack("<I", masked_crc(data)) for data in (length, record)]
    return length + checksums[0] + record + checksums[1]


def write_warmup(folder: Path, records: int) -> None:
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    (folder / "assets.extra").mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(folder / "assets.extra" / "tf_serving_warmup_requests")) as out:
        log = prediction_log_pb2.PredictionLog()
        request = log.predict_log.request
        request.inputs["inputs"].CopyFrom(tf.make_tensor_proto(np.ones((1, L, F), "f4")))
        request.inputs["n_windows"].CopyFrom(tf.make_tensor_proto(np.ones(1, "i4")))
        for _ in range(records):
            out.write(log.SerializeToString())


def runs(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs float32 [rows, L, F] and n_windows int32 [rows]."""
    random = np.random.default_rng(seed)
    return random.gamma(2.0, 20.0, (rows, L, F)).astype("f4"), random.integers(1, L + 1, rows).astype("i4")


def columns(rows: int) -> dict[str, Any]:
    """Return the body of a REST request with `runs`."""
    inputs, n_windows = runs(rows)
    return {"inputs": {"inputs": inputs.tolist(), "n_windows": n_windows.tolist()}}


@functools.cache
def _loaded(folder: str) -> Any:
    import tensorflow as tf

    return tf.saved_model.load(folder)


def direct(folder: Path, inputs: np.ndarray, n_windows: np.ndarray) -> np.ndarray:
    """Return TensorFlow's own predictions."""
    import tensorflow as tf

    call = _loaded(str(folder)).signatures["serving_default"]
    return call(inputs=tf.constant(inputs), n_windows=tf.constant(n_windows))["probabilities"].numpy()

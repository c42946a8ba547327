"""The batch pipeline of `ciml.training.data.materialise`: Parquet examples through tf.Transform to TFRecord.

Examples are Arrow record batches: for rows as dicts, tf.Transform takes a hundred times as long. The elements are
indices of files: ``beam.Create`` would encode and compress the expected rows repeatedly.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ciml.tensorflow import load_tensorflow

tf = load_tensorflow()


import apache_beam as beam  # noqa: E402  (TensorFlow has to be set up before Beam and tf.Transform import it)
import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import tensorflow_transform.beam as tft_beam  # noqa: E402
from tensorflow_metadata.proto.v0 import schema_pb2  # noqa: E402
from tfx_bsl.tfxio import tensor_adapter  # noqa: E402

from ciml.datasets.definition import ResolvedDefinition  # noqa: E402
from ciml.storage import Store  # noqa: E402
from ciml.training.data.examples import Examples, FileTask, file_tasks, read_rows  # noqa: E402
from ciml.training.data.snapshot import RECORDS_FOLDER, ROLES, TRANSFORM_FOLDER, Role, Snapshot, shard_name  # noqa: E402
from ciml.training.normalise import Normalisation  # noqa: E402
from ciml.transforms.beam import run_here  # noqa: E402
from ciml.transforms.guard import keep_error  # noqa: E402

_BATCH_ROWS = 4096
_BATCH_VALUES = 8 << 20  # 32 MB of float32
_SCALARS = ("n_windows", "label", "ordinal")
#: The tasks by the folder that is materialised.
_tasks: dict[str, list[FileTask]] = {}


def run_pipeline(root: Store, snapshot: Snapshot, folder: Path, normalisation: Normalisation) -> None:
    """Build the pipeline, and run it in this process."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="tmp-") as temp, tft_beam.Context(temp_dir=temp):
        try:
            run_here(lambda pipeline: build_materialise(pipeline, root, snapshot, folder, normalisation))
        finally:
            _tasks.pop(str(folder), None)


def build_materialise(
    pipeline: beam.Pipeline, root: Store, snapshot: Snapshot, folder: Path, normalisation: Normalisation
) -> None:
    """Build the bounded pipeline. Call it within a ``tft_beam.Context`` that has a folder for temporary files."""
    resolved = snapshot.resolved
    config = adapter_config(resolved)
    _tasks[str(folder)] = tasks = file_tasks(snapshot)

    def normalise(tensors: Mapping[str, Any]) -> dict[str, Any]:
        return {**tensors, "inputs": normalisation.graph(tensors["inputs"])}

    # It has no analyzers, so it needs no rows.
    transform_fn, _ = ({}, {}, config) | "analyse" >> tft_beam.AnalyzeDatasetWithCache(normalise, pipeline=pipeline)
    _ = transform_fn | "write transform" >> tft_beam.WriteTransformFn(str(folder / TRANSFORM_FOLDER))
    rows = _read(pipeline, range(len(tasks)), ReadRows(root, resolved, str(folder)))
    (normalised, _) = ((rows, config), transform_fn) | "normalise" >> tft_beam.TransformDataset(
        output_record_batches=True
    )
    roles = [run.role for run in snapshot.runs()]
    _ = normalised | "write records" >> beam.ParDo(WriteRecords(str(folder / RECORDS_FOLDER), roles))


def adapter_config(resolved: ResolvedDefinition) -> tensor_adapter.TensorAdapterConfig:
    """Return tf.Transform's configuration for the record batches of `to_batch`."""

    def dense(column: str, *sizes: int) -> schema_pb2.TensorRepresentation:
        shape = schema_pb2.FixedShape(dim=[schema_pb2.FixedShape.Dim(size=size) for size in sizes])
        tensor = schema_pb2.TensorRepresentation.DenseTensor(column_name=column, shape=shape)
        return schema_pb2.TensorRepresentation(dense_tensor=tensor)

    representations = {name: dense(name) for name in _SCALARS}
    representations["inputs"] = dense("inputs", resolved.windows, len(resolved.features))
    return tensor_adapter.TensorAdapterConfig(to_batch(Examples.of([])).schema, representations)


def to_batch(examples: Examples) -> pa.RecordBatch:
    """Return examples as Arrow lists, one per row: ``inputs`` float32 of L * F values, the others int64 of one."""
    columns = {
        "inputs": examples.inputs.reshape(-1),
        "n_windows": examples.n_windows.astype(np.int64),
        "label": examples.labels,
        "ordinal": examples.ordinals,
    }
    n = len(examples)
    arrays = []
    for values in columns.values():
        width = values.size // n if n else 1
        offsets = np.arange(n + 1, dtype=np.int64) * width
        arrays.append(pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(np.ascontiguousarray(values))))
    return pa.RecordBatch.from_arrays(arrays, list(columns))


def _read(pipeline: beam.Pipeline, tasks: Sequence[int], read: ReadRows) -> beam.PCollection:
    return (
        pipeline
        | "files" >> beam.Create(tasks, reshuffle=False)
        | "read" >> beam.ParDo(read).with_output_types(pa.RecordBatch)
    )


class ReadRows(beam.DoFn):
    """Read the file at an index of `ciml.training.data.examples.file_tasks`, as record batches of bounded size."""

    def __init__(self, root: Store, resolved: ResolvedDefinition, folder: str) -> None:
        super().__init__()
        self._root = root
        self._resolved = resolved
        self._folder = folder

    def process(self, index: int) -> Iterator[pa.RecordBatch]:
        with keep_error():
            examples = read_rows(self._root, _tasks[self._folder][index], self._resolved)
        values = self._resolved.windows * len(self._resolved.features)
        size = max(1, min(_BATCH_ROWS, _BATCH_VALUES // values))
        for start in range(0, len(examples), size):
            yield to_batch(examples.take(slice(start, start + size)))


class WriteRecords(beam.DoFn):
    """Write normalised record batches to TFRecord files, one per role and batch.

    A file's name follows from its rows, so neither a shuffle nor a shared writer is needed.
    """

    def __init__(self, folder: str, roles: Sequence[Role]) -> None:
        super().__init__()
        self._folder = folder
        self._roles = np.array([ROLES.index(role) for role in roles], np.uint8)

    def process(self, element: tuple[pa.RecordBatch, Any]) -> None:
        batch = element[0] if isinstance(element, tuple) else element
        columns = {name: np.from_dlpack(batch.column(name).flatten()) for name in ("inputs", *_SCALARS)}
        inputs = columns["inputs"].reshape(batch.num_rows, -1)
        role_of = self._roles[columns["ordinal"]]
        for number, role in enumerate(ROLES):
            rows = np.flatnonzero(role_of == number)
            if rows.size:
                name = shard_name(role, int(columns["ordinal"][rows].min()), rows.size)
                scalars = {scalar: columns[scalar][rows].tolist() for scalar in _SCALARS}
                self._write(name, encode(inputs[rows], scalars))

    def _write(self, name: str, records: Iterator[bytes]) -> None:
        path = os.path.join(self._folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        staged = os.path.join(os.path.dirname(path), f".staged-{uuid.uuid4().hex}")  # workers may repeat each other
        with tf.io.TFRecordWriter(staged) as writer:
            for record in records:
                writer.write(record)
        os.replace(staged, path)


def encode(inputs: np.ndarray, scalars: Mapping[str, Sequence[int]]) -> Iterator[bytes]:
    """Yield each row as a serialised ``tf.Example``.

    Two concatenated Protocol Buffers messages parse as one merged message. Here the first one holds the floats: its
    head is the same in every row, and its tail is the bytes of the array. The second one holds the scalars.

    Args:
      inputs: float32 [rows, values], one value at least.
      scalars: an int64 per row, by name.
    """
    zeros = tf.train.Example()
    zeros.features.feature["inputs"].float_list.value.extend([0.0] * inputs.shape[1])
    head = zeros.SerializeToString()[: -4 * inputs.shape[1]]
    floats = np.ascontiguousarray(inputs, "<f4")
    for row, values in zip(floats, zip(*scalars.values(), strict=True), strict=True):
        example = tf.train.Example()
        for name, value in zip(scalars, values, strict=True):
            example.features.feature[name].int64_list.value.append(value)
        yield b"".join((head, row.tobytes(), example.SerializeToString(deterministic=True)))

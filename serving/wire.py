"""The messages of a TensorFlow Serving client, without importing TensorFlow.

The stubs of tensorflow-serving-api import TensorFlow, which costs a worker seconds and half a gigabyte. The wire format
depends on field numbers alone: these are the numbers of ``tensorflow_serving/apis`` and ``tensorflow/core/framework``,
in a package of our own, so that both can exist in one process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

if TYPE_CHECKING:
    from numpy.typing import NDArray

PREDICT = "/tensorflow.serving.PredictionService/Predict"
STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
AVAILABLE = 30
_PACKAGE = "ciml.wire"
_DTYPES = {"float32": 1, "int32": 3}

_Field = descriptor_pb2.FieldDescriptorProto
_KINDS = {
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "float": _Field.TYPE_FLOAT,
}
# Message: fields as (name, number, type); "*" means repeated. Enumerations are int32 on the wire.
_MESSAGES = {
    "Int64Value": [("value", 1, "int64")],
    "ModelSpec": [
        ("name", 1, "string"), ("version", 2, "Int64Value"),
        ("signature_name", 3, "string"), ("version_label", 4, "string"),
    ],
    "Dim": [("size", 1, "int64")],
    "Shape": [("dim", 2, "*Dim")],
    "Tensor": [
        ("dtype", 1, "int32"), ("tensor_shape", 2, "Shape"), ("tensor_content", 4, "bytes"), ("float_val", 5, "*float"),
    ],
    "Named": [("key", 1, "string"), ("value", 2, "Tensor")],
    "PredictRequest": [("model_spec", 1, "ModelSpec"), ("inputs", 2, "*Named"), ("output_filter", 3, "*string")],
    "PredictResponse": [("outputs", 1, "*Named"), ("model_spec", 2, "ModelSpec")],
    "StatusRequest": [("model_spec", 1, "ModelSpec")],
    "Status": [("error_code", 1, "int32"), ("error_message", 2, "string")],
    "VersionStatus": [("version", 1, "int64"), ("state", 2, "int32"), ("status", 3, "Status")],
    "StatusResponse": [("model_version_status", 1, "*VersionStatus")],
    # For the server: nested messages stay bytes, to be counted before they are parsed.
    "RequestHead": [("model_spec", 1, "bytes"), ("inputs", 2, "*bytes"), ("output_filter", 3, "*bytes")],
    "RequestInput": [("key", 1, "string"), ("value", 2, "bytes")],
    "TensorHead": [("tensor_shape", 2, "bytes"), ("resource_handle_val", 14, "*bytes"), ("variant_val", 15, "*bytes")],
}  # fmt: skip


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="ciml/wire.proto", package=_PACKAGE, syntax="proto3")
    for message, fields in _MESSAGES.items():
        described = file.message_type.add(name=message)
        for name, number, kind in fields:
            plain = kind.removeprefix("*")
            field = described.field.add(name=name, number=number)
            field.label = _Field.LABEL_REPEATED if kind.startswith("*") else _Field.LABEL_OPTIONAL
            field.type = _KINDS.get(plain, _Field.TYPE_MESSAGE)
            if plain not in _KINDS:
                field.type_name = f".{_PACKAGE}.{plain}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        message: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{message}"))
        for message in _MESSAGES
    }


_CLASSES = _classes()
PredictRequest = _CLASSES["PredictRequest"]
PredictResponse = _CLASSES["PredictResponse"]
StatusRequest = _CLASSES["StatusRequest"]
StatusResponse = _CLASSES["StatusResponse"]
RequestHead = _CLASSES["RequestHead"]
RequestInput = _CLASSES["RequestInput"]
TensorHead = _CLASSES["TensorHead"]


def put_array(request: Any, name: str, array: NDArray[Any]) -> None:
    """Add a float32 or int32 array to a PredictRequest."""
    entry = request.inputs.add(key=name)
    entry.value.dtype = _DTYPES[array.dtype.name]
    for size in array.shape:
        entry.value.tensor_shape.dim.add(size=size)
    entry.value.tensor_content = np.ascontiguousarray(array).tobytes()


def get_floats(response: Any, name: str) -> NDArray[np.float32]:
    """Return a float32 output of a PredictResponse. Raises `KeyError` if it is missing, `ValueError` if malformed."""
    for entry in response.outputs:
        if entry.key == name:
            tensor = entry.value
            if tensor.dtype != _DTYPES["float32"]:
                raise ValueError(f"output {name!r} is not float32")
            shape = [dim.size for dim in tensor.tensor_shape.dim]
            if tensor.tensor_content:
                return np.frombuffer(tensor.tensor_content, np.float32).reshape(shape)
            return np.array(tensor.float_val, np.float32).reshape(shape)
    raise KeyError(name)

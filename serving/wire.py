"""Messages of TensorFlow Serving's gRPC API without TensorFlow: the client's, and the server's first step of parsing.

The stubs of tensorflow-serving-api import TensorFlow, which costs a worker seconds and half a gigabyte. The wire format
depends on field numbers alone. The fields declared here are those of ``tensorflow_serving/apis`` and
``tensorflow/core/framework`` that ciml uses, in a package of their own, so that both can exist in one process.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE = "ciml.wire"
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
        ("name", 1, "string"),
        ("version", 2, "Int64Value"),
        ("signature_name", 3, "string"),
        ("version_label", 4, "string"),
    ],
    "Dim": [("size", 1, "int64")],
    "Shape": [("dim", 2, "*Dim")],
    "Tensor": [
        ("dtype", 1, "int32"),
        ("tensor_shape", 2, "Shape"),
        ("tensor_content", 4, "bytes"),
        ("float_val", 5, "*float"),
    ],
    "Named": [("key", 1, "string"), ("value", 2, "Tensor")],
    "PredictRequest": [("model_spec", 1, "ModelSpec"), ("inputs", 2, "*Named"), ("output_filter", 3, "*string")],
    "PredictResponse": [("outputs", 1, "*Named"), ("model_spec", 2, "ModelSpec")],
    "StatusRequest": [("model_spec", 1, "ModelSpec")],
    "Status": [("error_code", 1, "int32"), ("error_message", 2, "string")],
    "VersionStatus": [("version", 1, "int64"), ("state", 2, "int32"), ("status", 3, "Status")],
    "StatusResponse": [("model_version_status", 1, "*VersionStatus")],
    # The heads of a PredictRequest and of its tensors: nested messages are kept as bytes, to be counted first.
    "RequestHead": [("model_spec", 1, "bytes"), ("inputs", 2, "*bytes"), ("output_filter", 3, "*bytes")],
    "RequestInput": [("key", 1, "string"), ("value", 2, "bytes")],
    "TensorHead": [("tensor_shape", 2, "bytes"), ("resource_handle_val", 14, "*bytes"), ("variant_val", 15, "*bytes")],
}


def _classes() -> dict[str, Any]:
    """Build the message classes of `_MESSAGES`, by name."""
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

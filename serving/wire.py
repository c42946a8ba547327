"""Messages of TensorFlow Serving's gRPC API without TensorFlow, for clients and for the server.

The stubs of tensorflow-serving-api import TensorFlow, which costs a process seconds and half a gigabyte. The wire
format depends on field numbers alone. The fields declared here are those of ``tensorflow_serving/apis`` and
``tensorflow/core`` that ciml uses, in a package of their own, so that both can exist in one process.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE = "ciml.wire"
_Field = descriptor_pb2.FieldDescriptorProto
_KINDS = {
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
    "bool": _Field.TYPE_BOOL,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "uint32": _Field.TYPE_UINT32,
    "uint64": _Field.TYPE_UINT64,
    "float": _Field.TYPE_FLOAT,
    "double": _Field.TYPE_DOUBLE,
    "DataType": _Field.TYPE_ENUM,
}
#: The names of TensorFlow's dtypes by their numbers. A type with 100 added is a reference.
DTYPE_NAMES = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 7: "string", 8: "complex64",
    9: "int64", 10: "bool", 11: "qint8", 12: "quint8", 13: "qint32", 14: "bfloat16", 15: "qint16", 16: "quint16",
    17: "uint16", 18: "complex128", 19: "float16", 20: "resource", 21: "variant", 22: "uint32", 23: "uint64",
    24: "float8_e5m2", 25: "float8_e4m3fn", 26: "float8_e4m3fnuz", 27: "float8_e4m3b11fnuz", 28: "float8_e5m2fnuz",
    29: "int4", 30: "uint4", 31: "int2", 32: "uint2", 33: "float4_e2m1fn",
}  # fmt: skip
#: Names that the enumeration ``DataType`` spells otherwise.
_ENUM_NAMES = {"float32": "FLOAT", "float64": "DOUBLE", "float16": "HALF"}
# Message: fields as (name, number, type) or (name, number, type, group), of which one of a group is set. "*" means
# repeated, "{}" a map from texts. Enumerations without a name in JSON are int32, as on the wire.
_MESSAGES: dict[str, list[tuple[str, int, str] | tuple[str, int, str, str]]] = {
    "Int64Value": [("value", 1, "int64")],
    "ModelSpec": [
        ("name", 1, "string"),
        ("version", 2, "Int64Value", "version_choice"),
        ("version_label", 4, "string", "version_choice"),
        ("signature_name", 3, "string"),
    ],
    "Dim": [("size", 1, "int64"), ("name", 2, "string")],
    "TensorShapeProto": [("dim", 2, "*Dim"), ("unknown_rank", 3, "bool")],
    "TensorProto": [
        ("dtype", 1, "int32"),
        ("tensor_shape", 2, "TensorShapeProto"),
        ("tensor_content", 4, "bytes"),
        ("half_val", 13, "*int32"),
        ("float_val", 5, "*float"),
        ("double_val", 6, "*double"),
        ("int_val", 7, "*int32"),
        ("string_val", 8, "*bytes"),
        ("scomplex_val", 9, "*float"),
        ("int64_val", 10, "*int64"),
        ("bool_val", 11, "*bool"),
        ("dcomplex_val", 12, "*double"),
        ("uint32_val", 16, "*uint32"),
        ("uint64_val", 17, "*uint64"),
        ("float8_val", 18, "bytes"),
    ],
    "Named": [("key", 1, "string"), ("value", 2, "TensorProto")],
    "PredictRequest": [("model_spec", 1, "ModelSpec"), ("inputs", 2, "*Named"), ("output_filter", 3, "*string")],
    "PredictResponse": [("outputs", 1, "*Named"), ("model_spec", 2, "ModelSpec")],
    "GetModelStatusRequest": [("model_spec", 1, "ModelSpec")],
    "Status": [("error_code", 1, "int32"), ("error_message", 2, "string")],
    "VersionStatus": [("version", 1, "int64"), ("state", 2, "int32"), ("status", 3, "Status")],
    "GetModelStatusResponse": [("model_version_status", 1, "*VersionStatus")],
    "GetModelMetadataRequest": [("model_spec", 1, "ModelSpec"), ("metadata_field", 2, "*string")],
    "Any": [("type_url", 1, "string"), ("value", 2, "bytes")],
    "GetModelMetadataResponse": [("model_spec", 1, "ModelSpec"), ("metadata", 2, "{Any}")],
    "TensorInfo": [("name", 1, "string"), ("dtype", 2, "DataType"), ("tensor_shape", 3, "TensorShapeProto")],
    "SignatureDef": [
        ("inputs", 1, "{TensorInfo}"),
        ("outputs", 2, "{TensorInfo}"),
        ("method_name", 3, "string"),
        ("defaults", 4, "{TensorProto}"),
    ],
    "SignatureDefMap": [("signature_def", 1, "{SignatureDef}")],
    # Its configuration is a ModelServerConfig.
    "ReloadConfigRequest": [("config", 1, "bytes")],
    # A record of warm-up requests. The kinds that are not replayed have no fields here.
    "OtherLog": [],
    "PredictLog": [("request", 1, "PredictRequest")],
    "PredictionLog": [
        ("predict_log", 6, "PredictLog", "log_type"),
        *(
            (f"{name}_log", number, "OtherLog", "log_type")
            for name, number in {
                "classify": 2, "regress": 3, "multi_inference": 4, "session_run": 5, "predict_streamed": 7
            }.items()
        ),
    ],
    # The heads of a PredictRequest and of its tensors: nested messages are kept as bytes, to be counted first.
    "RequestHead": [("model_spec", 1, "bytes"), ("inputs", 2, "*bytes"), ("output_filter", 3, "*bytes")],
    "RequestInput": [("key", 1, "string"), ("value", 2, "bytes")],
    "TensorHead": [("tensor_shape", 2, "bytes"), ("resource_handle_val", 14, "*bytes"), ("variant_val", 15, "*bytes")],
}  # fmt: skip


def _classes() -> dict[str, Any]:
    """Build the message classes of `_MESSAGES`, by name."""
    file = descriptor_pb2.FileDescriptorProto(name="ciml/wire.proto", package=_PACKAGE, syntax="proto3")
    dtypes = file.enum_type.add(name="DataType")
    dtypes.value.add(name="DT_INVALID", number=0)
    for number, name in DTYPE_NAMES.items():
        dtypes.value.add(name=f"DT_{_ENUM_NAMES.get(name, name.upper())}", number=number)
    for message, fields in _MESSAGES.items():
        _describe(file.message_type.add(name=message), fields)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        message: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{message}"))
        for message in _MESSAGES
    }


def _describe(message: Any, fields: Any) -> None:
    """Add fields to the description of a message."""
    groups: list[str] = []
    for name, number, kind, *group in fields:
        field = message.field.add(name=name, number=number)
        field.label = _Field.LABEL_REPEATED if kind[0] in "*{" else _Field.LABEL_OPTIONAL
        plain = kind.strip("*{}")
        field.type = _KINDS.get(plain, _Field.TYPE_MESSAGE)
        if plain not in _KINDS or plain == "DataType":
            field.type_name = f".{_PACKAGE}.{plain}"
        if kind[0] == "{":
            entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
            entry.options.map_entry = True
            _describe(entry, [("key", 1, "string"), ("value", 2, plain)])
            field.type_name = f".{_PACKAGE}.{message.name}.{entry.name}"
        if group and group[0] not in groups:
            groups += group
            message.oneof_decl.add(name=group[0])
        if group:
            field.oneof_index = groups.index(group[0])


_CLASSES = _classes()
ModelSpec = _CLASSES["ModelSpec"]
Tensor = _CLASSES["TensorProto"]
PredictRequest = _CLASSES["PredictRequest"]
PredictResponse = _CLASSES["PredictResponse"]
StatusRequest = _CLASSES["GetModelStatusRequest"]
StatusResponse = _CLASSES["GetModelStatusResponse"]
MetadataRequest = _CLASSES["GetModelMetadataRequest"]
MetadataResponse = _CLASSES["GetModelMetadataResponse"]
SignatureDefMap = _CLASSES["SignatureDefMap"]
ReloadRequest = _CLASSES["ReloadConfigRequest"]
PredictionLog = _CLASSES["PredictionLog"]
RequestHead = _CLASSES["RequestHead"]
RequestInput = _CLASSES["RequestInput"]
TensorHead = _CLASSES["TensorHead"]

"""Tensors and messages without TensorFlow: each is that of TensorFlow's own code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciml.http.intake import RequestError
from ciml.serving import wire
from ciml.serving.server.model.messages import STRING, numpy_dtype
from ciml.serving.server.model.tensors import declared, fill_tensor, read_array, unpacked_bytes
from ciml.tensorflow import load_tensorflow

#: Dtypes that a signature may have.
DTYPES = [
    name for name in wire.DTYPE_NAMES.values() if not name.startswith("q") and name not in ("resource", "variant")
]
NUMBERS = {name: number for number, name in wire.DTYPE_NAMES.items()}


#: The full name of TensorFlow's own message for each one that is declared in full or in part.
ORIGINALS = {
    **{name: f"google.protobuf.{name}" for name in ("Int64Value", "Any")},
    **{name: f"tensorflow.{name}" for name in ("TensorShapeProto", "TensorProto", "TensorInfo", "SignatureDef")},
    **{
        name: f"tensorflow.serving.{name}"
        for name in (
            "ModelSpec", "PredictRequest", "PredictResponse", "GetModelStatusRequest", "GetModelStatusResponse",
            "GetModelMetadataRequest", "GetModelMetadataResponse", "SignatureDefMap", "ReloadConfigRequest",
            "PredictLog", "PredictionLog",
        )
    },
    "Dim": "tensorflow.TensorShapeProto.Dim",
    "Named": "tensorflow.serving.PredictRequest.InputsEntry",
    "RequestInput": "tensorflow.serving.PredictRequest.InputsEntry",
    "RequestHead": "tensorflow.serving.PredictRequest",
    "TensorHead": "tensorflow.TensorProto",
    "Status": "tensorflow.serving.StatusProto",
    "VersionStatus": "tensorflow.serving.ModelVersionStatus",
}  # fmt: skip


def wire_types(kind: int) -> set[int]:
    """The types of protobuf that a field of a declared type reads: texts and messages are bytes."""
    field = wire._Field
    return {kind} | {
        field.TYPE_INT32: {field.TYPE_ENUM},
        field.TYPE_BYTES: {field.TYPE_MESSAGE, field.TYPE_STRING},
    }.get(kind, set())


def test_every_field_has_the_number_and_the_type_of_tensorflow_serving() -> None:
    load_tensorflow()
    from google.protobuf import descriptor_pool
    from tensorflow.core.framework import types_pb2
    from tensorflow_serving.apis import (  # noqa: F401 - each adds its messages to the pool
        get_model_metadata_pb2,
        get_model_status_pb2,
        model_management_pb2,
        prediction_log_pb2,
    )

    assert ORIGINALS.keys() == wire._MESSAGES.keys() - {"OtherLog"}
    for name, full_name in ORIGINALS.items():
        original = descriptor_pool.Default().FindMessageTypeByName(full_name)
        for field in wire._CLASSES[name].DESCRIPTOR.fields:
            theirs = original.fields_by_name[field.name]
            assert field.number == theirs.number, (name, field.name)
            assert theirs.type in wire_types(field.type), (name, field.name)
            assert field.is_repeated == theirs.is_repeated, (name, field.name)
            group = theirs.containing_oneof
            if group is not None and len(group.fields) > 1 and name != "TensorInfo":
                assert field.containing_oneof.name == group.name, (name, field.name)
    ours = wire.SignatureDefMap.DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_name
    assert {name: value.number for name, value in ours.items()} == {
        name: number for name, number in types_pb2.DataType.items() if number < 100
    }


def test_names_of_dtypes_are_those_of_tensorflow() -> None:
    tf = load_tensorflow()
    for number in (*range(-2, 50), *range(99, 140)):
        try:
            name = tf.as_dtype(number).name
        except TypeError:
            with pytest.raises(RequestError, match=f"unknown type {number}"):
                declared("x", wire.Tensor(dtype=number))
            continue
        assert declared("x", wire.Tensor(dtype=number)) == (name, ())


FIELDS = {
    "float_val": st.floats(width=32),
    "double_val": st.floats(),
    "scomplex_val": st.floats(width=32),
    "dcomplex_val": st.floats(),
    "half_val": st.integers(0, 2**16 - 1),
    "int_val": st.integers(-300, 300),
    "int64_val": st.integers(-(2**63), 2**63 - 1),
    "uint32_val": st.integers(0, 2**32 - 1),
    "uint64_val": st.integers(0, 2**64 - 1),
    "bool_val": st.booleans(),
    "string_val": st.binary(max_size=4),
}


@st.composite
def serialized_tensors(draw: st.DrawFn) -> tuple[str, bytes]:
    """A dtype, and a tensor of it with values in any fields, often of a wrong number."""
    dtype = draw(st.sampled_from(DTYPES))
    tensor = wire.Tensor(dtype=NUMBERS[dtype])
    for size in draw(st.lists(st.integers(0, 3), max_size=3)):
        tensor.tensor_shape.dim.add().size = size
    for name, values in FIELDS.items():
        getattr(tensor, name).extend(draw(st.lists(values, max_size=5)))
    tensor.float8_val = draw(st.binary(max_size=5))
    if draw(st.booleans()):
        tensor.tensor_content = draw(st.binary(max_size=24))
    return dtype, tensor.SerializeToString()


@given(serialized_tensors())
def test_arrays_are_those_of_tensorflow_or_both_are_errors(case: tuple[str, bytes]) -> None:
    tf = load_tensorflow()
    from tensorflow.core.framework import tensor_pb2

    dtype, data = case
    tensor = wire.Tensor.FromString(data)
    name, shape = declared("x", tensor)
    assert name == dtype
    try:
        expected = tf.make_ndarray(tensor_pb2.TensorProto.FromString(data))
    except (ValueError, TypeError, OverflowError):
        with pytest.raises(RequestError, match="input 'x': malformed TensorProto"):
            read_array("x", tensor, dtype, shape)
        return
    array = read_array("x", tensor, dtype, shape)
    assert (array.dtype, array.shape) == (expected.dtype, expected.shape)
    if dtype == STRING:
        assert [value or b"" for value in array.ravel()] == [value or b"" for value in expected.ravel()]
        assert unpacked_bytes(dtype, shape, tensor) >= sum(map(len, array.ravel()))
    else:
        assert array.tobytes() == expected.tobytes()
        assert unpacked_bytes(dtype, shape, tensor) >= array.nbytes


def arrays() -> Iterator[np.ndarray[Any, Any]]:
    """An array of each dtype, and arrays of texts."""
    for dtype in DTYPES:
        if dtype != STRING:
            yield np.array([[0, 1, 1], [1, 0, 1]]).astype(numpy_dtype(dtype))
    yield np.array([[b"a", b""], [b"\xff", b"bc"]], object)
    yield np.array(["ä", "b"])
    yield np.float32(1.5).reshape(())
    yield np.zeros((0, 3), np.float32)


@pytest.mark.parametrize("array", arrays(), ids=lambda array: f"{array.dtype}{array.shape}")
def test_tensorflow_reads_every_array(array: np.ndarray[Any, Any]) -> None:
    tf = load_tensorflow()
    from tensorflow.core.framework import tensor_pb2

    tensor = wire.Tensor()
    fill_tensor(tensor, array)
    read = tf.make_ndarray(tensor_pb2.TensorProto.FromString(tensor.SerializeToString()))
    texts = np.array([text.encode() for text in array.ravel()], object) if array.dtype.kind == "U" else array
    assert read.shape == array.shape
    assert read.ravel().tolist() == texts.ravel().tolist()
    if array.dtype.kind not in "OU":
        assert read.dtype == array.dtype

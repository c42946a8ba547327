"""Tensors between numpy and the protos of requests and answers, with limits on what a request may ask for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from serving.errors import invalid

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: A tensor of a request holds no more elements: 64 MiB of float32.
MAX_ELEMENTS = 16 << 20

# Where TensorFlow Serving puts the values of an output: clients read these fields.
_FIELDS = {
    "float32": "float_val",
    "float64": "double_val",
    "int32": "int_val",
    "int16": "int_val",
    "int8": "int_val",
    "uint8": "int_val",
    "int64": "int64_val",
    "bool": "bool_val",
    "uint32": "uint32_val",
    "uint64": "uint64_val",
}


def from_proto(name: str, proto: Any) -> NDArray[Any]:
    """The array that a TensorProto holds; strings as an object array of bytes.

    Raises:
      RequestError: INVALID_ARGUMENT when it is malformed or too large.
    """
    import tensorflow as tf

    sizes = [dim.size for dim in proto.tensor_shape.dim]
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in sizes):
        raise invalid(f"input {name!r}: its shape is not fully known: {sizes}")
    # A TensorProto may hold one value and say that it stands for any number of them: look before unpacking it.
    if math.prod(sizes) > MAX_ELEMENTS:
        raise invalid(f"input {name!r}: {math.prod(sizes)} elements; at most {MAX_ELEMENTS}")
    try:
        array: NDArray[Any] = tf.make_ndarray(proto)
    except (ValueError, TypeError) as error:
        raise invalid(f"input {name!r}: malformed TensorProto: {error}") from None
    return array


def to_proto(array: NDArray[Any], proto: Any) -> None:
    """Fills a TensorProto from an array, its values in the typed field."""
    import tensorflow as tf

    if array.dtype.kind in "OSU":
        proto.CopyFrom(tf.make_tensor_proto(array, dtype=tf.string))
        return
    field = _FIELDS.get(array.dtype.name)
    if field is None:
        proto.CopyFrom(tf.make_tensor_proto(array))
        return
    proto.dtype = tf.as_dtype(array.dtype).as_datatype_enum
    for size in array.shape:
        proto.tensor_shape.dim.add().size = size
    getattr(proto, field).extend(array.ravel().tolist())


def plain(array: NDArray[Any]) -> Any:
    """An array as nested lists for JSON. float32 becomes the shortest decimal that reads back as the same float32."""
    if array.dtype == np.float32:
        return array.astype("U32").astype(np.float64).tolist()
    return array.tolist()

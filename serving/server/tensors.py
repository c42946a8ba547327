"""Converts between numpy arrays and TensorProtos, with limits on requests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ciml.http.intake import invalid, too_large
from ciml.limits import MAX_TENSOR_BYTES, MAX_TENSOR_RANK

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BLOCK = 1 << 16
#: A dimension takes at most 14 bytes, without a name.
MAX_SHAPE_BYTES = 64 * MAX_TENSOR_RANK
# The typed fields in which TensorFlow Serving returns values, and that clients read.
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


def declared(name: str, proto: Any) -> tuple[str, tuple[int, ...]]:
    """Return the declared (dtype, shape) of a TensorProto, without unpacking it.

    Raises:
      RequestError: INVALID_ARGUMENT if either is unknown.
    """
    import tensorflow as tf

    rank = len(proto.tensor_shape.dim)
    if rank > MAX_TENSOR_RANK:
        raise invalid(f"input {name!r}: {rank} dimensions; at most {MAX_TENSOR_RANK} (MAX_TENSOR_RANK)")
    sizes = tuple(dim.size for dim in proto.tensor_shape.dim)
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in sizes):
        raise invalid(f"input {name!r}: shape {list(sizes)} is not fully defined")
    try:
        return tf.as_dtype(proto.dtype).name, sizes
    except TypeError:
        raise invalid(f"input {name!r}: unknown type {proto.dtype}") from None


def declared_bytes(name: str, proto: Any) -> int:
    """Return the unpacked size of a TensorProto in bytes, without unpacking it. Raises as `declared` does.

    A TensorProto may hold one value that stands for any number of elements.
    """
    import tensorflow as tf

    dtype, sizes = declared(name, proto)
    try:
        item_bytes: int = np.dtype(tf.as_dtype(dtype).as_numpy_dtype).itemsize
    except TypeError:
        raise invalid(f"input {name!r}: {dtype} has no values") from None
    elements = math.prod(sizes)
    strings: Sequence[bytes] = proto.string_val
    repeated = max(elements - len(strings), 0) * len(strings[-1]) if len(strings) else 0
    return elements * item_bytes + sum(map(len, strings)) + repeated


def from_protos(protos: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Unpack TensorProtos to arrays by name; strings become object arrays of bytes.

    Raises:
      RequestError: INVALID_ARGUMENT if one is malformed, or all together are too large.
    """
    size = sum(declared_bytes(name, proto) for name, proto in protos.items())
    if size > MAX_TENSOR_BYTES:
        names = ",".join(protos)
        raise too_large(f"inputs {names}: {size} bytes unpacked exceed {MAX_TENSOR_BYTES} (MAX_TENSOR_BYTES)")
    return {name: _unpacked(name, proto) for name, proto in protos.items()}


def _unpacked(name: str, proto: Any) -> NDArray[Any]:
    import tensorflow as tf

    try:
        array: NDArray[Any] = tf.make_ndarray(proto)
    except (ValueError, TypeError, OverflowError) as error:
        raise invalid(f"input {name!r}: malformed TensorProto: {str(error)[:200]}") from None
    return array


def to_proto(array: NDArray[Any], proto: Any) -> None:
    """Fill a TensorProto from an array, with the values in its typed field."""
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
    """Return an array as nested lists for JSON.

    float32 becomes the shortest decimal that reads back as the same float32.
    """
    if array.dtype == np.float32:
        numbers = np.empty(array.size)
        flat = array.ravel()
        for start in range(0, array.size, _BLOCK):  # a number takes 128 bytes as text
            numbers[start : start + _BLOCK] = flat[start : start + _BLOCK].astype("U32").astype(np.float64)
        return numbers.reshape(array.shape).tolist()
    return array.tolist()

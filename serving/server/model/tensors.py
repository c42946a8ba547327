"""Conversions between arrays and TensorProtos (`ciml.serving.wire.Tensor`), without TensorFlow.

A TensorProto holds its values either as bytes, or in the field of its dtype, where the last value stands for all that
are missing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ciml.http.intake import invalid
from ciml.limits import MAX_TENSOR_RANK
from ciml.serving.server.model.messages import STRING, Declared, numpy_dtype
from ciml.serving.wire import DTYPE_NAMES

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NUMBERS = {name: number for number, name in DTYPE_NAMES.items()}
#: Added to the number of a dtype, for a reference to a tensor.
_REFERENCE = 100
_INT_VAL = "int32 int16 int8 uint16 uint8 int4 uint4 int2 uint2".split()
#: The field of a TensorProto for the values of a dtype, as clients read them too.
_FIELDS = {
    "float32": "float_val",
    "float64": "double_val",
    **dict.fromkeys(_INT_VAL, "int_val"),
    **{name: f"{name}_val" for name in ("int64", "bool", "uint32", "uint64")},
}
#: Fields with the bits of values, and the dtype of these bits.
_BITS = {
    **dict.fromkeys(("float16", "bfloat16"), ("half_val", np.uint16)),
    **dict.fromkeys(("float8_e5m2", "float8_e4m3fn", "float4_e2m1fn"), ("float8_val", np.uint8)),
}
#: Fields with a real and an imaginary part for each value, and the dtype of a part.
_PARTS = {"complex64": ("scomplex_val", np.float32), "complex128": ("dcomplex_val", np.float64)}
#: Dtypes whose values are answered in the field of the dtype; others as bytes.
_ANSWERED_IN_FIELDS = _FIELDS.keys() - {"uint16", "int4", "uint4", "int2", "uint2"}


def declared(name: str, tensor: Any) -> Declared:
    """Return the declared dtype and shape of an input's tensor. Raises `RequestError` if either is unknown."""
    rank = len(tensor.tensor_shape.dim)
    if rank > MAX_TENSOR_RANK:
        raise invalid(f"input {name!r}: {rank} dimensions; at most {MAX_TENSOR_RANK} (MAX_TENSOR_RANK)")
    sizes = tuple(dim.size for dim in tensor.tensor_shape.dim)
    if tensor.tensor_shape.unknown_rank or any(size < 0 for size in sizes):
        raise invalid(f"input {name!r}: shape {list(sizes)} is not fully defined")
    dtype = DTYPE_NAMES.get(tensor.dtype)
    if dtype is None and tensor.dtype - _REFERENCE in DTYPE_NAMES:
        dtype = f"{DTYPE_NAMES[tensor.dtype - _REFERENCE]}_ref"
    if dtype is None:
        raise invalid(f"input {name!r}: unknown type {tensor.dtype}")
    return dtype, sizes


def unpacked_bytes(dtype: str, shape: tuple[int, ...], tensor: Any) -> int:
    """Return the unpacked size of a tensor, bytes."""
    elements = math.prod(shape)
    strings: Sequence[bytes] = tensor.string_val
    repeated = max(elements - len(strings), 0) * len(strings[-1]) if len(strings) else 0
    item_bytes = np.dtype(object if dtype == STRING else numpy_dtype(dtype)).itemsize
    return elements * item_bytes + sum(map(len, strings)) + repeated


def read_array(name: str, tensor: Any, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return the array of an input's tensor; strings are objects.

    Args:
      name: of the input, for errors.
      tensor: the tensor.
      dtype, shape: as `declared` returned them, within the limits.

    Raises:
      RequestError: the values are not those of the dtype, or of another number than the shape's.
    """
    elements = math.prod(shape)
    try:
        content = tensor.tensor_content  # each access to the field copies it
        if content:
            return np.frombuffer(content, numpy_dtype(dtype)).reshape(shape)
        values = _texts(tensor, elements) if dtype == STRING else _numbers(tensor, dtype)
        if not values.size:
            return np.zeros(shape, values.dtype)
        if values.size < elements:
            values = np.concatenate([values, np.repeat(values[-1:], elements - values.size)])
        return values.reshape(shape)
    except (ValueError, TypeError, OverflowError) as error:
        raise invalid(f"input {name!r}: malformed TensorProto: {str(error)[:200]}") from None


def _texts(tensor: Any, elements: int) -> NDArray[Any]:
    texts = np.full(max(elements, len(tensor.string_val)), b"", object)
    texts[: len(tensor.string_val)] = list(tensor.string_val)
    if len(tensor.string_val):
        texts[len(tensor.string_val) :] = tensor.string_val[-1]
    return texts


def _numbers(tensor: Any, dtype: str) -> NDArray[Any]:
    """Return the values in the field of a dtype. Raises `TypeError` for a dtype without such a field."""
    if dtype in _PARTS:
        field, part = _PARTS[dtype]
        parts = np.fromiter(getattr(tensor, field), part)
        return parts[: parts.size // 2 * 2].view(numpy_dtype(dtype))
    if dtype in _BITS:
        field, bits = _BITS[dtype]
        return np.fromiter(getattr(tensor, field), bits).view(numpy_dtype(dtype))
    if dtype not in _FIELDS:
        raise TypeError(f"values of type {dtype} are accepted only as tensor_content")
    return np.fromiter(getattr(tensor, _FIELDS[dtype]), numpy_dtype(dtype))


def fill_tensor(tensor: Any, array: NDArray[Any]) -> None:
    """Fill an empty tensor with an array."""
    dtype = STRING if array.dtype.kind in "OSU" else array.dtype.name
    tensor.dtype = _NUMBERS[dtype]
    for size in array.shape:
        tensor.tensor_shape.dim.add().size = size
    if dtype == STRING:
        texts = array.ravel().tolist()
        tensor.string_val.extend(text.encode() if isinstance(text, str) else bytes(text) for text in texts)
    elif dtype in _ANSWERED_IN_FIELDS:
        getattr(tensor, _FIELDS[dtype]).extend(array.ravel().tolist())
    else:
        tensor.tensor_content = array.tobytes()

"""Messages between the server and the process of a model: a head and arrays, in one frame each.

No pickle: neither side runs code that the other sends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np

from ciml.limits import MAX_TENSOR_BYTES

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Bytes of a frame: its arrays, and its head, which describes a model's signatures.
MAX_FRAME_BYTES = 2 * MAX_TENSOR_BYTES
_STRING = "string"
_ALIGNMENT = 16
_NATIVE_KINDS = "biufc"


class TensorDescription(msgspec.Struct, array_like=True):
    """An input or output of a signature; ``shape`` is None for any rank."""

    name: str
    tensor: str
    dtype: str
    shape: tuple[int, ...] | None


class SignatureDescription(msgspec.Struct, array_like=True):
    """A signature; ``definition`` is its serialized SignatureDef."""

    inputs: list[TensorDescription]
    outputs: list[TensorDescription]
    definition: bytes


class Load(msgspec.Struct):
    """A request: load the model in a folder. ``where`` names it in errors."""

    folder: str
    where: str
    call_s: float


class Loaded(msgspec.Struct):
    """The answer: the model's signatures by name, or why it cannot be loaded."""

    signatures: dict[str, SignatureDescription] = {}
    error: str = ""


class Call(msgspec.Struct):
    """A request: run a signature with the arrays of the frame within ``limit_s`` seconds."""

    signature: str
    limit_s: float


class Answer(msgspec.Struct):
    """The answer: the arrays of the frame, or the code and the message of a `RequestError`."""

    code: str = ""
    message: str = ""


class _Array(msgspec.Struct, array_like=True):
    dtype: str
    shape: tuple[int, ...]
    size: int  # bytes


_Head = TypeVar("_Head", Load, Loaded, Call, Answer)


def send(connection: Connection, head: Load | Loaded | Call | Answer, arrays: Sequence[NDArray[Any]] = ()) -> None:
    """Send a message. Raises `OSError` if the other side does not read it."""
    buffers = [_data(array) for array in arrays]
    layouts = [
        _Array(_dtype_name(array), array.shape, len(buffer)) for array, buffer in zip(arrays, buffers, strict=True)
    ]
    start = msgspec.msgpack.encode((head, layouts))
    parts: list[bytes | memoryview] = [len(start).to_bytes(8, "little"), start]
    size = 8 + len(start)
    for buffer in buffers:
        padding = -size % _ALIGNMENT
        parts += [bytes(padding), buffer]
        size += padding + len(buffer)
    connection.send_bytes(b"".join(parts))


def receive(connection: Connection, kind: type[_Head]) -> tuple[_Head, list[NDArray[Any]]]:
    """Receive a message whose head is of a kind. Its arrays cannot be written to.

    Raises:
      EOFError: the other side has closed the connection.
      OSError: it sends nothing within the time limit, or a frame that is too large.
      ValueError: the message is malformed.
    """
    data = connection.recv_bytes(MAX_FRAME_BYTES)
    size = 8 + int.from_bytes(data[:8], "little")
    head, layouts = _decoder(kind).decode(memoryview(data)[8:size])
    arrays = []
    for array in layouts:
        size += -size % _ALIGNMENT
        arrays.append(_array(array, memoryview(data)[size : size + array.size]))
        size += array.size
    return head, arrays


def _decoder(kind: type[_Head]) -> msgspec.msgpack.Decoder[tuple[_Head, list[_Array]]]:
    if kind not in _DECODERS:
        _DECODERS[kind] = msgspec.msgpack.Decoder(tuple[kind, list[_Array]])  # type: ignore[valid-type]
    return _DECODERS[kind]


_DECODERS: dict[type[Any], msgspec.msgpack.Decoder[Any]] = {}


def _is_text(array: NDArray[Any]) -> bool:
    return array.dtype.kind in "OSU"


def _dtype_name(array: NDArray[Any]) -> str:
    if _is_text(array):
        return _STRING
    return array.dtype.str if array.dtype.kind in _NATIVE_KINDS else array.dtype.name


def _data(array: NDArray[Any]) -> bytes | memoryview:
    if _is_text(array):
        return msgspec.msgpack.encode(
            [text.encode() if isinstance(text, str) else bytes(text) for text in array.ravel().tolist()]
        )
    if not array.size:
        return b""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _array(array: _Array, data: memoryview) -> NDArray[Any]:
    if array.dtype == _STRING:
        texts = msgspec.msgpack.decode(data, type=list[bytes])
        values = np.empty(len(texts), object)
        values[:] = texts
        return values.reshape(array.shape)
    dtype = _dtype(array.dtype)
    if len(data) != dtype.itemsize * math.prod(array.shape):
        raise ValueError(f"{len(data)} bytes are not an array of {array.dtype} and shape {array.shape}")
    return np.frombuffer(data, dtype).reshape(array.shape)


def _dtype(name: str) -> np.dtype[Any]:
    if name[:1] in "<>|=":
        dtype = np.dtype(name)
        if dtype.kind not in _NATIVE_KINDS:
            raise ValueError(f"{name!r:.80} is not the type of a tensor")
        return dtype
    import ml_dtypes  # numpy's types of TensorFlow's small floats

    kind = getattr(ml_dtypes, name, None)
    if not isinstance(kind, type):
        raise ValueError(f"{name!r:.80} is not the type of a tensor")
    return np.dtype(kind)

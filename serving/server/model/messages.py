"""Messages between the server and the process of a model: signatures, calls and answers with their arrays.

No pickle: neither process runs code that the other sends.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
import numpy as np

from ciml.http.intake import invalid
from ciml.limits import MAX_TENSOR_BYTES

if TYPE_CHECKING:
    from numpy.typing import NDArray

STRING = "string"
#: Bytes of a message: its arrays, and what describes them or a model's signatures.
MAX_FRAME_BYTES = 2 * MAX_TENSOR_BYTES
_NAMES_SHOWN = 10
#: Before a message: its number of bytes, as `Connection.send_bytes` writes it.
_LENGTH = struct.Struct("!i")
_ENCODER = msgspec.msgpack.Encoder()

#: Dtype and shape of an input, as a request declares them.
Declared = tuple[str, tuple[int, ...]]


class TensorSpec(msgspec.Struct, frozen=True, array_like=True):
    """An input or output of a signature. In ``shape``, -1 means any size; None means any rank."""

    name: str
    tensor: str
    dtype: str
    shape: tuple[int, ...] | None

    def check(self, dtype: str, shape: Sequence[int]) -> None:
        """Raise `RequestError` if a tensor of this dtype and shape does not fit."""
        if dtype != self.dtype:
            raise invalid(f"input {self.name!r}: expects {self.dtype} but {dtype} is provided")
        fits = self.shape is None or (
            len(shape) == len(self.shape)
            and all(expected in (-1, have) for expected, have in zip(self.shape, shape, strict=True))
        )
        if not fits:
            raise invalid(f"input {self.name!r}: has shape {list(shape)}, expects {list(self.shape or ())}")


class Signature(msgspec.Struct, frozen=True, array_like=True):
    """A signature: its inputs and outputs by name, and its serialized SignatureDef."""

    name: str
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    definition: bytes

    def check_names(self, sent: Collection[str]) -> None:
        """Raise `RequestError` unless ``sent`` are exactly the inputs' names."""
        extra = sorted(set(sent) - set(self.inputs))
        missing = sorted(set(self.inputs) - set(sent))
        if extra or missing:
            raise invalid(
                f"input size does not match signature: {len(sent)}!={len(self.inputs)}. Expected: "
                f"{{{','.join(sorted(self.inputs))}}}. Missing but required: {{{','.join(missing)}}}. "
                f"Sent extra: {{{','.join(extra[:_NAMES_SHOWN])}}}."
            )

    def check(self, declared: Mapping[str, Declared], max_rows: int) -> None:
        """Raise `RequestError` unless inputs of these dtypes and shapes fit."""
        self.check_names(declared)
        for name, spec in self.inputs.items():
            spec.check(*declared[name])
        batched = all(spec.shape is not None and spec.shape[:1] == (-1,) for spec in self.inputs.values())
        if batched and self.inputs:
            rows = {declared[name][1][0] for name in self.inputs}
            if len(rows) > 1:
                shapes = ", ".join(f"{name} {list(declared[name][1])}" for name in self.inputs)
                raise invalid(f"inputs have different numbers of rows: {shapes}")
            if max(rows) > max_rows:
                raise invalid(f"batch of {max(rows)} rows exceeds {max_rows} (MAX_REQUEST_ROWS)")


def definitions_of(signatures: Mapping[str, Signature]) -> Any:
    """Return the SignatureDefMap of signatures by name."""
    from ciml.serving.wire import SignatureDefMap

    definitions = SignatureDefMap()
    for name, signature in signatures.items():
        definitions.signature_def[name].ParseFromString(signature.definition)
    return definitions


class Array(msgspec.Struct, array_like=True):
    """The shape and the values of an array: strings, or bytes of the dtype that the signature declares."""

    shape: tuple[Annotated[int, msgspec.Meta(ge=0)], ...]
    values: list[bytes] | memoryview


class Load(msgspec.Struct):
    """A request: load the model in a folder. ``where`` names it in errors."""

    folder: str
    where: str
    call_s: float


class Loaded(msgspec.Struct):
    """The answer: the model's signatures by name, or why it cannot be loaded."""

    signatures: dict[str, Signature] = {}
    error: str = ""


class Call(msgspec.Struct):
    """A request: run a signature with its inputs, in their order, within ``limit_s`` seconds."""

    signature: str
    limit_s: float
    inputs: list[Array]


class Answer(msgspec.Struct):
    """The answer: the outputs of the signature, in their order, or code and message of a `RequestError`."""

    outputs: list[Array] = []
    code: str = ""
    message: str = ""


_Message = TypeVar("_Message", Load, Loaded, Call, Answer)


def send(connection: Connection, message: Load | Loaded | Call | Answer) -> None:
    """Send a message after its length. Raises `OSError` if the peer does not read it."""
    frame = bytearray(_LENGTH.size)
    _ENCODER.encode_into(message, frame, _LENGTH.size)
    _LENGTH.pack_into(frame, 0, len(frame) - _LENGTH.size)
    unsent = memoryview(frame)
    while unsent:
        unsent = unsent[os.write(connection.fileno(), unsent) :]


def receive(connection: Connection, kind: type[_Message]) -> _Message:
    """Receive a message of a kind.

    Raises:
      EOFError: if the peer has closed the connection.
      OSError: if it sends nothing within the time limit, or a message that is too large.
      ValueError: if the message is malformed.
    """
    (size,) = _LENGTH.unpack(_received(connection, _LENGTH.size))
    if not 0 <= size <= MAX_FRAME_BYTES:
        raise OSError(f"bad message length {size}; at most {MAX_FRAME_BYTES}")
    return msgspec.msgpack.decode(_received(connection, size), type=kind)


def _received(connection: Connection, size: int) -> memoryview:
    """Receive a number of bytes, directly to where they stay. Raises `EOFError` and `OSError` as `receive` does."""
    received = np.empty(size, np.uint8).data
    missing = received
    while missing:
        count = os.readv(connection.fileno(), [missing])
        if not count:
            raise EOFError
        missing = missing[count:]
    return received.toreadonly()


@cache
def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """Return the numpy dtype of a TensorFlow dtype. Raises `TypeError` if it has none."""
    import ml_dtypes  # noqa: F401 - registers TensorFlow's small floats

    return np.dtype(dtype)


def pack(array: NDArray[Any], dtype: str) -> Array:
    """Return an array of a TensorFlow dtype for a message."""
    if dtype == STRING:
        texts = array.ravel().tolist()
        return Array(array.shape, [text.encode() if isinstance(text, str) else bytes(text) for text in texts])
    values = np.ascontiguousarray(array, numpy_dtype(dtype))
    return Array(array.shape, values.reshape(-1).view(np.uint8).data)


def unpack(array: Array, dtype: str) -> NDArray[Any]:
    """Return a received array, which cannot be written to. Raises `ValueError` if it is not of the dtype."""
    if isinstance(array.values, list) != (dtype == STRING):
        raise ValueError(f"the values are not of type {dtype}")
    if not isinstance(array.values, list):
        return np.frombuffer(array.values, numpy_dtype(dtype)).reshape(array.shape)
    texts = np.empty(len(array.values), object)
    texts[:] = array.values
    return texts.reshape(array.shape)


def one_line(text: str | None) -> str:
    return " ".join((text or "").split())[:500]

"""The requests that warm up a newly loaded model: those of its warm-up file, or zeros.

A warm-up file is untrusted input. TensorFlow's own reader of TFRecords allocates the declared length, and aborts the
process if that fails. So this module reads the records itself, and checks a length against its checksum and the file's
size first.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ciml.errors import IntegrityError
from ciml.limits import MAX_TENSOR_BYTES, MAX_WARMUP_RECORD_BYTES, MAX_WARMUP_RECORDS
from ciml.serving.model_files import WARMUP_FILE
from ciml.serving.server.model.messages import STRING, Signature
from ciml.tensorflow import load_tensorflow

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tensorflow_serving.apis import predict_pb2


#: Before the data of a TFRecord: their length, and its checksum.
_HEAD = struct.Struct("<QI")
#: After the data of a TFRecord: their checksum.
_FOOT = struct.Struct("<I")
#: TFRecord's mask of checksums.
_CRC_MASK = 0xA282EAD8


def zeros_for(signature: Signature) -> dict[str, NDArray[Any]] | None:
    """Return a row of zeros for each input; None if a size is unknown, a dtype not numeric, or it is too large."""
    shapes: dict[str, list[int]] = {}
    for name, spec in signature.inputs.items():
        if spec.shape is None or -1 in spec.shape[1:] or spec.dtype == STRING:
            return None
        shapes[name] = [max(size, 1) for size in spec.shape]
    sizes = [math.prod(shape) * np.dtype(signature.inputs[name].dtype).itemsize for name, shape in shapes.items()]
    if sum(sizes) > MAX_TENSOR_BYTES:
        return None
    return {name: np.zeros(shape, signature.inputs[name].dtype) for name, shape in shapes.items()}


def stored_records(file: Path) -> Iterator[bytes]:
    """Iterate over the records of a warm-up file. Raises `IntegrityError` if it is malformed or exceeds a limit."""
    # The size was checked during the copy (`ciml.serving.model_files.read_files`).
    try:
        yield from read_records(
            file.read_bytes(), max_records=MAX_WARMUP_RECORDS, max_record_bytes=MAX_WARMUP_RECORD_BYTES
        )
    except IntegrityError as error:
        raise IntegrityError(f"{WARMUP_FILE}: {error}") from None


def parse_request(record: bytes) -> predict_pb2.PredictRequest:
    """Return the request of a PredictionLog. Raises `IntegrityError` if it is malformed or of another kind."""
    from google.protobuf.message import DecodeError

    load_tensorflow()  # with the settings of this process; the messages below import it
    from tensorflow_serving.apis import prediction_log_pb2

    try:
        log = prediction_log_pb2.PredictionLog.FromString(record)
    except DecodeError:
        raise IntegrityError("not a PredictionLog") from None
    kind = log.WhichOneof("log_type")
    if kind != "predict_log":
        raise IntegrityError(f"unsupported log type {kind or 'none'!r}; use predict_log")
    return log.predict_log.request


def read_records(data: bytes, *, max_records: int, max_record_bytes: int) -> Iterator[bytes]:
    """Iterate over the records of a TFRecord file (uncompressed).

    Args:
      data: the whole file.
      max_records: the most records that the file may hold.
      max_record_bytes: the largest record, bytes.

    Raises:
      IntegrityError: naming the first record that is truncated, fails its checksum, or exceeds a limit.
    """
    position = 0
    number = 0
    while position < len(data):
        if number >= max_records:
            raise IntegrityError(f"more than {max_records} records")
        if position + _HEAD.size > len(data):
            raise IntegrityError(f"record {number} is cut short")
        length, length_crc = _HEAD.unpack_from(data, position)
        if masked_crc(data[position : position + 8]) != length_crc:
            raise IntegrityError(f"record {number}: checksum of the length does not match")
        if length > max_record_bytes:
            raise IntegrityError(f"record {number}: {length} bytes exceed {max_record_bytes}")
        position += _HEAD.size
        end = position + length
        if end + _FOOT.size > len(data):
            raise IntegrityError(f"record {number} is cut short")
        record = data[position:end]
        if masked_crc(record) != _FOOT.unpack_from(data, end)[0]:
            raise IntegrityError(f"record {number}: checksum of the data does not match")
        yield record
        position = end + _FOOT.size
        number += 1


def frame(record: bytes) -> bytes:
    """Return a record in TFRecord framing."""
    length = struct.pack("<Q", len(record))
    return length + _FOOT.pack(masked_crc(length)) + record + _FOOT.pack(masked_crc(record))


def masked_crc(data: bytes) -> int:
    """Return the masked CRC32C of TFRecord files."""
    import google_crc32c  # of the extra `serve`, which a client of a server does not need

    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + _CRC_MASK) & 0xFFFFFFFF

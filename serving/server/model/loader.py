"""Warm-up: runs the requests stored with a model once, before it is served.

A warm-up file is untrusted input. Its framing is read with bounds, and its requests have the limits of client requests.
If a request fails, the load fails.

TFRecord framing with bounds: a length is trusted only after its checksum and the file's size are checked.

TensorFlow's own reader allocates the declared length, and aborts the process if that fails.

Loads a model version: a checked private copy, a process of its own, and warm-up requests.

The process is killed if it does not load the model or answer a call in time: TensorFlow cannot interrupt the folding of
constants, nor a single operation.
"""

from __future__ import annotations

import math
import shutil
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ciml.errors import IntegrityError
from ciml.http.intake import RequestError
from ciml.limits import (
    MAX_MODEL_CALL_S,
    MAX_MODEL_LOAD_S,
    MAX_REQUEST_ROWS,
    MAX_TENSOR_BYTES,
    MAX_WARMUP_RECORD_BYTES,
    MAX_WARMUP_RECORDS,
    MAX_WARMUP_S,
)
from ciml.serving.model_files import LAST_FILE, WARMUP_FILE, copy_model
from ciml.serving.server.model.loaded_model import LoadedModel
from ciml.serving.server.model.process import ModelProcess
from ciml.storage import Store
from ciml.tensorflow import load_tensorflow

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ciml.serving.server.model.loaded_model import LoadedModel, Signature

_HEAD = struct.Struct("<QI")  # the length of the data, and its checksum
_FOOT = struct.Struct("<I")  # the data's checksum
_MASK = 0xA282EAD8


def masked_crc(data: bytes) -> int:
    """Return the masked CRC32C of TFRecord files."""
    import google_crc32c  # of the extra `serve`; who only asks a server has no use for it

    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF


def frame(record: bytes) -> bytes:
    """Return a record in TFRecord framing."""
    length = struct.pack("<Q", len(record))
    return length + _FOOT.pack(masked_crc(length)) + record + _FOOT.pack(masked_crc(record))


def read_records(data: bytes, *, max_records: int, max_record_bytes: int) -> Iterator[bytes]:
    """Iterate over the records of a TFRecord file (uncompressed).

    Args:
      data: the whole file.
      max_records: the most records that the file may hold.
      max_record_bytes: the largest record, bytes.

    Raises:
      IntegrityError: naming the first record that is truncated, fails its checksum, or exceeds a limit.
    """
    position = number = 0
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
        number = number + 1


def warm_up(model: LoadedModel, file: Path, clock: Callable[[], float] = time.monotonic) -> None:
    """Run the requests of a warm-up file; without one, run zeros through every numeric signature.

    Args:
      model: the newly loaded model.
      file: its warm-up file: TFRecords of PredictionLog.
      clock: monotonic seconds.

    Raises:
      IntegrityError: if the file is malformed or exceeds a limit, or the model fails a request.
    """
    if not file.exists():
        _run_zeros(model)
        return
    until = clock() + MAX_WARMUP_S
    for number, record in enumerate(_records(file)):
        try:
            _run_record(model, record)
        except (RequestError, IntegrityError) as error:
            raise IntegrityError(f"warm-up request {number}: {error}") from None
        if clock() > until:
            raise IntegrityError(f"warm-up exceeds {MAX_WARMUP_S:g} s at request {number}")


def _records(file: Path) -> Iterator[bytes]:
    # The size was checked during the copy (`ciml.serving.model_files.read_files`).
    try:
        yield from read_records(
            file.read_bytes(), max_records=MAX_WARMUP_RECORDS, max_record_bytes=MAX_WARMUP_RECORD_BYTES
        )
    except IntegrityError as error:
        raise IntegrityError(f"{WARMUP_FILE}: {error}") from None


def _run_record(model: LoadedModel, record: bytes) -> None:
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
    request = log.predict_log.request
    signature = request.model_spec.signature_name
    outputs = model.predict(signature, model.unpack(signature, request.inputs), request.output_filter)
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise IntegrityError(f"{name} is not finite")


def _run_zeros(model: LoadedModel) -> None:
    for signature in model.signatures.values():
        zeros = _zeros(signature)
        if zeros is None:
            continue
        try:
            model.predict(signature.name, zeros)
        except RequestError as error:
            if error.code == "DEADLINE_EXCEEDED":
                raise IntegrityError(f"signature {signature.name!r} with zeros: {error}") from None
            # A model may reject zeros; the call has compiled it nevertheless.


def _zeros(signature: Signature) -> dict[str, NDArray[Any]] | None:
    """Return a row of zeros for each input; None if a size is unknown, a dtype not numeric, or it is too large."""
    shapes: dict[str, list[int]] = {}
    for name, spec in signature.inputs.items():
        if spec.shape is None or -1 in spec.shape[1:] or spec.dtype == "string":
            return None
        shapes[name] = [max(size, 1) for size in spec.shape]
    sizes = [math.prod(shape) * np.dtype(signature.inputs[name].dtype).itemsize for name, shape in shapes.items()]
    if sum(sizes) > MAX_TENSOR_BYTES:
        return None
    return {name: np.zeros(shape, signature.inputs[name].dtype) for name, shape in shapes.items()}


#: Raises unless the copied files (digests by path) are those of a version that may be served.
Verify = Callable[[Mapping[str, str]], None]


def load_model(
    folder: Store,
    verify: Verify | None = None,
    *,
    max_rows: int = MAX_REQUEST_ROWS,
    call_s: float = MAX_MODEL_CALL_S,
    load_s: float = MAX_MODEL_LOAD_S,
) -> LoadedModel:
    """Load the version in ``folder`` into a process of its own, and warm it up.

    Args:
      folder: ``<base_path>/<version>``, local or on S3.
      verify: raises if the copied files are not those of a version that may be served.
      max_rows: the largest batch of one request.
      call_s: limit of a call, seconds, also of restoring the variables.
      load_s: limit of loading without the warm-up, seconds.

    Raises:
      FileNotFoundError: if there is no such version.
      IntegrityError: if it is corrupt or altered, holds a forbidden operation, or fails or exceeds the time of loading
        or warm-up.
      EngineError: if no process can be started.
    """
    work = Path(tempfile.mkdtemp(prefix="ciml-model-"))
    try:
        copy = work / "model"
        digests = copy_model(folder, copy)
        if LAST_FILE not in digests:
            raise IntegrityError(f"{folder.root} has no {LAST_FILE}: not a complete SavedModel")
        if verify is not None:
            verify(digests)
        return _start(copy, folder.root, max_rows, call_s, load_s)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _start(copy: Path, where: str, max_rows: int, call_s: float, load_s: float) -> LoadedModel:
    process = ModelProcess(call_s, load_s)
    try:
        signatures = process.load(copy, where)
        model = LoadedModel(
            where,
            {name: process.signature(name, signature) for name, signature in signatures.items()},
            {name: signature.definition for name, signature in signatures.items()},
            max_rows=max_rows,
            call_s=call_s,
            free=process.end,
            has_ended=lambda: process.ended,
        )
        try:
            warm_up(model, copy / WARMUP_FILE)
        except IntegrityError as error:
            raise IntegrityError(f"{where}: {error}") from None
    except BaseException:
        process.end()
        raise
    return model

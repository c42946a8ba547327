"""Warm-up: runs the requests stored with a model once, before it is served.

A warm-up file is untrusted input. Its framing is read with bounds, and its requests have the limits of client requests.
If a request fails, the load fails.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ciml.errors import IntegrityError
from ciml.http.errors import RequestError
from ciml.limits import MAX_TENSOR_BYTES, MAX_WARMUP_RECORD_BYTES, MAX_WARMUP_RECORDS, MAX_WARMUP_S
from ciml.serving.model_files import WARMUP_FILE
from ciml.serving.server.model.tf_records import read_records

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ciml.serving.server.model.loaded_model import LoadedModel, Signature


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

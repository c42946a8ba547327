"""A model version that answers calls. `load_model` loads and warms it up; `LoadedModel` checks and runs its calls.

A version is loaded from a checked private copy into its own process. The process is killed if it does not load the
model or answer a call in time: TensorFlow cannot interrupt the folding of constants, nor a single operation.

A warm-up file is untrusted input. TensorFlow's own reader of TFRecords allocates the declared length, and aborts the
process if that fails. So this module reads the records itself, and checks a length against its checksum and the file's
size first.
"""

from __future__ import annotations

import math
import shutil
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ciml.errors import EngineError, IntegrityError
from ciml.http.intake import RequestError, invalid, too_large
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
from ciml.serving.server.model.messages import STRING, Declared, Signature
from ciml.serving.server.model.process import ModelProcess
from ciml.serving.server.model.tensors import declared, read_array, unpacked_bytes
from ciml.storage import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray


DEFAULT_SIGNATURE = "serving_default"
#: Before the data of a TFRecord: their length, and its checksum.
_HEAD = struct.Struct("<QI")
#: After the data of a TFRecord: their checksum.
_FOOT = struct.Struct("<I")
#: TFRecord's mask of checksums.
_CRC_MASK = 0xA282EAD8
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
      IntegrityError: if it is corrupt or altered, holds a forbidden operation, or fails a warm-up request.
      EngineError: if loading or warm-up takes too long, or no process can be started.
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
        model = LoadedModel(where, process, process.load(copy, where), max_rows)
        try:
            warm_up(model, copy / WARMUP_FILE)
        except (IntegrityError, EngineError) as error:
            raise type(error)(f"{where}: {error}") from None
    except BaseException:
        process.end()
        raise
    return model


class LoadedModel:
    """A version that answers calls. `predict` is thread-safe until `close`.

    Args:
      source: its folder.
      process: runs it.
      signatures: by name.
      max_rows: the largest batch of one request.
    """

    def __init__(self, source: str, process: ModelProcess, signatures: Mapping[str, Signature], max_rows: int) -> None:
        self.source = source
        self.loaded_at = time.time()
        self.signatures = signatures
        self.process = process
        self._max_rows = max_rows
        self._idle = threading.Condition()
        self._running = 0
        self._closed = False

    @property
    def ended(self) -> bool:
        """Whether its process has ended: it must be loaded again."""
        return self.process.ended

    def signature(self, name: str) -> Signature:
        """Return a signature by name; "" is the default one. Raises `RequestError`, FAILED_PRECONDITION."""
        signature = self.signatures.get(name or DEFAULT_SIGNATURE)
        if signature is None:
            raise RequestError("FAILED_PRECONDITION", f'Serving signature key "{name or DEFAULT_SIGNATURE}" not found.')
        return signature

    def predict(
        self,
        signature_name: str,
        inputs: Mapping[str, NDArray[Any]],
        output_filter: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Run a signature.

        Args:
          signature_name: "" for ``serving_default``.
          inputs: an array for each input of the signature.
          output_filter: names of the requested outputs, in order; empty means all.
          timeout_s: how long the client waits, seconds, up to the model's own limit.

        Raises:
          RequestError: INVALID_ARGUMENT if the inputs do not fit, FAILED_PRECONDITION without such a signature,
            DEADLINE_EXCEEDED if it takes too long.
        """
        signature = self.signature(signature_name)
        signature.check({name: _declared_by(array) for name, array in inputs.items()}, self._max_rows)
        for name in output_filter:
            if name not in signature.outputs:
                outputs = ",".join(sorted(signature.outputs))
                raise invalid(
                    f"output tensor alias not found in signature: {name} Outputs expected to be in {{{outputs}}}."
                )
        if len(set(output_filter)) != len(output_filter):
            raise invalid(f"duplicate output tensor alias in {list(output_filter)}")
        arrays = self.process.run(signature, [inputs[name] for name in signature.inputs], timeout_s)
        outputs_by_name = dict(zip(signature.outputs, arrays, strict=True))
        return {name: outputs_by_name[name] for name in (output_filter or outputs_by_name)}

    def unpack(self, signature_name: str, protos: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Check names, dtypes, shapes and sizes of TensorProtos, and return their arrays; strings are objects.

        Raises:
          RequestError: as `predict` does, or if one is malformed, or all together are too large.
        """
        forms = {name: declared(name, proto) for name, proto in protos.items()}
        self.signature(signature_name).check(forms, self._max_rows)
        size = sum(unpacked_bytes(*forms[name], proto) for name, proto in protos.items())
        if size > MAX_TENSOR_BYTES:
            names = ",".join(protos)
            raise too_large(f"inputs {names}: {size} bytes unpacked exceed {MAX_TENSOR_BYTES} (MAX_TENSOR_BYTES)")
        return {name: read_array(name, proto, *forms[name]) for name, proto in protos.items()}

    def acquire(self) -> None:
        """Keep the process until `release`. Raises `RequestError`, UNAVAILABLE, if the model is closed already."""
        with self._idle:
            if self._closed:
                raise RequestError("UNAVAILABLE", "the version is being unloaded")
            self._running += 1

    def release(self) -> None:
        with self._idle:
            self._running -= 1
            self._idle.notify_all()

    def close(self, wait_s: float = 30.0) -> None:
        """End the process once running requests have ended, or after ``wait_s`` seconds."""
        with self._idle:
            self._closed = True
            self._idle.wait_for(lambda: self._running == 0, timeout=wait_s)
        self.process.end()
        self.signatures = {}


def _declared_by(array: NDArray[Any]) -> Declared:
    return (STRING if array.dtype.kind in "OSU" else array.dtype.name), array.shape


def warm_up(model: LoadedModel, file: Path, clock: Callable[[], float] = time.monotonic) -> None:
    """Run the requests of a warm-up file; without one, run zeros through every numeric signature.

    The requests have the limits of client requests.

    Args:
      model: the newly loaded model.
      file: its warm-up file: TFRecords of PredictionLog.
      clock: monotonic seconds.

    Raises:
      IntegrityError: if the file is malformed or too large, or the model fails a request.
      EngineError: if a request, or all together, take too long.
    """
    if not file.exists():
        _run_zeros(model)
        return
    until_s = clock() + MAX_WARMUP_S
    for number, record in enumerate(_stored_records(file)):
        try:
            _run_record(model, record)
        except (RequestError, IntegrityError) as error:
            kind = EngineError if _is_late(error) else IntegrityError
            raise kind(f"warm-up request {number}: {error}") from None
        if clock() > until_s:
            raise EngineError(f"warm-up exceeds {MAX_WARMUP_S:g} s at request {number}")


def _run_zeros(model: LoadedModel) -> None:
    """Run zeros through every numeric signature. The model may reject them, but must answer in time."""
    for signature in model.signatures.values():
        zeros = _zeros_for(signature)
        if zeros is None:
            continue
        try:
            model.predict(signature.name, zeros)
        except RequestError as error:
            if _is_late(error):
                raise EngineError(f"signature {signature.name!r} with zeros: {error}") from None


def _is_late(error: Exception) -> bool:
    return isinstance(error, RequestError) and error.code == "DEADLINE_EXCEEDED"


def _run_record(model: LoadedModel, record: bytes) -> None:
    request = _parse_request(record)
    signature = request.model_spec.signature_name
    protos = {entry.key: entry.value for entry in request.inputs}
    outputs = model.predict(signature, model.unpack(signature, protos), request.output_filter)
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise IntegrityError(f"{name} is not finite")


def _zeros_for(signature: Signature) -> dict[str, NDArray[Any]] | None:
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


def _stored_records(file: Path) -> Iterator[bytes]:
    """Iterate over the records of a warm-up file. Raises `IntegrityError` if it is malformed or exceeds a limit."""
    # The size was checked during the copy (`ciml.serving.model_files.read_files`).
    try:
        yield from read_records(
            file.read_bytes(), max_records=MAX_WARMUP_RECORDS, max_record_bytes=MAX_WARMUP_RECORD_BYTES
        )
    except IntegrityError as error:
        raise IntegrityError(f"{WARMUP_FILE}: {error}") from None


def _parse_request(record: bytes) -> Any:
    """Return the PredictRequest of a PredictionLog. Raises `IntegrityError` if it is malformed or of another kind."""
    from google.protobuf.message import DecodeError

    from ciml.serving.wire import PredictionLog

    try:
        log = PredictionLog.FromString(record)
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


def masked_crc(data: bytes) -> int:
    """Return the masked CRC32C of TFRecord files."""
    import google_crc32c  # of the extra `serve`, which a client of a server does not need

    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + _CRC_MASK) & 0xFFFFFFFF

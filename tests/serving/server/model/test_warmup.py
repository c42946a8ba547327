"""Warm-up files are untrusted input: a bad one only fails the load, with a reason."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ciml.errors import EngineError, IntegrityError
from ciml.limits import MAX_WARMUP_BYTES, MAX_WARMUP_RECORD_BYTES
from ciml.serving.model_files import WARMUP_FILE
from ciml.serving.server.model.loaded_model import load_model, masked_crc, read_records
from ciml.storage import Store, open_store
from tests.serving.models_fixture import F, L, frame, save_model


def head(length: int) -> bytes:
    """Return the start of a record that declares that length, with its checksum."""
    data = struct.pack("<Q", length)
    return data + struct.pack("<I", masked_crc(data))


def request(**changes: Any) -> bytes:
    """Return a warm-up record. ``changes`` are inputs: an array, a TensorProto, or None to omit one."""
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    log = prediction_log_pb2.PredictionLog()
    inputs = {"inputs": np.ones((1, L, F), "f4"), "n_windows": np.ones(1, "i4"), **changes}
    for name, value in inputs.items():
        if value is not None:
            proto = tf.make_tensor_proto(value) if isinstance(value, np.ndarray) else value
            log.predict_log.request.inputs[name].CopyFrom(proto)
    return log.SerializeToString()


def expanding(elements: int) -> Any:
    """Return a TensorProto of a few bytes that declares many elements."""
    from tensorflow.core.framework import tensor_pb2

    proto = tensor_pb2.TensorProto(dtype=1, float_val=[1.0])
    proto.tensor_shape.dim.add().size = elements
    return proto


def with_warmup(model: Path, folder: Path, data: bytes) -> Store:
    shutil.copytree(model, folder)
    (folder / WARMUP_FILE).parent.mkdir(exist_ok=True)
    (folder / WARMUP_FILE).write_bytes(data)
    return open_store(folder)


def test_framing_is_that_of_tensorflow(tmp_path: Path) -> None:
    import tensorflow as tf

    records = [b"", b"a", bytes(range(256)) * 300]
    with tf.io.TFRecordWriter(str(tmp_path / "records")) as out:
        for record in records:
            out.write(record)
    data = (tmp_path / "records").read_bytes()
    assert data == b"".join(map(frame, records))
    assert list(read_records(data, max_records=3, max_record_bytes=256 * 300)) == records
    assert list(read_records(b"", max_records=0, max_record_bytes=0)) == []


GOOD = frame(b"fine")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (GOOD + head(1 << 36) + b"x" * 100, "record 1: 68719476736 bytes exceed 1000"),
        (GOOD + head(2**64 - 1), f"record 1: {2**64 - 1} bytes exceed 1000"),
        (GOOD + head(1001) + b"x" * 2000, "record 1: 1001 bytes exceed 1000"),
        (GOOD + head(900) + b"x" * 903, "record 1 is cut short"),
        (GOOD + head(9)[:-1], "record 1 is cut short"),
        (GOOD + b"x", "record 1 is cut short"),
        (GOOD[:-1], "record 0 is cut short"),
        (GOOD + struct.pack("<QI", 4, 7) + GOOD[12:], "record 1: checksum of the length does not match"),
        (GOOD[:-1] + b"\x00", "record 0: checksum of the data does not match"),
        (GOOD[:12] + b"Fine" + GOOD[16:], "record 0: checksum of the data does not match"),
        (GOOD * 5, "more than 4 records"),
    ],
)
def test_framing_that_is_wrong_is_named(data: bytes, message: str) -> None:
    with pytest.raises(IntegrityError, match=message):
        list(read_records(data, max_records=4, max_record_bytes=1000))


def cases() -> dict[str, tuple[bytes, str]]:
    from tensorflow.core.framework import tensor_pb2
    from tensorflow_serving.apis import prediction_log_pb2

    other = prediction_log_pb2.PredictionLog()
    other.classify_log.request.model_spec.name = "m"
    return {
        "no message": (b"\xff\xff\xff", "warm-up request 0: not a PredictionLog"),
        "empty": (b"", "warm-up request 0: unsupported log type 'none'; use predict_log"),
        "another kind": (
        other.SerializeToString(), "warm-up request 0: unsupported log type 'classify_log'; use predict_log",
    ),
        "too large": (
            request(inputs=expanding(1 << 40)), r"warm-up request 0: input 'inputs': has shape \[1099511627776\]"
        ),
        "a name too many": (request(**{f"x{n}": expanding(16 << 20) for n in range(40)}), "request 0: input size"),
        "a name too few": (request(n_windows=None), "warm-up request 0: input size does not match signature"),
        "malformed": (
            request(inputs=tensor_pb2.TensorProto(dtype=1, tensor_content=b"12345")),
            "warm-up request 0: input 'inputs': ",
        ),
        "no such dtype": (request(inputs=tensor_pb2.TensorProto(dtype=77)), "warm-up request 0: input 'inputs': "),
        "too many rows": (
            request(inputs=np.ones((2000, L, F), "f4"), n_windows=np.ones(2000, "i4")), "batch of 2000 rows"
        ),
    }  # fmt: skip


def test_bad_requests_fail_the_load(good: dict[int, Path], tmp_path: Path) -> None:
    for name, (record, message) in cases().items():
        with pytest.raises(IntegrityError, match=message):
            load_model(with_warmup(good[2], tmp_path / name, frame(record)))


@pytest.mark.parametrize(
    ("data", "size", "message"),
    [
        (lambda: head(1 << 36) + b"x" * 262, None, f"record 0: {1 << 36} bytes exceed {MAX_WARMUP_RECORD_BYTES}"),
        (lambda: frame(request()) * 1001, None, "more than 1000 records"),
        (bytes, MAX_WARMUP_BYTES + 1, f"tf_serving_warmup_requests is larger than {MAX_WARMUP_BYTES} bytes"),
    ],
    ids=["forged", "many", "large"],
)
def test_a_file_beyond_a_limit_fails_the_load(
    good: dict[int, Path], tmp_path: Path, data: Callable[[], bytes], size: int | None, message: str
) -> None:
    folder = with_warmup(good[2], tmp_path / "m", data())
    if size is not None:
        os.truncate(tmp_path / "m" / WARMUP_FILE, size)
    with pytest.raises(IntegrityError, match=message):
        load_model(folder)


def test_warmup_that_does_not_end_fails_the_load(tmp_path: Path) -> None:
    hanging = save_model(tmp_path / "hanging", spoil="hang")
    record = frame(request(inputs=np.full((1, L, F), 2e6, "f4")))
    with pytest.raises(EngineError, match=r"warm-up request 0: .*'serving_default' takes longer than 1 s"):
        load_model(with_warmup(hanging, tmp_path / "m", record), call_s=1.0)


def test_warmup_of_many_slow_requests_ends(good: dict[int, Path], tmp_path: Path) -> None:
    from ciml.serving.server.model.loaded_model import warm_up

    folder = with_warmup(good[2], tmp_path / "m", frame(request()) * 9)
    model = load_model(folder)
    times = iter([0.0, 100.0, 200.0, 301.0])
    with pytest.raises(EngineError, match="warm-up exceeds 300 s at request 2"):
        warm_up(model, Path(folder.root, WARMUP_FILE), lambda: next(times))
    model.close()

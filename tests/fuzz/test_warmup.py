"""Whatever a warm-up file holds, the model is warmed up or the load fails with a reason; the process goes on."""

from __future__ import annotations

import os
import resource
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ciml.errors import EngineError, IntegrityError
from ciml.serving.server.model.loaded_model import LoadedModel, load_model, masked_crc, read_records, warm_up
from ciml.storage import open_store
from tests.fuzz.frame import fuzz
from tests.serving.models_fixture import F, L, frame, save_model

_SIZES = st.one_of(
    st.integers(-2, 6), st.sampled_from([5, 3, 1, 1025, 1 << 20, 1 << 24, (1 << 24) + 1, 1 << 31, 1 << 36, 2**63 - 1])
)
_FLOATS = st.sampled_from([0.0, 1.0, -1.0, 3.4e38, float("inf"), float("nan"), 5e-324])
_INTS = st.sampled_from([0, 1, 5, -1, 255, 300, 1 << 15, 2**31 - 1, -(2**31)])


@st.composite
def tensors(draw: st.DrawFn) -> Any:
    """TensorProtos: any dtype, shape and values, mostly not in agreement with each other."""
    from tensorflow.core.framework import tensor_pb2

    proto = tensor_pb2.TensorProto(dtype=draw(st.one_of(st.sampled_from([1, 3]), st.integers(0, 130))))
    for size in draw(st.one_of(st.just([1, 5, 3]), st.just([1]), st.lists(_SIZES, max_size=5))):
        proto.tensor_shape.dim.add().size = size
    proto.tensor_shape.unknown_rank = draw(st.sampled_from([False] * 9 + [True]))
    kind = draw(st.integers(0, 5))
    if kind in (0, 1):
        proto.float_val.extend(draw(st.lists(_FLOATS, max_size=16)))
    if kind in (1, 2):
        proto.int_val.extend(draw(st.lists(_INTS, max_size=16)))
    if kind == 3:
        proto.tensor_content = draw(st.one_of(st.binary(max_size=70), st.just(bytes(60)), st.just(bytes(4))))
    if kind == 4:
        proto.string_val.extend(draw(st.lists(st.binary(max_size=5), max_size=5)))
    return proto


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Serialized PredictionLogs, near those that the fixture's models answer."""
    import numpy as np
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    log = prediction_log_pb2.PredictionLog()
    kind = draw(st.sampled_from(["predict_log"] * 9 + ["classify_log", "regress_log", "session_run_log"]))
    if kind != "predict_log":
        getattr(log, kind).SetInParent()
        return log.SerializeToString()
    request = log.predict_log.request
    request.inputs["inputs"].CopyFrom(tf.make_tensor_proto(np.ones((1, 5, 3), "f4")))
    request.inputs["n_windows"].CopyFrom(tf.make_tensor_proto(np.ones(1, "i4")))
    request.model_spec.signature_name = draw(
        st.sampled_from(["", "", "serving_default", "examples", "several", "x" * 99])
    )
    for name in draw(
        st.lists(st.sampled_from(["inputs", "n_windows", "examples", "x", "s", "\u202e", ""]), max_size=3)
    ):
        request.inputs[name].CopyFrom(draw(tensors()))
    for name in draw(st.lists(st.sampled_from(["inputs", "n_windows"]), max_size=1)):
        request.inputs.pop(name, None)
    request.output_filter.extend(draw(st.lists(st.sampled_from(["probabilities", "nothing"]), max_size=2)))
    return log.SerializeToString()


@st.composite
def _bent(draw: st.DrawFn, data: bytes) -> bytes:
    """The bytes with one of them changed, some cut off, or some more."""
    how = draw(st.integers(0, 2))
    at = draw(st.integers(0, max(len(data) - 1, 0)))
    if how == 0 and data:
        return data[:at] + bytes([data[at] ^ draw(st.integers(1, 255))]) + data[at + 1 :]
    if how == 1:
        return data[:at]
    return data[:at] + draw(st.binary(min_size=1, max_size=20)) + data[at:]


@st.composite
def _forged(draw: st.DrawFn, record: bytes) -> bytes:
    """A frame whose length is a lie, with checksums that are right as often as not."""
    length = draw(st.one_of(st.integers(0, 2 * len(record) + 20), st.integers(0, 63).map(lambda bits: 1 << bits)))
    head = struct.pack("<Q", length)
    crc = draw(st.sampled_from([masked_crc(head), masked_crc(head), 0, 0xFFFFFFFF]))
    foot = draw(st.sampled_from([masked_crc(record), masked_crc(record[:length]), 0]))
    return head + struct.pack("<I", crc) + record + struct.pack("<I", foot)


def records() -> st.SearchStrategy[bytes]:
    """The content of one record."""
    return st.one_of(requests(), requests().flatmap(_bent), st.binary(max_size=100))


def framed() -> st.SearchStrategy[bytes]:
    """A record in its frame, which may be a forged one."""
    return st.one_of(records().map(frame), records().flatmap(_forged))


def files() -> st.SearchStrategy[bytes]:
    """Warm-up files of a few records."""
    whole = st.lists(framed(), max_size=4).map(b"".join)
    return st.one_of(whole, whole.flatmap(_bent))


_MOST_KIB = 512 << 10
_FORGED = struct.pack("<QI", 1 << 36, masked_crc(struct.pack("<Q", 1 << 36))) + bytes(266)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedModel]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    loaded = load_model(open_store(save_model(tmp_path_factory.mktemp("model") / "m")))
    yield loaded
    loaded.close()


@fuzz
@given(files())
@example(_FORGED)
def test_a_warmup_file_is_run_or_named(
    model: LoadedModel, tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    ones = {"inputs": np.ones((1, L, F), "f4"), "n_windows": np.ones(1, "i4")}
    before = model.predict("", ones)["probabilities"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    file = tmp_path_factory.getbasetemp() / "warmup"
    file.write_bytes(data)
    text = ""
    try:
        warm_up(model, file)
    except (IntegrityError, EngineError) as error:
        text = str(error)
    assert "\n" not in text
    assert len(text) < 1000
    assert not text or "request" in text or "tf_serving_warmup_requests" in text
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < _MOST_KIB
    np.testing.assert_array_equal(model.predict("", ones)["probabilities"], before)


@fuzz
@given(st.lists(framed() | st.binary(max_size=100).map(frame), max_size=6))
def test_what_is_read_can_be_written_to_the_same_bytes(frames: list[bytes]) -> None:
    data = b"".join(frames)
    found = []
    try:
        for record in read_records(data, max_records=5, max_record_bytes=2000):
            found.append(record)
        assert b"".join(map(frame, found)) == data
    except IntegrityError:
        assert data.startswith(b"".join(map(frame, found)))
        assert len(found) <= 5
    assert all(len(record) <= 2000 for record in found)

"""Whatever a warm-up file holds, the model is warmed up or the load fails with a reason; the process goes on."""

from __future__ import annotations

import os
import resource
import struct
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ciml.errors import EngineError, IntegrityError
from ciml.serving.server.model.loaded_model import LoadedModel, load_model, masked_crc, read_records, warm_up
from ciml.storage import open_store
from tests.fuzz.frame import fuzz
from tests.fuzz.strategies.warmup import files, framed
from tests.serving.models_fixture import F, L, frame, save_model

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

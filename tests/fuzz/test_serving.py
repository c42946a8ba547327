"""Any request to the model server is answered rightly, or refused with a reason that names the cause."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest
from hypothesis import given

from tests.fuzz.frame import fuzz
from tests.fuzz.strategies.serving import grpc_messages, rest_bodies
from tests.serving.models_fixture import save_model
from tests.serving.siege import write_config

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

_PREDICT = "/tensorflow.serving.PredictionService/Predict"
#: What a request of some hundred bytes may be answered with: it must not make large answers.
_MOST_ANSWER = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from ciml.serving.server.server import ModelServer, ServerOptions

    root = tmp_path_factory.mktemp("fuzz-serving")
    config = write_config(root, save_model(root / "models" / "1"))
    with ModelServer(ServerOptions(config, verify=False, grpc_port=0, rest_port=0)) as running:
        yield running


@pytest.fixture(scope="module")
def rest(server: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{server.rest_port}", trust_env=False, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def predict(server: Any) -> Iterator[Any]:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield channel.unary_unary(_PREDICT)


@fuzz
@given(body=rest_bodies())
def test_rest_bodies(rest: httpx.Client, body: bytes) -> None:
    answer = rest.post("/v1/models/m:predict", content=body)
    assert len(answer.content) < _MOST_ANSWER
    if answer.status_code == 200:
        sent, found = json.loads(body), answer.json()
        assert list(found) == ["predictions" if "instances" in sent else "outputs"]
        if "instances" in sent:
            assert len(found["predictions"]) == len(sent["instances"])
    else:
        assert answer.status_code in (400, 412, 413), answer.text
        assert list(answer.json()) == ["error"]
        assert answer.json()["error"]


@fuzz
@given(message=grpc_messages())
def test_grpc_messages(predict: Any, message: bytes) -> None:
    from tensorflow_serving.apis import predict_pb2

    data, code, details = _asked(predict, message)
    if data is None:
        assert code in ("INVALID_ARGUMENT", "FAILED_PRECONDITION", "NOT_FOUND"), details
        assert details
        return
    answer = predict_pb2.PredictResponse.FromString(data)
    rows = {tensor.tensor_shape.dim[0].size for tensor in answer.outputs.values()}
    assert len(rows) == 1
    assert answer.ByteSize() < _MOST_ANSWER


def _asked(predict: Any, message: bytes) -> tuple[bytes | None, str, str | None]:
    """(answer, "OK", None), or (None, status, details)."""
    try:
        return predict(message, timeout=60), "OK", None
    except grpc.RpcError as error:
        return None, error.code().name, error.details()

"""A hostile request affects only itself: its memory is limited, and the answer names the exceeded limit."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from ciml import limits
from ciml.data_root import DataRoot
from ciml.serving.push import push
from ciml.serving.registry import Decision
from ciml.storage import open_store
from tests.serving.models_fixture import C, F, L, runs
from tests.serving.process import MIB, ServerProcess, server_process

pytestmark = pytest.mark.engines

PREDICT = "/tensorflow.serving.PredictionService/Predict"
#: Limit of the memory that one request adds to the server. The largest attack added 3,300 MiB.
MOST = 256 * MIB


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, good: dict[int, Path]) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("hostile")
    data = DataRoot.open(root / "data")
    push(data, "m", open_store(good[1]), Decision(True), check=False)
    with server_process(data.models.url("models.config"), root / "log") as running:
        yield running


@pytest.fixture(scope="module")
def rest(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{server.rest_port}", trust_env=False, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def predict(server: ServerProcess) -> Iterator[Any]:
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        yield lambda request: stub.Predict(request, timeout=120)


def request_of(signature: str = "") -> Any:
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "m", signature
    return request


def repeated(tensor: Any, dtype: int, sizes: list[int], **value: Any) -> None:
    """Return a tensor with one value that is repeated for all elements of the shape."""
    tensor.dtype = dtype
    for size in sizes:
        tensor.tensor_shape.dim.add().size = size
    for field, one in value.items():
        getattr(tensor, field).append(one)


def rejection_of(predict: Any, request: Any) -> str:
    with pytest.raises(grpc.RpcError) as error:
        predict(request)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    return str(error.value.details())


@pytest.mark.parametrize("signature", ["x", "s"])
def test_rest_long_string_among_short_ones(server: ServerProcess, rest: httpx.Client, signature: str) -> None:
    strings = ["a"] * 8_000 + ["b" * 100_000]
    columns = {"x": [[1, 2]], "s": ["a"], signature: strings}
    server.reset_peak()
    before = server.rss()
    answer = rest.post("/v1/models/m:predict", json={"signature_name": "several", "inputs": columns})
    assert server.peak_rss() - before < MOST
    assert answer.status_code == 400
    assert list(answer.json()) == ["error"]


def test_grpc_unknown_inputs_are_rejected_before_they_are_unpacked(server: ServerProcess, predict: Any) -> None:
    request = request_of()
    for number in range(40):
        repeated(request.inputs[f"x{number}"], 1, [16 * MIB], float_val=1.0)
    assert len(request.SerializeToString()) < 2_000
    server.reset_peak()
    before = server.rss()
    assert "Sent extra: {x0,x1,x10," in rejection_of(predict, request)
    assert server.peak_rss() - before < MOST


def test_grpc_a_repeated_string_is_counted_as_often_as_it_repeats(server: ServerProcess, predict: Any) -> None:
    request = request_of("several")
    repeated(request.inputs["x"], 1, [1024, 2], float_val=1.0)
    repeated(request.inputs["s"], 7, [1024], string_val=b"x" * MIB)
    server.reset_peak()
    before = server.rss()
    assert "(MAX_TENSOR_BYTES)" in rejection_of(predict, request)
    assert server.peak_rss() - before < MOST


def test_grpc_rows_are_counted_before_tensors_are_unpacked(server: ServerProcess, predict: Any) -> None:
    request = request_of()
    repeated(request.inputs["inputs"], 1, [1 << 20, L, F], float_val=1.0)
    repeated(request.inputs["n_windows"], 3, [1 << 20], int_val=1)
    server.reset_peak()
    before = server.rss()
    assert "batch of 1048576 rows exceeds 1024 (MAX_REQUEST_ROWS)" in rejection_of(predict, request)
    assert server.peak_rss() - before < 32 * MIB


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ({"dtype": 3, "sizes": [1, L, F], "int_val": 1}, "expects float32 but int32 is provided"),
        ({"dtype": 99, "sizes": [1, L, F]}, "unknown type 99"),
        ({"dtype": 1, "sizes": [1, -1, F], "float_val": 1.0}, "not fully defined"),
        ({"dtype": 1, "sizes": [1] * 40, "float_val": 1.0}, "40 dimensions; at most 32"),
        ({"dtype": 1, "sizes": [1, L, F + 1], "float_val": 1.0}, "expects [-1, 5, 3]"),
    ],
)
def test_grpc_types_and_shapes_are_checked_by_what_is_declared(
    predict: Any, tensor: dict[str, Any], message: str
) -> None:
    request = request_of()
    repeated(request.inputs["inputs"], **tensor)
    repeated(request.inputs["n_windows"], 3, [1], int_val=1)
    assert message in rejection_of(predict, request)


def test_grpc_an_error_that_quotes_bytes_is_the_input_s_fault(predict: Any) -> None:
    request = request_of("examples")
    repeated(request.inputs["examples"], 7, [1], string_val=b"\x80")
    assert "signature 'examples' rejects the inputs: they are not valid UTF-8" in rejection_of(predict, request)


def test_grpc_one_repeated_value_is_a_tensor(predict: Any) -> None:
    request = request_of()
    repeated(request.inputs["inputs"], 1, [2, L, F], float_val=1.0)
    repeated(request.inputs["n_windows"], 3, [2], int_val=1)
    answer = predict(request)
    assert [dim.size for dim in answer.outputs["probabilities"].tensor_shape.dim] == [2, C]


@pytest.mark.parametrize("sent", ["x" * MIB, "ü" * MIB, "\0" * 9_000])
def test_an_error_is_short_for_any_request(rest: httpx.Client, predict: Any, sent: str) -> None:
    request = request_of()
    request.inputs[sent].dtype = 1
    assert len(rejection_of(predict, request)) < 2_000
    request = request_of()
    request.model_spec.version_label = sent
    assert "Unrecognized servable version label" in rejection_of(predict, request)
    body = {"instances": [{sent: 1}], "signature_name": sent}
    answer = rest.post("/v1/models/m:predict", json=body)
    assert answer.status_code == 400
    assert len(answer.json()["error"]) < 2_000


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"instances":[' + b"[]," * 3_000_000 + b"1]}", "lists and objects; at most 524288 (MAX_JSON_CONTAINERS)"),
        (b'{"instances":[' + b'{"":0},' * 2_000_000 + b"1]}", "(MAX_JSON_CONTAINERS)"),
        (b'{"instances":[' + b"0," * 8_000_000 + b"1]}", "values; at most 4194304 (MAX_JSON_VALUES)"),
    ],
    ids=["lists", "objects", "numbers"],
)
def test_rest_json_is_counted_before_it_is_parsed(
    server: ServerProcess, rest: httpx.Client, body: bytes, message: str
) -> None:
    server.reset_peak()
    before = server.rss()
    answer = rest.post("/v1/models/m:predict", content=body)
    assert server.peak_rss() - before < MOST
    assert answer.status_code == 413
    assert message in answer.json()["error"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x12\x00" * 8_000_000, "8000000 inputs; at most 64 (MAX_REQUEST_INPUTS)"),
        (b"\x1a\x00" * 8_000_000, "8000000 output filters; at most 64 (MAX_REQUEST_INPUTS)"),
        (b"\x12\x01\xff", "is not a RequestInput"),
        (b"\xff", "the request is not a RequestHead"),
        (b"\x1a\x01\xff", "an output filter name is not valid UTF-8"),
    ],
    ids=["inputs", "filters", "a broken input", "broken", "a broken filter"],
)
def test_grpc_requests_are_counted_before_they_are_parsed(server: ServerProcess, data: bytes, message: str) -> None:
    server.reset_peak()
    before = server.rss()
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options) as channel:
        assert message in rejection_of(lambda sent: channel.unary_unary(PREDICT)(sent, timeout=120), data)
    assert server.peak_rss() - before < 400 * MIB


def test_memory_stays_below_the_limit_with_the_largest_requests_at_once(server: ServerProcess) -> None:
    numbers = b"[" + b"1.5," * 4_100_000 + b"1.5]"
    bodies = [b'{"instances":' + numbers + b"}", b'{"instances":[' + b'{"":0},' * 500_000 + b"1]}"]
    message = b"\x12\x00" * 8_000_000

    def post(number: int) -> int:
        url = f"http://127.0.0.1:{server.rest_port}/v1/models/m:predict"
        return httpx.post(url, content=bodies[number % 2], trust_env=False, timeout=120).status_code

    def call(number: int) -> str:
        with (
            grpc.insecure_channel(
                f"127.0.0.1:{server.grpc_port}",
                [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)],
            ) as channel,
            pytest.raises(grpc.RpcError) as error,
        ):
            channel.unary_unary(PREDICT)(message, timeout=120)
        return str(error.value.code().name)

    server.reset_peak()
    with ThreadPoolExecutor(16) as pool:
        posts, calls = pool.map(post, range(8)), pool.map(call, range(8))
        assert set(posts) <= {400, 503}
        assert set(calls) <= {"INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"}
    assert server.peak_rss() < limits.MAX_MODEL_SERVER_RSS


def test_good_requests_are_answered_after_all(rest: httpx.Client) -> None:
    inputs, n_windows = runs(2)
    body = {"inputs": {"inputs": inputs.tolist(), "n_windows": n_windows.tolist()}}
    assert np.shape(rest.post("/v1/models/m:predict", json=body).json()["outputs"]) == (2, C)

"""A hostile request affects only itself: its memory is limited, and the answer names the exceeded limit."""

from __future__ import annotations

import contextlib
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
from tests.serving.models_fixture import C, F, L, columns, push_models
from tests.serving.process import MIB, ServerProcess, server_process

pytestmark = pytest.mark.engines

PREDICT = "/tensorflow.serving.PredictionService/Predict"
#: Limit of the memory that one request adds to the server. The largest attack added 3,300 MiB.
MOST = 256 * MIB


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, good: dict[int, Path]) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("hostile")
    data = DataRoot.open(root / "data")
    push_models(data, good[1])
    with server_process(data.models.url("models.config"), root / "log") as running:
        yield running


@pytest.fixture(scope="module")
def rest(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{server.rest_port}", trust_env=False, timeout=120) as client:
        yield client


@contextlib.contextmanager
def memory_within(server: ServerProcess, most: int = MOST) -> Iterator[None]:
    """Assert that the block adds less to the peak of the server's memory."""
    server.reset_peak()
    before = server.rss()
    yield
    assert server.peak_rss() - before < most


def predict(server: ServerProcess, request: bytes, *options: tuple[str, int]) -> bytes:
    unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1), *options]
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", unlimited) as channel:
        answer: bytes = channel.unary_unary(PREDICT)(request, timeout=120)
        return answer


def rejection_of(server: ServerProcess, request: bytes) -> str:
    with pytest.raises(grpc.RpcError) as error:
        predict(server, request)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    return str(error.value.details())


def request_of(signature: str = "", label: str = "", **tensors: Any) -> bytes:
    """Return a request with tensors: dtype, sizes and one value, which is repeated for all elements of the shape."""
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name = "m"
    request.model_spec.signature_name = signature
    request.model_spec.version_label = label
    for name, (dtype, sizes, value) in tensors.items():
        tensor = request.inputs[name]
        tensor.dtype = dtype
        for size in sizes:
            tensor.tensor_shape.dim.add().size = size
        if value is not None:
            values = {1: tensor.float_val, 3: tensor.int_val, 7: tensor.string_val}
            values[dtype].append(value)
    data: bytes = request.SerializeToString()
    return data


ONE_ROW = {"n_windows": (3, [1], 1)}


@pytest.mark.parametrize(
    ("signature", "tensors", "message"),
    [
        ("", {f"x{number}": (1, [16 * MIB], 1.0) for number in range(40)}, "Sent extra: {x0,x1,x10,"),
        ("several", {"x": (1, [1024, 2], 1.0), "s": (7, [1024], b"x" * MIB)}, "(MAX_TENSOR_BYTES)"),
        (
            "", {"inputs": (1, [1 << 20, L, F], 1.0), "n_windows": (3, [1 << 20], 1)},
            "batch of 1048576 rows exceeds 1024 (MAX_REQUEST_ROWS)",
        ),
        ("", {"inputs": (3, [1, L, F], 1), **ONE_ROW}, "expects float32 but int32 is provided"),
        ("", {"inputs": (99, [1, L, F], None), **ONE_ROW}, "unknown type 99"),
        ("", {"inputs": (1, [1, -1, F], 1.0), **ONE_ROW}, "not fully defined"),
        ("", {"inputs": (1, [1] * 40, 1.0), **ONE_ROW}, "40 dimensions; at most 32"),
        ("", {"inputs": (1, [1, L, F + 1], 1.0), **ONE_ROW}, "expects [-1, 5, 3]"),
        ("examples", {"examples": (7, [1], b"\x80")}, "signature 'examples' rejects the inputs: they are"),
    ],
)  # fmt: skip
def test_grpc_inputs_are_checked_before_they_are_unpacked(
    server: ServerProcess, signature: str, tensors: dict[str, Any], message: str
) -> None:
    with memory_within(server, 32 * MIB):
        assert message in rejection_of(server, request_of(signature, **tensors))


def test_grpc_one_repeated_value_is_a_tensor(server: ServerProcess) -> None:
    from tensorflow_serving.apis import predict_pb2

    answer = predict(server, request_of(inputs=(1, [2, L, F], 1.0), n_windows=(3, [2], 1)))
    outputs = predict_pb2.PredictResponse.FromString(answer).outputs
    assert [dim.size for dim in outputs["probabilities"].tensor_shape.dim] == [2, C]


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
    with memory_within(server, 400 * MIB):
        assert message in rejection_of(server, data)


@pytest.mark.parametrize("sent", ["x" * MIB, "ü" * MIB, "\0" * 9_000])
def test_an_error_is_short_for_any_request(server: ServerProcess, rest: httpx.Client, sent: str) -> None:
    assert len(rejection_of(server, request_of(**{sent: (1, [], None)}))) < 2_000
    assert "Unrecognized servable version label" in rejection_of(server, request_of(label=sent))
    answer = rest.post("/v1/models/m:predict", json={"instances": [{sent: 1}], "signature_name": sent})
    assert answer.status_code == 400
    assert len(answer.json()["error"]) < 2_000


@pytest.mark.parametrize("signature", ["x", "s"])
def test_rest_long_string_among_short_ones(server: ServerProcess, rest: httpx.Client, signature: str) -> None:
    columns = {"x": [[1, 2]], "s": ["a"], signature: ["a"] * 8_000 + ["b" * 100_000]}
    with memory_within(server):
        answer = rest.post("/v1/models/m:predict", json={"signature_name": "several", "inputs": columns})
    assert answer.status_code == 400
    assert list(answer.json()) == ["error"]


@pytest.mark.parametrize(
    ("instance", "number", "message"),
    [
        (b"[]", 3_000_000, "lists and objects; at most 524288 (MAX_JSON_CONTAINERS)"),
        (b'{"":0}', 2_000_000, "(MAX_JSON_CONTAINERS)"),
        (b"0", 8_000_000, "values; at most 4194304 (MAX_JSON_VALUES)"),
    ],
)
def test_rest_json_is_counted_before_it_is_parsed(
    server: ServerProcess, rest: httpx.Client, instance: bytes, number: int, message: str
) -> None:
    with memory_within(server):
        answer = rest.post("/v1/models/m:predict", content=b'{"instances":[' + (instance + b",") * number + b"1]}")
    assert answer.status_code == 413
    assert message in answer.json()["error"]


def test_memory_stays_below_the_limit_with_the_largest_requests_at_once(
    server: ServerProcess, rest: httpx.Client
) -> None:
    numbers = b"[" + b"1.5," * 4_100_000 + b"1.5]"
    bodies = [b'{"instances":' + numbers + b"}", b'{"instances":[' + b'{"":0},' * 500_000 + b"1]}"]

    def post(number: int) -> int:
        url = f"http://127.0.0.1:{server.rest_port}/v1/models/m:predict"
        return httpx.post(url, content=bodies[number % 2], trust_env=False, timeout=120).status_code

    def call(_: int) -> str:
        with pytest.raises(grpc.RpcError) as error:
            predict(server, b"\x12\x00" * 8_000_000, ("grpc.use_local_subchannel_pool", 1))
        return str(error.value.code().name)

    server.reset_peak()
    with ThreadPoolExecutor(16) as pool:
        posts = pool.map(post, range(8))
        calls = pool.map(call, range(8))
        assert set(posts) <= {400, 503}
        assert set(calls) <= {"INVALID_ARGUMENT", "UNAVAILABLE"}
    assert server.peak_rss() < limits.MAX_MODEL_SERVER_RSS
    answer = rest.post("/v1/models/m:predict", json=columns(2))
    assert np.shape(answer.json()["outputs"]) == (2, C)  # a good request is answered after all

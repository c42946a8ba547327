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
from hypothesis import strategies as st

from tests.fuzz.frame import fuzz
from tests.serving.models_fixture import F, L, save_model
from tests.serving.siege import write_config

_NUMBERS = st.one_of(
    st.integers(-5, 5),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([1 << 31, -(1 << 31) - 1, 1 << 63, 1 << 64, 10**400, 1e39, 5e-324, True, None, "1", "", {}, []]),
)
_B64 = st.sampled_from([{"b64": "AAA="}, {"b64": "?"}, {"b64": "A"}, {"b64": 1}, {"b64": "ü"}, {"b64": "", "x": 1}])
_STRINGS = st.one_of(st.text(max_size=5), st.just("\ud800"), _B64, _NUMBERS)
_NAMES = st.sampled_from(["inputs", "n_windows", "x", "s", "examples", "", "ü", "inputs\0"])
_SIGNATURES = st.sampled_from(["", "serving_default", "several", "examples", "none", 1, None])


def _lists(leaves: st.SearchStrategy[Any], sizes: tuple[int, ...]) -> st.SearchStrategy[Any]:
    """Nested lists of about these sizes."""
    if not sizes:
        return leaves
    inner = _lists(leaves, sizes[1:])
    exact = st.lists(inner, min_size=sizes[0], max_size=sizes[0])
    return st.one_of(exact, exact, exact, st.lists(inner, max_size=sizes[0] + 1), leaves)


_TENSORS = st.one_of(
    _lists(st.floats(-10, 10), (1, L, F)),
    _lists(_NUMBERS, (2, L, F)),
    _lists(st.integers(0, L), (1,)),
    _lists(_STRINGS, (2,)),
    _lists(_NUMBERS, (2, 2)),
    _NUMBERS,
    st.recursive(_NUMBERS, lambda inner: st.lists(inner, max_size=2), max_leaves=5),
)
_ROW = st.one_of(
    st.fixed_dictionaries({"inputs": _lists(_NUMBERS, (L, F)), "n_windows": _NUMBERS}),
    st.fixed_dictionaries({"x": _lists(_NUMBERS, (2,)), "s": _STRINGS}),
    st.dictionaries(_NAMES, _TENSORS, max_size=3),
    _STRINGS,
)
_COLUMNS = st.one_of(
    st.fixed_dictionaries({"inputs": _lists(_NUMBERS, (1, L, F)), "n_windows": _lists(_NUMBERS, (1,))}),
    st.fixed_dictionaries({"x": _lists(_NUMBERS, (2, 2)), "s": _lists(_STRINGS, (2,))}),
    st.dictionaries(_NAMES, _TENSORS, max_size=3),
    _TENSORS,
)
_BODIES = st.one_of(
    st.fixed_dictionaries({"instances": st.lists(_ROW, max_size=3)}, optional={"signature_name": _SIGNATURES}),
    st.fixed_dictionaries({"inputs": _COLUMNS}, optional={"signature_name": _SIGNATURES, "instances": st.just([1])}),
    _TENSORS,
)


@st.composite
def rest_bodies(draw: st.DrawFn) -> bytes:
    """The body of a predict request; one in four is cut or has a byte replaced."""
    return draw(_damaged(json.dumps(draw(_BODIES)).encode()))


@st.composite
def grpc_messages(draw: st.DrawFn) -> bytes:
    """A PredictRequest; one in four is cut or has a byte replaced."""
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name = draw(st.sampled_from(["m", "m", "m", "m", "x", ""]))
    request.model_spec.signature_name = draw(st.sampled_from(["", "several", "examples", "none"]))
    if draw(st.integers(0, 5)) == 0:
        request.model_spec.version_label = draw(st.text(max_size=3))
    expected = {"": ("inputs", "n_windows"), "several": ("x", "s"), "examples": ("examples",)}
    names = expected.get(request.model_spec.signature_name, ())
    for name in draw(st.one_of(st.just(names), st.lists(_NAMES, max_size=3))):
        _fill(draw, name, request.inputs[name])
    request.output_filter.extend(draw(st.lists(st.sampled_from(["probabilities", "double", "x"]), max_size=2)))
    return draw(_damaged(request.SerializeToString()))


_DECLARED = {
    "inputs": (1, [1, L, F]), "n_windows": (3, [1]), "x": (1, [1, 2]), "s": (7, [1]), "examples": (7, [1]),
}  # fmt: skip


def _fill(draw: st.DrawFn, name: str, tensor: Any) -> None:
    dtype, sizes = _DECLARED.get(name, (1, [1]))
    tensor.dtype = draw(st.one_of(st.just(dtype), st.just(dtype), st.integers(0, 120)))
    sizes = draw(st.one_of(st.just(sizes), st.lists(st.sampled_from([-1, 0, 1, 2, 3, 1025, 1 << 40]), max_size=4)))
    for size in sizes:
        tensor.tensor_shape.dim.add().size = size
    tensor.tensor_shape.unknown_rank = draw(st.integers(0, 9)) == 0
    tensor.float_val.extend(draw(st.lists(st.floats(width=32), max_size=3)))
    tensor.int_val.extend(draw(st.lists(st.integers(-(1 << 31), (1 << 31) - 1), max_size=2)))
    tensor.string_val.extend(draw(st.lists(st.binary(max_size=5), max_size=2)))
    if draw(st.integers(0, 3)) == 0:
        tensor.tensor_content = draw(st.binary(max_size=70))


@st.composite
def _damaged(draw: st.DrawFn, data: bytes) -> bytes:
    kind = draw(st.integers(0, 7))
    at = draw(st.integers(0, max(len(data) - 1, 0)))
    if kind == 0:
        return data[:at]
    if kind == 1 and data:
        return data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
    return data


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

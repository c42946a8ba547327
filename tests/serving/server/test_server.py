"""The server's contract, by stock stubs and plain HTTP, against TensorFlow's own answers."""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from ciml.http.intake import RequestError
from ciml.limits import MAX_JSON_CONTAINERS
from ciml.serving.server.manager import ModelChoice
from ciml.serving.server.rest import parse_body
from ciml.serving.server.server import ModelServer
from tests.serving.models_fixture import C, F, L, columns, direct, runs


@pytest.fixture(scope="module")
def channel(server: ModelServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield channel


@pytest.fixture(scope="module")
def rest(server: ModelServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{server.rest_port}", trust_env=False, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def predict(channel: grpc.Channel) -> Callable[[Any], Any]:
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    return lambda request: stub.Predict(request, timeout=20)


def request_of(spec: dict[str, Any], **inputs: Any) -> Any:
    import tensorflow as tf
    from google.protobuf import json_format
    from tensorflow_serving.apis import predict_pb2

    request = json_format.ParseDict({"model_spec": {"name": "m", **spec}}, predict_pb2.PredictRequest())
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return request


def rejection_of(call: Callable[[Any], Any], request: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as error:
        call(request)
    return error.value.code().name, error.value.details()


@pytest.mark.parametrize(("spec", "version"), [({}, 2), ({"version": 1}, 1), ({"version_label": "stable"}, 2)])
def test_grpc_predict(predict: Callable[[Any], Any], good: dict[int, Path], spec: dict[str, Any], version: int) -> None:
    import tensorflow as tf

    inputs, n_windows = runs(9, seed=version)
    answer = predict(request_of(spec, inputs=inputs, n_windows=n_windows))
    spec = answer.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("m", version, "serving_default")
    assert list(answer.outputs) == ["probabilities"]
    expected = direct(good[version], inputs, n_windows)
    np.testing.assert_allclose(tf.make_ndarray(answer.outputs["probabilities"]), expected, atol=1e-6)
    # As TensorFlow Serving fills it: many clients read this field.
    np.testing.assert_allclose(answer.outputs["probabilities"].float_val, expected.ravel(), atol=1e-6)


def test_grpc_examples_signature(predict: Callable[[Any], Any], good: dict[int, Path]) -> None:
    import tensorflow as tf

    inputs, n_windows = runs(3)
    serialized = []
    for row in range(3):
        example = tf.train.Example()
        for number, name in enumerate(("usr", "sys", "1m")):
            example.features.feature[name].float_list.value.extend(inputs[row, :, number])
        example.features.feature["n_windows"].int64_list.value.append(int(n_windows[row]))
        serialized.append(example.SerializeToString())
    answer = predict(request_of({"signature_name": "examples"}, examples=serialized))
    found = tf.make_ndarray(answer.outputs["probabilities"])
    np.testing.assert_allclose(found, direct(good[2], inputs, n_windows), atol=1e-6)


def test_grpc_output_filter(predict: Callable[[Any], Any]) -> None:
    request = request_of({"signature_name": "several"}, x=[[1.0, 2.0]], s=[b"\xff"])
    request.output_filter.extend(["double"])
    outputs = predict(request).outputs
    assert {key: list(tensor.float_val) for key, tensor in outputs.items()} == {"double": [2.0, 4.0]}
    for names, message in (
        (["none"], "output tensor alias not found in signature: none"),
        (["double"] * 65, "65 output filters; at most 64 (MAX_REQUEST_INPUTS)"),
    ):
        request.output_filter[:] = names
        code, details = rejection_of(predict, request)
        assert (code, message in details) == ("INVALID_ARGUMENT", True)


@pytest.mark.parametrize(
    ("spec", "rows", "code", "message"),
    [
        ({"name": "x"}, 1, "NOT_FOUND", "Servable not found for request: Latest(x)"),
        ({"version": 7}, 1, "NOT_FOUND", "Servable not found for request: Specific(m, 7)"),
        ({"version_label": "x"}, 1, "INVALID_ARGUMENT", "Unrecognized servable version label: x"),
        ({"signature_name": "x"}, 1, "FAILED_PRECONDITION", 'Serving signature key "x" not found.'),
        ({}, 20000, "RESOURCE_EXHAUSTED", "larger than max"),
        ({"name": ""}, 1, "INVALID_ARGUMENT", "Missing model name"),
    ],
)
def test_grpc_errors(predict: Callable[[Any], Any], spec: dict[str, Any], rows: int, code: str, message: str) -> None:
    request = request_of(spec, inputs=np.zeros((rows, L, F), "f4"), n_windows=np.ones(rows, "i4"))
    found, details = rejection_of(predict, request)
    assert (found, message in details) == (code, True), details


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda tensor: tensor.resource_handle_val.add(), "input 'inputs': holds resources or variants"),
        (lambda tensor: tensor.variant_val.add(), "input 'inputs': holds resources or variants"),
        (lambda tensor: setattr(tensor, "tensor_content", b"123"), "input 'inputs': "),
        (lambda tensor: setattr(tensor.tensor_shape.dim[0], "size", 1 << 40), "different numbers of rows"),
    ],
    ids=["resource", "variant", "cut", "bomb"],
)
def test_grpc_malformed_tensors_are_rejected(
    predict: Callable[[Any], Any], alter: Callable[[Any], object], message: str
) -> None:
    request = request_of({}, inputs=np.zeros((1, L, F), "f4"), n_windows=np.ones(1, "i4"))
    alter(request.inputs["inputs"])
    code, details = rejection_of(predict, request)
    assert (code, message in details) == ("INVALID_ARGUMENT", True), details


def test_a_call_takes_no_longer_than_its_grpc_client_waits(
    server: ModelServer, channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    process = server.manager.find(ModelChoice("m"))[1].process
    run = process.run
    limits_s: list[float | None] = []

    def limited(signature: Any, inputs: Any, timeout_s: float | None = None) -> Any:
        limits_s.append(timeout_s)
        return run(signature, inputs, timeout_s)

    monkeypatch.setattr(process, "run", limited)
    inputs, n_windows = runs(1)
    for waits_s in (20, None):
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        stub.Predict(request_of({}, inputs=inputs, n_windows=n_windows), timeout=waits_s)
    with_limit_s, without = limits_s
    assert with_limit_s is not None
    assert 10 < with_limit_s < 30
    assert without is None


def test_grpc_status_and_metadata(channel: grpc.Channel) -> None:
    from tensorflow_serving.apis import (
        get_model_metadata_pb2,
        get_model_status_pb2,
        model_management_pb2,
        model_service_pb2_grpc,
        prediction_service_pb2_grpc,
    )

    models = model_service_pb2_grpc.ModelServiceStub(channel)
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "m"
    statuses = models.GetModelStatus(request, timeout=20).model_version_status
    available = get_model_status_pb2.ModelVersionStatus.AVAILABLE
    assert [(one.version, one.state, one.status.error_code) for one in statuses] == [
        (2, available, 0),
        (1, available, 0),
    ]
    request.model_spec.version_label = "stable"
    assert [one.version for one in models.GetModelStatus(request, timeout=20).model_version_status] == [2]
    reload = model_management_pb2.ReloadConfigRequest()  # is rejected unless allowed
    assert rejection_of(models.HandleReloadConfigRequest, reload)[0] == "PERMISSION_DENIED"

    get_metadata = prediction_service_pb2_grpc.PredictionServiceStub(channel).GetModelMetadata
    metadata = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    metadata.model_spec.name = "m"
    found = get_metadata(metadata, timeout=20)
    assert found.model_spec.version.value == 2
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert found.metadata["signature_def"].Unpack(signatures)
    assert set(signatures.signature_def) == {"serving_default", "examples", "several"}
    default = signatures.signature_def["serving_default"]
    assert default.method_name == "tensorflow/serving/predict"
    shapes = {name: [dim.size for dim in one.tensor_shape.dim] for name, one in default.inputs.items()}
    assert shapes == {"inputs": [-1, L, F], "n_windows": [-1]}
    for fields, message in (([], "at least one"), (["x"], "Metadata field x is not supported")):
        metadata.metadata_field[:] = fields
        code, details = rejection_of(get_metadata, metadata)
        assert (code, message in details) == ("INVALID_ARGUMENT", True)


def test_rest_rows_and_columns(rest: httpx.Client, good: dict[int, Path]) -> None:
    inputs, n_windows = runs(4)
    expected = direct(good[2], inputs, n_windows)
    rows = [{"inputs": inputs[row].tolist(), "n_windows": int(n_windows[row])} for row in range(4)]
    answer = rest.post("/v1/models/m:predict", json={"instances": rows})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert list(answer.json()) == ["predictions"]
    np.testing.assert_allclose(answer.json()["predictions"], expected, atol=1e-6)
    for path, seed in (("/v1/models/m/labels/stable", 2), ("/v1/models/m/versions/1", 1)):
        answer = rest.post(f"{path}:predict", json={**columns(4), "signature_name": "serving_default"})
        assert list(answer.json()) == ["outputs"]
        np.testing.assert_allclose(answer.json()["outputs"], direct(good[seed], inputs, n_windows), atol=1e-6)


def test_rest_strings_numbers_and_several_outputs(rest: httpx.Client) -> None:
    def predict(**body: Any) -> httpx.Response:
        return rest.post("/v1/models/m:predict", json={"signature_name": "several", **body})

    rows = [{"x": [1, 2], "s": "grüße"}, {"x": [0.5, -1], "s": "b"}]
    assert predict(instances=rows).json() == {
        "predictions": [
            {"double": [2.0, 4.0], "s_bytes": {"b64": base64.b64encode("grüße".encode()).decode()}, "text": "grüße!"},
            {"double": [1.0, -2.0], "s_bytes": {"b64": "Yg=="}, "text": "b!"},
        ]
    }
    encoded = base64.b64encode(b"\xff\x00").decode()
    answer = predict(inputs={"x": [[0.1, 3]], "s": [{"b64": encoded}]})
    assert answer.json()["outputs"]["s_bytes"] == [{"b64": encoded}]
    assert '"double":[[0.2,6.0]]' in answer.text  # the shortest numbers that read back


def row(**changes: Any) -> dict[str, Any]:
    return {"inputs": np.zeros((L, F)).tolist(), "n_windows": 1, **changes}


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("m:predict", "{", 400, "JSON Parse error"),
        ("m:predict", "[" * 100_000, 400, "JSON Parse error"),
        ("m:predict", "[]", 400, "Is not object"),
        ("m:predict", {}, 400, "Missing 'inputs' or 'instances' key"),
        ("m:predict", {"instances": [], "inputs": []}, 400, "only one of"),
        ("m:predict", {"instances": {}}, 400, "to be an list/array"),
        ("m:predict", {"instances": []}, 400, "No values in 'instances' array"),
        ("m:predict", {"instances": [1]}, 400, "expecting list of objects"),
        ("m:predict", {"instances": [row(), 1]}, 400, "Expecting object but got list at item 1"),
        ("m:predict", {"instances": [{"inputs": []}]}, 400, "keys must be equal to: inputs,n_windows"),
        ("m:predict", {"instances": [row(n_windows=1.5)]}, 400, "not of expected type: int32"),
        ("m:predict", {"instances": [row(n_windows="1")]}, 400, "not of expected type: int32"),
        ("m:predict", {"instances": [row(n_windows=True)]}, 400, "not of expected type: int32"),
        ("m:predict", {"instances": [row(n_windows=1 << 40)]}, 400, "out of the range of int32"),
        ("m:predict", {"instances": [row(n_windows=None)]}, 400, "not of expected type: int32"),
        ("m:predict", {"instances": [row(inputs=[["x"] * F] * L)]}, 400, "not of expected type: float32"),
        ("m:predict", {"instances": [row(inputs=[[True] * F] * L)]}, 400, "not of expected type: float32"),
        ("m:predict", {"instances": [row(inputs=[[1e300] * F] * L)]}, 400, "without loss of precision"),
        ("m:predict", {"instances": [row(inputs=[[1.0], [1.0, 2.0]])]}, 400, "unexpected size or level"),
        ("m:predict", {"instances": [row(inputs=[[1.0]])]}, 400, "has shape [1, 1, 1], expects [-1, 5, 3]"),
        ("m:predict", {"inputs": {"inputs": []}}, 400, "Missing named input: n_windows in 'inputs' object"),
        ("m:predict", {"inputs": [1.0]}, 400, "expecting an object"),
        ("m:predict", {"instances": [row()], "signature_name": 1}, 400, "'signature_name' key must be a string"),
        ("m:predict", {"instances": [row()], "signature_name": "x"}, 400, 'name: "x" not found in signature def'),
        ("m:predict", {"instances": [{"b64": "?"}], "signature_name": "examples"}, 400, "Unable to base64 decode"),
        ("x:predict", {"instances": [row()]}, 404, "Servable not found for request: Latest(x)"),
        ("m/versions/9:predict", {"instances": [row()]}, 404, "Specific(m, 9)"),
        ("m/labels/x:predict", {"instances": [row()]}, 400, "Unrecognized servable version label: x"),
        ("m:classify", {"examples": []}, 501, "classify is not implemented"),
        ("m:explain", {}, 400, "Malformed request: POST /v1/models/m:explain"),
        ("m:predict", " " * (1 << 21), 413, "larger than 1048576 bytes"),
    ],
)  # fmt: skip
def test_rest_errors(rest: httpx.Client, path: str, body: Any, status: int, message: str) -> None:
    answer = rest.post(f"/v1/models/{path}", content=body if isinstance(body, str) else json.dumps(body))
    assert list(answer.json()) == ["error"]
    assert message in answer.json()["error"]
    assert answer.status_code == status


def test_a_client_that_still_sends_a_too_large_body_reads_the_answer_and_may_send_the_next(server: ModelServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=30)
    for _ in range(2):
        connection.request("POST", "/v1/models/m:predict", b" " * (32 << 20))
        with connection.getresponse() as answer:
            assert (answer.status, json.load(answer)["error"][:29]) == (413, "the request is larger than 10")
    connection.close()


@pytest.mark.parametrize("container", ["[]", "{}"])
def test_rest_lists_and_objects_are_counted_before_json_is_parsed(container: str) -> None:
    most = [container] * (MAX_JSON_CONTAINERS - 2)  # the list of instances and the body are the other two
    body = '{"instances":[%s]}'
    assert len(parse_body((body % ",".join(most)).encode()).content) == len(most)
    with pytest.raises(RequestError, match=f"{MAX_JSON_CONTAINERS + 1} lists and objects; at most"):
        parse_body((body % ",".join([*most, container])).encode())


def test_rest_status_and_metadata(rest: httpx.Client) -> None:
    fine = {"error_code": "OK", "error_message": ""}
    assert rest.get("/v1/models/m").json() == {
        "model_version_status": [
            {"version": "2", "state": "AVAILABLE", "status": fine},
            {"version": "1", "state": "AVAILABLE", "status": fine},
        ]
    }
    for path, version in (("versions/1", "1"), ("labels/stable", "2")):
        statuses = rest.get(f"/v1/models/m/{path}").json()["model_version_status"]
        assert [one["version"] for one in statuses] == [version]
    for path, status, message in (
        ("x", 404, "Could not find any versions of model x"),
        ("m/versions/9", 404, "Could not find version 9 of model m"),
        ("m/labels/x", 400, "Unrecognized servable version label: x"),
        ("m/versions/x", 400, "Malformed request: GET /v1/models/m/versions/x"),
    ):
        answer = rest.get(f"/v1/models/{path}")
        assert (answer.status_code, answer.json()) == (status, {"error": message})
    metadata = rest.get("/v1/models/m/metadata").json()
    assert metadata["model_spec"] == {"name": "m", "signature_name": "", "version": "2"}
    default = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert default["inputs"]["inputs"]["dtype"] == "DT_FLOAT"
    assert default["outputs"]["probabilities"]["tensor_shape"] == {
        "dim": [{"size": "-1", "name": ""}, {"size": str(C), "name": ""}],
        "unknown_rank": False,
    }


def test_metrics_and_health(rest: httpx.Client) -> None:
    rest.post("/v1/models/m:predict", json={"instances": [row()]})
    rest.post("/v1/models/<script>:predict", json={"instances": [row()]})
    answer = rest.get("/monitoring/prometheus/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    lines = answer.text.splitlines()
    for label in ("stable", "canary"):
        assert f'ciml_model_info{{label="{label}",model="m",version="2"}} 1.0' in lines
    assert 'ciml_model_info{label="",model="m",version="1"} 1.0' in lines
    assert any(line.startswith('ciml_model_requests_total{api="rest_predict",code="OK",model="m"}') for line in lines)
    assert any('code="NOT_FOUND",model="unknown"' in line for line in lines)
    assert "<script" not in answer.text
    assert rest.get("/healthz").status_code == 200
    assert rest.get("/readyz").json() == {"ready": True}

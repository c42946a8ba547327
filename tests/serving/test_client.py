"""The client without TensorFlow: the same bytes as the stock stubs, retries, and the answering version."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from ciml.data_root import DataRoot
from ciml.errors import EngineError
from ciml.serving import client as model_client
from ciml.serving import wire
from ciml.serving.client import ClientPolicy, ModelClient, NotServedError
from ciml.serving.push import push
from ciml.serving.registry import Decision
from ciml.serving.server.server import ModelServer, ServerOptions
from ciml.storage import open_store
from tests.serving.models_fixture import direct, runs

IMPATIENT = ClientPolicy(timeout_s=2, budget_s=0.3, first_wait_s=0.05, most_wait_s=0.1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, good: dict[int, Path]) -> DataRoot:
    data = DataRoot.open(tmp_path_factory.mktemp("data"))
    for seed in (1, 2):
        push(data, "m", open_store(good[seed]), Decision(True), check=False)
    return data


@pytest.fixture(scope="module")
def server(data: DataRoot) -> Iterator[ModelServer]:
    with ModelServer(ServerOptions(data.models.url("models.config"), grpc_port=0, rest_port=0)) as running:
        yield running


def test_same_bytes_as_the_stock_messages() -> None:
    import tensorflow as tf
    from tensorflow_serving.apis import get_model_status_pb2, predict_pb2

    inputs, n_windows = runs(3)
    ours = wire.PredictRequest()
    ours.model_spec.name = "m"
    ours.model_spec.version.value = 7
    model_client.put_array(ours, "inputs", inputs)
    model_client.put_array(ours, "n_windows", n_windows)
    theirs = predict_pb2.PredictRequest.FromString(ours.SerializeToString())
    assert (theirs.model_spec.name, theirs.model_spec.version.value) == ("m", 7)
    np.testing.assert_array_equal(tf.make_ndarray(theirs.inputs["inputs"]), inputs)
    np.testing.assert_array_equal(tf.make_ndarray(theirs.inputs["n_windows"]), n_windows)

    answer = predict_pb2.PredictResponse()
    answer.model_spec.version.value = 3
    answer.outputs["probabilities"].CopyFrom(tf.make_tensor_proto(inputs[:, 0]))
    for proto in (answer.outputs["probabilities"],):
        read = wire.PredictResponse.FromString(answer.SerializeToString())
        np.testing.assert_array_equal(model_client.get_floats(read, "probabilities"), inputs[:, 0])
        proto.ClearField("tensor_content")
        proto.float_val.extend(inputs[:, 0].ravel().tolist())
        read = wire.PredictResponse.FromString(answer.SerializeToString())
        np.testing.assert_array_equal(model_client.get_floats(read, "probabilities"), inputs[:, 0])
    assert read.model_spec.version.value == 3
    with pytest.raises(KeyError):
        model_client.get_floats(read, "other")

    status = get_model_status_pb2.GetModelStatusResponse()
    one = status.model_version_status.add()
    one.version, one.state = 4, get_model_status_pb2.ModelVersionStatus.END
    one.status.error_message = "bad"
    (read_one,) = wire.StatusResponse.FromString(status.SerializeToString()).model_version_status
    assert (read_one.version, read_one.state, read_one.status.error_message) == (4, 50, "bad")
    assert get_model_status_pb2.ModelVersionStatus.AVAILABLE == model_client.AVAILABLE


def test_client_imports_neither_tensorflow_nor_beam() -> None:
    heavy = "{'tensorflow', 'apache_beam', 'pandas'}"
    code = f"import ciml.serving.client, ciml.serving.predict.predictor, sys; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_predict_and_status(server: ModelServer, good: dict[int, Path]) -> None:
    inputs, n_windows = runs(6)
    with ModelClient(f"127.0.0.1:{server.grpc_port}", "m", IMPATIENT) as client:
        for version, seed in ((None, 2), (1, 1)):
            answer = client.predict(inputs, n_windows, version=version)
            assert answer.version == seed
            assert 0 < answer.seconds < 10
            np.testing.assert_allclose(answer.probabilities, direct(good[seed], inputs, n_windows), atol=1e-6)
        assert client.served_version() == 2
        assert client.statuses() == [(2, model_client.AVAILABLE, ""), (1, model_client.AVAILABLE, "")]
        client.wait_until_served(2, timeout_s=1)
        with pytest.raises(EngineError, match=r"serves version 2 as stable after 0\.1 s, not 9"):
            client.wait_until_served(9, timeout_s=0.1)
        for ask in (
            lambda: client.predict(inputs, n_windows, version=9),
            lambda: client.predict(inputs, n_windows, label="x"),
            lambda: client.served_version("x"),
        ):
            with pytest.raises(NotServedError):
                ask()
        with pytest.raises(EngineError, match=r"INVALID_ARGUMENT.*different numbers of rows"):
            client.predict(inputs, n_windows[:2])
    with ModelClient(f"127.0.0.1:{server.grpc_port}", "other", IMPATIENT) as client, pytest.raises(NotServedError):
        client.served_version()


def test_server_that_comes_back_is_waited_for(data: DataRoot) -> None:
    inputs, n_windows = runs(2)
    with ModelServer(ServerOptions(data.models.url("models.config"), grpc_port=0, rest_port=0)) as first:
        port = first.grpc_port
        client = ModelClient(f"127.0.0.1:{port}", "m", ClientPolicy(timeout_s=5, budget_s=30))
        assert client.predict(inputs, n_windows).version == 2
    second = ModelServer(ServerOptions(data.models.url("models.config"), grpc_port=port, rest_port=0))
    starting = threading.Timer(1.0, second.start)
    starting.start()
    try:
        assert client.predict(inputs, n_windows).version == 2
    finally:
        starting.join()
        second.stop()
        client.close()


def test_only_passing_faults_are_tried_again() -> None:
    """A scripted server that counts its requests."""
    asked: list[str] = []
    script: list[grpc.StatusCode | None] = []

    def answer(request: bytes, context: Any) -> bytes:
        asked.append("predict")
        code = script.pop(0)
        if code is not None:
            context.abort(code, code.name)
        response = wire.PredictResponse()
        response.model_spec.version.value = 5
        entry = response.outputs.add(key="probabilities")
        entry.value.dtype = 1
        for size in (1, 2):
            entry.value.tensor_shape.dim.add(size=size)
        entry.value.float_val.extend([0.25, 0.75])
        return response.SerializeToString()

    server = grpc.server(futures.ThreadPoolExecutor(2))
    handler = grpc.unary_unary_rpc_method_handler(answer)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("tensorflow.serving.PredictionService", {"Predict": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    inputs, n_windows = runs(1)
    client = ModelClient(f"127.0.0.1:{port}", "m", ClientPolicy(timeout_s=5, budget_s=5, first_wait_s=0.01))
    script += [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, None]
    assert client.predict(inputs, n_windows).probabilities.tolist() == [[0.25, 0.75]]
    assert len(asked) == 3
    asked.clear()
    script += [grpc.StatusCode.INTERNAL]
    with pytest.raises(EngineError, match="INTERNAL"):
        client.predict(inputs, n_windows)
    assert len(asked) == 1
    script += [None]
    with pytest.raises(EngineError, match="1 answers for 2 runs"):
        client.predict(*runs(2))
    client.close()
    server.stop(0)

"""The client without TensorFlow: the same bytes as the stock stubs, retries, and the answering version."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from ciml.errors import EngineError
from ciml.serving import client as model_client
from ciml.serving import wire
from ciml.serving.client import ClientPolicy, FailedCallError, ModelClient, NotServedError
from ciml.serving.server.server import ModelServer
from tests.serving.models_fixture import direct, runs

IMPATIENT = ClientPolicy(timeout_s=30, budget_s=0.3, first_wait_s=0.05, most_wait_s=0.1)


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
    for values in ([], inputs[:, 0].ravel().tolist()):  # as tensor_content, and as TensorFlow Serving answers
        if values:
            answer.outputs["probabilities"].ClearField("tensor_content")
        answer.outputs["probabilities"].float_val.extend(values)
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


def test_predict_and_status(server: ModelServer, good: dict[int, Path]) -> None:
    inputs, n_windows = runs(6)
    with ModelClient(f"127.0.0.1:{server.grpc_port}", "m", IMPATIENT) as client:
        for version, seed in ((None, 2), (1, 1)):
            answer = client.predict(inputs, n_windows, version=version)
            assert answer.version == seed
            assert answer.seconds > 0
            np.testing.assert_allclose(answer.probabilities, direct(good[seed], inputs, n_windows), atol=1e-6)
        assert client.served_version() == 2
        assert client.statuses() == [(2, model_client.AVAILABLE, ""), (1, model_client.AVAILABLE, "")]
        client.wait_until_served(2, timeout_s=30)
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


CODES = grpc.StatusCode
EXHAUSTED, AWAY, SLOW = CODES.RESOURCE_EXHAUSTED, CODES.UNAVAILABLE, CODES.DEADLINE_EXCEEDED


Script = list[grpc.StatusCode | None]


def serve(script: Script, port: int = 0) -> tuple[grpc.Server, str]:
    """Start a server that answers with the next code of its script, or with one row where it is None."""

    def answer(request: bytes, context: Any) -> bytes:
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
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server, f"127.0.0.1:{bound}"


@pytest.fixture(scope="module")
def scripted() -> Iterator[tuple[str, Script]]:
    script: Script = []
    server, address = serve(script)
    yield address, script
    server.stop(0)


def test_server_that_comes_back_is_waited_for() -> None:
    first, address = serve([None])
    with ModelClient(address, "m", ClientPolicy(timeout_s=30, budget_s=60)) as client:
        assert client.predict(*runs(1)).version == 5
        first.stop(0).wait()
        again: list[grpc.Server] = []
        starting = threading.Timer(0.3, lambda: again.append(serve([None], int(address.rpartition(":")[2]))[0]))
        starting.start()
        assert client.predict(*runs(1)).version == 5
        again[0].stop(0)


@pytest.mark.parametrize(
    ("codes", "calls", "failure"),
    [
        ([AWAY, EXHAUSTED, None], 3, None),
        ([AWAY, SLOW, AWAY, None], 4, None),
        ([SLOW, AWAY, SLOW, None], 3, FailedCallError),  # two slow tries in total, not in a row
        ([EXHAUSTED, EXHAUSTED, None], 2, FailedCallError),  # of the model, as TensorFlow Serving's
        *(([code, None], 1, FailedCallError) for code in (CODES.INTERNAL, CODES.INVALID_ARGUMENT, CODES.UNKNOWN)),
        ([CODES.NOT_FOUND, None], 1, NotServedError),
        ([CODES.PERMISSION_DENIED, None], 1, EngineError),
    ],
)
def test_a_call_is_repeated_only_where_that_may_help(
    scripted: tuple[str, Script], codes: Script, calls: int, failure: type[EngineError] | None
) -> None:
    address, script = scripted
    script[:] = codes
    with ModelClient(address, "m", ClientPolicy(timeout_s=30, budget_s=60, first_wait_s=0.01)) as client:
        if failure is None:
            answer = client.predict(*runs(1), version=4)
            assert (answer.probabilities.tolist(), answer.version) == ([[0.25, 0.75]], 5)
        else:
            with pytest.raises(failure) as error:
                client.predict(*runs(1))
            assert type(error.value) is failure
    assert len(codes) - len(script) == calls


def test_a_call_with_its_own_time_limit_is_slow_once(scripted: tuple[str, Script]) -> None:
    address, script = scripted
    script[:] = [SLOW, None]
    with ModelClient(address, "m") as client, pytest.raises(FailedCallError):
        client.predict(*runs(1), timeout_s=30.0)
    assert script == [None]


@pytest.mark.parametrize("rows", [0, 2])
def test_each_run_has_an_answer(scripted: tuple[str, Script], rows: int) -> None:
    address, script = scripted
    script[:] = [None]
    with ModelClient(address, "m") as client, pytest.raises(EngineError, match=f"1 answers for {rows} runs"):
        client.predict(*runs(rows))

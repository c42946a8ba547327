"""A gRPC call of ``ciml serve`` against the same restored signature in process; printed. Run by `make bench`."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from ciml.data_root import DataRoot
from ciml.tensorflow import load_tensorflow
from ciml.training.experiment import Experiment
from tests.bench.measuring import real_examples
from tests.serving.models_fixture import push_models
from tests.serving.process import server_process
from tests.training.exporting import fit_and_export

pytestmark = [pytest.mark.bench, pytest.mark.timeout(900)]

WINDOWS = 550
CALLS = 300
BATCH = 64
BATCHES = 60
NETWORK = Experiment(estimator="dnn", hidden_layers=(100,) * 5, epochs=1)
#: An estimator and the columns of its runs.
MODELS = {
    "network": (NETWORK, "(usr|1min)"),
    "network over all columns": (NETWORK, "."),
    "forest": (Experiment(estimator="random_forest", view="flat"), "(usr|1min)"),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_call_against_the_signature_in_process(kind: str, tmp_path: Path) -> None:
    import grpc
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    tf = load_tensorflow()
    experiment, features_regex = MODELS[kind]
    resolved, runs = real_examples("status", WINDOWS, features_regex)
    folder = tmp_path / kind
    fit_and_export(experiment, resolved, runs, folder)
    data = DataRoot.open(tmp_path / "data")
    push_models(data, folder)
    signature = tf.saved_model.load(str(folder)).signatures["serving_default"]
    with (
        server_process(data.models.url("models.config"), tmp_path / "log") as server,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

        def compare(rows: int, calls: int) -> tuple[float, float]:
            """Return the median seconds of a call of the server, and of the signature."""
            arrays = {"inputs": runs.inputs[:rows], "n_windows": runs.n_windows[:rows]}
            request = predict_pb2.PredictRequest()
            request.model_spec.name = "m"
            for name, array in arrays.items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
            times: dict[str, list[float]] = {"server": [], "process": []}
            for _ in range(calls + 5):
                started_s = time.perf_counter()
                response = stub.Predict(request)
                between_s = time.perf_counter()
                answer = signature(**{name: tf.constant(array) for name, array in arrays.items()})
                expected = answer["probabilities"].numpy()
                ended_s = time.perf_counter()
                times["server"].append(between_s - started_s)
                times["process"].append(ended_s - between_s)
                assert np.allclose(tf.make_ndarray(response.outputs["probabilities"]), expected, atol=1e-6)
            return median(times["server"][5:]), median(times["process"][5:])

        served_s, in_process_s = compare(1, CALLS)
        print(
            f"\n{kind}: p50 of a call {served_s * 1e3:.2f} ms, in process {in_process_s * 1e3:.2f} ms; "
            f"ratio {served_s / in_process_s:.2f} (at most 4)"
        )
        served_s, in_process_s = compare(BATCH, BATCHES)
        print(
            f"{kind}: {BATCH / served_s:,.0f} rows/s in batches of {BATCH}, in process {BATCH / in_process_s:,.0f}; "
            f"ratio {in_process_s / served_s:.2f} (at least 0.3)"
        )

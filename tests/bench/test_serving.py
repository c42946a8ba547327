"""A gRPC call of ``ciml serve`` against the same restored signature in process; printed. Run by `make bench`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition, ResolvedDefinition, resolve
from ciml.events.outcomes import FAILED
from ciml.telemetry import telemetry_columns
from ciml.tensorflow import load_tensorflow
from ciml.training.conversion.functions import convert
from ciml.training.conversion.step import Variables
from ciml.training.estimators.views import graph_of, values_of
from ciml.training.experiment import Experiment
from ciml.transforms.examples.prepare import prepare_many
from tests.bench.measuring import real_runs
from tests.serving.models_fixture import push_models
from tests.serving.process import server_process
from tests.training.networks import build_model

pytestmark = [pytest.mark.bench, pytest.mark.timeout(900)]

WINDOWS = 550
TREES = 300
CALLS = 300
BATCH = 64
BATCHES = 60
NETWORK = Experiment(estimator="dnn", hidden_layers=(100,) * 5)

Runs = tuple[np.ndarray, np.ndarray]


def status_runs() -> tuple[ResolvedDefinition, Runs, np.ndarray]:
    """Return the definition, inputs, numbers of windows, and whether each of the real runs failed."""
    runs, tables = real_runs()
    definition = DatasetDefinition.from_json(
        {"name": "bench", "features_regex": "(usr|1min)", "class_label": "status", "sample_interval": "1s"}
        | {"max_windows": WINDOWS}
    )
    resolved = resolve(definition, [telemetry_columns(table.column_names) for table in tables], runs)
    inputs, n_windows, _ = prepare_many(tables, resolved)
    return resolved, (inputs, n_windows), np.array([int(run.outcome in FAILED) for run in runs])


def network(resolved: ResolvedDefinition) -> tuple[Variables, Callable[[Any, Any], Any]]:
    """Return the variables and the function of a network; its weights do not matter for the time."""
    model = build_model(NETWORK, WINDOWS, len(resolved.features), len(resolved.classes))
    variables = Variables()
    trainable = [variables(weight.numpy()) for weight in model.trainable_variables]
    fixed = [variables(weight.numpy()) for weight in model.non_trainable_variables]

    def predict(inputs: Any, n_windows: Any) -> Any:
        return model.stateless_call(trainable, fixed, {"inputs": inputs, "n_windows": n_windows}, training=False)[0]

    return variables, predict


def forest(runs: Runs, labels: np.ndarray) -> tuple[Variables, Callable[[Any, Any], Any]]:
    """Return the variables and the function of a forest over the flat view."""
    estimator = RandomForestClassifier(TREES, random_state=1).fit(values_of("flat", *runs), labels)
    variables = Variables()
    probabilities = convert(estimator, "predict_proba", variables)
    return variables, lambda inputs, n_windows: probabilities(graph_of("flat", inputs, n_windows))


def save(folder: Path, resolved: ResolvedDefinition, variables: Variables, predict: Callable[[Any, Any], Any]) -> Path:
    tf = load_tensorflow()
    module = tf.Module()
    module.variables_of_the_model = variables.all
    signature = [
        tf.TensorSpec([None, WINDOWS, len(resolved.features)], tf.float32, "inputs"),
        tf.TensorSpec([None], tf.int32, "n_windows"),
    ]

    @tf.function(input_signature=signature, autograph=False)
    def serve(inputs: Any, n_windows: Any) -> Any:
        return {"probabilities": tf.cast(predict(inputs, n_windows), tf.float32)}

    module.serve = serve
    tf.saved_model.save(module, str(folder), signatures={"serving_default": serve})
    (folder / "assets" / "definition.json").write_bytes(resolved.to_asset())
    return folder


@pytest.mark.parametrize("kind", ["network", "forest"])
def test_a_call_against_the_signature_in_process(kind: str, tmp_path: Path) -> None:
    import grpc
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    tf = load_tensorflow()
    resolved, runs, labels = status_runs()
    variables, predict = network(resolved) if kind == "network" else forest(runs, labels)
    folder = save(tmp_path / kind, resolved, variables, predict)
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
            arrays = {"inputs": runs[0][:rows], "n_windows": runs[1][:rows]}
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

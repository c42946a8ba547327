"""Asks the model server for a run's class, with the stock stubs of TensorFlow Serving: no code of ciml is on the wire.

    python examples/ask_the_model_server.py HOST:PORT MODEL DATA LOG

The run is prepared by the definition that the served version carries in its assets (``DATA/models/MODEL/<version>``),
so whatever the model was trained on is what it is asked about. Without a server,
``ciml.open(DATA).model(MODEL).predict(LOG)`` has the same answer.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

import ciml
from ciml.datasets.definition import ResolvedDefinition
from ciml.transforms.examples.prepare import prepare


def served_version(channel: grpc.Channel, model: str) -> int:
    """The version that the label ``stable`` names."""
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name, request.model_spec.version_label = model, "stable"
    status = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request, timeout=10)
    return status.model_version_status[0].version


def main(address: str, model: str, data: str, log: str) -> None:
    channel = grpc.insecure_channel(address)
    version = served_version(channel, model)
    assets = Path(data, "models", model, str(version), "assets")
    definition = ResolvedDefinition.from_json(json.loads((assets / "definition.json").read_bytes()))

    inputs, n_windows = prepare(ciml.parse_log(log), definition)

    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.version.value = model, version
    request.inputs["inputs"].CopyFrom(tf.make_tensor_proto(inputs[np.newaxis]))
    request.inputs["n_windows"].CopyFrom(tf.make_tensor_proto(np.array([n_windows], np.int32)))
    answer = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=10)
    probabilities = tf.make_ndarray(answer.outputs["probabilities"])[0]

    print(f"{model} version {answer.model_spec.version.value}:")
    for name, probability in sorted(zip(definition.classes, probabilities, strict=True), key=lambda one: -one[1]):
        print(f"  {name:<12} {probability:.4f}")


if __name__ == "__main__":
    if len(sys.argv) != 5:
        raise SystemExit(__doc__)
    try:
        main(*sys.argv[1:])
    except ciml.CimlError as error:
        raise SystemExit(str(error)) from None

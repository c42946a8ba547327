"""Predicts by OpenVINO: the signature ``serving_default`` of a SavedModel. Run by the Python that has OpenVINO.

predict.py SAVED_MODEL INPUTS.npz PROBABILITIES.npy
"""

from __future__ import annotations

import sys

import numpy as np
import openvino  # type: ignore[import-not-found,unused-ignore]


def main(model: str, inputs: str, output: str) -> None:
    # Without the hint, processors with such instructions compute in bfloat16.
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with np.load(inputs) as arrays:
        answers = compiled(dict(arrays))
    np.save(output, answers["probabilities"])


if __name__ == "__main__":
    main(*sys.argv[1:])

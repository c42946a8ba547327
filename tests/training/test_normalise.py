from __future__ import annotations

import tempfile

import numpy as np
import pytest

from ciml.training.experiment import NORMALISATION, Experiment, refresh_key
from ciml.training.normalise import Normalisation, transform_digest

#: By column: values of three training runs, of three other runs, and these normalised.
CASES = {
    "a range": ([0, 4, 8], [0, 4, 64], [-0.5, 0, 7.5]),
    "always 0, then bytes": ([0, 0, 0], [0, 6.4e7, 3e38], [0, 0, 0]),
    "always 5, then other values": ([5, 5, 5], [5, -5, 1e-30], [0, 0, 0]),
    "always 0, then no number": ([0, 0, 0], [np.nan, np.inf, -np.inf], [0, 0, 0]),
    "memory that differs by a rounding": ([8589934592, 8589934592, 8589935616], [0, 8589934592, 1.7e10], [0, 0, 0]),
    "a deviation that is a rounding": ([0, 0, 4e-7], [0, 5, 1e9], [0, 0, 0]),
    "a small range": ([0, 0, 6e-7], [0, 0, 6e-7], [-1 / 3, -1 / 3, 2 / 3]),
    "a small range beside its values": ([1e6, 1e6, 1e6 + 1], [1e6, 1e6, 1e6 + 1], [-1 / 3, -1 / 3, 2 / 3]),
}  # fmt: skip


def column(part: int) -> np.ndarray:
    """Return the values of all cases, float32 [3 runs, 1 window, cases]."""
    return np.array([case[part] for case in CASES.values()], np.float32).T[:, None, :]


def test_an_element_whose_training_range_is_a_rounding_carries_no_information():
    with np.errstate(all="raise", over="ignore"):
        normalised = Normalisation.of(column(0)).apply(column(1))
    assert normalised.dtype == np.float32
    np.testing.assert_allclose(normalised, column(2), rtol=1e-6)


def test_tf_transform_normalises_as_numpy_does():
    import pyarrow as pa
    import tensorflow_transform.beam as tft_beam

    from ciml.training.data.examples import Examples
    from ciml.training.data.materialise_beam import adapter_config, to_batch
    from ciml.training.normalise import normalise
    from tests.transforms.samples import resolved

    features = [f"group:{number}" for number in range(len(CASES))]
    config = adapter_config(resolved(features, max_windows=1))

    def batch(part: int) -> pa.RecordBatch:
        rows = np.zeros(3, np.int64)
        return to_batch(Examples(column(part), rows.astype(np.int32), rows, rows))

    with tempfile.TemporaryDirectory() as folder, tft_beam.Context(temp_dir=folder):
        transform = ([batch(0)], config) | tft_beam.AnalyzeDataset(normalise)
        (batches, _) = (([batch(1)], config), transform) | tft_beam.TransformDataset(output_record_batches=True)
    ((values, _),) = batches
    inputs = np.array(values.column("inputs").flatten(), np.float32).reshape(3, 1, len(CASES))
    np.testing.assert_allclose(inputs, column(2), rtol=1e-6)


def test_the_rule_is_part_of_the_key_of_an_analysis_and_of_a_model(monkeypatch: pytest.MonkeyPatch):
    analysis, model = transform_digest(), refresh_key("s", Experiment())
    monkeypatch.setattr("ciml.training.normalise.NORMALISATION", NORMALISATION + 1)
    monkeypatch.setattr("ciml.training.experiment.NORMALISATION", NORMALISATION + 1)
    assert transform_digest() != analysis
    assert refresh_key("s", Experiment()) != model

from __future__ import annotations

import numpy as np
import pytest

from ciml.training.experiment import NORMALISATION, Experiment, refresh_key
from ciml.training.normalise import Normalisation

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


def test_the_graph_normalises_as_numpy_does():
    normalised = Normalisation.of(column(0)).graph(column(1)).numpy()
    assert normalised.dtype == np.float32
    np.testing.assert_allclose(normalised, column(2), rtol=1e-6)


def test_the_rule_is_part_of_the_key_of_a_model(monkeypatch: pytest.MonkeyPatch):
    model = refresh_key("s", Experiment())
    monkeypatch.setattr("ciml.training.experiment.NORMALISATION", NORMALISATION + 1)
    assert refresh_key("s", Experiment()) != model

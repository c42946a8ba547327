"""A model as MLflow loads it, over a model in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from ciml.errors import CimlError
from ciml.serving.pyfunc import ServedModel


class _Model:
    """A model whose probabilities name the row. It records the number of rows of each call."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.ended = False

    def close(self) -> None:
        pass

    def predict(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.rows.append(len(inputs["n_windows"]))
        return {"probabilities": inputs["n_windows"][:, None]}


@pytest.mark.parametrize(("rows", "calls"), [(0, [0]), (1, [1]), (256, [256]), (600, [256, 256, 88])])
def test_all_rows_are_predicted_at_most_256_in_a_call(
    rows: int, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _Model()
    monkeypatch.setattr("ciml.serving.server.model.loaded_model.load_model", lambda folder: model)
    served = ServedModel("folder")
    inputs: dict[str, Any] = {"inputs": np.zeros((rows, 2, 1)), "n_windows": np.arange(rows)}
    assert served.predict(inputs)["probabilities"].ravel().tolist() == list(range(rows))
    assert model.rows == calls
    model.ended = True  # its process, for lack of memory
    model = _Model()  # is loaded again
    served.predict(inputs)
    assert model.rows == calls
    with pytest.raises(CimlError, match="input 'n_windows': expected int32, got float64"):
        served.predict({**inputs, "n_windows": np.zeros(rows)})

"""A model as MLflow loads it: its ``loader_module``. It runs in ``ciml[serve]``; no pickle and no code is in the model.

The model is loaded as the model server loads it (`ciml.serving.server.model.loaded_model`), so that it gives the same
answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ciml.errors import CimlError
from ciml.http.intake import RequestError
from ciml.serving.predict.answers import RunningModel
from ciml.serving.predict.prepared import MAX_CALL_ROWS

#: The inputs of a model, by name.
INPUTS = "inputs"
N_WINDOWS = "n_windows"
_KINDS = {INPUTS: np.float32, N_WINDOWS: np.int32}


class ServedModel:
    """Predicts prepared runs.

    Args:
      folder: of the SavedModel.
    """

    def __init__(self, folder: str) -> None:
        from ciml.serving.server.model.loaded_model import load_model
        from ciml.storage import LocalStore

        self._model = RunningModel(lambda: load_model(LocalStore(folder)))

    def predict(self, model_input: Mapping[str, Any], params: Mapping[str, Any] | None = None) -> dict[str, np.ndarray]:
        """Predict runs that were prepared by the model's definition, as a data set holds them.

        Args:
          model_input: ``inputs`` float32 [n, L, F], not normalised, and ``n_windows`` int32 [n].
          params: none are known.

        Returns:
          ``probabilities`` float32 [n, C].

        Raises:
          CimlError: an input is missing, or has another type or shape.
        """
        del params
        inputs = {name: np.atleast_1d(model_input[name]) for name in model_input}
        for name, kind in _KINDS.items():
            if name in inputs and not np.can_cast(inputs[name].dtype, kind, "same_kind"):
                raise CimlError(f"input {name!r}: expected {np.dtype(kind)}, got {inputs[name].dtype}")
        inputs = {name: values.astype(_KINDS.get(name, values.dtype), copy=False) for name, values in inputs.items()}
        rows = max((len(values) for values in inputs.values()), default=0)
        try:
            calls = (slice(start, start + MAX_CALL_ROWS) for start in range(0, max(rows, 1), MAX_CALL_ROWS))
            loaded = self._model.loaded()
            parts = [loaded.predict("", {name: values[call] for name, values in inputs.items()}) for call in calls]
        except RequestError as error:
            raise CimlError(str(error)) from None
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _load_pyfunc(data_path: str) -> ServedModel:
    """Load a model. MLflow calls this."""
    return ServedModel(data_path)

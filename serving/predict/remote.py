"""Predictions by a model on any TensorFlow Serving, prepared by its own description: `RemoteModel`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ciml.errors import CimlError, EngineError, IntegrityError, RejectedInput
from ciml.limits import MAX_TENSOR_BYTES
from ciml.serving.client import FailedCallError, NotServedError
from ciml.serving.description import read_description
from ciml.serving.predict.answers import MODEL_ERROR, Answer, PreparedModel
from ciml.serving.predict.prepared import MAX_CALL_ROWS
from ciml.serving.remote import ServedModel, connect

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from ciml.datasets.definition import ResolvedDefinition
    from ciml.events.records import RunFacts

#: Calls that may fail for their runs before the model counts as broken.
_MAX_FAILED_CALLS = 64
#: What ``ciml serve`` answers for a model that it is loading, and the pause before the next question.
_LOADING = "is being loaded"
_LOADING_PAUSE_S = 0.2
#: Versions that are tried when the served one is replaced meanwhile.
_VERSION_TRIES = 5


class RemoteModel(PreparedModel):
    """A model on a model server. It gives no verdicts, whose rules the server does not publish.

    Args:
      served: the model, its server and its version.
      timeout_s: limit of one request, seconds.

    Raises:
      CimlError: the server has no such model, or the model does not describe itself, or needs what a client lacks.
      EngineError: the server is unavailable, or answers with something else.
      IntegrityError: the description contradicts itself.
    """

    def __init__(self, served: ServedModel, timeout_s: float) -> None:
        self._server = connect(served, timeout_s)
        self.model = self._server.served.model
        self._failed_calls = 0
        try:
            self._describe_loaded(timeout_s)
        except BaseException:
            self._server.close()
            raise

    def _describe_loaded(self, timeout_s: float) -> None:
        """Do as `_describe`; wait for a model that a server which has just started is still loading."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                self._describe()
            except EngineError as error:
                if _LOADING not in str(error) or time.monotonic() > deadline_s:
                    raise
                time.sleep(_LOADING_PAUSE_S)
            else:
                return

    def _describe(self) -> None:
        """Read the description of the version to use."""
        where = str(self._server.served)
        outputs, version = self._server.describe()
        self.version = self._version = version
        self.definition = read_description(outputs, where)
        _check_usable(self.definition, where)

    def predict(
        self, tables: Sequence[pa.Table], runs: Sequence[RunFacts] | None = None
    ) -> list[Answer | RejectedInput]:
        for _ in range(_VERSION_TRIES):
            self._failed_calls = 0
            try:
                return super().predict(tables, runs)
            except NotServedError:  # it was replaced; its successor may prepare runs differently
                self._describe()
        raise EngineError(
            f"{self._server.served}: the served version kept changing; gave up after {_VERSION_TRIES} tries"
        )

    @property
    def names_classes(self) -> bool:
        return True  # it has ``describe``, and ``classify`` with it

    def _max_rows(self) -> int:
        return min(MAX_CALL_ROWS, self._server.max_rows(self.definition.windows * len(self.definition.features)))

    def _query(self, inputs: NDArray[np.float32], n_windows: NDArray[np.int32]) -> NDArray[np.float32]:
        try:
            return self._server.probabilities(inputs, n_windows, self._version)
        except FailedCallError as error:
            self._failed_calls += 1
            if self._failed_calls > _MAX_FAILED_CALLS:
                raise
            raise RejectedInput(MODEL_ERROR, str(error)) from None

    def close(self) -> None:
        self._server.close()


def _check_usable(definition: ResolvedDefinition, where: str) -> None:
    """Raise an error if a client cannot prepare runs by a definition."""
    size = 4 * definition.windows * len(definition.features)
    if size > MAX_TENSOR_BYTES:
        raise IntegrityError(f"{where}: a run takes {size} bytes, at most {MAX_TENSOR_BYTES} (MAX_TENSOR_BYTES)")
    for kind in ("profile", "log"):
        if kind in (definition.definition.context or ()):
            raise CimlError(
                f"{where} compares a run with the passing runs of its job (context {kind!r}), which a server does not "
                "publish; predict from its data root: --data-path"
            )

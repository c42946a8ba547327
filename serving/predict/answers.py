"""The steps of a prediction that the stream and a model in this process share: preparation, calls, answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ciml.errors import IntegrityError, RejectedInput
from ciml.transforms.examples.prepare import prepare_many

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from ciml.datasets.definition import ResolvedDefinition
    from ciml.events.records import RunFacts
    from ciml.raw.neighbours import Neighbours

#: Most runs in one call.
MAX_CALL_ROWS = 256
#: Largest call, bytes: the server's own limit is 16 MiB.
_MAX_CALL_BYTES = 8 << 20
#: The reason of a run for which the model answers with an error, a value that is not finite, or too late.
MODEL_ERROR = "model_error"


class Prepared(NamedTuple):
    """Runs as input of a model.

    Attributes:
      inputs: float32 [n, L, F], not normalised; zeros for a rejected run.
      n_windows: int32 [n].
      rejected: rejections by row, in order.
    """

    inputs: NDArray[np.float32]
    n_windows: NDArray[np.int32]
    rejected: Mapping[int, RejectedInput]

    def calls(self, most_rows: int = MAX_CALL_ROWS) -> list[list[int]]:
        """Return the rows of the usable runs, divided into calls of a model."""
        rows = [row for row in range(len(self.inputs)) if row not in self.rejected]
        each = max(int(self.inputs[0].nbytes), 1) if rows else 1
        size = max(1, min(most_rows, _MAX_CALL_BYTES // each))
        return [rows[at : at + size] for at in range(0, len(rows), size)]


def prepare_runs(
    tables: Sequence[pa.Table],
    definition: ResolvedDefinition,
    runs: Sequence[RunFacts] | None = None,
    neighbours: Sequence[Neighbours | None] = (),
) -> Prepared:
    """Prepare the telemetry of runs by a model's definition. A run without a window is rejected as ``empty``.

    ``runs`` and ``neighbours`` are those of `ciml.transforms.examples.prepare.prepare_many`.
    """
    inputs, n_windows, rejections = prepare_many(tables, definition, runs, neighbours)
    rejected = dict(rejections)
    for row in np.flatnonzero(n_windows == 0).tolist():
        rejected.setdefault(row, RejectedInput("empty"))
    return Prepared(inputs, n_windows.astype(np.int32, copy=False), {row: rejected[row] for row in sorted(rejected)})


def check_answers(answers: NDArray[np.float32], definition: ResolvedDefinition, where: str) -> None:
    """Raise `IntegrityError` unless a model's answers have a column for each class of its definition."""
    if answers.shape[1:] != (len(definition.classes),):
        raise IntegrityError(f"{where}: answer of shape {answers.shape[1:]} for {len(definition.classes)} classes")


def probabilities_of(answer: NDArray[np.float32], definition: ResolvedDefinition) -> dict[str, float]:
    """Return a model's answer for one run as probabilities by class, in the definition's order.

    They are the shortest decimals that read back as the same float32: as JSON they take a tenth of the bytes.

    Raises:
      RejectedInput: ``model_error``, for a value that is not finite.
    """
    if not np.isfinite(answer).all():
        raise RejectedInput(MODEL_ERROR, "the model's probabilities are not finite")
    return dict(zip(definition.classes, (float(str(value)) for value in answer), strict=True))


def class_of(answer: NDArray[np.float32], definition: ResolvedDefinition) -> str:
    """Return the class with the highest probability; of equal ones the first."""
    return definition.classes[int(np.argmax(answer))]

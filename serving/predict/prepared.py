"""Prepares runs for a model: the inputs of its calls, and the runs that are rejected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ciml.datasets.definition import NO_OUTPUT_FEATURE
from ciml.errors import RejectedInput
from ciml.events.outcomes import FAILED
from ciml.transforms.examples.prepare import prepare_many, prepare_without_telemetry

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from ciml.datasets.definition import ResolvedDefinition
    from ciml.events.records import RunFacts
    from ciml.runs.neighbours import Neighbours
    from ciml.transforms.examples.context import OutputOf
    from ciml.verdict_rules import VerdictRules

#: Most runs in one call.
MAX_CALL_ROWS = 256
#: Largest call, bytes: the server's own limit is 16 MiB.
_MAX_CALL_BYTES = 8 << 20


class Prepared(NamedTuple):
    """Runs as input of a model.

    Attributes:
      inputs: float32 [n, L, F], not normalised; zeros for a rejected run.
      n_windows: int32 [n].
      rejected: rejections by row, in order.
      without_telemetry: the rows of runs without a window of telemetry, whose input is their context alone.
    """

    inputs: NDArray[np.float32]
    n_windows: NDArray[np.int32]
    rejected: Mapping[int, RejectedInput]
    without_telemetry: frozenset[int] = frozenset()

    def calls(self, most_rows: int = MAX_CALL_ROWS) -> list[list[int]]:
        """Return the rows of the usable runs, divided into calls of a model."""
        rows = [row for row in range(len(self.inputs)) if row not in self.rejected]
        row_bytes = max(int(self.inputs[0].nbytes), 1) if rows else 1
        size = max(1, min(most_rows, _MAX_CALL_BYTES // row_bytes))
        return [rows[start : start + size] for start in range(0, len(rows), size)]


def prepare_runs(
    tables: Sequence[pa.Table],
    definition: ResolvedDefinition,
    runs: Sequence[RunFacts] | None = None,
    neighbours: Sequence[Neighbours | None] = (),
    output_of: OutputOf | None = None,
    rules: VerdictRules | None = None,
) -> Prepared:
    """Prepare the telemetry of runs by a model's definition. A run without a window is rejected as ``empty``.

    A failed run with an output is not, if the rules are calibrated for runs without telemetry: its context is its
    input.

    Args:
      tables, definition, runs, neighbours, output_of: as for `ciml.transforms.examples.prepare.prepare_many`.
      rules: of the model's verdicts; None for a model that gives none.
    """
    inputs, n_windows, rejections = prepare_many(tables, definition, runs, neighbours, output_of)
    rejected = dict(rejections)
    without_telemetry = set()
    if runs is not None and rules is not None and rules.without_telemetry is not None:
        no_output = definition.features.index(NO_OUTPUT_FEATURE)
        for row, rejection in rejections:
            if rejection.reason != "empty" or runs[row].outcome not in FAILED:
                continue
            nearby = neighbours[row : row + 1]
            context, windows = prepare_without_telemetry([runs[row]], definition, nearby, output_of)
            if context[0, 0, no_output] > 0:
                continue
            inputs[row] = context[0]
            n_windows[row] = windows[0]
            without_telemetry.add(row)
            del rejected[row]
    for row in np.flatnonzero(n_windows == 0).tolist():
        rejected.setdefault(row, RejectedInput("empty"))
    ordered = {row: rejected[row] for row in sorted(rejected)}
    return Prepared(inputs, n_windows.astype(np.int32, copy=False), ordered, frozenset(without_telemetry))

"""The demo's two data sets of the same runs: whether a run passed, and which pool of machines it ran on."""

from __future__ import annotations

from collections.abc import Iterable

from ciml.datasets.definition import DatasetDefinition

STATUS, POOL = "status", "pool"
#: In the order of the tables.
MODELS = (STATUS, POOL)
INTERVAL = "5s"


def definitions(span_runs: int, pools: Iterable[str]) -> tuple[DatasetDefinition, DatasetDefinition]:
    """Return the definitions of both data sets.

    Args:
      span_runs: number of runs of a span.
      pools: the classes of the second one. Runs without a pool, of the first recordings, are excluded from it
        (``no_label``).
    """
    return (
        DatasetDefinition(
            name=STATUS,
            sample_interval=INTERVAL,
            max_windows="auto",
            count_first_sample=False,
            span_runs=span_runs,
        ),
        DatasetDefinition(
            name=POOL,
            class_label="provider",
            classes=tuple(sorted(pools)),
            sample_interval=INTERVAL,
            aggregation_functions=("mean", "std", "min", "max", "median"),
            count_first_sample=False,
            span_runs=span_runs,
        ),
    )

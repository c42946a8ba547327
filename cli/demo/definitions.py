"""The demo's two data sets of the same runs: whether a run passed, and which pool of machines it ran on."""

from __future__ import annotations

from collections.abc import Iterable

from ciml.datasets.definition import DatasetDefinition

STATUS, POOL = "status", "pool"
#: In the order of the tables.
MODELS = (STATUS, POOL)
#: Half of the runs are held out: of some hundred runs, fewer would say too little for the gate.
_SPLIT = (1, 0, 1)


def definitions(span_runs: int, pools: Iterable[str]) -> tuple[DatasetDefinition, DatasetDefinition]:
    """Return the definitions of both data sets.

    The first one has a run's course, the second one its summary: pools differ in peaks of a second. The first sample,
    an average since the machine started, is left out.

    Args:
      span_runs: number of runs of a span.
      pools: the classes of the second one. Runs without a pool, of the first recordings, are excluded from it
        (``no_label``).
    """
    return (
        DatasetDefinition(
            name=STATUS,
            sample_interval="1s",
            features_regex="(usr|1min)",
            max_windows="auto",
            count_first_sample=False,
            tdt_split=_SPLIT,
            span_runs=span_runs,
        ),
        DatasetDefinition(
            name=POOL,
            class_label="provider",
            classes=tuple(sorted(pools)),
            sample_interval="1s",
            aggregation_functions=("mean", "std", "min", "max", "median"),
            count_first_sample=False,
            tdt_split=_SPLIT,
            span_runs=span_runs,
        ),
    )

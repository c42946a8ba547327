"""The demo's data sets of the same runs: whether a run passed, which pool of machines it ran on, and why it failed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ciml.cli.demo.corpus import corpus_folder
from ciml.datasets.definition import DatasetDefinition
from ciml.settings import read_toml
from ciml.verdicts.feedback.corrections import CAUSES

STATUS = "status"
POOL = "pool"
CAUSE = "cause"
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


def cause_definition(span_runs: int) -> DatasetDefinition:
    """Return the definition of failed runs by their cause, for the verdicts of the last act: examples/cause.toml.

    Runs of unknown cause, and those that passed, are excluded (``no_label``).
    """
    example = examples() / "cause.toml"
    keys = {**read_toml(example), "name": CAUSE, "classes": sorted(CAUSES), "span_runs": span_runs}
    return DatasetDefinition.from_json(keys, str(example))


def examples() -> Path:
    """Return the folder examples/ of the checkout."""
    return corpus_folder().parent


def trust_policy() -> Path:
    """Return the trust policy of the demo, whose events have no proof."""
    return examples() / "trust.toml"

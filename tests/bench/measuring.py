"""What benchmarks share: real runs, measurements, and a line for each ratio.

The real runs are a listing and its logs in the folder of ``CIML_HIBENCH``, else the sample corpus. The HiBench
collection (docs/experiments-results.md) is not part of the repository: its licence is unknown.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa

from ciml.datasets.definition import DatasetDefinition, ResolvedDefinition, resolve
from ciml.errors import RejectedInput
from ciml.events.records import RunFacts
from ciml.events.run_facts import facts_from_listing
from ciml.telemetry import telemetry_columns
from ciml.training.estimators.base import Rows
from ciml.transforms.examples.prepare import prepare_many
from ciml.transforms.parse.logs import Log, parse_logs
from tests.corpus import CORPUS

#: ``builds.jsonl``, and the logs that it names by ``log_path``.
FOLDER = Path(os.environ.get("CIML_HIBENCH") or CORPUS)


@cache
def listed_runs() -> list[dict[str, Any]]:
    """Return the lines of the listing."""
    return [json.loads(line) for line in (FOLDER / "builds.jsonl").read_text().splitlines()]


@cache
def real_runs() -> tuple[list[RunFacts], list[pa.Table]]:
    """Return facts and telemetry of all runs."""
    lines = listed_runs()
    tables = parse_logs([Log((FOLDER / line["log_path"]).read_bytes()) for line in lines])
    assert not any(isinstance(table, RejectedInput) for table in tables)
    return [facts_from_listing({**line, "log_path": ""}) for line in lines], tables


def real_examples(
    class_label: str, windows: int, features_regex: str = "(usr|1min)"
) -> tuple[ResolvedDefinition, Rows]:
    """Return the definition of a data set of the real runs that have a label, and its examples, not normalised."""
    runs, tables = real_runs()
    definition = DatasetDefinition.from_json(
        {"name": "bench", "features_regex": features_regex, "class_label": class_label, "sample_interval": "1s"}
        | {"max_windows": windows}
    )
    resolved = resolve(definition, [telemetry_columns(table.column_names) for table in tables], runs)
    labels = [resolved.label_of(run) for run in runs]
    inputs, n_windows, _ = prepare_many(tables, resolved)
    known = np.array([not isinstance(label, str) for label in labels])
    numbers = np.array([label[0] for label in labels if not isinstance(label, str)])
    return resolved, Rows(inputs[known], n_windows[known], numbers)


def seconds(work: Callable[[], object], rounds: int = 1, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the median seconds of a call."""
    times = []
    for _ in range(rounds):
        began = clock()
        work()
        times.append(clock() - began)
    return median(times)


def report_ratio(name: str, pairs: list[tuple[float, float]], opponent: str, count: int = 1, aim: str = "") -> None:
    """Print the median of (our seconds, the opponent's) as a ratio, and how many things each does a second."""
    ours, theirs = (count / median(times) for times in zip(*pairs, strict=True))
    ratios = [other / mine for mine, other in pairs]
    all_ratios = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"\n{name}: {ours:,.1f}/s; {opponent}: {theirs:,.1f}/s; ratio {median(ratios):.2f} ({all_ratios}){aim}")

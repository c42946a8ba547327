"""A refresh with one new span next to one that analyses all spans: the analyses of the others are cached. Printed."""

from __future__ import annotations

import os
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pytest

from ciml.datasets.definition import DatasetDefinition, ResolvedDefinition, resolve
from ciml.datasets.state import Position
from ciml.events.records import RawFile
from ciml.storage import LocalStore
from ciml.telemetry import telemetry_columns
from ciml.training.data.analysis_cache import AnalysisCache
from ciml.training.data.materialise import Materialised, materialise
from ciml.training.data.snapshot import Snapshot, SnapshotRun, SnapshotSpan
from ciml.training.export import transform_of
from ciml.transforms.examples.changes import SelectedRun
from ciml.transforms.examples.plan import SpanPlan
from ciml.transforms.examples.prepare import make_examples
from ciml.transforms.examples.spans import write_span
from tests.bench.measuring import real_runs, seconds

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3000)]

SPANS = int(os.environ.get("CIML_BENCH_SPANS", "100"))
RUNS = 1_000


def resolved_definition() -> ResolvedDefinition:
    runs, tables = real_runs()
    definition = DatasetDefinition(name="bench", sample_interval="1s", max_windows=30)
    return resolve(definition, [telemetry_columns(table.column_names) for table in tables], runs)


def write(store: LocalStore, resolved: ResolvedDefinition, span: int) -> SnapshotSpan:
    """Write a span of the real runs, again and again under other ids."""
    real = zip(*real_runs(), strict=True)
    chosen = list(islice(cycle(real), RUNS))
    facts = [run.replace(run_id=f"bench~{span}-{number}~1") for number, (run, _) in enumerate(chosen)]
    examples = make_examples(facts, [table for _, table in chosen], resolved)
    file = RawFile("runs/1", "0" * 64, 60, 1000)
    plan = SpanPlan(span, 1, tuple(SelectedRun(Position(span, at), run, file) for at, run in enumerate(facts)))
    version = write_span(store, plan, [examples], resolved)
    runs = tuple(
        SnapshotRun(run.run_id, run.split, run.split, run.label, "all", "job", run.digest)  # type: ignore[arg-type]
        for run in version.runs
    )
    return SnapshotSpan(span, 1, version.files, runs)


def test_a_refresh_with_one_new_span_against_one_of_all_spans(tmp_path: Path) -> None:
    resolved = resolved_definition()
    store = LocalStore(str(tmp_path / "dataset"))
    spans = tuple(write(store, resolved, span) for span in range(1, SPANS + 2))
    before, after = (Snapshot("bench", resolved, "p", part) for part in (spans[:-1], spans))
    cache = AnalysisCache(LocalStore(str(tmp_path / "analyses")))
    made: dict[str, Materialised] = {}

    def refresh(name: str, snapshot: Snapshot, cached: AnalysisCache | None) -> None:
        made[name] = materialise(store, snapshot, tmp_path / name, cache=cached)

    refresh("first", before, cache)
    one_new_s = seconds(partial(refresh, "one new", after, cache))
    nothing_new_s = seconds(partial(refresh, "nothing new", after, cache))
    full_s = seconds(partial(refresh, "full", after, None))
    assert [(made[name].analysed, made[name].cached) for name in ("one new", "nothing new", "full")] == [
        (1, SPANS), (0, SPANS + 1), (SPANS + 1, 0),
    ]  # fmt: skip
    print(
        f"\n{SPANS + 1} spans of {RUNS} runs: materialised from scratch in {full_s:.1f} s, with one new span in "
        f"{one_new_s:.1f} s (ratio {one_new_s / full_s:.2f}), with none in {nothing_new_s:.1f} s; analysis of one span "
        f"against all: {max(one_new_s - nothing_new_s, 0) / max(full_s - nothing_new_s, 0.01):.2f}"
    )
    inputs = (
        np.random.default_rng(0).gamma(2.0, 20.0, (50, resolved.windows, len(resolved.features))).astype(np.float32)
    )
    normalised = [np.asarray(transform_of(made[name].transform_folder)(inputs)) for name in ("one new", "full")]
    np.testing.assert_array_equal(*normalised)

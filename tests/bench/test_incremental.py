"""A refresh with one new span next to one that analyses all spans: the analyses of the others are cached. Printed."""

from __future__ import annotations

import os
import time
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from ciml.datasets.definition import DatasetDefinition, ResolvedDefinition, resolve
from ciml.datasets.state import Position
from ciml.events.records import RawFile
from ciml.storage import LocalStore
from ciml.telemetry import telemetry_columns
from ciml.training.data import materialise_beam
from ciml.training.data.analysis import AnalysisCache, analyse
from ciml.training.data.materialise import Materialised, materialise
from ciml.training.data.materialise_beam import run_pipeline
from ciml.training.data.snapshot import Snapshot, SnapshotRun, SnapshotSpan
from ciml.training.export import transform_of
from ciml.transforms.examples.changes import SelectedRun
from ciml.transforms.examples.plan import SpanPlan
from ciml.transforms.examples.spans import write_span
from tests.bench.measuring import real_runs, seconds
from tests.transforms.samples import make_examples

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3000)]

SPANS = int(os.environ.get("CIML_BENCH_SPANS", "100"))
RUNS = int(os.environ.get("CIML_BENCH_RUNS", "1000"))  # of a span
REPEATS = 5


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
    analyses = LocalStore(str(tmp_path / "analyses"))
    snapshots = {"full": after, "one new": after, "nothing new": before}
    caches = {"full": None, "one new": AnalysisCache(analyses), "nothing new": AnalysisCache(analyses)}
    made: dict[str, Materialised] = {}

    def refresh(name: str) -> None:
        made[name] = materialise(store, snapshots[name], tmp_path / name, cache=caches[name])

    def analyse_alone(name: str) -> None:
        """Do all of it but reading, normalising and writing all rows, whose time would hide the differences."""
        read = materialise_beam._read
        with patch.object(materialise_beam, "_read", lambda pipeline, _, rows: read(pipeline, [], rows)):
            analysis = analyse(store, snapshots[name], caches[name])
            run_pipeline(store, snapshots[name], tmp_path / name, analysis.normalisation)

    refresh("nothing new")  # the first one, which analyses all of them
    (known,) = analyses.list()
    content = analyses.read(known)
    for what, work, repeats in (("whole", refresh, 1), ("analysis alone", analyse_alone, REPEATS)):
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in snapshots}
        for repeat in range(repeats):
            for name in sorted(times, reverse=bool(repeat % 2)):
                analyses.replace(known, content)
                cpu_s = time.process_time()
                elapsed_s = seconds(partial(work, name))
                times[name].append((elapsed_s, time.process_time() - cpu_s))
        full, one_new, nothing_new = (np.median(times[name], axis=0) for name in times)
        print(f"\n{SPANS + 1} spans of {RUNS} runs, {what}, medians of {repeats}, in s, and of CPU:")
        print(f"from scratch {full.round(1)}, with one new span {one_new.round(1)}, with none {nothing_new.round(1)}")
        shares = (one_new - nothing_new) / (full - nothing_new)
        print(f"one new span against from scratch: {(one_new / full).round(2)}; less none: {shares.round(2)}")
    assert [(made[name].analysed, made[name].cached) for name in times] == [(SPANS + 1, 0), (1, SPANS), (0, SPANS)]
    analyses.replace(known, content)
    refresh("one new")
    refresh("full")
    inputs = (
        np.random.default_rng(0).gamma(2.0, 20.0, (50, resolved.windows, len(resolved.features))).astype(np.float32)
    )
    normalised = [np.asarray(transform_of(made[name].transform_folder)(inputs)) for name in ("one new", "full")]
    np.testing.assert_array_equal(*normalised)

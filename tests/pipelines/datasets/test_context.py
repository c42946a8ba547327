"""Data sets with context: the same examples from a raw store, by Beam and straight from logs, and as a prediction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition, ResolvedDefinition, resolve
from ciml.datasets.state import DatasetState
from ciml.errors import CimlError
from ciml.pipelines.datasets.build import build_dataset
from ciml.pipelines.datasets.update import update_dataset, verify_dataset
from ciml.pipelines.live import live_dataset
from ciml.serving.predict.answers import StoredNeighbours
from ciml.serving.predict.assets import ModelAssets
from ciml.telemetry import telemetry_columns
from ciml.transforms.examples.prepare import prepare_many
from ciml.transforms.examples.spans import inputs_of, read_span
from ciml.transforms.profiles import make_profiles
from tests.corpus import builds
from tests.pipelines.datasets.dataset_scenes import define, resolved_of, runs
from tests.pipelines.datasets.test_listed_runs import listed, listing
from tests.runs.scenes import RawStore
from tests.transforms.samples import corpus

RUNS = 120


def definition(**keys: Any) -> DatasetDefinition:
    given = {"name": "cause", "class_label": "cause", "context": ["outcome", "profile"], "span_runs": RUNS}
    return DatasetDefinition.from_json(
        {**given, "features_regex": "^(usr|stl|1m)$", "aggregation_functions": ["mean"], **keys}
    )


def defined_by(table: pa.Table, definition: DatasetDefinition) -> ResolvedDefinition:
    return resolve(definition, [telemetry_columns(table.column_names)], [])


def rows(data: DataRoot, state: DatasetState) -> dict[str, list[float]]:
    (span,) = state.latest()
    table = read_span(data.dataset("cause").store, span)
    values = inputs_of(table, resolved_of(state)).reshape(table.num_rows, -1).tolist()
    return dict(zip(table["build_uuid"].to_pylist(), values, strict=True))


def test_every_way_to_an_example_has_the_same_context(data: DataRoot, raw: RawStore, tmp_path: Path) -> None:
    runs, tables, _ = corpus(RUNS)
    raw.add(list(zip(runs, tables, strict=True)))
    state = build_dataset(data, data, definition()).state
    assert verify_dataset(data.dataset("cause")) == []
    resolved = resolved_of(data.dataset("cause").state())
    assert resolved == state.resolved
    names = ("total cpu usage:usr", "total cpu usage:stl", "load avg:1m")
    assert (resolved.columns, len(resolved.features)) == (names, 3 + 3 + 1 + 9)
    passed = json.loads(json.dumps(make_profiles(zip(runs, tables, strict=True), names).to_json()))
    assert resolved.profiles == passed

    stored = rows(data, state)
    inputs, n_windows, rejected = prepare_many(tables, resolved, runs)
    assert (rejected, set(n_windows.tolist())) == ([], {1})
    predicted = {run.build_uuid: values.reshape(-1).tolist() for run, values in zip(runs, inputs, strict=True)}
    causes = {run.build_uuid for run in runs if "cause" in run.labels}
    assert stored.keys() == causes
    assert 20 < len(causes) < RUNS
    assert stored == {uuid: predicted[uuid] for uuid in causes}
    assert np.ptp(np.array(list(stored.values())), axis=0).astype(bool).sum() >= 14  # few features are constant

    beam = DataRoot.open(tmp_path / "beam")
    assert rows(beam, build_dataset(data, beam, definition(), runner="fnapi").state) == stored
    with listed(listing(tmp_path, builds(RUNS))) as source:
        direct = DataRoot.open(tmp_path / "direct")
        assert rows(direct, build_dataset(source, direct, definition()).state) == stored


def test_a_rebuild_under_another_name_renews_the_profiles(data: DataRoot, raw: RawStore) -> None:
    runs, tables, _ = corpus(RUNS)
    half = list(zip(runs, tables, strict=True))
    raw.add(half[: RUNS // 2])
    first = build_dataset(data, data, definition()).state
    raw.add(half[RUNS // 2 :])
    (span,) = update_dataset(data.dataset("cause"), seal=True).sealed
    after = data.dataset("cause").state()
    assert (span.span, after.resolved) == (2, resolved_of(first))
    renewed = build_dataset(data, data, definition(name="cause-2")).state
    assert resolved_of(first).profiles != resolved_of(renewed).profiles


def test_neighbours_are_those_that_the_stream_of_predictions_finds(data: DataRoot, raw: RawStore) -> None:
    runs, tables, _ = corpus(RUNS)
    found = [(run.replace(provider="north"), table) for run, table in zip(runs, tables, strict=True)]
    resolved = defined_by(corpus(1)[1][0], definition(context="neighbours"))
    assert ModelAssets(resolved, None).takes("neighbours")
    stored = StoredNeighbours(data)
    for start in range(0, RUNS, 30):
        raw.add(found[start : start + 30])
        stored.of([])
    state = build_dataset(data, data, definition(context="neighbours")).state
    rows_by_id = rows(data, state)
    ids = {run.build_uuid: run.run_id for run in runs}
    near = {uuid: stored.of([ids[uuid]])[0] for uuid in rows_by_id}
    assert {uuid: values[-2:] for uuid, values in rows_by_id.items()} == {
        uuid: [float(each.failed), float(np.float32(each.failed / max(each.runs, 1)))]
        for uuid, each in near.items()
        if each is not None
    }
    assert len({values[-1] for values in rows_by_id.values()}) > 5


def test_a_data_set_with_context_has_no_live_windows(data: DataRoot, raw: RawStore) -> None:
    raw.add(runs(1, 4))
    define(data, context=["profile"])
    update_dataset(data.dataset("cpu"))
    with pytest.raises(CimlError, match="data set 'cpu' has context, which is known when a run has ended"):
        live_dataset(data.dataset("cpu"))

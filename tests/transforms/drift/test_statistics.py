"""Statistics of examples equal what numpy makes of the examples themselves."""

from __future__ import annotations

import json
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pytest

from ciml.datasets.definition import ResolvedDefinition
from ciml.datasets.schema import schema_of
from ciml.transforms.drift.statistics import Statistics, buckets, merge, middles, statistics
from ciml.transforms.examples.prepare import make_examples
from ciml.transforms.examples.spans import inputs_of
from tests.transforms.samples import PROJECTS, corpus, resolved

COLUMNS = ("total cpu usage:usr", "load avg:1m", "memory usage:used", "tcp sockets:syn")


@lru_cache
def examples(**keys: object) -> tuple[pa.Table, ResolvedDefinition]:
    """120 real runs, some of them longer than the 20 windows that are looked at."""
    definition = resolved(COLUMNS, sample_interval="2s", class_label="project", classes=PROJECTS, **keys)
    runs, tables, _ = corpus(120)
    return make_examples(runs, tables, definition).table, definition


def cell_of(table: pa.Table) -> np.ndarray:
    names = ("build_name", "provider", "flavour", "label_name")
    return np.array(["/".join(row.values()) for row in table.select(names).to_pylist()])


def test_statistics_are_those_of_each_cells_own_windows() -> None:
    table, definition = examples(max_windows=20)
    inputs, n_windows, cells = inputs_of(table, definition), table.column("n_windows").to_numpy(), cell_of(table)
    assert n_windows.min() < 20 == n_windows.max()  # there is padding, and something was cut
    found = statistics(table, definition)
    assert sorted("/".join(cell) for cell in found.cells) == sorted(set(cells))
    assert list(found.series) == [*definition.features, "n_windows"]
    for place, name in enumerate(found.cells):
        rows = np.flatnonzero(cells == "/".join(name))
        assert found.runs[place] == rows.size
        for feature, series in enumerate(definition.features):
            own = [inputs[row, : n_windows[row], feature].astype(float) for row in rows]
            values, one = np.concatenate(own), found.series[series]
            assert (one.count[place], one.zeros[place]) == (values.size, (values == 0).sum())
            assert (one.minimum[place], one.maximum[place]) == (values.min(), values.max())
            np.testing.assert_allclose([one.mean[place], one.std[place]], [values.mean(), values.std()], rtol=1e-9)
            sketch = dict(zip(one.bucket[one.cell == place], one.runs[one.cell == place], strict=True))
            means = buckets(np.array([each.mean() for each in own]))
            assert sketch == dict(zip(*np.unique(means, return_counts=True), strict=True))
        assert found.series["n_windows"].mean[place] == pytest.approx(n_windows[rows].mean())


def test_aggregations_are_series_of_their_own() -> None:
    table, definition = examples(aggregation_functions=("mean", "max"))
    found = statistics(table, definition)
    assert list(found.series) == [f"{how}({name})" for name in definition.features for how in ("mean", "max")]
    peaks = inputs_of(table, definition)[:, 1, 0].astype(float)
    one = found.series["max(usr)"]
    assert one.count.tolist() == found.runs.tolist()
    assert (one.count * one.mean).sum() == pytest.approx(peaks.sum())
    assert one.maximum.max() == peaks.max()


def test_parts_add_up_to_the_whole_however_they_are_cut() -> None:
    table, definition = examples(max_windows=20)
    whole = statistics(table, definition)
    empty = statistics(schema_of(definition).empty_table(), definition)
    assert (empty.cells, empty.runs.size) == ((), 0)
    parts = [empty, *(statistics(table.slice(row, 1), definition) for row in range(table.num_rows))]
    for merged in (merge(parts), merge(reversed(parts)), merge([whole])):
        assert merged.cells == whole.cells
        assert merged.runs.tolist() == whole.runs.tolist()
        for name, series in whole.series.items():
            for key in ("count", "zeros", "minimum", "maximum", "cell", "bucket", "runs"):
                assert getattr(merged.series[name], key).tolist() == getattr(series, key).tolist(), (name, key)
            for key in ("mean", "std"):
                np.testing.assert_allclose(
                    getattr(merged.series[name], key), getattr(series, key), rtol=1e-9, atol=1e-9
                )


def test_what_is_kept_reads_back_to_nine_digits() -> None:
    table, definition = examples(max_windows=20)
    kept = statistics(table, definition).to_json()
    assert Statistics.from_json(json.loads(json.dumps(kept))).to_json() == kept
    broken = json.loads(json.dumps(kept))
    broken["series"][0]["count"].pop()
    with pytest.raises(ValueError, match="reshape"):
        Statistics.from_json(broken)


def test_buckets_keep_the_order_and_are_less_than_a_hundredth_wide() -> None:
    values = np.array([-3e12, -1.0, -1e-9, 0.0, 1e-9, 0.5, 1.0, 99.9, 1e6, 1.024e6, 3e12])
    found = buckets(values)
    assert (np.diff(found) > 0).all()
    assert found[3] == 0 == middles(found)[3]
    np.testing.assert_allclose(middles(found), values, rtol=0.004)
    assert buckets(values * 1024)[4:].tolist() == (found[4:] + 10 * 128).tolist()
    assert buckets(np.array([0.0, -0.0])).tolist() == [0, 0]

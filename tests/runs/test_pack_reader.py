"""Runs of packs read together are those that are read one by one, and so are their examples."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ciml.datasets.definition import resolve
from ciml.datasets.state import Position
from ciml.digest import row_digest, telemetry_digest
from ciml.errors import IntegrityError
from ciml.events.records import RawFile
from ciml.runs import reader
from ciml.runs.packing import GROUP_ROWS
from ciml.runs.reader import Joined, read_columns, read_joined
from ciml.runs.writer import write_run
from ciml.storage import LocalStore, Store
from ciml.telemetry import telemetry_columns
from ciml.transforms.examples.changes import SelectedRun
from ciml.transforms.examples.downsample import downsample, downsample_joined, merge_windows
from ciml.transforms.examples.plan import SpanPlan
from ciml.transforms.examples.spans import examples_of
from tests.runs.test_packs import FOLDER, file_of, keep, packed
from tests.transforms.samples import LOAD, PROJECTS, USR, corpus, make_examples, make_facts, resolved, table

DAY_US = 86_400_000_000


@pytest.fixture(scope="module")
def stored_corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[LocalStore, list[RawFile]]:
    """Sixty runs of the corpus: in two packs of 25, and ten objects."""
    runs, tables, _ = corpus(60)
    raw = LocalStore(tmp_path_factory.mktemp("raw"))
    ids = {run.run_id: each for run, each in zip(runs, tables, strict=True)}
    keep(raw, packed(dict(list(ids.items())[:25])), packed(dict(list(ids.items())[25:50])))
    files = [file_of(run_id, each) for run_id, each in ids.items()]
    for file, each in list(zip(files, tables, strict=True))[50:]:
        raw.create(file.path, write_run(each))
    return raw, files


@pytest.mark.parametrize("keys", [{}, {"count_first_sample": False}, {"aggregation_functions": ["std", "last"]}])
@pytest.mark.parametrize("taken", [slice(None), slice(3, 60, 7)])
def test_examples_from_packs_and_objects_are_those_from_tables(
    stored_corpus: tuple[LocalStore, list[RawFile]], keys: dict[str, object], taken: slice
) -> None:
    runs, tables, _ = corpus(60)
    raw, files = stored_corpus
    made = resolved(class_label="project", classes=PROJECTS, **keys)
    chosen = list(zip(runs, tables, files, strict=True))[taken][::-1]
    plan = SpanPlan(1, 1, tuple(SelectedRun(Position(1, at), run, file) for at, (run, _, file) in enumerate(chosen)))
    found = examples_of(raw, plan, made)
    wanted = make_examples([run for run, _, _ in chosen], [each for _, each, _ in chosen], made)
    assert found.table.equals(wanted.table)
    assert found.excluded == wanted.excluded
    assert found.table.num_rows + len(found.excluded) == len(chosen)
    assert found.table.num_rows > 0
    assert read_columns(raw, files) == [tuple(each.column_names) for each in tables]


def test_names_of_columns_are_read_without_holding_the_telemetry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = LocalStore(tmp_path)
    tables = {f"zuul~{number}~1": table(range(2), usr=[1.0, 2.0], load=[1.0, 1.0]) for number in range(5)}
    files = [file_of(run_id, each) for run_id, each in tables.items()]
    for file, each in zip(files, tables.values(), strict=True):
        raw.create(file.path, write_run(each))
    read_object = reader.read_object
    held: list[weakref.ref[pa.Table]] = []

    def read(store: Store, path: str, columns: Sequence[str] | None = None) -> pa.Table:
        assert sum(table() is not None for table in held) <= 1
        found = read_object(store, path, columns)
        held.append(weakref.ref(found))
        return found

    monkeypatch.setattr(reader, "read_object", read)
    assert read_columns(raw, files) == [tuple(each.column_names) for each in tables.values()]


def test_what_is_read_of_a_pack_is_what_is_asked_for_in_its_order(tmp_path: Path) -> None:
    """Runs that end row groups, runs without samples, and runs in between."""
    raw, size = LocalStore(tmp_path), GROUP_ROWS // 2
    runs = {
        f"zuul~{at}~1": table(range(rows), usr=[at + 0.001 * row for row in range(rows)], load=[1.0] * rows)
        for at, rows in enumerate([size, 0, 3, size, 1, 0, size, size, 2])
    }
    keep(raw, packed(runs))
    files = [file_of(run_id, one) for run_id, one in runs.items()]
    for chosen in (range(9), [8, 0, 4], [1, 5], [6], [3, 2, 7]):
        (found,) = read_joined(raw, [files[at] for at in chosen], columns=["time", USR, "nosuch"])
        assert isinstance(found, Joined)
        assert sorted(found.indices) == list(range(len(chosen)))
        assert found.table.column_names == ["time", USR]
        assert sum(found.rows) == found.table.num_rows
        begin = 0
        for at, rows in zip(found.indices, found.rows, strict=True):
            one = runs[f"zuul~{list(chosen)[at]}~1"].select(["time", USR])
            part = found.table.slice(begin, rows).replace_schema_metadata(None)
            assert telemetry_digest("r", part) == telemetry_digest("r", one)
            begin += rows


def test_a_run_asked_for_twice_or_lost_or_of_other_rows(tmp_path: Path) -> None:
    raw = LocalStore(tmp_path)
    runs = {f"zuul~{at}~1": table([1, 2], usr=[at, at], load=[0.0, 0.0]) for at in range(3)}
    keep(raw, packed(runs))
    files = [file_of(run_id, one) for run_id, one in runs.items()]
    found = list(read_joined(raw, [files[0], files[1], files[0]], columns=[USR]))
    joined, alone = found
    assert isinstance(joined, Joined)
    assert joined.indices == [0, 1]
    assert [(at, one.column(0).to_pylist()) for at, one in alone] == [(2, [0.0, 0.0])]
    with pytest.raises(IntegrityError, match="has 2 rows, the manifest says 3"):
        list(read_joined(raw, [RawFile(files[0].path, "", 3, 0)], columns=[USR]))
    with pytest.raises(IntegrityError, match="is in the manifest but does not exist"):
        list(read_joined(raw, [RawFile(f"runs/{FOLDER}/zuul~9~1.0123456789abcdef.parquet", "", 3, 0)], columns=[USR]))
    for threads in (1, 4):
        every = list(read_joined(raw, files, columns=[USR], threads=threads))
        assert [each.indices for each in every if isinstance(each, Joined)] == [[0, 1, 2]]


def test_windows_of_a_joined_table_are_those_of_its_runs() -> None:
    good = table([5, DAY_US], usr=[1.0, 2.0], load=[1.0, None])
    tables = [
        good,
        table([], usr=[], load=[]),
        table([3, 1], boot=[True, False], usr=[1e300, 1.0], load=[1.0, 1.0]),
        good.set_column(0, "time", pa.array([None, 7], pa.timestamp("us", tz="UTC"))),
        table([1], usr=[None], load=[1.0]),
        good,
    ]
    rows = np.array([one.num_rows for one in tables])
    for made in (resolved(), resolved(count_first_sample=False, sample_statistic="std"), resolved([USR, "x:y"])):
        found, wanted = downsample_joined(pa.concat_tables(tables), rows, made), downsample(tables, made)
        for name in ("values", "run", "position", "n_windows"):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
        rejections = [[(at, why.reason, why.detail) for at, why in each.rejected] for each in (found, wanted)]
        assert rejections[0] == rejections[1]
        assert rejections[0]
        parts = [np.array([4, 0, 5]), np.array([2, 3, 1])]
        merged = merge_windows([(at, downsample([tables[one] for one in at], made)) for at in parts], 6)
        for name in ("values", "run", "position", "n_windows"):
            np.testing.assert_array_equal(getattr(merged, name), getattr(wanted, name))
        assert [at for at, _ in merged.rejected] == [at for at, _ in wanted.rejected]


def test_digests_of_many_rows_are_those_of_each() -> None:
    runs, tables, _ = corpus(5)
    named = [make_facts(at, build_name=run.build_name) for at, run in enumerate(runs)]
    definition = resolved().definition.replace(features_regex="(usr|1min|wai)")
    made = resolve(definition, [telemetry_columns(each.column_names) for each in tables], named)
    examples = make_examples(named, tables, made).table
    assert LOAD in made.columns
    for row in examples.to_pylist():
        arrays = np.array([row[name] for name in made.features], np.float32)
        assert row["digest"] == row_digest(row["run_id"], arrays, made.features, row["n_windows"])

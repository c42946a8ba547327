from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ciml.data_root import DataRoot
from ciml.errors import IntegrityError
from ciml.storage import Store
from ciml.training.data.analysis import analyse
from ciml.training.data.examples import Examples, read_snapshot_examples
from ciml.training.data.materialise import Materialised, is_materialised, materialise
from ciml.training.data.snapshot import ROLES, Snapshot, make_snapshot
from ciml.transforms.examples.spans import read_span, write_examples
from ciml.trust import TrustPolicy
from tests.training.records import excluding, written


def directly(train: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Normalise with numpy alone: float64 [n, L, F]."""
    train = train.astype(np.float64)
    mean, width = train.mean(axis=0), train.max(axis=0) - train.min(axis=0)
    return np.where(width > 0, (values.astype(np.float64) - mean) / np.where(width > 0, width, 1.0), 0.0)


def of_split(data: DataRoot, snapshot: Snapshot, split: str) -> Examples:
    runs, examples = read_snapshot_examples(data.dataset("providers").store, snapshot)
    return examples.take(np.flatnonzero([run.split == split for run in runs]))


def test_every_run_is_written_once_with_its_normalised_values(
    made: Path, snapshot: Snapshot, materialised: Materialised
):
    data = DataRoot.open(made)
    train = of_split(data, snapshot, "train").inputs
    runs, raw = read_snapshot_examples(data.dataset("providers").store, snapshot)
    by_role = {role: written(materialised, role, snapshot) for role in ROLES}
    assert materialised.counts == {role: sum(run.role == role for run in runs) for role in ROLES}
    modes = {path.stat().st_mode for path in materialised.folder.rglob("*") if path.is_file()}
    assert len(modes) == 1, "all files have the permissions of the umask"
    for ordinal, run in enumerate(runs):
        inputs, n_windows, label = by_role[run.role].pop(ordinal)
        np.testing.assert_allclose(inputs, directly(train, raw.inputs[ordinal]), rtol=0, atol=1e-6)
        assert (n_windows, label) == (raw.n_windows[ordinal], run.label)
    assert by_role == {"train": {}, "dev": {}, "test": {}}
    widths = train.max(axis=0) - train.min(axis=0)
    assert (widths == 0).any(), "a range of 0 has to occur in this test"
    assert (widths > 1e9).any(), "and so have bytes"


def test_the_snapshots_examples_are_the_data_sets_in_its_order(made: Path, snapshot: Snapshot):
    dataset = DataRoot.open(made).dataset("providers")
    runs, examples = read_snapshot_examples(dataset.store, snapshot, "test")
    table = {}
    for span in dataset.state().latest():
        table |= {row["run_id"]: row for row in read_span(dataset.store, span, splits=["test"]).to_pylist()}
    assert [run.run_id for run in runs] == [run.run_id for run in snapshot.runs() if run.role == "test"]
    for position, run in enumerate(runs):
        want = np.array([table[run.run_id][name] for name in snapshot.resolved.features], np.float32).T
        np.testing.assert_array_equal(examples.inputs[position], want)
        assert snapshot.resolved.classes[examples.labels[position]] == table[run.run_id]["provider"]


def test_statistics_come_from_the_training_split_alone(
    data: DataRoot, snapshot: Snapshot, materialised: Materialised, tmp_path: Path
):
    """Without most test runs, the other examples are the same, bit for bit."""
    keep = next(run.run_id for run in snapshot.runs("test"))
    excluded = {run.run_id: "purged" for run in snapshot.runs("test") if run.run_id != keep}
    fewer = make_snapshot(data.dataset("providers"), TrustPolicy.load(), excluding(excluded))
    stale = tmp_path / "part" / "records" / "test" / "000000000-5.tfrecord"  # of a refresh that died
    stale.parent.mkdir(parents=True)
    stale.touch()
    part = materialise(data.dataset("providers").store, fewer, tmp_path / "part")
    assert part.counts["test"] == 1
    assert is_materialised(tmp_path / "part")
    all_ids = {run.run_id: ordinal for ordinal, run in enumerate(snapshot.runs())}
    ordinals = [all_ids[run.run_id] for run in fewer.runs()]
    for role in ROLES:
        before = written(materialised, role, snapshot)
        for ordinal, (inputs, *_) in written(part, role, fewer).items():
            np.testing.assert_array_equal(inputs, before[ordinals[ordinal]][0])


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        ("missing", "is in the manifest but does not exist"),
        ("other rows", "rows, the manifest says"),
        ("usr", r"the digest of example \S+ differs from the manifest"),
        ("label", r"the label of example \S+ differs from the manifest"),
    ],
)
def test_examples_that_are_not_the_manifests_end_it(data: DataRoot, snapshot: Snapshot, damage: str, line: str):
    root = data.dataset("providers").store
    path = Path(root.root, snapshot.spans[0].files["train"][0].path)
    table = pq.read_table(path)
    if damage == "missing":
        path.unlink()
    elif damage == "other rows":
        pq.write_table(table.slice(1), path)
    else:
        column = table.schema.field(damage)
        values = table.column({"usr": "sys", "label": "n_windows"}[damage]).cast(column.type)
        altered = table.set_column(table.column_names.index(damage), column, values)
        path.write_bytes(write_examples(altered, path.name))
    with pytest.raises(IntegrityError, match=line):
        read_snapshot_examples(root, snapshot)


def test_a_folder_is_complete_only_with_all_records(
    made: Path, snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def lose_records(root: Store, snapshot: Snapshot, folder: Path, normalisation: object) -> None:
        assert not is_materialised(folder)

    monkeypatch.setattr("ciml.training.data.materialise_beam.run_pipeline", lose_records)
    with pytest.raises(IntegrityError, match=r"but the snapshot has .*: its files lack runs"):
        materialise(DataRoot.open(made).dataset("providers").store, snapshot, tmp_path / "made")
    assert not is_materialised(tmp_path / "made")


def test_an_example_that_a_file_lacks_ends_it(data: DataRoot, snapshot: Snapshot):
    span = snapshot.spans[0]
    more = span.replace(runs=(*span.runs, span.runs[0].replace(run_id="zuul~none~1")))
    with pytest.raises(IntegrityError, match="the files lack some of the snapshot's 52 runs"):
        read_snapshot_examples(data.dataset("providers").store, snapshot.replace(spans=(more,)))
    with pytest.raises(IntegrityError, match="the files of span 1 lack some of its 38 training runs"):
        analyse(data.dataset("providers").store, snapshot.replace(spans=(more,)))
    with pytest.raises(IntegrityError, match="the files of span 1 lack some of its 37 training runs"):
        analyse(data.dataset("providers").store, snapshot.replace(spans=(span.replace(files={}),)))


@pytest.mark.whole
def test_an_error_within_the_pipeline_is_raised_unchanged(data: DataRoot, snapshot: Snapshot, tmp_path: Path):
    path = snapshot.spans[0].files["test"][0].path
    data.dataset("providers").store.delete(path)
    with pytest.raises(IntegrityError, match=f"{path} is in the manifest but does not exist"):
        materialise(data.dataset("providers").store, snapshot, tmp_path / "made")

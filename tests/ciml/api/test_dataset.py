"""A data set in Python is what ``ciml dataset build`` wrote."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import ciml
from ciml.cli.main import cli
from ciml.datasets.definition import Split
from tests.ciml.api.made import RUNS, facts


def stored(folder: Path, split: str) -> pd.DataFrame:
    """The rows of a split as plain Parquet."""
    files = (folder / "data" / "datasets" / "status").glob(f"span-*/version-1/{split}/*.parquet")
    return pd.concat([pq.read_table(file).to_pandas() for file in files]).set_index("run_id")


@pytest.mark.parametrize("split", ["train", "test"])
def test_arrays_are_the_stored_examples_bit_for_bit(made: Path, split: str) -> None:
    dataset, rows = ciml.open(made / "data").dataset("status"), stored(made, split)
    X, y = dataset.to_numpy(split)
    ids = dataset.facts(split)["run_id"].to_pylist()
    trusted = {facts(number).run_id for number in range(RUNS) if facts(number).pipeline == "gate"}
    assert sorted(ids) == sorted(set(rows.index) & trusted)
    assert (X.dtype, X.shape) == (np.float32, (len(ids), 12, 2))
    assert y.dtype == np.int64
    assert dataset.features == ("usr", "1m")
    for place, name in enumerate(dataset.features):
        written = np.stack([rows[name][run_id] for run_id in ids])
        assert X[:, :, place].tobytes() == written.tobytes()
    assert [dataset.classes[label] for label in y] == [rows["label_name"][run_id] for run_id in ids]
    assert dataset.n_windows(split).tolist() == [rows["n_windows"][run_id] for run_id in ids]
    assert dataset.n_windows(split).dtype == np.int32
    assert X[:, 10:].any() == False  # noqa: E712  # a minute has ten windows of 6 s
    assert (X[:, :10] > 0).all()


def test_a_build_by_command_gives_the_same_examples(made: Path, folder: Path) -> None:
    words = (
        "dataset build --dataset same --sample-interval 6s --features-regex ^(usr|1m) --max-windows 12 "
        "--tdt-split 6 0 4 --data-path"
    )
    done = CliRunner().invoke(cli, [*words.split(), str(folder / "data")])
    assert done.exit_code == 0, done.output
    data = ciml.open(folder / "data")
    for split in ("train", "dev", "test"):
        by_command, by_python = data.dataset("same"), data.dataset("status")
        for one, other in zip(by_command.to_numpy(split), by_python.to_numpy(split), strict=True):
            assert one.tobytes() == other.tobytes()
        assert by_command.facts(split).equals(by_python.facts(split))


def test_tables_frames_and_tensors_have_the_order_of_the_arrays(made: Path) -> None:
    dataset = ciml.open(made / "data").dataset("status")
    X, y = dataset.to_numpy()
    assert len(X) == len(dataset) == 108
    table, frame = dataset.to_arrow(), dataset.to_pandas()
    assert isinstance(table, pa.Table)
    assert table["label"].to_pylist() == y.tolist() == frame["label"].tolist()
    assert np.stack(frame["usr"].tolist()).tobytes() == X[:, :, 0].tobytes()
    assert dataset.to_numpy("dev")[0].shape == (0, 12, 2)
    assert repr(dataset) == "Dataset('status': 108 runs of 12 x 2, classes passed, failed)"
    X, y = dataset.to_numpy("test")
    found = list(dataset.to_tf("test").as_numpy_iterator())
    assert np.stack([inputs for inputs, _ in found]).tobytes() == X.tobytes()
    assert [int(label) for _, label in found] == y.tolist()


@pytest.mark.parametrize("split", [None, "train", "test"])
def test_frames_for_scikit_learn_have_a_named_number_in_each_cell(made: Path, split: Split | None) -> None:
    dataset = ciml.open(made / "data").dataset("status")
    inputs, labels = dataset.to_numpy(split)
    X, y = dataset.to_frame(split)
    assert list(X.index) == list(y.index) == dataset.facts(split)["run_id"].to_pylist()
    assert (y.tolist(), X["n_windows"].tolist()) == (labels.tolist(), dataset.n_windows(split).tolist())
    for position, feature in enumerate(dataset.features):
        columns = [name for name in X.columns if name.startswith(feature)]
        assert len(columns) == dataset.windows
        assert (X[columns].to_numpy() == inputs[:, :, position]).all()
    assert X.shape[1] == dataset.windows * len(dataset.features) + 1
    summary, same_y = dataset.to_frame(split, "summary")
    assert same_y.equals(y)
    counts = dataset.n_windows(split)
    means = [inputs[row, :count, 0].astype(float).mean() for row, count in enumerate(counts)]
    assert summary.iloc[:, 0].tolist() == pytest.approx(means, rel=1e-12)
    with pytest.raises(ciml.CimlError, match="unknown view 'windows'; choose from flat, summary"):
        dataset.to_frame(split, "windows")


def test_wrong_names_are_named(made: Path, folder: Path) -> None:
    data = ciml.open(made / "data")
    with pytest.raises(ciml.CimlError, match=re.escape("unknown split 'tset'; choose from train, dev, test")):
        data.dataset("status").to_numpy("tset")  # type: ignore[arg-type]
    with pytest.raises(ciml.CimlError, match="no data set 'other'"):
        data.dataset("other")
    (file,) = (folder / "data" / "datasets" / "status").glob("span-1/version-1/test/*.parquet")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ciml.IntegrityError):
        ciml.open(folder / "data").dataset("status")

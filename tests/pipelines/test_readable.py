"""What is built is read by other programs, in one line each, as docs/datasets.md shows."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ciml.cli.main import cli
from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.pipelines.datasets.build import build_dataset
from ciml.transforms.examples.spans import read_span
from tests.runs.scenes import RawStore
from tests.transforms.samples import corpus

LINES = re.findall(
    r"^(?:frame|counts|dataset) = .*$", (Path(__file__).parents[2] / "docs/datasets.md").read_text(), re.MULTILINE
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place where DATA has the data set ``cpu-load``, and cpu-load-records its normalised records."""
    folder = tmp_path_factory.mktemp("readable")
    runs, tables, _ = corpus(80)
    data = DataRoot.open(folder / "DATA")
    RawStore(data).add(list(zip(runs, tables, strict=True)))
    definition = {"name": "cpu-load", "features_regex": "(usr|1min)", "class_label": "project", "span_runs": 30}
    build_dataset(data, data, DatasetDefinition.from_json({**definition, "slicer": ":", "sample_interval": "10s"}))
    line = ["dataset", "records", "cpu-load", "--to", str(folder / "cpu-load-records"), "--data-path", data.url]
    done = CliRunner().invoke(cli, line)
    assert done.exit_code == 0, done.output
    assert re.fullmatch(r"cpu-load: train \d+, dev \d+, test \d+; 3 of 3 spans analysed: \S+\n", done.output)
    again = CliRunner().invoke(cli, line)
    assert again.output == done.output.replace("3 of 3", "0 of 3")
    (folder / "mine").mkdir()
    (folder / "mine/notes").touch()
    refused = CliRunner().invoke(cli, [*line[:4], str(folder / "mine"), *line[5:]])
    assert (refused.exit_code, (folder / "mine/notes").exists()) == (2, True)
    return folder


@pytest.mark.whole
def test_pandas_duckdb_and_tf_data_read_it_in_one_line_each(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert len(LINES) == 3
    import duckdb
    import pandas as pd

    from ciml.tensorflow import load_tensorflow

    names = {"pd": pd, "duckdb": duckdb, "tf": load_tensorflow()}
    for line in LINES:
        exec(line, names)
    data = DataRoot.open("DATA")
    state = data.dataset("cpu-load").state()
    wanted = {
        row["run_id"]: row
        for span in state.latest()
        for row in read_span(data.dataset("cpu-load").store, span).to_pylist()
    }
    frame = names["frame"]
    assert sorted(frame["run_id"]) == sorted(wanted)
    assert len(wanted) == 80
    for row in frame.to_dict("records"):
        np.testing.assert_array_equal(row["1m"], np.array(wanted[row["run_id"]]["1m"], np.float32))
        assert (row["label_name"], row["split"]) == tuple(
            wanted[row["run_id"]][name] for name in ("label_name", "split")
        )
    counted = {(split, name): rows for split, name, rows in names["counts"].fetchall()}
    assert counted == dict(state.counts())
    records = [example["inputs"].shape for example in names["dataset"].as_numpy_iterator()]
    trained = sum(rows for (split, _), rows in counted.items() if split == "train")
    assert set(records) == {(550, 2)}
    assert 0 < len(records) <= trained

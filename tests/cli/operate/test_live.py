"""``ciml live``: what it needs. Its windows: `tests.services.test_other_kinds`."""

from __future__ import annotations

from pathlib import Path

import pytest

from ciml.data_root import DataRoot
from ciml.pipelines.datasets.update import update_dataset
from tests.cli.calling import ciml
from tests.pipelines.datasets.dataset_scenes import define, runs
from tests.runs.scenes import RawStore


@pytest.fixture
def data(tmp_path: Path) -> DataRoot:
    """With a data set that was sealed, and one that has no columns yet."""
    data = DataRoot.open(tmp_path / "data")
    RawStore(data).add(runs(1, 6))
    define(data, "cpu", sample_interval="7s")
    define(data, "new")
    update_dataset(data.dataset("cpu"), seal=True)
    return data


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset", "none"], "no data set 'none'"),
        (["--dataset", "new"], "'new' has no columns before"),
        (["--dataset", "cpu", "--dataset", "cpu"], "cpu is named twice"),
        (["--dataset", "cpu", "--once", "--until-idle", "1s"], "exclude each other"),
        (["--dataset", "cpu", "--engine", "micro-batches"], "ciml: live windows need Flink"),
        (["--dataset", "cpu", "--dead-letters-topic", ""], "must not be empty"),
    ],
)
def test_what_it_needs(words: list[str], message: str, data: DataRoot, tmp_path: Path) -> None:
    common = ["live", "--data-path", data.url, "--kafka", "127.0.0.1:9", "--home", tmp_path]
    assert message in ciml(*common, *words, code=2).output

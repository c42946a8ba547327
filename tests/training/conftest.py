"""A small data set of real runs for tests of training, made once a session."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ciml.definitions import DatasetDefinition
from ciml.storage import LocalStore
from pipelines.datasets import create_dataset, update_dataset
from tests.pipelines.raw_store import RawStore
from tests.transforms.samples import corpus

RUNS = 160
UNTRUSTED = 24


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data path with the data set ``providers``: three spans of real runs, every tenth or so of no trust."""
    data = LocalStore(tmp_path_factory.mktemp("data"))
    mentions, tables, _ = corpus()
    # the corpus is in order of time, and so of providers: take it evenly
    step = len(mentions) // RUNS
    chosen = range(0, step * RUNS, step)
    runs = []
    for number, index in enumerate(chosen):
        pipeline = "check" if number % 7 == 3 else "gate"
        mention = replace(mentions[index], source="zuul", pipeline=pipeline, review="", change=f"change-{number // 2}")
        runs.append((mention, tables[index]))
    raw = RawStore(data)
    for start in range(0, RUNS, 40):
        raw.add(runs[start : start + 40])
    definition = DatasetDefinition(
        name="providers",
        sample_interval="1s",
        class_label="provider",
        classes=("alibaba", "aws", "huawei", "tencent"),
        aggregation_functions=("mean", "std", "min", "max"),
        span_runs=60,
    )
    create_dataset(data, definition)
    update_dataset(data, "providers", seal=True)
    return Path(data.root)


@pytest.fixture
def data(made: Path, tmp_path: Path) -> LocalStore:
    """A copy of that data path, for a test of its own."""
    shutil.copytree(made, tmp_path / "data")
    return LocalStore(tmp_path / "data")

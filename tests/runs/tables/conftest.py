from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ciml.data_root import DataRoot
from ciml.runs.tables.publish import publish_tables
from tests.runs.tables.scenes import make_dataset, make_store


@pytest.fixture(scope="session")
def stored_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data path of `make_store` and `make_dataset`, which no test changes."""
    folder = tmp_path_factory.mktemp("stored")
    make_store(DataRoot.open(folder))
    make_dataset(DataRoot.open(folder))
    return folder


@pytest.fixture(scope="session")
def published_once(stored_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of ``stored_once`` with tables, which no test changes."""
    folder = shutil.copytree(stored_once, tmp_path_factory.mktemp("published") / "data")
    list(publish_tables(DataRoot.open(folder)))
    return folder


@pytest.fixture
def published(published_once: Path, tmp_path: Path) -> DataRoot:
    return DataRoot.open(shutil.copytree(published_once, tmp_path / "published"))

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ciml.data_root import DataRoot
from ciml.runs.tables.publish import publish_tables
from tests.runs.tables.scenes import make_dataset, make_store


@pytest.fixture(scope="session")
def _published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    data = DataRoot.open(folder)
    make_store(data)
    make_dataset(data)
    list(publish_tables(data))
    return folder


@pytest.fixture
def published(_published: Path, tmp_path: Path) -> DataRoot:
    """A data root of `make_store` and `make_dataset` whose tables are published."""
    return DataRoot.open(shutil.copytree(_published, tmp_path / "published"))

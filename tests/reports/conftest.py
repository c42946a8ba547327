from __future__ import annotations

from pathlib import Path

import pytest

from ciml.data_root import DataRoot
from tests.reports.scenes import make_hostile
from tests.shared import shared


@pytest.fixture(scope="session")
def hostile_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data path that `make_hostile` makes."""
    return shared(tmp_path_factory, "hostile", make_hostile)


@pytest.fixture
def hostile_data(hostile_root: Path) -> DataRoot:
    return DataRoot.open(hostile_root)

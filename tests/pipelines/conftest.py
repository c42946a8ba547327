from __future__ import annotations

from pathlib import Path

import pytest

from ciml.storage import Store, open_store
from tests.pipelines.raw_store import RawStore


@pytest.fixture
def data(tmp_path: Path) -> Store:
    return open_store(tmp_path)


@pytest.fixture
def raw(data: Store) -> RawStore:
    return RawStore(data)

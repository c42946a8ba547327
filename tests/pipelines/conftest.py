from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ciml.storage import Store, open_store
from tests.pipelines.raw_store import RawStore


@pytest.fixture
def data(tmp_path: Path) -> Store:
    return open_store(tmp_path)


@pytest.fixture
def raw(data: Store) -> RawStore:
    return RawStore(data)


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.engines)])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(tmp_path / "data")
    s3: Any = request.getfixturevalue("s3")
    return open_store(f"{s3.bucket()}/data")

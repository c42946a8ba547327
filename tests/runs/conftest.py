from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ciml.data_root import DataRoot
from tests.runs.scenes import RawStore


@pytest.fixture
def data(tmp_path: Path) -> DataRoot:
    return DataRoot.open(tmp_path)


@pytest.fixture
def raw(data: DataRoot) -> RawStore:
    return RawStore(data)


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.engines)])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> DataRoot:
    if request.param == "local":
        return DataRoot.open(tmp_path / "data")
    s3: Any = request.getfixturevalue("s3")
    return DataRoot.open(f"{s3.bucket()}/data")

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ciml.data_root import DataRoot
from ciml.serving.server.server import ModelServer, ServerOptions
from tests.pipelines.predict.predicting import World
from tests.pipelines.raw_store.scenes import RawStore
from tests.serving.models_fixture import DEFINITION, save_model


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


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    data = DataRoot.open(tmp_path / "data")
    options = ServerOptions(data.models.url("models.config"), grpc_port=0, rest_port=0, poll_s=0.1)
    with ModelServer(options) as server:
        yield World(data, server)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("models")
    wider = DEFINITION.replace(windows=7, definition=DEFINITION.definition.replace(max_windows=7))
    return [save_model(root / "a", 1), save_model(root / "b", 2), save_model(root / "c", 3, definition=wider)]

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ciml.data_root import DataRoot
from ciml.serving.server.server import ModelServer, ServerOptions
from tests.pipelines.predict.predicting import World
from tests.runs.conftest import anywhere, data, raw
from tests.serving.models_fixture import DEFINITION, save_model

__all__ = ["anywhere", "data", "folders", "raw", "world"]


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

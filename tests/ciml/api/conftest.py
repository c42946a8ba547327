from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ciml
from tests.ciml.api.made import make_root
from tests.serving.process import ServerProcess, server_process
from tests.shared import shared

#: The experiment of the served model.
SMALL: dict[str, Any] = {"hidden_layers": [8], "epochs": 60, "learning_rate": 0.01}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``logs`` and ``data``: see `make_root`. No test changes it."""
    return shared(tmp_path_factory, "api", make_root)


@pytest.fixture(scope="session")
def served(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a pushed model ``status``. No test changes it."""

    def build(folder: Path) -> None:
        shutil.copytree(made, folder, dirs_exist_ok=True)
        done = ciml.open(folder / "data").refresh("status", min_test_runs=20, **SMALL)
        assert (done.model, done.outcome, done.version) == ("status", "pushed", 1), done
        assert repr(done).startswith("status: pushed version 1\n  accuracy ")

    return shared(tmp_path_factory, "api-served", build)


@pytest.fixture(scope="session")
def model_server(served: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A ``ciml serve`` in its own process, with the model ``status`` of ``served``."""
    log = tmp_path_factory.mktemp("server") / "log"
    with server_process(str(served / "data" / "models" / "models.config"), log) as running:
        yield running


@pytest.fixture
def folder(served: Path, tmp_path: Path) -> Path:
    """A copy of ``served`` for one test."""
    return shutil.copytree(served, tmp_path / "folder")

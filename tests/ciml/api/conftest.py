from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import ciml
from tests.ciml.api.made import make_root


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``logs`` and ``data``: see `make_root`. No test changes it."""
    return make_root(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="session")
def served(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a pushed model ``status``. No test changes it."""
    folder = tmp_path_factory.mktemp("served") / "folder"
    shutil.copytree(made, folder)
    done = ciml.open(folder / "data").refresh(
        "status", hidden_layers=[8], epochs=60, learning_rate=0.01, min_test_runs=20
    )
    assert done.outcome == "pushed", done
    return folder


@pytest.fixture
def folder(served: Path, tmp_path: Path) -> Path:
    """A copy of ``served`` for one test."""
    shutil.copytree(served, tmp_path / "folder")
    return tmp_path / "folder"

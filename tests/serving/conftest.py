from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ciml.data_root import DataRoot
from ciml.serving.server.server import ModelServer, ServerOptions
from tests.runs.conftest import anywhere, data

__all__ = ["anywhere", "data", "folders", "good", "server"]

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Three sound SavedModels, by seed."""
    from tests.serving.models_fixture import save_model

    root = tmp_path_factory.mktemp("good")
    return {seed: save_model(root / f"m{seed}", seed, warmup=2 * (seed % 2)) for seed in (1, 2, 3)}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, good: dict[int, Path]) -> Iterator[ModelServer]:
    """A server with two versions of the model m, the second of which has two labels."""
    from tests.serving.models_fixture import push_models

    data = DataRoot.open(tmp_path_factory.mktemp("data"))
    push_models(data, good[1], good[2])
    push_models(data, good[2], label="canary")
    config = data.models.url("models.config")
    with ModelServer(ServerOptions(config, grpc_port=0, rest_port=0, max_bytes=1 << 20, poll_s=0.1)) as running:
        yield running


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Three folders with the files of a SavedModel, by seed, for tests that load none."""
    names = ("saved_model.pb", "fingerprint.pb", "assets/definition.json", "variables/variables.index")
    made = {seed: tmp_path_factory.mktemp(f"model-{seed}") for seed in (1, 2, 3)}
    for seed, folder in made.items():
        for name in (*names, "variables/variables.data-00000-of-00001"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(f"{name} of model {seed}: 10s")
    return made

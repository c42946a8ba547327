from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Three sound SavedModels, by seed."""
    from tests.serving.models_fixture import save_model

    root = tmp_path_factory.mktemp("good")
    return {seed: save_model(root / f"m{seed}", seed, warmup=2 * (seed % 2)) for seed in (1, 2, 3)}

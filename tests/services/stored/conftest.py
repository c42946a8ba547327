"""Erasures are tested in a folder and on S3. Nobody makes checkpoints meanwhile, so they need not wait."""

from __future__ import annotations

import pytest

from ciml.manifest import rewrite
from tests.runs.conftest import anywhere as anywhere


@pytest.fixture(autouse=True)
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewrite, "WAIT_S", 0.0)

"""A data root and figures that several deployments are compared with, made once for all processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.deploy.steps import Learned, learn_by_commands
from tests.shared import shared


@pytest.fixture(scope="session")
def learned_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data root in which the commands of ciml made a model from logs; next to it is what they printed."""
    return shared(tmp_path_factory, "learned", learn_by_commands) / "data"


@pytest.fixture(scope="session")
def learned(learned_data: Path) -> Learned:
    """What the commands of ciml gave, from logs to that model."""
    return Learned.of(json.loads(learned_data.with_name("answers.json").read_text()))

"""The adapter `probe`, installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integrations.receivers.probe import installed


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which the adapter is installed."""
    with installed(tmp_path_factory.mktemp("probe")) as folder:
        yield folder

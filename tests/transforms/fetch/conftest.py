"""Fixtures of the tests of fetch: a log server that behaves badly, and the servers of a CI system with its store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.transforms.fetch.github import Systems, systems
from tests.transforms.fetch.log_server import LogServer, serving


@pytest.fixture
def server() -> Iterator[LogServer]:
    with serving() as running:
        yield running


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Systems]:
    with systems(tmp_path) as running:
        yield running

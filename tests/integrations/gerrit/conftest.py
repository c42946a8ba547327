"""Fixtures of the receiver of Gerrit's events."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ciml.integrations import sessions
from ciml.integrations.gerrit import session as module
from tests.integrations.gerrit.server import FakeGerrit


@pytest.fixture
def gerrit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGerrit]:
    """A server for sessions with short pauses."""
    monkeypatch.setattr(module, "_SETTLE_S", 0.05)
    monkeypatch.setattr(module, "_RETRY_S", 0.1)
    monkeypatch.setattr(sessions, "_PAUSES_S", (0.05, 0.1))
    server = FakeGerrit(tmp_path / "gerrit")
    server.start()
    yield server
    server.close()

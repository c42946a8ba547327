"""A GitHub on loopback, checked against GitHub's own description; and certificates that are read once."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest

from ciml.http.outgoing import tls_context
from ciml.integrations import systems
from tests.verdicts.feedback import openapi
from tests.verdicts.feedback.github_stub import GitHubServer
from tests.verdicts.feedback.reviewing import SHA
from tests.verdicts.feedback.stub import serving

_tls_context = cache(tls_context)  # a twentieth of a second of CPU for each client


@pytest.fixture(autouse=True)
def _one_tls_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systems, "tls_context", _tls_context)


@pytest.fixture
def github_server() -> Iterator[GitHubServer]:
    """A GitHub with one open pull request; at the end nobody has done what GitHub forbids or does not describe."""
    server = GitHubServer(openapi.github())
    server.pull(7, SHA)
    with serving(server):
        yield server
    assert server.violations == []

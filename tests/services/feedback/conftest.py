"""A GitHub on loopback, checked against GitHub's own description."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.services.feedback import openapi
from tests.services.feedback.github_stub import GitHubServer
from tests.services.feedback.reviewing import SHA
from tests.services.feedback.stub import serving


@pytest.fixture
def github_server() -> Iterator[GitHubServer]:
    """A GitHub with one open pull request; at the end nobody has done what GitHub forbids or does not describe."""
    server = GitHubServer(openapi.github())
    server.pull(7, SHA)
    with serving(server):
        yield server
    assert server.violations == []

"""A GitHub on loopback, checked against GitHub's own description."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.verdicts.feedback import openapi
from tests.verdicts.feedback.github_stub import GitHubServer
from tests.verdicts.feedback.reviewing import SHA
from tests.verdicts.feedback.stub import serving


@pytest.fixture
def github_server() -> Iterator[GitHubServer]:
    """A GitHub with one open pull request; at the end nobody has done what GitHub forbids or does not describe."""
    server = GitHubServer(openapi.github())
    server.pull(7, SHA)
    with serving(server):
        yield server
    assert server.violations == []

"""The kinds of review systems."""

from __future__ import annotations

from collections.abc import Mapping

from ciml.services.feedback.systems import System


def kinds() -> Mapping[str, type[System]]:
    """Return the class of each kind of review system, by the value of its key ``kind``."""
    from ciml.services.feedback.clients.gerrit import GerritSystem
    from ciml.services.feedback.clients.github import GitHubSystem
    from ciml.services.feedback.clients.gitlab import GitLabSystem

    return {each.kind: each for each in (GitHubSystem, GerritSystem, GitLabSystem)}

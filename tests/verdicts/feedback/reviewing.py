"""Clients of the stub servers, and messages, for tests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ciml.integrations.gerrit.review import GerritSystem
from ciml.integrations.github.review import GitHubSystem
from ciml.integrations.gitlab.review import GitLabSystem
from ciml.integrations.http import Refused
from ciml.integrations.review import ChangeRef, Rendered, ReviewClient
from ciml.integrations.systems import System
from tests.verdicts.feedback import github_stub

SHA, NEXT_SHA = "ce587453ced02b1526dfb4cb910479d431683101", "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c"
MARKER = "ciml:0123456789abcdef"


def message(text: str = "Probably the machine.", marker: str = MARKER) -> Rendered:
    """A message that carries a marker."""
    stamp = f"{marker}:{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return Rendered("Probably the machine", f"{text}\n\n{stamp}", marker, stamp)


def ref(change: str = "7", head: str = SHA, project: str = "octo/widget", patchset: str = "") -> ChangeRef:
    """A change."""
    return ChangeRef(project, change, patchset, head)


@contextmanager
def rejected(reason: str, detail: str = "") -> Iterator[None]:
    """The block ends with `Refused` for a reason."""
    with pytest.raises(Refused, match=detail or None) as caught:
        yield
    assert caught.value.reason == reason, str(caught.value)


def secret_file(folder: Path, secret: str) -> str:
    """Write a secret, and return the file's name."""
    path = folder / "secret"
    path.write_text(secret + "\n")
    path.chmod(0o600)
    return path.name


def opened(system: type[System], folder: Path, secret: str, **keys: Any) -> ReviewClient:
    """A client of a system, from a configuration as its file has it."""
    value = {"name": "reviews", "sources": "ci", "secret_file": secret_file(folder, secret), **keys}
    return system.from_json(value, "feedback.toml, system reviews").client("feedback.toml, system reviews", folder)


def github_client(url: str, folder: Path, secret: str = github_stub.TOKEN, **keys: Any) -> ReviewClient:
    """A client of a GitHub; ``app`` makes it that of an App, whose key is then the secret."""
    return opened(GitHubSystem, folder, secret, api=url, **keys)


def gerrit_client(url: str, folder: Path, secret: str = "an HTTP password", user: str = "ci") -> ReviewClient:
    """A client of a Gerrit."""
    return opened(GerritSystem, folder, secret, url=url, user=user)


def gitlab_client(url: str, folder: Path, secret: str = "glpat-0123456789abcdefghij") -> ReviewClient:
    """A client of a GitLab."""
    return opened(GitLabSystem, folder, secret, server=url)

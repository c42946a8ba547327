"""Feedback of a CI system that is connected: its review system, and what the other side needs for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from ciml.services.connect.connection import Connection, NeededFile, Paste, filled_in

_APP = """
Organisation or account: Settings > Developer settings > GitHub Apps, the App @APP@
  Webhook                 not active
  Repository permissions  Checks: Read and write
                          Pull requests: Read-only
  Private keys            generate one, and store it in @SECRET@ (mode 0600)
  Install App             on the repositories whose runs ciml answers
"""

_GITHUB_ACCOUNT = """
An account of its own for ciml: Settings > Developer settings > Fine-grained tokens
  Repository access       those whose runs ciml answers
  Repository permissions  Pull requests: Read and write
  Token                   store it in @SECRET@ (mode 0600)
"""

_GITLAB_ACCOUNT = """
Project or group: Settings > Access tokens > Add new token
  Role                    Reporter
  Scopes                  api
  Token                   store it in @SECRET@ (mode 0600)
"""

_GERRIT_ACCOUNT = """
# prints a new HTTP password; store it in @SECRET@ (mode 0600)
ssh -p @PORT@ ADMIN@@HOST@ gerrit set-account --generate-http-password @USER@
"""


def feedback_of_github(connection: Connection, api: str, app: int = 0, ca_file: str = "") -> Connection:
    """Return the connection with feedback on its pull requests.

    Args:
      connection: of GitHub.
      api: the address of the REST API, "" for that of github.com.
      app: id of the App that writes check runs; 0 for a token that writes comments.
      ca_file: certificates that sign the server's.
    """
    secret = f"secrets/{connection.name}-feedback"
    keys = ({"api": api} if api else {}) | ({"app": app} if app else {}) | ({"ca_file": ca_file} if ca_file else {})
    if app:
        needed = NeededFile(secret, f"the private key that GitHub makes for the App {app}")
        paste = Paste("GitHub, the App that writes check runs", filled_in(_APP, app=str(app), secret=secret))
    else:
        needed = NeededFile(secret, "a fine-grained token with the permission Pull requests: write")
        paste = Paste("GitHub, the token that writes comments", filled_in(_GITHUB_ACCOUNT, secret=secret))
    return _with(connection, "github", keys, needed, paste)


def feedback_of_gitlab(connection: Connection, server: str, ca_file: str = "") -> Connection:
    """Return the connection with feedback on its merge requests; ``server`` is the address of GitLab."""
    secret = f"secrets/{connection.name}-feedback"
    needed = NeededFile(secret, "a project or group access token with the scope api and the role Reporter")
    paste = Paste("GitLab, the token that writes notes", filled_in(_GITLAB_ACCOUNT, secret=secret))
    keys = {"server": server} | ({"ca_file": ca_file} if ca_file else {})
    return _with(connection, "gitlab", keys, needed, paste)


def feedback_of_gerrit(connection: Connection, rest: str, password_file: str = "") -> Connection:
    """Return the connection with feedback on the changes of its Gerrit.

    Args:
      connection: of Gerrit.
      rest: the address of Gerrit.
      password_file: the HTTP password of the user of SSH.
    """
    address = urlsplit(str(connection.source["ssh"]))
    user, host, port = address.username or "", address.hostname or "", str(address.port or 29418)
    secret = password_file or f"secrets/{connection.name}-gerrit-http"
    text = filled_in(_GERRIT_ACCOUNT, secret=secret, host=host, port=port, user=user)
    needed = NeededFile(secret, f"the HTTP password of the user {user}; the command below makes it")
    also = (
        f"The user {user} comments without a vote: it must be able to read the changes, and needs no right to a label.",
    )
    return _with(
        replace(connection, also=(*connection.also, *also)), "gerrit", {"url": rest, "user": user}, needed,
        *(() if password_file else (Paste("Gerrit, an HTTP password for the account", text, "shell"),)),
    )  # fmt: skip


def _with(connection: Connection, kind: str, keys: Mapping[str, Any], needed: NeededFile, *pastes: Paste) -> Connection:
    system = {"kind": kind, "name": connection.name, "sources": [connection.name], **keys, "secret_file": needed.path}
    return replace(
        connection, feedback=system, needed=(*connection.needed, needed), pastes=(*connection.pastes, *pastes)
    )

"""Who ciml is on GitHub: the owner of a token, or an App, whose key signs for a token of each installation."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

import msgspec

from ciml.integrations.http import Rest, quoted, token
from ciml.integrations.review import Refused

#: Of a token that signs for an App, seconds; GitHub permits 600 by its own clock.
_SIGNED_S = 540
_CLOCK_S = 60
#: A token of an installation lasts for an hour; it is not used within its last minutes.
_SPARE_S = 300.0
#: Installations whose tokens are kept.
_MOST = 1000

ACCEPT = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}


class Author(msgspec.Struct, frozen=True):
    """The account of a comment."""

    id: int = 0
    login: str = ""
    type: str = ""


class App(msgspec.Struct, frozen=True):
    """The App that made something."""

    id: int = 0


class _Installation(msgspec.Struct, frozen=True):
    id: int


class _Token(msgspec.Struct, frozen=True):
    token: str
    expires_at: str


class Identity(Protocol):
    """Credentials for a repository, and what is made by them."""

    def headers(self, repository: str) -> Mapping[str, str]:
        """Return the headers of a request about a repository. Raises as `ciml.integrations.review` says."""

    def is_own(self, author: Author | None, app: App | None) -> bool:
        """Return whether ciml made what this account, by this App, made."""

    def forget(self) -> None:
        """Forget what was derived from the secret: GitHub has rejected it."""


@dataclass
class TokenOwner:
    """The owner of a token."""

    api: Rest
    secret: Callable[[], bytes]
    _own: tuple[bytes, int] = (b"", 0)

    def headers(self, repository: str) -> Mapping[str, str]:
        return {**ACCEPT, "Authorization": f"Bearer {self.secret().decode()}"}

    def is_own(self, author: Author | None, app: App | None) -> bool:
        secret = self.secret()
        if self._own[0] != secret:  # a rotated token may be of another account
            self._own = (secret, self.api.get("/user", Author, self.headers("")).id)
        return author is not None and author.id == self._own[1] != 0

    def forget(self) -> None:
        self._own = (b"", 0)


@dataclass
class GitHubApp:
    """An App.

    Attributes:
      id: of the App.
      secret: its private key, PEM.
      rights: of the tokens that are asked for, GitHub's names: no others, whatever the App may do.
    """

    api: Rest
    id: int
    secret: Callable[[], bytes]
    rights: Mapping[str, str]
    now: Callable[[], float] = time.time
    _installations: dict[str, int] = field(default_factory=dict)
    _tokens: dict[int, tuple[str, float]] = field(default_factory=dict)

    def headers(self, repository: str) -> Mapping[str, str]:
        if len(self._installations) > _MOST:
            self.forget()
        installation = self._installations.get(repository)
        access_token, until_s = self._tokens.get(installation, ("", 0.0)) if installation is not None else ("", 0.0)
        if self.now() > until_s - _SPARE_S:
            access_token = self._renewed(repository)
        return {**ACCEPT, "Authorization": f"Bearer {access_token}"}

    def forget(self) -> None:
        self._installations.clear()
        self._tokens.clear()

    def is_own(self, author: Author | None, app: App | None) -> bool:
        return app is not None and app.id == self.id

    def _renewed(self, repository: str) -> str:
        """Return a new token. The installation is asked for each time: the App may have been installed anew."""
        signed = self._signed()
        try:
            installation = self.api.get(f"/repos/{repository}/installation", _Installation, signed).id
        except Refused as refused:
            if refused.reason != "not_found":
                raise
            raise Refused(
                "forbidden", f"the App {self.id} is not installed on {repository}: install it there"
            ) from None
        path = f"/app/installations/{installation}/access_tokens"
        body = {"permissions": dict(self.rights)}
        answer = self.api.send("POST", path, _Token, signed, body, changes=False)
        access_token = token(answer.token.encode()).decode()
        self._installations[repository] = installation
        self._tokens[installation] = (access_token, datetime.fromisoformat(answer.expires_at).timestamp())
        return access_token

    def _signed(self) -> Mapping[str, str]:
        import jwt

        now = int(self.now())
        claims = {"iat": now - _CLOCK_S, "exp": now - _CLOCK_S + _SIGNED_S, "iss": str(self.id)}
        return {**ACCEPT, "Authorization": f"Bearer {jwt.encode(claims, self.secret(), 'RS256')}"}


def private_key(secret: bytes) -> bytes:
    """Return the private key of an App. Raises `ValueError` where it is none."""
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(secret, None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, RSAPrivateKey):
        raise ValueError("is no RSA private key in PEM, as GitHub makes for an App")
    return secret


def repository(project: str) -> str:
    """Return the path of a repository, ``owner/name``. Raises `Refused` if the text is none."""
    owner, _, name = project.partition("/")
    return f"{quoted(owner)}/{quoted(name)}"

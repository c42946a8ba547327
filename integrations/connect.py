"""What connects a CI system: keys of ciml's own files, secrets, and texts for the other side.

Feedback of a CI system that is connected: its review system, and what the other side needs for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import SplitResult, urlsplit

from ciml.errors import CimlError

#: Of an address and of a name in a text for another program: no shell, YAML, INI or nginx reads anything into them.
_ADDRESS = re.compile(r"[a-z0-9]+://[A-Za-z0-9\[][A-Za-z0-9._~:/\[\]%+=@-]*")
_HOST = re.compile(r"[A-Za-z0-9:][A-Za-z0-9.:_-]*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,255}")
_PLACE = re.compile(r"@([A-Z_]+)@")

#: For senders of webhooks: they need HTTPS, and the receiver speaks HTTP.
BEHIND_PROXY = (
    "A proxy with a certificate forwards /hooks/ to the receiver, which listens on http://127.0.0.1:8470 unless "
    "[webhooks] in receivers.toml says otherwise: docs/webhooks.md."
)


@dataclass(frozen=True)
class Paste:
    """A text for the other side.

    Attributes:
      where: the file or page that it belongs to, for people.
      text: what is pasted, or entered.
      form: its format; ``text`` is for people.
    """

    where: str
    text: str
    form: Literal["yaml", "ini", "toml", "shell", "text"] = "text"


@dataclass(frozen=True)
class SecretFile:
    """A file of a secret that ciml can make itself.

    Attributes:
      path: below the folder of the configuration.
      prefix: begins the secret, such as ``whsec_``.
    """

    path: str
    prefix: str = ""


@dataclass(frozen=True)
class NeededFile:
    """A file that only the operator can provide: a path below the folder of the configuration, and how it is made."""

    path: str
    how: str


@dataclass(frozen=True)
class Connection:
    """A CI system and ciml.

    Attributes:
      source: the table of the receivers' configuration.
      trust: the name of the sample policy, ``trust_NAME.toml`` of `ciml.integrations`.
      allowed: lists of the fetch policy, by key: ``hosts``, ``private_hosts``, ``redirect_hosts`` and others.
      ca_file: certificates that sign the log host's, "" for those of the system.
      credential: the table of the log host's credential; paths are below the folder of the configuration.
      webhooks: keys of the receivers' table ``[webhooks]``.
      secret: that ciml makes, unless its file is there.
      feedback: the table of its review system in the configuration of feedback; empty for no feedback.
      needed: files that ciml cannot make.
      pastes: for the other side, in order.
      also: what else to know, a sentence each.
    """

    source: Mapping[str, Any]
    trust: str
    allowed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ca_file: str = ""
    credential: Mapping[str, str] = field(default_factory=dict)
    webhooks: Mapping[str, Any] = field(default_factory=dict)
    secret: SecretFile | None = None
    feedback: Mapping[str, Any] = field(default_factory=dict)
    needed: tuple[NeededFile, ...] = ()
    pastes: tuple[Paste, ...] = ()
    also: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of the source."""
        return str(self.source["name"])

    @property
    def receiver(self) -> str:
        """The kind of its receiver."""
        return str(self.source["receiver"])


def filled_in(text: str, **values: str) -> str:
    """Replace ``@NAME@`` by the value of ``name``. Raises `KeyError` for an unknown name."""
    return _PLACE.sub(lambda found: values[found[1].lower()], text).lstrip("\n")


def parts_of(url: str, option: str, want: str, schemes: tuple[str, ...], *, user: bool = False) -> SplitResult:
    """Return the parts of an address.

    Args:
      url: the value of an option.
      option, want: the option, and a valid address, for the message.
      schemes: those that are possible.
      user: whether it may name one.

    Raises:
      CimlError: it is malformed, or holds a character that a text for another program would have to quote.
    """
    try:
        found = urlsplit(url)
        fits = found.port != 0 and found.scheme in schemes and bool(_HOST.fullmatch(found.hostname or ""))
    except ValueError:  # of the host in brackets, or of the port
        fits = False
    if not fits or not _ADDRESS.fullmatch(url) or found.password is not None or (found.username and not user):
        raise CimlError(f"{option} {url!r:.120}: give {want}")
    return found


def plain(text: str, option: str) -> str:
    """Return a name for a text for another program. Raises `CimlError` for one that would have to be quoted there."""
    if not _NAME.fullmatch(text):
        raise CimlError(
            f"{option} {text!r:.120}: use letters, digits and ._@+- alone, and begin with a letter or digit"
        )
    return text


def posted_to(url: str, name: str) -> str:
    """Return the address to which a sender posts: the receiver's public address, with the path of the source.

    Raises:
      CimlError: it is not an address of https or http.
    """
    want = "the public address of the receiver, such as https://ci.example.org"
    found = parts_of(url, "--url", want, ("https", "http"))
    return f"{url.rstrip('/')}/hooks/{name}" if found.path.strip("/") == "" else url


def places(logs: tuple[str, ...], internal: bool = False) -> dict[str, tuple[str, ...]]:
    """Return the lists of the fetch policy that allow these places of logs.

    Args:
      logs: addresses, hosts, ``s3://`` prefixes or folders.
      internal: whether the names of hosts have private addresses.

    Raises:
      CimlError: one is none of these.
    """
    found: dict[str, list[str]] = {}
    for one in logs:
        if one.startswith("/"):
            found.setdefault("file_roots", []).append(one)
            continue
        want = "https://HOST, http://HOST:PORT, s3://BUCKET/PREFIX or a folder"
        address = parts_of(one if "//" in one else f"https://{one}", "--logs", want, ("https", "http", "s3"))
        if address.scheme == "s3":
            found.setdefault("s3_prefixes", []).append(one.rstrip("/"))
        else:
            host = address.netloc if address.scheme == "https" else f"http://{address.netloc}"
            found.setdefault("private_hosts" if internal else "hosts", []).append(host)
    return {key: tuple(dict.fromkeys(items)) for key, items in found.items()}


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
    user = address.username or ""
    host = address.hostname or ""
    port = str(address.port or 29418)
    secret = password_file or f"secrets/{connection.name}-gerrit-http"
    text = filled_in(_GERRIT_ACCOUNT, secret=secret, host=host, port=port, user=user)
    needed = NeededFile(secret, f"the HTTP password of the user {user}; the command below makes it")
    also = (
        f"The user {user} comments without a vote: it must be able to read the changes, and needs no right to a label.",
    )
    return _with(
        replace(connection, also=(*connection.also, *also)),
        "gerrit",
        {"url": rest, "user": user},
        needed,
        *(() if password_file else (Paste("Gerrit, an HTTP password for the account", text, "shell"),)),
    )


def _with(connection: Connection, kind: str, keys: Mapping[str, Any], needed: NeededFile, *pastes: Paste) -> Connection:
    system = {"kind": kind, "name": connection.name, "sources": [connection.name], **keys, "secret_file": needed.path}
    return replace(
        connection, feedback=system, needed=(*connection.needed, needed), pastes=(*connection.pastes, *pastes)
    )

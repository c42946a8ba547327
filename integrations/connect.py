"""The connection of a CI system: keys of ciml's own files, secrets, and texts for the other side.

Each CI system has a function ``connect`` that returns its `Connection`; ``feedback`` adds the review system to it. The
texts are in ``connect_texts.toml``.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any, Literal
from urllib.parse import SplitResult, urlsplit

from ciml.errors import CimlError

#: An address, a host and a name that are plain text for a shell, YAML, INI and nginx.
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
      where: the file or page to paste it into, for people.
      text: what to paste or enter.
      form: its format; ``text`` is for people.
    """

    where: str
    text: str
    form: Literal["yaml", "ini", "toml", "shell", "text"] = "text"


@dataclass(frozen=True)
class SecretFile:
    """A secret file that ciml can create.

    Attributes:
      path: relative to the folder of the configuration.
      prefix: first characters of the secret, such as ``whsec_``.
    """

    path: str
    prefix: str = ""


@dataclass(frozen=True)
class NeededFile:
    """A file that only the operator can provide: its path in the folder of the configuration, and how to create it."""

    path: str
    instructions: str


@dataclass(frozen=True)
class Connection:
    """A CI system and ciml.

    Attributes:
      source: the table of the receivers' configuration.
      trust: the name of the sample policy, ``trust_NAME.toml`` of `ciml.integrations`.
      allowed: lists of the fetch policy by key, such as ``hosts``, ``private_hosts`` or ``redirect_hosts``.
      ca_file: CA certificates of the log host; "" for those of the system.
      credential: the table of the log host's credential; its paths are relative to the folder of the configuration.
      webhooks: keys of the receivers' table ``[webhooks]``.
      secret: the secret that ciml creates unless its file exists.
      feedback: the table of its review system in the feedback configuration; empty without feedback.
      needed: files that ciml cannot create.
      pastes: texts for the other side, in order.
      also: further advice, one sentence each.
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
    """Replace ``@NAME@`` with the value of ``name``. Raises `KeyError` for an unknown name."""
    return _PLACE.sub(lambda match: values[match[1].lower()], text)


@cache
def _texts() -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    return tomllib.loads(files("ciml.integrations").joinpath("connect_texts.toml").read_text(encoding="utf-8"))


def paste(name: str, /, **values: str) -> Paste:
    """Return a text of ``connect_texts.toml``, such as ``github.webhook``, with its values filled in."""
    system, _, text = name.partition(".")
    entry = _texts()[system][text]
    return Paste(entry["where"], filled_in(entry["text"], **values), entry.get("form", "text"))


def parts_of(url: str, option: str, example: str, schemes: tuple[str, ...], *, user: bool = False) -> SplitResult:
    """Return the parts of an address.

    Args:
      url: the value of an option.
      option, example: the option and a valid address, for the error message.
      schemes: the allowed schemes.
      user: whether the address may name a user.

    Raises:
      CimlError: it is malformed, or has a character that a text for another program would have to quote.
    """
    try:
        parts = urlsplit(url)
        fits = parts.port != 0 and parts.scheme in schemes and bool(_HOST.fullmatch(parts.hostname or ""))
    except ValueError:  # a malformed port or IPv6 host
        fits = False
    if not fits or not _ADDRESS.fullmatch(url) or parts.password is not None or (parts.username and not user):
        raise CimlError(f"{option} {url!r:.120}: give {example}")
    return parts


def plain(text: str, option: str) -> str:
    """Return a name for a text for another program. Raises `CimlError` if it would have to be quoted there."""
    if not _NAME.fullmatch(text):
        raise CimlError(
            f"{option} {text!r:.120}: use letters, digits and ._@+- alone, and begin with a letter or digit"
        )
    return text


def posted_to(url: str, name: str) -> str:
    """Return the address that a sender posts to: the receiver's public address with the path of the source.

    Raises:
      CimlError: it is not an address of https or http.
    """
    example = "the public address of the receiver, such as https://ci.example.org"
    parts = parts_of(url, "--url", example, ("https", "http"))
    return url if parts.path.strip("/") else f"{url.rstrip('/')}/hooks/{name}"


def places(logs: tuple[str, ...], internal: bool = False) -> dict[str, tuple[str, ...]]:
    """Return the lists of the fetch policy that allow these places of logs.

    Args:
      logs: addresses, hosts, ``s3://`` prefixes or folders.
      internal: whether the host names resolve to private addresses.

    Raises:
      CimlError: an entry is none of these.
    """
    lists: dict[str, list[str]] = {}
    for place in logs:
        if place.startswith("/"):
            lists.setdefault("file_roots", []).append(place)
            continue
        example = "https://HOST, http://HOST:PORT, s3://BUCKET/PREFIX or a folder"
        address = parts_of(place if "//" in place else f"https://{place}", "--logs", example, ("https", "http", "s3"))
        if address.scheme == "s3":
            lists.setdefault("s3_prefixes", []).append(place.rstrip("/"))
        else:
            host = address.netloc if address.scheme == "https" else f"http://{address.netloc}"
            lists.setdefault("private_hosts" if internal else "hosts", []).append(host)
    return {key: tuple(dict.fromkeys(items)) for key, items in lists.items()}


def with_feedback(
    connection: Connection, kind: str, keys: Mapping[str, Any], needed: NeededFile, *pastes: Paste
) -> Connection:
    """Return the connection with feedback to a review system.

    Args:
      connection: the connection of the CI system.
      kind: kind of the review system.
      keys: further keys of its table; empty values are left out.
      needed: the file of its secret.
      pastes: further texts for the other side.
    """
    table = {"kind": kind, "name": connection.name, "sources": [connection.name]}
    table |= {key: value for key, value in keys.items() if value}
    return replace(
        connection,
        feedback={**table, "secret_file": needed.path},
        needed=(*connection.needed, needed),
        pastes=(*connection.pastes, *pastes),
    )

"""The connection of a CI system: keys of ciml's own files, secrets, and texts for the other side.

Each CI system has a function that checks the addresses of its options, and returns its `Connection`. What connections
hold is in ``connections.toml``, and the texts for the other side are in ``connect_texts.toml``.
"""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any, Literal
from urllib.parse import SplitResult, urlsplit

import msgspec

from ciml.errors import CimlError

GITHUB_API = "https://api.github.com"
#: The pipelines of Zuul whose builds ciml learns from by default.
PIPELINES = ("check", "gate", "post")
#: The plugins of dool that ciml reads.
DOOL = "--epoch --cpu --load --mem --disk --io --net --page --sys --proc --bytes --noheaders --nocolor --noupdate"
#: The header in which a proxy names the subject of the verified client certificate.
CLIENT_HEADER = "X-Client-Subject"

#: An address, a host and a name that are plain text for a shell, YAML, INI and nginx.
_ADDRESS = re.compile(r"[a-z0-9]+://[A-Za-z0-9\[][A-Za-z0-9._~:/\[\]%+=@-]*")
_HOST = re.compile(r"[A-Za-z0-9:][A-Za-z0-9.:_-]*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,255}")
_PLACE = re.compile(r"@([A-Z_]+)@")


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


def filled_in(text: str, **values: Any) -> str:
    """Replace ``@NAME@`` with the value of ``name``. Raises `KeyError` for an unknown name."""
    return _PLACE.sub(lambda match: str(values[match[1].lower()]), text)


@cache
def _tables(file: str) -> Mapping[str, Mapping[str, Any]]:
    return tomllib.loads(files("ciml.integrations").joinpath(file).read_text(encoding="utf-8"))


def paste(name: str, values: Mapping[str, Any]) -> Paste:
    """Return a text of ``connect_texts.toml``, such as ``github.webhook``, with its values filled in."""
    system, _, text = name.partition(".")
    entry = _tables("connect_texts.toml")[system][text]
    return Paste(entry["where"], filled_in(entry["text"], **values), entry.get("form", "text"))


def _filled(item: Any, values: Mapping[str, Any]) -> Any:
    """Return a part of a connection with its values, without what is empty then."""
    if isinstance(item, str):
        alone = _PLACE.fullmatch(item)
        return values[alone[1].lower()] if alone else filled_in(item, **values)
    if isinstance(item, list):
        return [content for entry in item if (content := _filled(entry, values))]
    return {key: content for key, entry in item.items() if (content := _filled(entry, values))}


def _connection(parts: Sequence[str], **values: Any) -> Connection:
    """Return the sum of parts of ``connections.toml``, with these values."""
    table: dict[str, Any] = {}
    for part in parts:
        for key, content in _filled(_tables("connections.toml")[part], values).items():
            before = table.get(key)
            if isinstance(before, dict):
                table[key] = {**before, **content}
            else:
                table[key] = [*before, *content] if before else content
    pastes = [paste(name, values) for name in table.pop("pastes")]
    return replace(msgspec.convert(table, Connection), pastes=tuple(pastes))


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


def _hosts(host: str, internal: bool) -> dict[str, tuple[str, ...]]:
    return {"private_hosts" if internal else "hosts": (host,)}


def github(
    name: str,
    url: str,
    api: str = "",
    *,
    internal: bool = False,
    ca_file: str = "",
    feedback: bool = False,
    app: int = 0,
) -> Connection:
    """Return the connection of GitHub: a webhook of workflow jobs, a workflow that keeps telemetry, and feedback.

    Args:
      name: name of the source.
      url: public address of the receiver.
      api: address of the REST API, of github.com by default; a GitHub Enterprise Server has ``https://HOST/api/v3``.
      internal: whether its host name resolves to a private address.
      ca_file: CA certificates of the server.
      feedback: whether ciml comments on pull requests.
      app: id of the App that writes check runs as feedback; 0 for a token that writes comments.

    Raises:
      CimlError: an address is malformed.
    """
    example = f"the address of the REST API, such as {GITHUB_API}"
    host = parts_of(api or GITHUB_API, "--api", example, ("https",)).netloc
    is_enterprise = api.rstrip("/") not in ("", GITHUB_API)
    parts = ["behind_proxy", "github", "github_enterprise" if is_enterprise else "github_hosted"]
    if feedback:
        parts += ["github_feedback", "github_app" if app else "github_token"]
    return _connection(
        parts,
        name=name,
        url=posted_to(url, name),
        host=host,
        allowed=_hosts(host, internal),
        ca_file=ca_file,
        api=api,
        app=app,
    )


def gitlab(
    name: str,
    url: str,
    server: str,
    *,
    signed: bool = False,
    redirects: tuple[str, ...] = (),
    internal: bool = False,
    ca_file: str = "",
    feedback: bool = False,
) -> Connection:
    """Return the connection of GitLab: a webhook of jobs, pipelines and merge requests, a job, and feedback.

    Args:
      name: name of the source.
      url: public address of the receiver.
      server: address of GitLab.
      signed: whether GitLab signs its webhooks; otherwise it sends a secret token.
      redirects: hosts of the object store that GitLab redirects downloads to.
      internal: whether the host name of GitLab resolves to a private address.
      ca_file: CA certificates of the server.
      feedback: whether ciml comments on merge requests.

    Raises:
      CimlError: an address is malformed.
    """
    example = "the address of GitLab, such as https://gitlab.example.org"
    address = parts_of(server, "--server", example, ("https",))
    if address.path.strip("/"):
        raise CimlError(f"--server {server!r:.120}: give {example}")
    variants = {"gitlab_signed": signed, "gitlab_feedback": feedback}
    return _connection(
        ["behind_proxy", "gitlab", *(part for part, is_chosen in variants.items() if is_chosen)],
        name=name,
        url=posted_to(url, name),
        server=server,
        host=address.netloc,
        allowed=_hosts(address.netloc, internal) | ({"redirect_hosts": redirects} if redirects else {}),
        ca_file=ca_file,
        field="Signing token    " if signed else "Secret token     ",
    )


def zuul(
    name: str,
    broker: str,
    logs: tuple[str, ...],
    *,
    user: str = "ciml",
    password_file: str = "",
    ca_file: str = "",
    pipelines: tuple[str, ...] = PIPELINES,
    prefix: str = "zuul",
    internal: bool = False,
) -> Connection:
    """Return the connection of Zuul: its MQTT reporter, and playbooks that record the machine of each job.

    Args:
      name: name of the source.
      broker: ``mqtts://HOST[:PORT]``, or ``mqtt://`` without TLS.
      logs: places of build logs; see `places`.
      user: user of ciml at the broker.
      password_file: file of its password; by default ciml creates a password.
      ca_file: CA certificates of the broker; those of the system by default.
      pipelines: pipelines whose builds ciml learns from; at least one.
      prefix: first level of the topics.
      internal: whether the hosts of ``logs`` have private addresses.

    Raises:
      CimlError: an address is malformed.
    """
    example = "mqtts://HOST:8883, or mqtt://HOST:1883 without TLS"
    address = parts_of(broker, "--broker", example, ("mqtts", "mqtt"))
    plain(user, "--user")
    plain(prefix, "--prefix")
    if not ca_file.isprintable():
        raise CimlError(f"--ca-file {ca_file!r:.120}: has an unprintable character; rename it")
    tls = address.scheme == "mqtts"
    reporters = [
        paste("zuul.reporters", {"pipeline": json.dumps(plain(pipeline, "--pipeline")), "prefix": prefix}).text
        for pipeline in pipelines
    ]
    return _connection(
        ["zuul"] if password_file else ["zuul_password", "zuul"],
        name=name,
        broker=broker,
        allowed=places(logs, internal),
        user=user,
        secret=password_file or f"secrets/{name}",
        ca_file=ca_file,
        prefix=prefix,
        host=address.hostname,
        port=address.port or (8883 if tls else 1883),
        ca_certs=f"ca_certs={ca_file or '/etc/ssl/certs/ca-certificates.crt'}\n" if tls else "",
        pipelines="\n".join(reporters),
        dool=DOOL,
    )


def gerrit(
    name: str,
    ssh: str,
    *,
    rest: str = "",
    key_file: str = "",
    known_hosts_file: str = "",
    password_file: str = "",
    feedback: bool = False,
) -> Connection:
    """Return the connection of the Gerrit whose changes a CI system tests: its stream over SSH, its API, and feedback.

    Args:
      name: name of the CI system's source.
      ssh: ``ssh://USER@HOST:29418``.
      rest: address of the REST API, which fills gaps of the stream; "" for none. Feedback needs it.
      key_file, known_hosts_file: the user's private key, and the server's host keys.
      password_file: the user's HTTP password for ``rest``; anonymous by default.
      feedback: whether ciml comments on changes, as the SSH user.

    Raises:
      CimlError: an address is malformed.
    """
    address = parts_of(ssh, "--ssh", "ssh://USER@HOST:29418", ("ssh",), user=True)
    user = plain(address.username or "", "--ssh, its user")
    if rest:
        parts_of(rest, "--rest", "the address of Gerrit, such as https://review.example.org", ("https", "http"))
    key = key_file or f"secrets/{name}-gerrit"
    hosts_file = known_hosts_file or f"secrets/{name}-gerrit-hosts"
    port = address.port or 29418
    keyscan = f"ssh-keyscan -p {port} {address.hostname} > {shlex.quote(hosts_file)}\n"
    parts = ["gerrit"]
    if feedback:
        parts += ["gerrit_feedback"] if password_file else ["gerrit_feedback", "gerrit_password"]
    return _connection(
        parts,
        name=name,
        ssh=ssh,
        key_file=key,
        hosts_file=hosts_file,
        rest=rest,
        password_file=password_file,
        secret=password_file or f"secrets/{name}-gerrit-http",
        keygen="" if key_file else f"ssh-keygen -q -t ed25519 -N '' -f {shlex.quote(key)}\n",
        keyscan="" if known_hosts_file else keyscan,
        public=shlex.quote(f"{key}.pub"),
        host=address.hostname,
        port=port,
        user=user,
    )


def tekton(name: str, url: str, logs: str, client: str = "") -> Connection:
    """Return the connection of Tekton.

    Args:
      name: name of the source.
      url: address of the receiver, or of the proxy in front of it.
      logs: the ``s3://`` prefix at which steps store their telemetry.
      client: subject of the sender's certificate, which a proxy verifies; "" for no proof.

    Raises:
      CimlError: an address is malformed.
    """
    if not logs.startswith("s3://"):
        raise CimlError(f"--logs {logs!r:.120}: give the s3:// prefix at which steps store their telemetry")
    return _unsigned("tekton", name, url, logs, client, internal=False)


def jenkins(name: str, url: str, server: str, client: str = "", *, internal: bool = False) -> Connection:
    """Return the connection of Jenkins; ``server`` is its address, below which builds archive their telemetry.

    ``internal`` says whether its host has a private address; the other arguments are those of `tekton`.
    """
    parts_of(server, "--server", "the address of Jenkins, such as https://jenkins.example.org", ("https", "http"))
    return _unsigned("jenkins", name, url, server, client, internal=internal)


def _unsigned(system: str, name: str, url: str, logs: str, client: str, *, internal: bool) -> Connection:
    """Return the connection of a system whose CloudEvents have no signature."""
    return _connection(
        [system, "client_proved" if client else "client_unproved"],
        name=name,
        url=posted_to(url, name),
        logs=logs.rstrip("/"),
        allowed=places((logs,), internal),
        header=CLIENT_HEADER,
        client=client,
    )

"""The connection of a CI system: keys of ciml's own files, secrets, and texts for the other side.

Each CI system has a class of its options, those of its command, which checks their addresses and makes its
`Connection`. The parts of connections are in ``connections.toml``, and the texts for the other side in
``connect_texts.toml``.
"""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any, Literal
from urllib.parse import SplitResult, urlsplit

import msgspec

from ciml.errors import CimlError
from ciml.options import Options, flag, option, repeated

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


class SystemOptions(Options, ABC):
    """Options of the connection of a CI system.

    Attributes:
      name: Source in run ids and trust policies.
    """

    name: str = option(metavar="NAME", required=True)

    @abstractmethod
    def connection(self) -> Connection:
        """Return the connection. Raises `CimlError` for a malformed address, or options that do not fit together."""

    def _sum(self, *parts: str, **values: Any) -> Connection:
        """Return the sum of parts of ``connections.toml``, filled in with the options and further values."""
        values = {**vars(self), **values}
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


class WebhookOptions(SystemOptions, ABC):
    """Options of a system that sends webhooks.

    Attributes:
      url: Public address of the receiver of webhooks, such as https://ci.example.org.
    """

    url: str = option(ask="public address of the receiver, such as https://ci.example.org", metavar="URL")


class ForgeOptions(WebhookOptions, ABC):
    """Options of a system whose changes get comments.

    Attributes:
      internal: Names of log hosts have private addresses.
      ca_file: Certificates that sign the server's. [default: the system's]
      feedback: Also comment on the changes of failed runs.
    """

    internal: bool = flag()
    ca_file: str = option("", "file path")
    feedback: bool = flag()


class GithubOptions(ForgeOptions):
    """Options of ``ciml connect github``: a webhook of workflow jobs, a workflow that keeps telemetry, and feedback.

    Attributes:
      api: REST API; GitHub Enterprise Server has https://HOST/api/v3. [default: github.com's]
      app: App that writes check runs; with --feedback. [default: a token writes comments]
    """

    name: str = option("github", metavar="NAME")
    api: str = option("", metavar="URL")
    app: int | None = option(kind="count", metavar="ID")

    def connection(self) -> Connection:
        if self.app and not self.feedback:
            raise CimlError("--app is that of the feedback; add --feedback")
        example = f"the address of the REST API, such as {GITHUB_API}"
        host = parts_of(self.api or GITHUB_API, "--api", example, ("https",)).netloc
        is_enterprise = self.api.rstrip("/") not in ("", GITHUB_API)
        parts = ["behind_proxy", "github", "github_enterprise" if is_enterprise else "github_hosted"]
        if self.feedback:
            parts += ["github_feedback", "github_app" if self.app else "github_token"]
        url = posted_to(self.url, self.name)
        return self._sum(*parts, url=url, host=host, allowed=places((host,), self.internal))


class GitlabOptions(ForgeOptions):
    """Options of ``ciml connect gitlab``: a webhook of jobs, pipelines and merge requests, a job, and feedback.

    Attributes:
      server: Address of GitLab.
      signed: GitLab signs its webhooks, instead of sending a secret token.
      redirects: Object store of artifacts that GitLab redirects to; may be repeated.
    """

    name: str = option("gitlab", metavar="NAME")
    server: str = option("https://gitlab.com", metavar="URL")
    signed: bool = flag()
    redirects: tuple[str, ...] = repeated(flags="--redirect-host", metavar="HOST")

    def connection(self) -> Connection:
        example = "the address of GitLab, such as https://gitlab.example.org"
        address = parts_of(self.server, "--server", example, ("https",))
        if address.path.strip("/"):
            raise CimlError(f"--server {self.server!r:.120}: give {example}")
        allowed = places((address.netloc,), self.internal)
        if self.redirects:
            allowed["redirect_hosts"] = self.redirects
        variants = {"gitlab_signed": self.signed, "gitlab_feedback": self.feedback}
        return self._sum(
            "behind_proxy",
            "gitlab",
            *(part for part, is_chosen in variants.items() if is_chosen),
            url=posted_to(self.url, self.name),
            host=address.netloc,
            allowed=allowed,
            field="Signing token    " if self.signed else "Secret token     ",
        )


class ZuulOptions(SystemOptions):
    """Options of ``ciml connect zuul``: its MQTT reporter, and playbooks that record the machine of each job.

    Attributes:
      broker: MQTT broker: mqtts://HOST:PORT, or mqtt://HOST:PORT without TLS.
      logs: Host of build logs: https://HOST or http://HOST:PORT; may be repeated.
      internal: Names of log hosts have private addresses.
      user: User of ciml at the broker.
      password_file: Its password. [default: a new one]
      ca_file: Certificates that sign the broker's. [default: the system's]
      pipelines: Pipeline that ciml learns from; may be repeated. [default: check, gate, post]
      prefix: First level of the MQTT topics.
    """

    name: str = option("zuul", metavar="NAME")
    broker: str = option(ask="address of the MQTT broker, such as mqtts://mqtt.example.org:8883", metavar="URL")
    logs: tuple[str, ...] = repeated(
        ask="host of build logs, such as https://logs.example.org", flags="--logs", metavar="URL"
    )
    internal: bool = flag()
    user: str = option("ciml", metavar="USER")
    password_file: str = option("", "file path")
    ca_file: str = option("", "file path")
    pipelines: tuple[str, ...] = repeated(metavar="NAME")
    prefix: str = option("zuul", metavar="TEXT")

    def connection(self) -> Connection:
        example = "mqtts://HOST:8883, or mqtt://HOST:1883 without TLS"
        address = parts_of(self.broker, "--broker", example, ("mqtts", "mqtt"))
        plain(self.user, "--user")
        plain(self.prefix, "--prefix")
        if not self.ca_file.isprintable():
            raise CimlError(f"--ca-file {self.ca_file!r:.120}: has an unprintable character; rename it")
        tls = address.scheme == "mqtts"
        reporters = [
            paste("zuul.reporters", {"pipeline": json.dumps(plain(pipeline, "--pipeline")), "prefix": self.prefix}).text
            for pipeline in self.pipelines or PIPELINES
        ]
        return self._sum(
            *(["zuul"] if self.password_file else ["zuul_password", "zuul"]),
            allowed=places(self.logs, self.internal),
            secret=self.password_file or f"secrets/{self.name}",
            host=address.hostname,
            port=address.port or (8883 if tls else 1883),
            ca_certs=f"ca_certs={self.ca_file or '/etc/ssl/certs/ca-certificates.crt'}\n" if tls else "",
            pipelines="\n".join(reporters),
            dool=DOOL,
        )


class GerritOptions(SystemOptions):
    """Options of ``ciml connect gerrit``: the stream, the REST API and feedback of the Gerrit of a CI system.

    Attributes:
      ssh: Gerrit over SSH: ssh://USER@HOST:29418.
      rest: REST API, which fills gaps of the stream, such as https://HOST.
      key_file: Private key. [default: secrets/NAME-gerrit]
      known_hosts_file: Host keys of the server. [default: secrets/NAME-gerrit-hosts]
      password_file: HTTP password for --rest. [default: anonymous]
      feedback: Also comment on the changes of failed runs.
    """

    name: str = option("zuul", metavar="NAME")
    ssh: str = option(ask="address of Gerrit over SSH, such as ssh://ciml@review.example.org:29418", metavar="URL")
    rest: str = option("", metavar="URL")
    key_file: str = option("", "file path")
    known_hosts_file: str = option("", "file path")
    password_file: str = option("", "file path")
    feedback: bool = flag()

    def connection(self) -> Connection:
        address = parts_of(self.ssh, "--ssh", "ssh://USER@HOST:29418", ("ssh",), user=True)
        user = plain(address.username or "", "--ssh, its user")
        if self.rest:
            example = "the address of Gerrit, such as https://review.example.org"
            parts_of(self.rest, "--rest", example, ("https", "http"))
        key = self.key_file or f"secrets/{self.name}-gerrit"
        hosts_file = self.known_hosts_file or f"secrets/{self.name}-gerrit-hosts"
        port = address.port or 29418
        keyscan = f"ssh-keyscan -p {port} {address.hostname} > {shlex.quote(hosts_file)}\n"
        parts = ["gerrit"]
        if self.feedback:
            parts += ["gerrit_feedback"] if self.password_file else ["gerrit_feedback", "gerrit_password"]
        return self._sum(
            *parts,
            key_file=key,
            hosts_file=hosts_file,
            secret=self.password_file or f"secrets/{self.name}-gerrit-http",
            keygen="" if self.key_file else f"ssh-keygen -q -t ed25519 -N '' -f {shlex.quote(key)}\n",
            keyscan="" if self.known_hosts_file else keyscan,
            public=shlex.quote(f"{key}.pub"),
            host=address.hostname,
            port=port,
            user=user,
        )


class UnsignedOptions(WebhookOptions, ABC):
    """Options of a system whose CloudEvents have no signature.

    Attributes:
      client: Subject of the sender's certificate. [default: no proof]
    """

    client: str = option("", metavar="SUBJECT")

    def _unsigned(self, system: str, logs: str, *, internal: bool = False) -> Connection:
        """Return the connection of a system whose logs are below an address or prefix."""
        return self._sum(
            system,
            "client_proved" if self.client else "client_unproved",
            url=posted_to(self.url, self.name),
            logs=logs.rstrip("/"),
            allowed=places((logs,), internal),
            header=CLIENT_HEADER,
        )


class TektonOptions(UnsignedOptions):
    """Options of ``ciml connect tekton``.

    Attributes:
      logs: Prefix at which steps store their telemetry.
    """

    name: str = option("tekton", metavar="NAME")
    logs: str = option(
        ask="prefix at which steps store their telemetry, such as s3://cilogs/tekton", metavar="s3://PREFIX"
    )

    def connection(self) -> Connection:
        if not self.logs.startswith("s3://"):
            raise CimlError(f"--logs {self.logs!r:.120}: give the s3:// prefix at which steps store their telemetry")
        return self._unsigned("tekton", self.logs)


class JenkinsOptions(UnsignedOptions):
    """Options of ``ciml connect jenkins``.

    Attributes:
      server: Address of Jenkins, below which builds archive their telemetry.
      internal: Names of log hosts have private addresses.
    """

    name: str = option("jenkins", metavar="NAME")
    server: str = option(ask="address of Jenkins, such as https://jenkins.example.org", metavar="URL")
    internal: bool = flag()

    def connection(self) -> Connection:
        example = "the address of Jenkins, such as https://jenkins.example.org"
        parts_of(self.server, "--server", example, ("https", "http"))
        return self._unsigned("jenkins", self.server, internal=self.internal)


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


def paste(name: str, values: Mapping[str, Any]) -> Paste:
    """Return a text of ``connect_texts.toml``, such as ``github.webhook``, with its values filled in."""
    system, _, text = name.partition(".")
    entry = _tables("connect_texts.toml")[system][text]
    return Paste(entry["where"], filled_in(entry["text"], **values), entry.get("form", "text"))


@cache
def _tables(file: str) -> Mapping[str, Mapping[str, Any]]:
    return tomllib.loads(files("ciml.integrations").joinpath(file).read_text(encoding="utf-8"))


def _filled(item: Any, values: Mapping[str, Any]) -> Any:
    """Return a part of a connection with its values, without what is empty then."""
    if isinstance(item, str):
        alone = _PLACE.fullmatch(item)
        return values[alone[1].lower()] if alone else filled_in(item, **values)
    if isinstance(item, list):
        return [content for entry in item if (content := _filled(entry, values))]
    return {key: content for key, entry in item.items() if (content := _filled(entry, values))}


def filled_in(text: str, **values: Any) -> str:
    """Replace ``@NAME@`` with the value of ``name``. Raises `KeyError` for an unknown name."""
    return _PLACE.sub(lambda match: str(values[match[1].lower()]), text)

"""The configuration of all receivers: one TOML file with a table for each receiver, and one for each source.

A source has the keys of its receiver. A new receiver adds its classes to `SOURCES` and `TABLES`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar
from urllib.parse import urlsplit

from ciml.errors import CimlError, RejectedInput
from ciml.http.addresses import parse_address
from ciml.integrations.registry import find_adapter
from ciml.integrations.secrets import NamedSettings
from ciml.limits import MAX_BODY_S, MAX_DELIVERY_BYTES, MAX_HEADER_S, MAX_HOOK_CONNECTIONS, MAX_IN_FLIGHT
from ciml.settings import Settings, as_value_error, check_range, pop_tables, read_toml

_PATH = re.compile(r"(/[A-Za-z0-9_.~-]+)+")


class Source(NamedSettings, frozen=True, kw_only=True):
    """A source of deliveries.

    Attributes:
      name: of the CI system, as in run ids. Two receivers may have sources of one name: Zuul and its Gerrit.
      adapter: reads its deliveries in ingest.
      secret_file, secret_env: files and environment variables with a secret each; at most two together.
    """

    title: ClassVar[str] = "source"
    receiver: ClassVar[str]
    adapter: str

    def __post_init__(self) -> None:
        super().__post_init__()
        with as_value_error("adapter: "):
            find_adapter(self.adapter)


class WebhookSource(Source, frozen=True, kw_only=True):
    """A source that sends webhooks.

    Attributes:
      path: where it posts; ``/hooks/NAME`` by default.
      auth: a scheme of `ciml.integrations.webhooks.signatures`, ``mtls`` or ``none``; by default that of the adapter.
      client_header, clients: for ``mtls``: the header in which the proxy names the subject of a verified certificate,
        and the subjects that are this source.
      rate, burst: verified deliveries a second, and in a burst.
      max_bytes: of a body.
    """

    receiver: ClassVar[str] = "webhooks"
    lists: ClassVar[tuple[str, ...]] = (*Source.lists, "clients")
    path: str = ""
    auth: str = ""
    client_header: str = ""
    clients: tuple[str, ...] = ()
    rate: float = 100.0
    burst: int = 1000
    max_bytes: int = MAX_DELIVERY_BYTES

    @property
    def posted_to(self) -> str:
        """The path, as given or by default."""
        return self.path or f"/hooks/{self.name}"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _PATH.fullmatch(self.posted_to):
            raise ValueError(f"path: {self.path!r:.80} is not a path such as /hooks/{self.name}")
        check_range("rate", self.rate, 0.01, 100_000.0)
        check_range("burst", self.burst, 1, 1_000_000)
        check_range("max_bytes", self.max_bytes, 1, MAX_DELIVERY_BYTES)


class MqttSource(Source, frozen=True, kw_only=True):
    """A source that publishes to an MQTT broker.

    Attributes:
      broker: ``mqtts://HOST:PORT`` with TLS, or ``mqtt://HOST:PORT`` without; the port is 8883 or 1883 by default.
      topics: filters, such as ``zuul/#``.
      user: of the broker. Its password is the secret.
      ca_file: certificates that sign the broker's; those of the system by default.
      certificate_file, key_file: a client certificate and its key.
      client_id: of the session that the broker keeps; ``ciml-NAME`` by default. No two clients may share one.
      version: of the protocol.
      session_s: for how long the broker keeps messages for a receiver that is away, seconds (version 5).
      keepalive_s: after which a silent connection is lost, seconds.
      in_flight: messages that are received and not acknowledged.
      retained: whether messages that the broker retained for new subscribers are deliveries.
      max_bytes: of a message.
    """

    receiver: ClassVar[str] = "mqtt"
    lists: ClassVar[tuple[str, ...]] = (*Source.lists, "topics")
    broker: str
    topics: tuple[str, ...]
    user: str = ""
    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""
    client_id: str = ""
    version: Literal["5", "3.1.1"] = "5"
    session_s: int = 7 * 86400
    keepalive_s: int = 30
    in_flight: int = 64
    retained: Literal["ignore", "accept"] = "ignore"
    max_bytes: int = MAX_DELIVERY_BYTES

    @property
    def address(self) -> tuple[str, int, bool]:
        """Host, port, and whether it speaks TLS."""
        return _address("broker", self.broker, {"mqtts": (8883, True), "mqtt": (1883, False)})

    def __post_init__(self) -> None:
        super().__post_init__()
        tls = self.address[2]
        if not self.topics or not all(map(_is_filter, self.topics)):
            raise ValueError(f"topics: {list(self.topics)!r:.80} are not topic filters such as zuul/#")
        if bool(self.certificate_file) != bool(self.key_file):
            raise ValueError("certificate_file and key_file go together")
        if not tls and (self.ca_file or self.certificate_file):
            raise ValueError("ca_file and certificate_file need a broker of mqtts://")
        if bool(self.user) != bool(self.secret_file or self.secret_env):
            raise ValueError("user: needs its password, secret_file or secret_env, and a password needs user")
        check_range("session_s", self.session_s, 60, 0xFFFFFFFE)
        check_range("keepalive_s", self.keepalive_s, 1, 3600)
        check_range("in_flight", self.in_flight, 1, MAX_IN_FLIGHT)
        check_range("max_bytes", self.max_bytes, 1, MAX_DELIVERY_BYTES)


class GerritSource(Source, frozen=True, kw_only=True):
    """A Gerrit whose events report who owns, reviewed and merged the changes that a CI system tests.

    Attributes:
      name: of the CI system, whose runs the events update.
      ssh: ``ssh://USER@HOST:PORT``; the port is 29418 by default.
      key_file: the user's private key.
      known_hosts_file: the server's host keys; an unknown one is rejected.
      rest: address of the REST API, such as ``https://review.example.org``; "" for none.
      user: of the REST API; by default that of ``ssh``. Its HTTP password is the secret; without one it is anonymous.
      ca_file: certificates that sign the server's; those of the system by default.
      check_s: between two comparisons with the REST API, seconds.
      in_flight: events that are received and not acknowledged.
    """

    receiver: ClassVar[str] = "gerrit"
    ssh: str
    key_file: str
    known_hosts_file: str
    adapter: str = "gerrit"
    rest: str = ""
    user: str = ""
    ca_file: str = ""
    check_s: float = 300.0
    in_flight: int = 64

    @property
    def address(self) -> tuple[str, str, int]:
        """User, host and port of SSH."""
        host, port, _ = _address("ssh", self.ssh, {"ssh": (29418, True)}, user=True)
        return urlsplit(self.ssh).username or "", host, port

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.address[0]:
            raise ValueError(f"ssh: {self.ssh!r:.80} names no user; want ssh://USER@HOST:29418")
        if self.rest and not _is_api(self.rest):
            raise ValueError(f"rest: {self.rest!r:.80} is not an address such as https://review.example.org")
        if not self.rest and (self.secret_file or self.secret_env):
            raise ValueError("secret_file and secret_env are the HTTP password of rest, which is missing")
        check_range("check_s", self.check_s, 1, 86400)
        check_range("in_flight", self.in_flight, 1, MAX_IN_FLIGHT)


def _address(
    key: str, url: str, schemes: Mapping[str, tuple[int, bool]], *, user: bool = False
) -> tuple[str, int, bool]:
    """Return host, port, and whether it is encrypted. Raises `ValueError`."""
    forms = " or ".join(f"{scheme}://{'USER@' if user else ''}HOST:{port}" for scheme, (port, _) in schemes.items())
    try:
        parts = urlsplit(url)
        host = parts.hostname
        port = parts.port
    except ValueError:
        host = port = None
    unexpected = (parts.path.strip("/"), parts.query, parts.fragment, parts.password, None if user else parts.username)
    if not host or parts.scheme not in schemes or any(unexpected) or port == 0:
        raise ValueError(f"{key}: {url!r:.80} is not {forms}")
    default_port, tls = schemes[parts.scheme]
    return host, port or default_port, tls


def _is_api(url: str) -> bool:
    try:
        return parse_address(url).scheme in ("http", "https") and "?" not in url
    except RejectedInput:
        return False


def _is_filter(text: str) -> bool:
    levels = text.split("/")
    valid = all(level in ("+", "#") or not set(level) & {"+", "#", "\0"} for level in levels)
    return 0 < len(text.encode()) <= 0xFFFF and valid and "#" not in levels[:-1]


class WebhookSettings(Settings, frozen=True):
    """The server of webhooks.

    Attributes:
      host, port: the address to listen on. It speaks HTTP: a proxy in front of it speaks TLS.
      proxies: addresses and networks of the proxies whose ``client_header`` is believed.
      connections: the most open connections.
      header_s, body_s: limits for a request's header and its body, seconds.
      answer_s: limit for Kafka's acknowledgement, seconds; a sender waits 5 to 10 s.
    """

    title: ClassVar[str] = "webhooks"
    host: str = "127.0.0.1"
    port: int = 8470
    proxies: tuple[str, ...] = ()
    connections: int = MAX_HOOK_CONNECTIONS
    header_s: float = MAX_HEADER_S
    body_s: float = MAX_BODY_S
    answer_s: float = 8.0

    def __post_init__(self) -> None:
        check_range("port", self.port, 0, 65535)
        for proxy in self.proxies:
            try:
                ipaddress.ip_network(proxy)
            except ValueError as error:
                raise ValueError(f"proxies: {error}") from None
        check_range("connections", self.connections, 1, 100_000)
        for key in ("header_s", "body_s", "answer_s"):
            check_range(key, getattr(self, key), 0.1, 600.0)


class GerritSettings(Settings, frozen=True):
    """The receiver of Gerrit's events.

    Attributes:
      state: folder of its position, below that of the configuration unless absolute. It must be writable.
    """

    title: ClassVar[str] = "gerrit"
    state: str = "state"


#: The class of a source, by the value of its key ``receiver``.
SOURCES: Mapping[str, type[Source]] = {source.receiver: source for source in (WebhookSource, MqttSource, GerritSource)}
#: The class of a receiver's own table, by its name, which is a field of `Receivers` too.
TABLES: Mapping[str, type[Settings]] = {"webhooks": WebhookSettings, "gerrit": GerritSettings}

S = TypeVar("S", bound=Source)
T = TypeVar("T")


@dataclass(frozen=True)
class Receivers:
    """A configuration.

    Attributes:
      file: its path.
      sources: of all receivers.
      webhooks, gerrit: of these receivers.
    """

    file: Path
    sources: tuple[Source, ...]
    webhooks: WebhookSettings = field(default_factory=WebhookSettings)
    gerrit: GerritSettings = field(default_factory=GerritSettings)

    def of(self, kind: type[S]) -> list[S]:
        """Return the sources of a receiver, by their class. Raises `CimlError` if there is none."""
        sources = [source for source in self.sources if isinstance(source, kind)]
        if not sources:
            raise CimlError(f'{self.file}: no [[source]] has receiver = "{kind.receiver}"; add one')
        return sources

    def path(self, name: str) -> Path:
        """Return the path of a file that the configuration names."""
        return self.file.parent / name

    def loaded(self, source: Source, keys: str, read: Callable[..., T]) -> T:
        """Return what ``read`` loads from the files that a source names.

        Args:
          source: of the configuration.
          keys: keys of the source, separated by blanks.
          read: called with the path of each file, None if a key is empty.

        Raises:
          CimlError: a file is missing or invalid.
        """
        names = {key: getattr(source, key) for key in keys.split()}
        paths = [str(self.path(name)) if name else None for name in names.values()]
        try:
            return read(*paths)
        except (OSError, ValueError) as error:  # of asyncssh: KeyImportError and KeyEncryptionError are ValueErrors
            files = ", ".join(f"{key} {path}" for key, path in zip(names, paths, strict=True))
            problem = getattr(error, "strerror", None) or error
            raise CimlError(f"{self.where(source)}: {files}: {problem}") from None

    def where(self, source: Source) -> str:
        """Return the place of a source for messages."""
        return f"{self.file}, source {source.name}"


def load_receivers(path: str | Path) -> Receivers:
    """Load a configuration.

    Raises:
      CimlError: one line that names the file, the source, the key and its value.
    """
    value = read_toml(path)
    sources = pop_tables(value, "source", "receiver", SOURCES, path)
    tables: dict[str, Any] = {
        name: kind.from_json(value.pop(name, {}), f"{path}, [{name}]") for name, kind in TABLES.items()
    }
    if value:
        raise CimlError(f"{path}: {next(iter(value))!r:.80}: unknown key; choose from source, {', '.join(TABLES)}")
    for position, source in enumerate(sources):
        if any((source.receiver, source.name) == (earlier.receiver, earlier.name) for earlier in sources[:position]):
            raise CimlError(f"{path}: two sources of {source.receiver} have the name {source.name}; rename one")
    return Receivers(Path(path), sources, **tables)

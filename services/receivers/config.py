"""The configuration of all receivers: one TOML file with a table for each receiver, and one for each source.

A source has the keys of its receiver. A new receiver adds its classes to `SOURCES` and `TABLES`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from adapters.adapter import Adapter
from adapters.registry import find_adapter
from ciml.errors import CimlError
from ciml.events.run_facts import check_source_name
from ciml.limits import (
    MAX_BODY_S,
    MAX_DELIVERY_BYTES,
    MAX_HEADER_S,
    MAX_HOOK_CONNECTIONS,
    MAX_SOURCES,
)
from ciml.settings import Settings, checked, read_toml

_PATH = re.compile(r"(/[A-Za-z0-9_.~-]+)+")


class Source(Settings, frozen=True):
    """A source of deliveries.

    Attributes:
      name: of the CI system, as in run ids. Two receivers may have sources of one name: Zuul and its Gerrit.
      adapter: reads its deliveries in ingest.
      secret_file, secret_env: files and environment variables with a secret each; at most two together.
    """

    what: ClassVar[str] = "source"
    receiver: ClassVar[str]
    #: Keys of lists, for which one text is a list of one.
    lists: ClassVar[tuple[str, ...]] = ("secret_file", "secret_env")
    name: str
    adapter: str
    secret_file: tuple[str, ...] = ()
    secret_env: tuple[str, ...] = ()

    @classmethod
    def written(cls, value: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**value, **{key: [value[key]] for key in cls.lists if type(value.get(key)) is str}}

    def __post_init__(self) -> None:
        checked("name: ", check_source_name, self.name)
        checked("adapter: ", find_adapter, self.adapter)

    def found_adapter(self) -> Adapter:
        """Return the adapter."""
        return find_adapter(self.adapter)


class WebhookSource(Source, frozen=True):
    """A source that sends webhooks.

    Attributes:
      path: where it posts; ``/hooks/NAME`` by default.
      auth: a scheme of `services.webhooks.signatures`, ``mtls`` or ``none``; by default that of the adapter.
      client_header, clients: for ``mtls``: the header in which the proxy names the subject of a verified certificate,
        and the subjects that are this source.
      rate, burst: verified deliveries a second, and at once.
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
        _check_range("rate", self.rate, 0.01, 100_000.0)
        _check_range("burst", self.burst, 1, 1_000_000)
        _check_range("max_bytes", self.max_bytes, 1, MAX_DELIVERY_BYTES)


class WebhookSettings(Settings, frozen=True):
    """The server of webhooks.

    Attributes:
      host, port: the address to listen on. It speaks HTTP: a proxy in front of it speaks TLS.
      proxies: addresses and networks of the proxies whose ``client_header`` is believed.
      connections: the most open connections.
      header_s, body_s: limits for a request's header and its body, seconds.
      answer_s: limit for Kafka's acknowledgement, seconds; a sender waits 5 to 10 s.
    """

    what: ClassVar[str] = "webhooks"
    host: str = "127.0.0.1"
    port: int = 8470
    proxies: tuple[str, ...] = ()
    connections: int = MAX_HOOK_CONNECTIONS
    header_s: float = MAX_HEADER_S
    body_s: float = MAX_BODY_S
    answer_s: float = 8.0

    def __post_init__(self) -> None:
        _check_range("port", self.port, 0, 65535)
        for proxy in self.proxies:
            try:
                ipaddress.ip_network(proxy)
            except ValueError as error:
                raise ValueError(f"proxies: {error}") from None
        _check_range("connections", self.connections, 1, 100_000)
        for key in ("header_s", "body_s", "answer_s"):
            _check_range(key, getattr(self, key), 0.1, 600.0)


def _check_range(key: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:  # nor NaN, which TOML has
        raise ValueError(f"{key}: {value} is not between {least} and {most}")


#: The class of a source, by the value of its key ``receiver``.
SOURCES: Mapping[str, type[Source]] = {each.receiver: each for each in (WebhookSource,)}
#: The class of a receiver's own table, by its name, which is a field of `Receivers` too.
TABLES: Mapping[str, type[Settings]] = {"webhooks": WebhookSettings}


@dataclass(frozen=True)
class Receivers:
    """A configuration.

    Attributes:
      file: its path.
      sources: of all receivers.
      webhooks: of the receiver of webhooks.
    """

    file: Path
    sources: tuple[Source, ...]
    webhooks: WebhookSettings = field(default_factory=WebhookSettings)

    def webhook_sources(self) -> list[WebhookSource]:
        """Return the sources of the receiver of webhooks. Raises `CimlError` if there is none."""
        found = [each for each in self.sources if isinstance(each, WebhookSource)]
        if not found:
            raise CimlError(f'{self.file}: no [[source]] has receiver = "webhooks"; add one')
        return found

    def where(self, source: Source) -> str:
        """Return the place of a source for messages."""
        return f"{self.file}, source {source.name}"


def load_receivers(path: str | Path) -> Receivers:
    """Load a configuration.

    Raises:
      CimlError: one line that names the file, the source, the key and its value.
    """
    value = read_toml(path)
    listed = value.pop("source", [])
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise CimlError(f"{path}: source: expected tables, [[source]]")
    if len(listed) > MAX_SOURCES:
        raise CimlError(f"{path}: {len(listed)} sources, at most {MAX_SOURCES} (MAX_SOURCES)")
    tables: dict[str, Any] = {
        name: kind.from_json(value.pop(name, {}), f"{path}, [{name}]") for name, kind in TABLES.items()
    }
    if value:
        raise CimlError(f"{path}: {next(iter(value))!r:.80}: unknown key; choose from source, {', '.join(TABLES)}")
    sources = tuple(_source(path, number, each) for number, each in enumerate(listed, 1))
    _check_different(path, sources)
    return Receivers(Path(path), sources, **tables)


def _source(path: str | Path, number: int, value: dict[str, Any]) -> Source:
    name = value.get("name")
    where = f"{path}, source {name if isinstance(name, str) else number!s:.80}"
    receiver = value.pop("receiver", None)
    if receiver not in SOURCES:
        problem = "is missing" if receiver is None else f"{receiver!r:.80} is unknown"
        raise CimlError(f"{where}: receiver: {problem}; choose from {', '.join(SOURCES)}")
    return SOURCES[receiver].from_json(value, where)


def _check_different(path: str | Path, sources: tuple[Source, ...]) -> None:
    seen: set[tuple[str, str]] = set()
    for source in sources:
        key = (source.receiver, source.name)
        if key in seen:
            raise CimlError(f"{path}: two sources of {source.receiver} have the name {source.name}; rename one")
        seen.add(key)

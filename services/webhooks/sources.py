"""Configured sources of webhooks as the server needs them: scheme, keys, adapter and rate."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Mapping
from dataclasses import dataclass

from ciml.adapters.adapter import Adapter
from ciml.errors import CimlError
from ciml.services.receivers.config import Receivers, WebhookSource
from ciml.services.receivers.secrets import Secrets
from ciml.services.webhooks.admission import Bucket
from ciml.services.webhooks.signatures import SCHEMES, UNSIGNED, Claim, Scheme, client_scheme

_MTLS, _NONE = "mtls", "none"
_OWN_PATHS = ("/healthz", "/readyz")

Networks = tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]


@dataclass(frozen=True)
class Endpoint:
    """A source that the server answers.

    Attributes:
      source: its configuration.
      scheme: of its signatures.
      secrets: with which it signs; none for ``mtls`` and ``none``.
      adapter: reads its deliveries in ingest.
      bucket: limits its verified deliveries.
      proxies: whose requests may name a verified client; only for ``mtls``.
    """

    source: WebhookSource
    scheme: Scheme
    secrets: Secrets
    adapter: Adapter
    bucket: Bucket
    proxies: Networks = ()

    @property
    def name(self) -> str:
        return self.source.name

    def headers(self) -> frozenset[str]:
        """Return the names of the headers that are read: none of them may appear twice."""
        return frozenset((*self.scheme.headers, *self.scheme.ids, *self.adapter.headers))

    def claim(self, headers: Mapping[str, str], address: str) -> Claim | None:
        """Return what a request says about its sender; None if it cannot be true."""
        if self.source.auth == _MTLS and not _is_within(address, self.proxies):
            return None
        return self.scheme.read(headers, time.time())

    def is_proved(self, claim: Claim, body: bytes = b"") -> bool:
        """Return whether the sender is the source."""
        return claim.is_proved(body, self._keys())

    def _keys(self) -> list[bytes]:
        if self.scheme is UNSIGNED:
            return [b""]
        return [each.encode() for each in self.source.clients] or self.secrets.keys()


def endpoints(receivers: Receivers) -> dict[str, Endpoint]:
    """Return the endpoints by path.

    Raises:
      CimlError: one line that names the file, the source, the key and its value.
    """
    found: dict[str, Endpoint] = {}
    for source in receivers.of(WebhookSource):
        where = receivers.where(source)
        if source.posted_to in (*found, *_OWN_PATHS):
            raise CimlError(f"{where}: path: {source.posted_to} is in use already; choose another")
        found[source.posted_to] = _endpoint(receivers, source, where)
    return found


def _endpoint(receivers: Receivers, source: WebhookSource, where: str) -> Endpoint:
    adapter = source.found_adapter()
    auth = source.auth or adapter.signature
    if not auth:
        raise CimlError(
            f"{where}: auth is missing, and deliveries of {source.adapter} have no signature; choose {_MTLS}, bearer, "
            f"or {_NONE} for deliveries that anyone can send"
        )
    scheme, proxies = _scheme(source, auth, where), receivers.webhooks.proxies
    secrets = Secrets(where, source.secret_file, source.secret_env, scheme.key, receivers.file.parent)
    if bool(secrets) != (auth not in (_MTLS, _NONE)):
        problem = "has no use for secret_file and secret_env" if secrets else "needs secret_file or secret_env"
        raise CimlError(f"{where}: auth {auth} {problem}")
    if auth == _MTLS and not (source.client_header and source.clients and proxies):
        raise CimlError(f"{where}: auth {_MTLS} needs client_header, clients, and proxies of [webhooks]")
    if auth != _MTLS and (source.client_header or source.clients):
        raise CimlError(f"{where}: client_header and clients are of auth {_MTLS}, not {auth}")
    networks = tuple(map(ipaddress.ip_network, proxies)) if auth == _MTLS else ()
    return Endpoint(source.replace(auth=auth), scheme, secrets, adapter, Bucket(source.rate, source.burst), networks)


def _scheme(source: WebhookSource, auth: str, where: str) -> Scheme:
    if auth == _MTLS:
        return client_scheme(source.client_header.lower())
    if auth == _NONE:
        return UNSIGNED
    if auth not in SCHEMES:
        raise CimlError(f"{where}: auth: {auth!r:.80} is unknown; choose from {', '.join((*SCHEMES, _MTLS, _NONE))}")
    return SCHEMES[auth]


def _is_within(address: str, networks: Networks) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(found in network for network in networks)

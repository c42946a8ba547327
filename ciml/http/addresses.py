"""Allowed addresses of logs: a strict grammar, an allow-list, and a check of every IP address.

An address comes from outside, so a sender could make ciml read a local file or connect to an internal machine. This
module prevents that, together with the connection itself (`ciml.transforms.fetch.http`).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from urllib.parse import quote, unquote

from ciml.errors import CimlError, RejectedInput

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
PORTS = {"http": 80, "https": 443}

_URL = re.compile(r"(https?)://([^/?#\\@]+)([/?][^#]*)?(#.*)?", re.IGNORECASE | re.DOTALL)
_AUTHORITY = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]+)(?::([0-9]{1,5}))?")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"(0x[0-9a-f]*|[0-9]+)", re.IGNORECASE)
_GLOBAL_6 = ipaddress.ip_network("2000::/3")


def _networks(addresses: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(ipaddress.ip_network(address) for address in addresses.split())


#: Networks that `is_global` accepts although they lead, or may lead, to an internal address: NAT64 (global and local),
#: 6to4, Teredo, IPv4-compatible, site-local, relays of 6to4.
_EMBEDDING = _networks("64:ff9b::/96 64:ff9b:1::/48 2002::/16 2001::/32 ::/96 fec0::/10 192.88.99.0/24")
#: Networks that some Python versions treat as global: reserved for protocols, documentation, segment routing.
_SPECIAL = _networks("192.0.0.0/24 2001::/23 3fff::/20")
#: Rejected even where private addresses are allowed: clouds serve credentials there, never logs.
_FORBIDDEN = _networks(
    "169.254.0.0/16 fe80::/10 0.0.0.0/8 ::/128 224.0.0.0/3 ff00::/8 100.100.100.200/32 192.0.0.192/32 "
    "168.63.129.16/32 fd00:ec2::/32"
)


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed address. It is parsed once, so the checked address is the one that is used.

    Attributes:
      scheme: http, https, s3 or file.
      host: of http(s): in lower case, an IPv6 address without brackets; of s3: the bucket.
      port: of http(s), else 0.
      path: of http(s): the request's target, percent-encoded, with its query; of s3: the key; of file: the path.
    """

    scheme: str
    host: str
    port: int
    path: str

    @property
    def is_folder(self) -> bool:
        """Whether it ends with a slash, so that the log is at one of the usual paths below it."""
        return self.path.endswith("/") and "?" not in self.path

    @property
    def origin(self) -> str:
        """The host or bucket: addresses that share it are slow together."""
        return f"{self.scheme}://{self.host}:{self.port}"

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


def parse_address(text: str) -> Address:
    """Parse an address.

    Accepts ``http://``, ``https://`` (without user or password; non-ASCII paths are percent-encoded),
    ``s3://bucket/key``, ``file:///path`` and absolute paths. One that ends with a slash is a folder.

    Raises:
      RejectedInput: ``bad_address``; ``address_not_allowed`` for another scheme.
    """
    if not text or not text.isprintable():
        raise RejectedInput("bad_address", "is empty, or has spaces or control characters")
    if text.startswith("/"):
        return Address("file", "", 0, text)
    scheme, colon, remainder = text.partition(":")
    if not colon:
        raise RejectedInput("bad_address", "is not absolute; want https://, s3:// or an absolute path")
    scheme = scheme.lower()
    if scheme == "file":
        return _file(remainder)
    if scheme == "s3":
        return _s3(remainder)
    if scheme in PORTS:
        return _web(scheme, text)
    raise RejectedInput("address_not_allowed", f"scheme {scheme!r:.20} is not supported")


def below(folder: Address, paths: Sequence[str]) -> list[Address]:
    """Return the addresses of paths below a folder.

    Args:
      folder: its path ends with a slash.
      paths: relative, without dotted segments.
    """
    coded = paths if folder.scheme in ("file", "s3") else [quote(path) for path in paths]
    return [replace(folder, path=folder.path + path) for path in coded]


def _web(scheme: str, text: str) -> Address:
    match = _URL.fullmatch(text)
    if match is None:
        raise RejectedInput("bad_address", "is malformed, or has a user name")
    host, port = _host_port(match[2], scheme)
    target = quote(match[3] or "/", safe="/?&=%+,;:@!$'()*~[]-._")
    return Address(scheme, host, port, target if target.startswith("/") else f"/{target}")


def _file(location: str) -> Address:
    path = location
    if location.startswith("//"):
        host, _, below = location[2:].partition("/")
        if host.lower() not in ("", "localhost"):
            raise RejectedInput("address_not_allowed", "file:// address of another host")
        path = f"/{below}"
    try:
        path = unquote(path, errors="strict")
    except UnicodeDecodeError:
        raise RejectedInput("bad_address", "percent-encoded bytes are not UTF-8") from None
    if not path.startswith("/") or "\0" in path:
        raise RejectedInput("bad_address", "want file:///path")
    return Address("file", "", 0, path)


def _s3(location: str) -> Address:
    bucket, _, key = location.removeprefix("//").partition("/")
    if not location.startswith("//") or not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,62}", bucket) or not key:
        raise RejectedInput("bad_address", "want s3://bucket/key")
    if "/".join(PurePosixPath(key).parts) != key.removesuffix("/") or ".." in key.split("/"):
        raise RejectedInput("bad_address", "key has empty or dotted segments")
    return Address("s3", bucket, 0, key)


def _host_port(authority: str, scheme: str) -> tuple[str, int]:
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        raise RejectedInput("bad_address", "malformed host or port")
    port = int(match[2]) if match[2] else PORTS[scheme]
    if not 1 <= port <= 65535:
        raise RejectedInput("bad_address", f"invalid port {port}")
    return _host(match[1]), port


def _host(text: str) -> str:
    host = text.lower()
    try:
        if host.startswith("["):
            return str(ipaddress.IPv6Address(host[1:-1]))
        labels = host.removesuffix(".").split(".")
        if _NUMBER.fullmatch(labels[-1]):  # 127.1, 0x7f.0.0.1, 2130706433: only the canonical form is an address
            return str(ipaddress.IPv4Address(host))
    except ValueError:
        raise RejectedInput("bad_address", "not a canonical IP address") from None
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise RejectedInput("bad_address", "malformed host")
    return ".".join(labels)


def as_ip(host: str) -> IPAddress | None:
    """Parse a host as an IP address; None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_in(ip: IPAddress, networks: Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    return any(ip.version == network.version and ip in network for network in networks)


def is_forbidden(ip: IPAddress) -> bool:
    """Return whether an address is link-local, multicast, unspecified, reserved or a cloud's metadata service."""
    return _is_in(getattr(ip, "ipv4_mapped", None) or ip, _FORBIDDEN)


def embeds_address(ip: IPAddress) -> bool:
    """Return whether an address embeds another one (as NAT64, 6to4 and mapped ones do), or has a scope."""
    if getattr(ip, "ipv4_mapped", None) is not None:
        return True
    if ip.is_loopback:  # ::1 would be IPv4-compatible
        return False
    return bool(getattr(ip, "scope_id", None)) or _is_in(ip, _EMBEDDING)


def is_public(ip: IPAddress) -> bool:
    """Return whether an address is public by itself, not by an address embedded in it."""
    if is_forbidden(ip) or embeds_address(ip) or _is_in(ip, _SPECIAL):
        return False
    if ip.version == 6 and ip not in _GLOBAL_6:
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


@dataclass(frozen=True, slots=True)
class HostRule:
    """An allowed scheme, host and port.

    Attributes:
      host: a name or an IP address; ``*.`` before a name matches any name below it.
      private: whether the name may resolve to private addresses.
    """

    scheme: str
    host: str
    port: int
    private: bool

    def matches(self, scheme: str, host: str, port: int) -> bool:
        if scheme != self.scheme or port != self.port:
            return False
        if self.host.startswith("*."):
            return host.endswith(self.host[1:]) and as_ip(host) is None
        return host == self.host


def host_rule(text: str, private: bool = False) -> HostRule:
    """Parse a rule ``[scheme://]host[:port]``; https by default, with the scheme's port by default.

    An IP address may be private, because it is explicit. A name may resolve to private ones only with ``private``.

    Raises:
      CimlError: a malformed entry, or a forbidden address.
    """
    scheme, separator, authority = text.rpartition("://")
    scheme = scheme.lower() if separator else "https"
    if scheme not in PORTS:
        raise CimlError(f"allowed host {text!r}: scheme must be https or http")
    has_wildcard = authority.startswith("*.")
    try:
        host, port = _host_port(authority.removeprefix("*."), scheme)
    except RejectedInput as rejected:
        raise CimlError(f"allowed host {text!r}: {rejected.detail}; want [scheme://]host[:port]") from None
    ip = as_ip(host)
    if ip is not None and (has_wildcard or is_forbidden(ip)):
        raise CimlError(f"allowed host {text!r}: this address is never allowed")
    if has_wildcard and "." not in host:
        raise CimlError(f"allowed host {text!r}: the wildcard is too wide")
    return HostRule(scheme, f"*.{host}" if has_wildcard else host, port, private or ip is not None)


def check_ips(addresses: list[str], private: bool) -> list[str]:
    """Check all addresses that a host resolved to; return them in order.

    Args:
      addresses: IP addresses.
      private: whether they may be private.

    Raises:
      RejectedInput: ``address_not_allowed``: one of them is not allowed.
    """
    for text in addresses:
        ip = as_ip(text)
        if ip is None or not _is_allowed(ip, private):
            raise RejectedInput("address_not_allowed", f"it resolves to {text}")
    return addresses


def _is_allowed(ip: IPAddress, private: bool) -> bool:
    return is_public(ip) or (private and not embeds_address(ip) and not is_forbidden(ip))

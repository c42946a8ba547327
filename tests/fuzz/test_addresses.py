"""Whatever an address is, it is parsed into parts that mean the same again, or refused with a reason."""

from __future__ import annotations

import ipaddress
import random
import socket
from urllib.parse import urlsplit

from hypothesis import example, given
from hypothesis import strategies as st

from ciml.errors import LogUnavailableError, RejectedInput
from ciml.http.addresses import PORTS, Address, check_ips, is_public, parse_address
from ciml.transforms.fetch.fetch import Fetcher
from ciml.transforms.fetch.policy import FetchPolicy
from tests.faults.inner_net import FORBIDDEN, forms
from tests.fuzz.frame import fuzz

_hosts = st.one_of(
    st.ip_addresses().map(lambda ip: f"[{ip}]" if ip.version == 6 else str(ip)),
    st.builds(lambda ip, seed: forms(ip, random.Random(seed)), st.sampled_from(FORBIDDEN), st.integers(0, 1 << 16)),
    st.sampled_from(["logs.example.org", "LOGS.example.org.", "a_b", "xn--a", "-", "..", "", "*", "ｅxample.org"]),
    st.text(max_size=12),
)
_paths = st.one_of(st.just(""), st.text(max_size=20).map(lambda text: f"/{text}"), st.sampled_from(
    ["/../../etc/passwd", "/%2e%2e/x", "/%00", "/a%", "/\\", "?x=1#y", "/a/./b//c", "/%ff"]))  # fmt: skip
REASONS = ("bad_address", "address_not_allowed")
addresses = st.one_of(
    st.builds(
        lambda scheme, user, host, port, path: f"{scheme}{user}{host}{port}{path}",
        st.sampled_from(
            ["http://", "https://", "HTTP://", "s3://", "file://", "file:", "ftp://", "//", "http:", "http:/"]
        ),
        st.sampled_from(["", "", "", "user@", "user:pw@", "a%40"]),
        _hosts,
        st.sampled_from(["", "", ":80", ":0", ":65536", ":8080", ":", ":x"]),
        _paths,
    ),
    st.text(max_size=40),
    _paths,
)


def _parsed(text: str) -> Address | RejectedInput:
    try:
        return parse_address(text)
    except RejectedInput as refused:
        return refused


def _read(fetcher: Fetcher, text: str) -> bytes | RejectedInput | LogUnavailableError:
    address = _parsed(text)
    try:
        return address if isinstance(address, RejectedInput) else fetcher.read(address)
    except (RejectedInput, LogUnavailableError) as failure:
        return failure


@fuzz
@given(addresses)
@example("http://0177.0.0.1/")
@example("http://[::ffff:127.0.0.1]:80/a b")
@example("s3://logs/../other")
def test_an_address_is_parsed_or_refused(text: str) -> None:
    address = _parsed(text)
    if isinstance(address, RejectedInput):
        assert address.reason in REASONS
        assert len(address.detail) < 200
        return
    if address.scheme == "file":
        assert address.path.startswith("/")
        assert "\0" not in address.path
    elif address.scheme == "s3":
        assert not {"", ".", ".."} & set(address.path.split("/"))
    else:
        assert address.path.isascii()
        assert address.path.isprintable()
        assert address.path.startswith("/")
        whole = f"{address.scheme}://{address.host_header}{address.path}"
        assert parse_address(whole) == address
        parts = urlsplit(whole)
        assert (parts.hostname, parts.port or PORTS[address.scheme]) == (address.host, address.port)
        try:
            expected = str(ipaddress.ip_address(address.host))
        except ValueError:
            try:
                socket.inet_aton(address.host)
            except OSError:
                return
            raise AssertionError(f"{address.host} is an IP address to the system, and a name here") from None
        assert address.host == expected


@fuzz
@given(st.ip_addresses())
@example(ipaddress.ip_address("64:ff9b::7f00:1"))
@example(ipaddress.ip_address("2002:7f00:1::"))
def test_a_public_address_wraps_no_other(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    wrapped = (getattr(ip, "ipv4_mapped", None), getattr(ip, "sixtofour", None), getattr(ip, "teredo", None))
    if is_public(ip):
        assert ip.is_global
        assert not any(wrapped)
        assert check_ips([str(ip)], False) == [str(ip)]


@fuzz
@given(st.integers(0, 1 << 32))
def test_no_form_of_an_inner_address_is_connected_to(seed: int) -> None:
    """The short form of row 19 of the faults: the listener is on an address of this machine."""
    chance = random.Random(seed)
    with socket.create_server(("127.0.0.1", 0)) as inner:
        inner.setblocking(False)
        port = inner.getsockname()[1]
        host = forms(chance.choice(("127.0.0.1", "::1")), chance)
        url = f"http://{host}:{port}/a"
        fetcher = Fetcher(
            FetchPolicy(hosts=(f"http://*.example.org:{port}",), connect_s=30, read_s=30), lambda *_: ["127.0.0.1"]
        )
        urls = [url, f"http://name.example.org:{port}/"]
        found = [_read(fetcher, each) for each in urls]
        fetcher.close()
        assert {each.reason if isinstance(each, RejectedInput) else each for each in found} <= set(REASONS), urls
        try:
            inner.accept()
        except BlockingIOError:
            return
        raise AssertionError(f"{url} was connected to")

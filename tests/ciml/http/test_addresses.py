"""Addresses: one strict reading of each, an allow-list, and no way to an inner machine."""

from __future__ import annotations

import ipaddress

import pytest

from ciml.errors import CimlError, RejectedInput
from ciml.http.addresses import Address, check_ips, host_rule, is_public, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("https://Logs.Example.org/a.gz", Address("https", "logs.example.org", 443, "/a.gz")),
        ("HTTP://logs.example.org:8080", Address("http", "logs.example.org", 8080, "/")),
        ("http://good.example#@127.0.0.1/@", Address("http", "good.example", 80, "/")),
        ("http://logs.example.org.?x=1#part", Address("http", "logs.example.org", 80, "/?x=1")),
        ("https://h/a%20b/é?q=ü", Address("https", "h", 443, "/a%20b/%C3%A9?q=%C3%BC")),
        ("https://h/a b\\..\\c", Address("https", "h", 443, "/a%20b%5C..%5Cc")),
        ("http://127.0.0.1:8000/x", Address("http", "127.0.0.1", 8000, "/x")),
        ("http://[::1]:8000/x", Address("http", "::1", 8000, "/x")),
        ("http://[0:0:0:0:0:ffff:7f00:1]/", Address("http", "::ffff:127.0.0.1", 80, "/")),
        ("file:///srv/a%20b.gz", Address("file", "", 0, "/srv/a b.gz")),
        ("file://localhost/srv/a", Address("file", "", 0, "/srv/a")),
        ("file:/srv/a", Address("file", "", 0, "/srv/a")),
        ("/srv/a b.gz", Address("file", "", 0, "/srv/a b.gz")),
        ("s3://logs/a b/c%20.gz", Address("s3", "logs", 0, "a b/c%20.gz")),
    ],
)
def test_parts(text: str, address: Address) -> None:
    found = parse_address(text)
    # Python before 3.13 writes a mapped address in hexadecimal.
    if found.host.startswith("::ffff:"):
        assert ipaddress.ip_address(found.host) == ipaddress.ip_address(address.host)
        return
    assert found == address


#: Texts without spaces that are no address.
BAD = """
    a.gz logs/a.gz http: http:// http:///a https:h/a http://h:99999/ http://h:0/ http://h:x/ http://user@h/
    http://user:pass@h/ http://good.example\\@127.0.0.1/ http://h%2f/ http://ⓔxample.org/ http://１２７.0.0.1/
    http://127.1/ http://127.0.1/ http://2130706433/ http://0x7f000001/ http://0x7f.0.0.1/ http://0177.0.0.1/
    http://127.0.0.1./ http://127.0.0.0x1/ http://1.2.3.256/ http://[::1/ http://[fe80::1%25eth0]/
    http://[fe80::1%eth0]/ http://[127.0.0.1]/ http://-h/ http://h..x/ http://.h/ file:a file:///a%00b file:///a%ff
    s3:/logs/a s3://logs s3://logs/ s3://LOGS/a s3://logs/../x s3://logs/a//b s3://logs/a/../b s3://logs/./b
""".split()
BAD += ["", "http://h\n/", "http://h/\r\nX-Header: 1", "http://h\t/a", "http://ex ample/", "s3://lo gs/a"]
BAD += [f"http://{'a' * 64}/", f"http://{'a.' * 130}a/"]
OTHER_SCHEMES = "ftp://h/a gopher://h/a javascript:1 data:,x jar:http://h/a dict://h:1/ file://h/a HTTPX://h".split()


@pytest.mark.parametrize(
    ("text", "reason"),
    [*((text, "bad_address") for text in BAD), *((text, "address_not_allowed") for text in OTHER_SCHEMES)],
)
def test_bad_addresses(text: str, reason: str) -> None:
    with pytest.raises(RejectedInput, match=rf"^{reason}\b"):
        parse_address(text)


PRIVATE = """
    10.0.0.1 172.16.0.1 192.168.1.1 127.0.0.1 127.8.8.8 100.64.0.1 192.0.0.8 198.18.0.1 ::1 fc00::1 fd12:3456::1
    2001:db8::1 3fff::1 5f00::1 2001:2::1
""".split()
NEVER = """
    169.254.169.254 169.254.0.1 0.0.0.0 0.1.2.3 224.0.0.1 240.0.0.1 255.255.255.255 fe80::1 ff02::1 ::
    100.100.100.200 192.0.0.192 168.63.129.16 fd00:ec2::254 ::ffff:169.254.169.254 fe80::1%eth0
""".split()
WRAPPED = """
    ::ffff:10.0.0.1 ::ffff:8.8.8.8 64:ff9b::7f00:1 64:ff9b::808:808 64:ff9b:1::a00:1 2002:7f00:1:: 2002:808:808::1
    2001:0:808:808::1 ::10.0.0.1 fec0::1 192.88.99.1
""".split()
PUBLIC = ["8.8.8.8", "93.184.216.34", "2606:2800:220:1::1", "2a00:1450::8a"]


@pytest.mark.parametrize("ip", PRIVATE + NEVER + WRAPPED)
def test_not_public(ip: str) -> None:
    assert not is_public(ipaddress.ip_address(ip))
    with pytest.raises(RejectedInput) as caught:
        check_ips(["8.8.8.8", ip], private=False)  # one bad address among them spoils all
    assert (caught.value.reason, caught.value.detail) == ("address_not_allowed", f"it resolves to {ip}")


@pytest.mark.parametrize("ip", NEVER + WRAPPED + ["no address"])
def test_private_hosts_do_not_lead_everywhere(ip: str) -> None:
    with pytest.raises(RejectedInput):
        check_ips([ip], private=True)


def test_public_and_private_hosts() -> None:
    assert check_ips(PUBLIC, private=False) == PUBLIC
    assert check_ips(PRIVATE, private=True) == PRIVATE


#: Addresses that an entry of the allow-list allows, and others.
ALLOWED = {
    "logs.example.org": (
        "https://logs.example.org/a https://LOGS.example.org./a https://logs.example.org:443/a",
        "https://logs.example.org:8443/a http://logs.example.org/a https://a.logs.example.org/a"
        " https://logs.example.org.evil.com/a https://evil.com/logs.example.org",
    ),
    "http://logs.example.org": ("http://logs.example.org/a", "https://logs.example.org/a"),
    "logs.example.org:8443": ("https://logs.example.org:8443/a", "https://logs.example.org/a"),
    "*.example.org": ("https://a.b.example.org/a", "https://example.org/a https://badexample.org/a"),
    "http://127.0.0.1:8000": ("http://127.0.0.1:8000/a", "http://127.0.0.1:8001/a http://localhost:8000/a"),
    "http://[::1]:8000": ("http://[0::1]:8000/a", "http://[::2]:8000/a"),
}


@pytest.mark.parametrize("entry", ALLOWED)
def test_allow_list(entry: str) -> None:
    allowed, others = map(str.split, ALLOWED[entry])
    found = [parse_address(text) for text in allowed + others]
    matches = [host_rule(entry).matches(address.scheme, address.host, address.port) for address in found]
    assert matches == [True] * len(allowed) + [False] * len(others)


BAD_ENTRIES = """
    * *.org *.127.0.0.1 ftp://h http://h/path user@h 169.254.169.254 0.0.0.0 2130706433 h:0 [fe80::1]
""".split()


@pytest.mark.parametrize("entry", ["", "http://a b", *BAD_ENTRIES])
def test_bad_entries(entry: str) -> None:
    with pytest.raises(CimlError, match="allowed host"):
        host_rule(entry)

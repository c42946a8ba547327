"""Fetch goes where the policy says and nowhere else: other forms of an address, rebinding, redirects, proxies, TLS."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from ciml.errors import CimlError, RejectedInput
from ciml.events.records import Batch
from ciml.http.addresses import Address
from ciml.transforms.fetch.fetch import Fetcher
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.transforms.guard import attempt
from tests.transforms.fetch.certificates import make_certificate
from tests.transforms.fetch.fetching import NOW, allow, only, pending, run
from tests.transforms.fetch.log_server import LOG, LogServer, serving

NAME = "logs.example.org"


def resolving(*answers: list[str]) -> Any:
    """A resolver that gives the answers in turn, the last for ever, and counts."""
    asked: list[tuple[str, int]] = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append((host, port))
        return answers[min(len(asked), len(answers)) - 1]

    resolve.asked = asked  # type: ignore[attr-defined]
    return resolve


def test_nothing_is_allowed_by_default(server: LogServer, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(LOG)
    for url in (f"{server.url}/plain", f"file://{tmp_path}/a", f"{tmp_path}/a", "s3://logs/a", "ftp://h/a"):
        assert only(run(FetchPolicy(), url)[1]) == ("dead_letter", "address_not_allowed")
    assert server.asked == {}


def test_objects_are_allowed_below_a_prefix_of_whole_segments() -> None:
    policy = FetchPolicy(s3_prefixes=("s3://logs/zuul", "s3://all", "s3://slash/a/"))
    for path in "logs/zuul/a all/a slash/a/b".split():
        assert isinstance(attempt("fetch", policy.parse_allowed, f"s3://{path}"), Address), path
    for path in "logs/zuul2/a logs/zuul logs/a logs2/zuul/a all2/a slash/ab".split():
        assert isinstance(attempt("fetch", policy.parse_allowed, f"s3://{path}"), RejectedInput), path


@pytest.mark.parametrize(
    "ips", ["127.0.0.1", "8.8.8.8 127.0.0.1", "10.0.0.7", "169.254.169.254", "64:ff9b::7f00:1", "::ffff:127.0.0.1"]
)
def test_a_name_must_not_lead_inside(server: LogServer, ips: str) -> None:
    url = f"http://{NAME}:{server.server_port}"
    logs, settled = run(FetchPolicy(hosts=(url,)), f"{url}/plain", resolve=resolving(ips.split()))
    assert (logs, only(settled)) == ([], ("dead_letter", "address_not_allowed"))
    assert server.asked == {}


def test_a_private_host_may_be_named_so(server: LogServer) -> None:
    url = f"http://{NAME}:{server.server_port}"
    resolve = resolving(["127.0.0.1"])
    assert run(FetchPolicy(private_hosts=(url,)), f"{url}/plain", resolve=resolve) == ([LOG], [])
    assert server.headers[0]["Host"] == f"{NAME}:{server.server_port}"
    logs, settled = run(FetchPolicy(private_hosts=(url,)), f"{url}/plain", resolve=resolving(["169.254.169.254"]))
    assert (logs, only(settled)) == ([], ("dead_letter", "address_not_allowed"))


def test_rebinding_finds_nothing_to_change(server: LogServer) -> None:
    """The name is resolved once a connection: what was checked is what is connected to."""
    url = f"http://{NAME}:{server.server_port}"
    with serving(lambda: LogServer("127.0.0.2")) as inside:
        resolve = resolving(["127.0.0.1"], ["127.0.0.2"])
        fetcher = Fetcher(FetchPolicy(private_hosts=(url,), threads=1), resolve)
        for number in range(3):
            taken = fetcher.fetch(Batch(None, [], [pending(f"{url}/plain/{number}")]), NOW)
            assert taken.pending_runs[0].log == LOG
        assert resolve.asked == [(NAME, server.server_port)]
        fetcher.close()
        # Public first, private when asked again: the second connection is checked as the first was.
        resolve = resolving(["127.0.0.1"], ["169.254.169.254"])
        fetcher = Fetcher(FetchPolicy(private_hosts=(url,), threads=1), resolve)
        taken = fetcher.fetch(Batch(None, [], [pending(f"{url}/hangup")]), NOW)
        assert only(taken.settled) == ("dead_letter", "address_not_allowed")
        fetcher.close()
        assert inside.asked == {}


def test_the_other_addresses_of_a_host_are_tried(server: LogServer) -> None:
    url = f"http://{NAME}:{server.server_port}"
    policy = FetchPolicy(private_hosts=(url,))
    assert run(policy, f"{url}/plain", resolve=resolving(["127.0.0.9", "127.0.0.1"])) == ([LOG], [])


def test_a_resolver_that_fails_or_hangs() -> None:
    def fail(host: str, port: int) -> list[str]:
        raise socket.gaierror(-2, "Name or service not known")

    def hang(host: str, port: int) -> list[str]:
        threading.Event().wait(3)
        return []

    policy = FetchPolicy(hosts=(NAME,), connect_s=0.1)
    _, (outcome,) = run(policy.replace(connect_s=30), f"https://{NAME}/a", resolve=fail)
    assert (outcome.kind, outcome.reason) == ("deferred", "log_unavailable")
    assert "resolv" in outcome.detail
    assert only(run(policy, f"https://{NAME}/a", resolve=hang)[1]) == ("deferred", "log_timeout")


def test_redirects_within_what_is_allowed(server: LogServer) -> None:
    with serving() as other:
        targets = ["/plain/a", f"{other.url}/gz/b", "../to/0", f"//127.0.0.1:{other.server_port}/plain"]
        for number, target in enumerate(targets):
            server.redirect(f"/to/{number}", target)
        assert run(allow(server, other), *(f"{server.url}/to/{number}" for number in range(4))) == ([LOG] * 4, [])


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("{trap}/plain", "address_not_allowed"),
        ("//127.0.0.1:{port}/plain", "address_not_allowed"),
        ("http://169.254.169.254/latest/meta-data/", "address_not_allowed"),
        ("http://[::ffff:127.0.0.1]:{port}/", "address_not_allowed"),
        ("file:///etc/passwd", "address_not_allowed"),
        ("s3://logs/a", "address_not_allowed"),
        ("gopher://127.0.0.1:{port}/", "address_not_allowed"),
        ("http://user:pass@127.0.0.1:{port}/", "bad_address"),
        ("http://2130706433:{port}/", "bad_address"),
        ("http://[/", "bad_address"),
        ("https://{host}/plain", "address_not_allowed"),
    ],
)
def test_redirects_elsewhere(server: LogServer, target: str, reason: str) -> None:
    with serving() as trap:
        policy = allow(server, file_roots=("/etc",), s3_prefixes=("s3://logs",))
        host = f"127.0.0.1:{server.server_port}"
        server.redirect("/first", "/second")
        server.redirect("/second", target.format(trap=trap.url, port=trap.server_port, host=host))
        logs, settled = run(policy, f"{server.url}/first")
        assert (logs, only(settled)) == ([], ("dead_letter", reason))
        assert trap.peers == set()


def test_no_proxy_is_taken_from_the_environment(server: LogServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.setenv("NO_PROXY", "")
        assert run(allow(server), f"{server.url}/plain") == ([LOG], [])
        assert proxy.peers == set()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_certificate(tmp_path_factory.mktemp("tls"), NAME)


def test_tls_asks_for_the_name_though_the_address_is_pinned(certificate: str) -> None:
    with serving(lambda: LogServer(certificate=certificate)) as server:
        url = f"https://{NAME}:{server.server_port}"
        resolve = resolving(["127.0.0.1"])
        policy = FetchPolicy(private_hosts=(url,), ca_file=certificate)
        assert run(policy, f"{url}/gz", f"{url}/plain", resolve=resolve) == ([LOG] * 2, [])
        _, (outcome,) = run(policy.replace(ca_file=""), f"{url}/gz", resolve=resolve)
        assert (outcome.kind, outcome.reason) == ("deferred", "log_unavailable")
        assert "certificate" in outcome.detail.lower()
        other = f"https://other.example.org:{server.server_port}"
        _, (outcome,) = run(FetchPolicy(private_hosts=(other,), ca_file=certificate), f"{other}/gz", resolve=resolve)
        assert "certificate" in outcome.detail.lower()
    missing = FetchPolicy(private_hosts=(f"https://{NAME}:1",), ca_file="/none.pem")
    with pytest.raises(CimlError, match="cannot read the certificates"):
        missing.check()
    _, (outcome,) = run(missing, f"https://{NAME}:1/gz", resolve=resolve)
    assert (outcome.kind, outcome.reason) == ("deferred", "log_unavailable")
    assert "cannot read the certificates in /none.pem" in outcome.detail

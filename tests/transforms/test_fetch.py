"""Fetch: against a real server that behaves badly, the log comes, or its run is settled with a reason, in time."""

from __future__ import annotations

import gzip
import json
import os
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ciml.errors import CimlError
from ciml.events import finished_event
from ciml.letters import message_of
from ciml.records import Batch, Candidate, Mention, Message, Origin, Outcome, Trust
from transforms.fetch import DEFERRED, REFUSED, Fetcher, FetchPolicy, fetch

from .log_server import LOG, LogServer, bomb, serving

NOW = 1795521600_000000
MENTION = Mention("zuul~a~1", "a", "job", outcome="success", source="zuul", end_us=NOW)
TRUST = Trust(True, "gated", "d")
MIB = 1 << 20


@pytest.fixture
def server() -> Iterator[LogServer]:
    with serving() as running:
        yield running


def candidate(url: str, attempts: int = 1, number: int = 0, **more: Any) -> Candidate:
    mention = replace(MENTION, log_url=url, run_id=f"zuul~{number}~1")
    message = Message(number, finished_event(mention)[0]) if attempts == 1 else None
    return Candidate(Origin("ci-events", 0, number), "zuul e", mention, message, TRUST, attempts, **more)


def run(
    policy: FetchPolicy, *urls: str, resolve: Any = None, attempts: int = 1
) -> tuple[list[bytes | None], list[Outcome]]:
    fetcher = Fetcher(policy, resolve) if resolve else Fetcher(policy)
    given = Batch(None, [], [candidate(url, attempts, number) for number, url in enumerate(urls)])
    try:
        taken = fetcher.fetch(given, NOW)
    finally:
        fetcher.close()
    return [item.log for item in taken.candidates], taken.settled


def allow(*servers: LogServer, **options: Any) -> FetchPolicy:
    return FetchPolicy(hosts=tuple(server.url for server in servers), **options)


def only(outcomes: list[Outcome]) -> tuple[str, str]:
    (outcome,) = outcomes
    return outcome.kind, outcome.reason


@pytest.mark.parametrize("path", ["plain", "gz", "encoded", "twice"])
def test_a_log_comes_unpacked(server: LogServer, path: str) -> None:
    assert run(allow(server), f"{server.url}/{path}/dstat.txt.gz?x=1#y") == ([LOG], [])
    assert list(server.asked) == [f"/{path}/dstat.txt.gz?x=1"]
    (headers,) = server.headers
    assert headers["Host"] == f"127.0.0.1:{server.server_port}"
    assert sorted(headers) == ["Accept", "Accept-Encoding", "Host", "User-Agent"]


def test_members_and_empty(server: LogServer) -> None:
    assert run(allow(server), f"{server.url}/members", f"{server.url}/empty") == ([LOG * 2, b""], [])


def test_order_repeats_and_what_else_is_in_the_batch(server: LogServer) -> None:
    urls = [f"{server.url}/{path}" for path in ("gz/1", "missing/1", "gz/2", "gz/1", "plain/1", "gz/1")]
    earlier = Outcome("ignored", Origin("t", 0, 1), reason="skipped")
    given = Batch(None, [], [candidate(url, number=number) for number, url in enumerate(urls)], [earlier])
    taken = Fetcher(allow(server)).fetch(given, NOW)
    assert [item.origin.offset for item in taken.candidates] == [0, 2, 3, 4, 5]
    assert {item.log for item in taken.candidates} == {LOG}
    assert [outcome.origin for outcome in taken.settled] == [earlier.origin, Origin("ci-events", 0, 1)]
    assert server.asked["/gz/1"] == 1


@pytest.mark.parametrize(
    ("path", "reason", "requests"),
    [
        ("missing", "log_not_found", 1),
        ("status/410", "log_not_found", 1),
        ("status/403", "log_forbidden", 1),
        ("status/500", "log_unavailable", 2),
        ("status/503", "log_unavailable", 2),
        ("status/429", "log_unavailable", 1),
        ("status/204", "log_unavailable", 1),
        ("cut", "log_cut", 2),
        ("hangup", "log_unavailable", 2),
        ("noise", "log_unavailable", 2),
        ("oddlength", "log_unavailable", None),
        ("nowhere", "log_unavailable", 1),
    ],
)
def test_what_may_come_later_is_deferred(server: LogServer, path: str, reason: str, requests: int | None) -> None:
    assert reason in DEFERRED
    logs, settled = run(allow(server), f"{server.url}/{path}")
    assert (logs, only(settled)) == ([], ("deferred", reason))
    (outcome,) = settled
    assert outcome == Outcome(
        "deferred",
        Origin("ci-events", 0, 0),
        "zuul e",
        candidate(f"{server.url}/{path}").mention,
        reason,
        outcome.detail,
        TRUST,
        first_seen_us=NOW,
        not_before_us=NOW + 10_000_000,
    )
    assert outcome.detail
    assert requests is None or sum(server.asked.values()) == requests
    assert Outcome.from_json(json.loads(json.dumps(outcome.to_json()))) == outcome


def test_backoff_and_its_end(server: LogServer) -> None:
    url = f"{server.url}/missing"
    policy = allow(server, delays_s=(1, 2.5))
    waits = []
    for attempts in (1, 2, 3):
        given = Batch(None, [], [candidate(url, attempts, first_seen_us=NOW - 1 if attempts > 1 else None)])
        (outcome,) = Fetcher(policy).fetch(given, NOW).settled
        assert outcome.attempts == attempts
        assert outcome.first_seen_us == (NOW - 1 if attempts > 1 else NOW)
        waits.append((outcome.kind, outcome.not_before_us and outcome.not_before_us - NOW, outcome.payload is None))
    assert waits == [("deferred", 1_000_000, True), ("deferred", 2_500_000, True), ("dead_letter", None, True)]
    logs, settled = run(replace(policy, delays_s=()), url)
    assert (logs, only(settled)) == ([], ("dead_letter", "log_not_found"))
    assert message_of(settled[0].payload or {}, 0) == candidate(url).message


def test_a_log_that_is_not_there_yet(server: LogServer) -> None:
    outcomes: list[Any] = []
    for attempts in (1, 2, 3):
        logs, settled = run(allow(server), f"{server.url}/later/x", attempts=attempts)
        outcomes.append(logs or only(settled))
    assert outcomes == [("deferred", "log_not_found"), ("deferred", "log_not_found"), [LOG]]


@pytest.mark.parametrize("path", ["once500", "oncecut"])
def test_a_hiccup_is_tried_again_at_once(server: LogServer, path: str) -> None:
    assert run(allow(server), f"{server.url}/{path}") == ([LOG], [])


def test_a_stale_connection_is_replaced(server: LogServer) -> None:
    fetcher = Fetcher(allow(server, threads=1))
    for path in ("plain/1", "hangup/2", "plain/3", "plain/4"):
        fetcher.fetch(Batch(None, [], [candidate(f"{server.url}/{path}")]), NOW)
    connections = len(server.peers)
    for number in range(5):
        taken = fetcher.fetch(Batch(None, [], [candidate(f"{server.url}/missing/{number}")]), NOW)
        assert only(taken.settled) == ("deferred", "log_not_found")
    assert len(server.peers) == connections  # a small answer that is no log does not cost the connection
    fetcher.close()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("thrice", "corrupt_gzip"),
        ("cutgzip", "corrupt_gzip"),
        ("badgzip", "corrupt_gzip"),
        ("tail", "corrupt_gzip"),
        ("brotli", "log_encoding"),
        ("bomb", "log_too_large"),
        ("nestedbomb", "log_too_large"),
        ("empties", "corrupt_gzip"),
        ("announced", "log_too_large"),
        ("endless", "log_too_large"),
        ("round", "too_many_redirects"),
    ],
)
def test_what_time_does_not_mend_is_a_dead_letter(server: LogServer, path: str, reason: str) -> None:
    assert reason in REFUSED
    server.bomb = bomb(64 * MIB)
    policy = allow(server, max_bytes=2 * MIB, max_wire_bytes=MIB, threads=1)
    started = time.monotonic()
    tracemalloc.start()
    try:
        logs, settled = run(policy, f"{server.url}/{path}")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (logs, only(settled)) == ([], ("dead_letter", reason))
    assert settled[0].payload is not None
    assert settled[0].not_before_us is None
    assert time.monotonic() - started < 5
    assert peak < 12 * MIB


@pytest.mark.parametrize("path", ["drip", "dripheader", "stall"])
def test_slow_logs_end_in_time(server: LogServer, path: str) -> None:
    started = time.monotonic()
    logs, settled = run(allow(server, read_s=0.5, total_s=0.8), f"{server.url}/{path}")
    took = time.monotonic() - started
    assert (logs, only(settled)) == ([], ("deferred", "log_timeout"))
    assert took < 1.2


def test_a_slow_host_does_not_hold_up_the_others(server: LogServer) -> None:
    with serving() as slow:
        urls = [f"{slow.url}/stall/{number}" for number in range(40)] + [f"{server.url}/gz/{n}" for n in range(40)]
        started = time.monotonic()
        logs, settled = run(allow(server, slow, read_s=0.5, total_s=0.5), *urls)
        took = time.monotonic() - started
    assert logs == [LOG] * 40
    assert [(outcome.kind, outcome.reason) for outcome in settled] == [("deferred", "log_timeout")] * 40
    assert took < 1.5  # not 40 × 0.5 s ÷ 16
    assert sum(slow.asked.values()) <= 16
    assert {outcome.detail for outcome in settled} > {"its host was too slow for other logs"}


def test_a_batch_has_an_end(server: LogServer) -> None:
    urls = [f"{server.url}/drip/{number}" for number in range(6)]
    started = time.monotonic()
    _, settled = run(allow(server, threads=1, total_s=0.3, batch_s=0.5, delays_s=(1,)), *urls, attempts=2)
    assert time.monotonic() - started < 1.5
    kinds = [(outcome.kind, outcome.reason) for outcome in settled]
    assert kinds == [("dead_letter", "log_timeout")] * 2 + [("deferred", "batch_full")] * 4


def test_the_logs_of_a_batch_have_a_limit_together(server: LogServer) -> None:
    urls = [f"{server.url}/plain/{number}" for number in range(8)]
    policy = allow(server, threads=1, max_bytes=len(LOG), max_batch_bytes=3 * len(LOG) + 10)
    logs, settled = run(policy, urls[0], f"{server.url}/cutgzip", *urls[1:])
    assert logs == [LOG] * 3
    assert [outcome.reason for outcome in settled] == ["corrupt_gzip"] + ["batch_full"] * 5
    assert {outcome.not_before_us for outcome in settled[1:]} == {NOW}
    # However often it happens, it is never the end of a run.
    logs, settled = run(replace(policy, delays_s=(), max_batch_bytes=len(LOG)), *urls[:2], attempts=9)
    assert (logs, only(settled)) == ([LOG], ("deferred", "batch_full"))


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


@pytest.mark.parametrize(
    "host",
    ["localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "[::ffff:127.0.0.1]", "[::1]", "0.0.0.0",
     "127.0.0.2", "user@127.0.0.1"],
)  # fmt: skip
def test_other_forms_of_an_allowed_address_are_not_allowed(server: LogServer, host: str) -> None:
    kind, reason = only(run(allow(server), f"http://{host}:{server.server_port}/plain")[1])
    assert kind == "dead_letter"
    assert reason in ("address_not_allowed", "bad_address")
    assert server.asked == {}


@pytest.mark.parametrize(
    "ips",
    [
        ["127.0.0.1"],
        ["8.8.8.8", "127.0.0.1"],
        ["10.0.0.7"],
        ["169.254.169.254"],
        ["64:ff9b::7f00:1"],
        ["::ffff:127.0.0.1"],
    ],
)
def test_a_name_must_not_lead_inside(server: LogServer, ips: list[str]) -> None:
    url = f"http://{NAME}:{server.server_port}"
    logs, settled = run(FetchPolicy(hosts=(url,)), f"{url}/plain", resolve=resolving(ips))
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
            taken = fetcher.fetch(Batch(None, [], [candidate(f"{url}/plain/{number}")]), NOW)
            assert taken.candidates[0].log == LOG
        assert resolve.asked == [(NAME, server.server_port)]
        fetcher.close()
        # Public first, private when asked again: the second connection is checked as the first was.
        resolve = resolving(["127.0.0.1"], ["169.254.169.254"])
        fetcher = Fetcher(FetchPolicy(private_hosts=(url,), threads=1), resolve)
        taken = fetcher.fetch(Batch(None, [], [candidate(f"{url}/hangup")]), NOW)
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

    policy = FetchPolicy(hosts=(NAME,), connect_s=0.3)
    _, (outcome,) = run(policy, f"https://{NAME}/a", resolve=fail)
    assert (outcome.kind, outcome.reason) == ("deferred", "log_unavailable")
    assert "not resolved" in outcome.detail
    started = time.monotonic()
    assert only(run(policy, f"https://{NAME}/a", resolve=hang)[1]) == ("deferred", "log_timeout")
    assert time.monotonic() - started < 1


def test_redirects_within_what_is_allowed(server: LogServer) -> None:
    with serving() as other:
        server.targets = ["/plain/a", f"{other.url}/gz/b", "../../to/x/0", f"//127.0.0.1:{other.server_port}/plain"]
        urls = [f"{server.url}/to/1/{index}" for index in range(4)]
        assert run(allow(server, other), *urls) == ([LOG] * 4, [])


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
        server.targets = [
            "/to/2/1",
            target.format(trap=trap.url, port=trap.server_port, host=f"127.0.0.1:{server.server_port}"),
        ]
        logs, settled = run(policy, f"{server.url}/to/1/0")
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
    """A self-signed certificate and key for `NAME`, in one PEM file."""
    import datetime

    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NAME)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return str(path)


def test_tls_asks_for_the_name_though_the_address_is_pinned(certificate: str) -> None:
    with serving(lambda: LogServer(certificate=certificate)) as server:
        url = f"https://{NAME}:{server.server_port}"
        resolve = resolving(["127.0.0.1"])
        policy = FetchPolicy(private_hosts=(url,), ca_file=certificate)
        assert run(policy, f"{url}/gz", f"{url}/plain", resolve=resolve) == ([LOG] * 2, [])
        _, (outcome,) = run(replace(policy, ca_file=""), f"{url}/gz", resolve=resolve)
        assert (outcome.kind, outcome.reason) == ("deferred", "log_unavailable")
        assert "certificate" in outcome.detail.lower()
        other = f"https://other.example.org:{server.server_port}"
        _, (outcome,) = run(FetchPolicy(private_hosts=(other,), ca_file=certificate), f"{other}/gz", resolve=resolve)
        assert "certificate" in outcome.detail.lower()
    with pytest.raises(CimlError, match="cannot read the certificates"):
        Fetcher(FetchPolicy(hosts=(NAME,), ca_file="/none.pem"))


def test_files_below_a_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "in").mkdir(parents=True)
    (root / "in" / "a b.gz").write_bytes(gzip.compress(LOG))
    (root / "link").symlink_to(root / "in")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "root-not").mkdir()
    (tmp_path / "root-not" / "a").write_bytes(b"secret")
    (root / "out").symlink_to(tmp_path)
    (root / "loop").symlink_to(root / "loop")
    os.mkfifo(root / "pipe")
    (root / "large").write_bytes(bytes(3000))
    (tmp_path / "other").symlink_to(root)
    policy = FetchPolicy(file_roots=(str(tmp_path / "other"),), max_wire_bytes=2000)
    good = [
        f"file://{root}/in/a%20b.gz",
        f"{root}/in/a b.gz",
        f"file://{root}/link/a%20b.gz",
        f"{root}/in/../in/a b.gz",
    ]
    assert run(policy, *good) == ([LOG] * 4, [])
    expected = {
        f"{root}/out/secret": ("dead_letter", "address_not_allowed"),
        f"file://{root}/../secret": ("dead_letter", "address_not_allowed"),
        f"file://{root}/%2e%2e/secret": ("dead_letter", "address_not_allowed"),
        f"{tmp_path}/root-not/a": ("dead_letter", "address_not_allowed"),
        "/etc/passwd": ("dead_letter", "address_not_allowed"),
        f"{root}/pipe": ("dead_letter", "address_not_allowed"),
        f"{root}/in": ("dead_letter", "address_not_allowed"),
        f"{root}": ("dead_letter", "address_not_allowed"),
        f"{root}/large": ("dead_letter", "log_too_large"),
        f"{root}/none": ("deferred", "log_not_found"),
        f"{root}/loop": ("deferred", "log_unavailable"),
    }
    logs, settled = run(policy, *expected)
    assert logs == []
    assert [(outcome.kind, outcome.reason) for outcome in settled] == list(expected.values())


@pytest.mark.engines
def test_objects_below_a_prefix(s3: Any) -> None:
    import boto3

    bucket = s3.bucket().removeprefix("s3://")
    client = boto3.client("s3")
    for key, body in {"zuul/a b.gz": gzip.compress(LOG), "zuul2/a": LOG, "zuul/large": bytes(3000)}.items():
        client.put_object(Bucket=bucket, Key=key, Body=body)
    policy = FetchPolicy(s3_prefixes=(f"s3://{bucket}/zuul",), max_wire_bytes=2000)
    assert run(policy, f"s3://{bucket}/zuul/a b.gz") == ([LOG], [])
    expected = {
        f"s3://{bucket}/zuul2/a": ("dead_letter", "address_not_allowed"),
        f"s3://{bucket}/zuul/../zuul2/a": ("dead_letter", "bad_address"),
        f"s3://other-{bucket}/zuul/a b.gz": ("dead_letter", "address_not_allowed"),
        f"s3://{bucket}/zuul/large": ("dead_letter", "log_too_large"),
        f"s3://{bucket}/zuul/none": ("deferred", "log_not_found"),
    }
    logs, settled = run(policy, *expected)
    assert logs == []
    assert [(outcome.kind, outcome.reason) for outcome in settled] == list(expected.values())
    gone = FetchPolicy(s3_prefixes=("s3://no-such-bucket",))
    assert only(run(gone, "s3://no-such-bucket/a")[1]) == ("deferred", "log_unavailable")


def test_a_signed_address_is_used_and_not_kept(server: LogServer) -> None:
    secret = "s3cr3t"
    shown = f"{server.url}/plain?sig=REDACTED"
    good = candidate(shown, address=f"{server.url}/plain?sig={secret}")
    gone = candidate(shown, number=1, address=f"{server.url}/missing?sig={secret}")
    gone.message = Message(1, finished_event(replace(gone.mention, log_url=gone.address))[0])
    taken = fetch(Batch(None, [], [good, gone]), allow(server), NOW)
    assert [item.log for item in taken.candidates] == [LOG]
    assert f"/plain?sig={secret}" in server.asked
    (outcome,) = taken.settled
    assert (outcome.kind, outcome.reason) == ("dead_letter", "log_not_found")
    assert "send the event anew" in outcome.detail
    assert secret not in json.dumps(outcome.to_json())
    assert secret.encode() not in (message_of(outcome.payload or {}, 0).value or b"")


def test_fetch_keeps_its_connections(server: LogServer) -> None:
    policy = allow(server, threads=2)
    for number in range(5):
        batch = Batch(None, [], [candidate(f"{server.url}/plain/{number}/{n}") for n in range(4)])
        assert len(fetch(batch, policy, NOW).candidates) == 4
    assert len(server.peers) <= 2
    assert fetch(Batch(None), policy, NOW) == Batch(None)


def test_policy_files(tmp_path: Path) -> None:
    path = tmp_path / "fetch.toml"
    path.write_text('hosts = ["logs.example.org"]\nmax_bytes = 1000\ndelays_s = [1, 2.5]\n')
    policy = FetchPolicy.load(path, threads=3)
    assert policy == FetchPolicy(hosts=("logs.example.org",), max_bytes=1000, delays_s=(1, 2.5), threads=3)
    assert policy.allowing(hosts=("http://127.0.0.1:1",)).hosts == ("logs.example.org", "http://127.0.0.1:1")
    assert FetchPolicy.load() == FetchPolicy()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("host = ['h']", "unknown key 'host'; known are hosts"),
        ("hosts = 'h'", "hosts is a list of texts"),
        ("hosts = [3]", "hosts is a list of texts"),
        ("hosts = ['http://h/path']", "allowed host 'http://h/path'"),
        ("s3_prefixes = ['logs/']", "no s3://bucket/prefix"),
        ("threads = 0", "threads is a number above 0"),
        ("total_s = true", "total_s is a number above 0"),
        ("delays_s = ['1']", "delays_s is a list of numbers"),
        ("max_batch_bytes = 5", "max_batch_bytes is below max_bytes"),
        ("delays_s = [-1]", "not negative"),
        ("ca_file = 3", "ca_file is a text"),
        ("hosts = [", "Invalid value"),
    ],
)
def test_mistakes_in_policy_files_are_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "fetch.toml"
    path.write_text(text)
    with pytest.raises(CimlError) as caught:
        FetchPolicy.load(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)

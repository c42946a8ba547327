"""Fetch: against a real server that behaves badly, the log comes, or its run is settled with a reason, in time."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from typing import Any

import pytest

from ciml.events.cloudevents import finished_event
from ciml.events.payloads import message_of
from ciml.events.records import Batch, Message, Origin, Outcome
from ciml.transforms.fetch.fetch import DEFERRED, REJECTED, Fetcher, fetch
from ciml.transforms.fetch.policy import FetchPolicy
from tests.transforms.fetch.fetching import MIB, NOW, TRUST, allow, only, pending, run
from tests.transforms.fetch.log_server import CUT, LOG, Answer, LogServer, bomb, serving

GZIP = gzip.compress(LOG)
ENCODED = {"Content-Encoding": "gzip"}


@pytest.mark.parametrize(
    ("body", "headers", "log"),
    [
        (LOG, {}, LOG),
        (GZIP, {}, LOG),
        (GZIP, ENCODED, LOG),
        (gzip.compress(GZIP), ENCODED, LOG),
        (GZIP + GZIP + bytes(100), {}, LOG * 2),
        (b"", {}, b""),
    ],
    ids=["plain", "gzip", "encoded", "twice", "members", "empty"],
)
def test_a_log_comes_unpacked(server: LogServer, body: bytes, headers: dict[str, str], log: bytes) -> None:
    server.answers = {"/a/dstat.txt.gz?x=1": (200, body, headers)}
    assert run(allow(server), f"{server.url}/a/dstat.txt.gz?x=1#y") == ([log], [])
    assert list(server.asked) == ["/a/dstat.txt.gz?x=1"]
    (sent,) = server.headers
    assert sent["Host"] == f"127.0.0.1:{server.server_port}"
    assert sorted(sent) == ["Accept", "Accept-Encoding", "Host", "User-Agent"]


def test_order_repeats_and_what_else_is_in_the_batch(server: LogServer) -> None:
    urls = [f"{server.url}/{path}" for path in ("gz/1", "missing/1", "gz/2", "gz/1", "plain/1", "gz/1")]
    earlier = Outcome("ignored", Origin("t", 0, 1), reason="skipped")
    given = Batch(None, [], [pending(url, number=number) for number, url in enumerate(urls)], [earlier])
    taken = Fetcher(allow(server)).fetch(given, NOW)
    assert [item.origin.offset for item in taken.pending_runs] == [0, 2, 3, 4, 5]
    assert {item.log for item in taken.pending_runs} == {LOG}
    assert [outcome.origin for outcome in taken.settled] == [earlier.origin, Origin("ci-events", 0, 1)]
    assert server.asked["/gz/1"] == 1


@pytest.mark.parametrize(
    ("path", "reason", "requests"),
    [
        ("missing", "log_not_found", 1),
        ("status/410", "log_not_found", 1),
        ("status/401", "log_forbidden", 1),
        ("status/403", "log_forbidden", 1),
        ("status/500", "log_unavailable", 2),
        ("status/503", "log_unavailable", 2),
        ("status/429", "log_unavailable", 1),
        ("status/204", "log_unavailable", 1),
        ("cut", "log_cut", 2),
        ("hangup", "log_unavailable", 2),
        ("noise", "log_unavailable", 2),
        ("oddlength", "log_unavailable", None),
        ("status/302", "log_unavailable", 1),
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
        pending(f"{server.url}/{path}").mention,
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
        given = Batch(None, [], [pending(url, attempts, first_seen_us=NOW - 1 if attempts > 1 else None)])
        (outcome,) = Fetcher(policy).fetch(given, NOW).settled
        assert outcome.attempts == attempts
        assert outcome.first_seen_us == (NOW - 1 if attempts > 1 else NOW)
        waits.append((outcome.kind, outcome.not_before_us and outcome.not_before_us - NOW, outcome.payload is None))
    assert waits == [("deferred", 1_000_000, True), ("deferred", 2_500_000, True), ("dead_letter", None, True)]
    logs, settled = run(policy.replace(delays_s=()), url)
    assert (logs, only(settled)) == ([], ("dead_letter", "log_not_found"))
    assert message_of(settled[0].payload or {}, 0) == pending(url).message


@pytest.mark.parametrize("first", [(500, b"", {}), CUT], ids=["error", "cut"])
def test_a_failed_connection_is_retried_once_and_its_bytes_do_not_count(server: LogServer, first: Answer) -> None:
    server.answers = {"/log": [first, (200, LOG, {})]}
    assert run(allow(server, max_bytes=len(LOG), max_batch_bytes=len(LOG)), f"{server.url}/log") == ([LOG], [])


def test_a_stale_connection_is_replaced(server: LogServer) -> None:
    fetcher = Fetcher(allow(server, threads=1))
    for path in ("plain/1", "hangup/2", "plain/3", "plain/4"):
        fetcher.fetch(Batch(None, [], [pending(f"{server.url}/{path}")]), NOW)
    connections = len(server.peers)
    for number in range(5):
        taken = fetcher.fetch(Batch(None, [], [pending(f"{server.url}/missing/{number}")]), NOW)
        assert only(taken.settled) == ("deferred", "log_not_found")
    assert len(server.peers) == connections  # a small answer that is no log does not cost the connection
    fetcher.close()


@pytest.mark.parametrize(
    ("body", "headers", "reason"),
    [
        (gzip.compress(gzip.compress(GZIP)), {"Content-Encoding": "gzip, gzip"}, "corrupt_gzip"),
        (GZIP[:-100], {}, "corrupt_gzip"),
        (GZIP[:-8] + bytes(8), {}, "corrupt_gzip"),
        (GZIP + b"no gzip", {}, "corrupt_gzip"),
        (b"\x0b\x02\x80", {"Content-Encoding": "br"}, "log_encoding"),
        (bomb(64 * MIB), {}, "log_too_large"),
        (gzip.compress(bomb(64 * MIB)), ENCODED, "log_too_large"),
        (gzip.compress(gzip.compress(b"") * 200_000), {}, "corrupt_gzip"),
        (b"", {"Content-Length": str(1 << 40)}, "log_too_large"),
        (None, {}, "log_too_large"),  # without end
    ],
    ids=["thrice", "cut", "changed", "tail", "brotli", "bomb", "nested", "members", "announced", "endless"],
)
def test_an_unusable_log_is_a_dead_letter(
    server: LogServer, body: bytes | None, headers: dict[str, str], reason: str
) -> None:
    assert reason in REJECTED
    if body is not None:
        server.answers = {"/endless": (200, body, headers)}
    policy = allow(server, max_bytes=2 * MIB, max_wire_bytes=MIB, threads=1)
    tracemalloc.start()
    try:
        logs, settled = run(policy, f"{server.url}/endless")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (logs, only(settled)) == ([], ("dead_letter", reason))
    assert settled[0].payload is not None
    assert settled[0].not_before_us is None
    assert peak < 12 * MIB


@pytest.mark.parametrize("path", ["drip", "dripheader", "stall"])
def test_slow_logs_end_in_time(server: LogServer, path: str) -> None:
    logs, settled = run(allow(server, read_s=0.2, total_s=0.3), f"{server.url}/{path}")
    assert (logs, only(settled)) == ([], ("deferred", "log_timeout"))


def test_a_slow_host_does_not_hold_up_the_others(server: LogServer) -> None:
    with serving() as slow:
        urls = [f"{slow.url}/stall/{number}" for number in range(40)] + [f"{server.url}/gz/{n}" for n in range(40)]
        logs, settled = run(allow(server, slow, read_s=0.2, total_s=0.2), *urls)
    assert logs == [LOG] * 40
    assert [(outcome.kind, outcome.reason) for outcome in settled] == [("deferred", "log_timeout")] * 40
    assert sum(slow.asked.values()) <= 11  # half of the threads, and three that follow a timeout
    assert {outcome.detail for outcome in settled} > {"its host timed out for other logs"}


@pytest.mark.parametrize(
    ("paths", "asked"),
    [("ssspsssp", 8), ("sssspppp", 4), ("pssssp", 5), ("sssmssssp", 8)],
)
def test_a_host_is_left_after_four_timeouts_in_a_row(server: LogServer, paths: str, asked: int) -> None:
    names = {"s": "stall", "p": "plain", "m": "missing"}
    urls = [f"{server.url}/{names[path]}/{number}" for number, path in enumerate(paths)]
    seconds: list[float] = []
    fetcher = Fetcher(allow(server, threads=1, read_s=0.05))
    batch = Batch(None, [], [pending(url, number=number) for number, url in enumerate(urls)])
    fetched = fetcher.fetch(batch, NOW, seconds).pending_runs
    fetcher.close()
    assert len(server.asked) == len(seconds) == asked
    assert [pending.origin.offset for pending in fetched] == [at for at in range(asked) if paths[at] == "p"]


def test_a_batch_has_an_end(server: LogServer) -> None:
    urls = [f"{server.url}/drip/{number}" for number in range(6)]
    _, settled = run(allow(server, threads=1, total_s=0.2, batch_s=0.3, delays_s=(1,)), *urls, attempts=2)
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
    logs, settled = run(policy.replace(delays_s=(), max_batch_bytes=len(LOG)), *urls[:2], attempts=9)
    assert (logs, only(settled)) == ([LOG], ("deferred", "batch_full"))


@pytest.mark.engines
def test_objects_and_folders_below_a_prefix(s3: Any) -> None:
    import boto3

    bucket = s3.bucket().removeprefix("s3://")
    client = boto3.client("s3")
    bodies = {"zuul/a b.gz": GZIP, "zuul2/a": LOG, "zuul/large": bytes(3000), "zuul/1/logs/dstat-csv.log": GZIP}
    for key, body in bodies.items():
        client.put_object(Bucket=bucket, Key=key, Body=body)
    policy = FetchPolicy(s3_prefixes=(f"s3://{bucket}/zuul",), max_wire_bytes=2000)
    assert run(policy, f"s3://{bucket}/zuul/a b.gz", f"s3://{bucket}/zuul/1/") == ([LOG] * 2, [])
    expected = {
        f"s3://{bucket}/zuul2/a": ("dead_letter", "address_not_allowed"),
        f"s3://{bucket}/zuul/../zuul2/a": ("dead_letter", "bad_address"),
        f"s3://other-{bucket}/zuul/a b.gz": ("dead_letter", "address_not_allowed"),
        f"s3://{bucket}/zuul/large": ("dead_letter", "log_too_large"),
        f"s3://{bucket}/zuul/none": ("deferred", "log_not_found"),
        f"s3://{bucket}/zuul/none/": ("deferred", "log_not_found"),
        f"s3://{bucket}/zuul2/": ("dead_letter", "address_not_allowed"),
    }
    logs, settled = run(policy, *expected)
    assert logs == []
    assert [(outcome.kind, outcome.reason) for outcome in settled] == list(expected.values())
    gone = FetchPolicy(s3_prefixes=("s3://no-such-bucket",))
    assert only(run(gone, "s3://no-such-bucket/a")[1]) == ("deferred", "log_unavailable")


def test_a_signed_address_is_used_and_not_kept(server: LogServer) -> None:
    secret = "s3cr3t"
    shown = f"{server.url}/plain?sig=REDACTED"
    good = pending(shown, address=f"{server.url}/plain?sig={secret}")
    gone = pending(shown, number=1, address=f"{server.url}/missing?sig={secret}")
    gone.message = Message(1, finished_event(gone.mention.replace(log_url=gone.address))[0])
    taken = fetch(Batch(None, [], [good, gone]), allow(server), NOW)
    assert [item.log for item in taken.pending_runs] == [LOG]
    assert f"/plain?sig={secret}" in server.asked
    (outcome,) = taken.settled
    assert (outcome.kind, outcome.reason) == ("dead_letter", "log_not_found")
    assert "send the event again" in outcome.detail
    assert secret not in json.dumps(outcome.to_json())
    assert secret.encode() not in (message_of(outcome.payload or {}, 0).value or b"")


def test_fetch_keeps_its_connections(server: LogServer) -> None:
    policy = allow(server, threads=2)
    for number in range(5):
        batch = Batch(None, [], [pending(f"{server.url}/plain/{number}/{n}") for n in range(4)])
        assert len(fetch(batch, policy, NOW).pending_runs) == 4
    assert len(server.peers) <= 2
    assert fetch(Batch(None), policy, NOW) == Batch(None)

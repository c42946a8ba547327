"""Fetch: from a real server that behaves badly, each log comes once, or its run is settled with a reason, in time."""

from __future__ import annotations

import contextlib
import gc
import gzip
import json
import threading
import time
import tracemalloc
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ciml.errors import LogUnavailableError
from ciml.events.cloudevents import finished_event
from ciml.events.payloads import message_of
from ciml.events.records import Batch, Message, Origin, Outcome
from ciml.http.addresses import Address, parse_address
from ciml.limits import PART_BYTES, SMALL_PART_BYTES
from ciml.storage import open_store
from ciml.transforms.fetch.fetch import DEFERRED, REJECTED, Fetcher, fetch_in_parts, shared_fetcher
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.transforms.ingest import run_stages
from ciml.transforms.ingest.run_stages import take_logs
from ciml.transforms.parse.logs import parse
from tests.transforms.fetch.fetching import MIB, NOW, TRUST, Slow, allow, only, pending, run
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
        (b"", {}, b""),
    ],
    ids=["plain", "gzip", "encoded", "twice", "empty"],
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
        ("cutmissing", "log_not_found", 1),
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
    fetcher = Fetcher(allow(server, threads=1, batch_s=1000))
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
        (b"\x0b\x02\x80", {"Content-Encoding": "br"}, "log_encoding"),
        (bomb(64 * MIB), {}, "log_too_large"),
        (gzip.compress(bomb(64 * MIB)), ENCODED, "log_too_large"),
        (b"", {"Content-Length": str(1 << 40)}, "log_too_large"),
        (None, {}, "log_too_large"),  # without end
    ],
    ids=["thrice", "cut", "brotli", "bomb", "nested", "announced", "endless"],
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


def test_a_slow_host_does_not_hold_up_the_others(server: LogServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow host times out only once the logs of the other host are fetched."""
    slow = "http://slow.example.org:80"
    urls = [f"{slow}/{number}" for number in range(40)] + [f"{server.url}/gz/{number}" for number in range(40)]
    asked: list[Address] = []
    fetched: list[Address] = []
    all_fetched = threading.Event()
    read = Fetcher.read

    def read_or_time_out(self: Fetcher, address: Address, *more: Any) -> bytes:
        if address.origin == slow:
            asked.append(address)
            assert all_fetched.wait(60)
            raise LogUnavailableError("log_timeout", "")
        log = read(self, address, *more)
        fetched.append(address)
        if len(fetched) == 40:
            all_fetched.set()
        return log

    monkeypatch.setattr(Fetcher, "read", read_or_time_out)
    logs, settled = run(FetchPolicy(hosts=(server.url, slow)), *urls)
    assert logs == [LOG] * 40
    assert [(outcome.kind, outcome.reason) for outcome in settled] == [("deferred", "log_timeout")] * 40
    assert len(asked) <= 19  # at the end all threads, and three that follow a timeout
    assert {outcome.detail for outcome in settled} > {"its host timed out for other logs"}


@pytest.mark.parametrize(("paths", "asked"), [("ssspsssp", 8), ("sssspppp", 4), ("pssssp", 5), ("sssmssssp", 8)])
def test_a_host_is_left_after_four_timeouts_in_a_row(server: LogServer, slow: Slow, paths: str, asked: int) -> None:
    names = {"s": "drip", "p": "plain", "m": "missing"}
    urls = [f"{server.url}/{names[path]}/{number}" for number, path in enumerate(paths)]
    seconds: list[float] = []
    fetcher = Fetcher(allow(server, threads=1, batch_s=1000))
    batch = Batch(None, [], [pending(url, number=number) for number, url in enumerate(urls)])
    fetched = fetcher.fetch(batch, NOW, seconds).pending_runs
    fetcher.close()
    assert len(server.asked) + len(slow.asked) == len(seconds) == asked
    assert [pending.origin.offset for pending in fetched] == [at for at in range(asked) if paths[at] == "p"]


def test_a_batch_has_an_end(server: LogServer, slow: Slow) -> None:
    urls = [f"{server.url}/drip/{number}" for number in range(6)]
    _, settled = run(allow(server, threads=1, total_s=20, batch_s=30, delays_s=(1,)), *urls, attempts=2)
    assert slow.asked == ["/drip/0", "/drip/1"]
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


def test_fetch_keeps_its_connections(server: LogServer) -> None:
    policy = allow(server, threads=2)
    for number in range(5):
        batch = Batch(None, [], [pending(f"{server.url}/plain/{number}/{n}") for n in range(4)])
        assert len(shared_fetcher(policy).fetch(batch, NOW).pending_runs) == 4
    assert len(server.peers) <= 2
    assert shared_fetcher(policy).fetch(Batch(None), NOW) == Batch(None)


def test_each_log_is_in_one_part(server: LogServer) -> None:
    urls = [f"{server.url}/{path}" for n in range(20) for path in (f"plain/{n}", f"missing/{n}", f"cutgzip/{n}")]
    policy = allow(server, max_bytes=len(LOG), max_batch_bytes=3 * len(LOG) + 10, delays_s=())
    batch = Batch(None, pending_runs=[pending(url, number=number) for number, url in enumerate(urls)])
    parts = [
        ([each.origin.offset for each in part.pending_runs], {each.origin.offset: each.reason for each in part.settled})
        for part in fetch_in_parts(batch, policy, NOW)
    ]
    assert sorted(number for fetched, _ in parts for number in fetched) == list(range(0, 60, 3))
    assert all(len(fetched) <= 3 for fetched, _ in parts)
    settled = {number: reason for _, each in parts for number, reason in each.items()}
    assert settled == {n: "log_not_found" if n % 3 == 1 else "corrupt_gzip" for n in range(60) if n % 3}
    assert [each.log for each in batch.pending_runs] == [None] * 60


def test_large_logs_are_not_fetched_again_and_again(server: LogServer) -> None:
    urls = [f"{server.url}/plain/{number}" for number in range(40)]
    batch = Batch(None, pending_runs=[pending(url, number=number) for number, url in enumerate(urls)])
    policy = allow(server, max_bytes=len(LOG), max_batch_bytes=len(LOG))
    parts = [len(part.pending_runs) for part in fetch_in_parts(batch, policy, NOW)]
    assert parts == [1] * 40
    assert sum(server.asked.values()) <= 16 + 3 * 40  # one that fits, and those begun beside it


def test_a_part_ends_when_it_has_enough(tmp_path: Path) -> None:
    size = PART_BYTES // 8
    (tmp_path / "log").write_bytes(gzip.compress(bytes(size)))
    for number in range(20):
        (tmp_path / str(number)).hardlink_to(tmp_path / "log")
    policy = FetchPolicy(file_roots=(str(tmp_path),), threads=1)
    each = [pending(f"{tmp_path}/{number}", number=number) for number in range(20)]
    assert [len(part.pending_runs) for part in fetch_in_parts(Batch(None, pending_runs=each), policy, NOW)] == [8, 8, 4]
    one = [pending(f"{tmp_path}/log", number=number) for number in range(20)]  # each event has a table of its own
    assert [len(part.pending_runs) for part in fetch_in_parts(Batch(None, pending_runs=one), policy, NOW)] == [8, 8, 4]


@pytest.mark.parametrize(("more_bytes", "at_once"), [(0, True), (1, False)])
def test_only_small_parts_are_parsed_at_the_same_time(
    more_bytes: int, at_once: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2)
    seen: list[bool] = []

    def parse_together(_: Batch) -> Batch:
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(30.0 if at_once else 0.3)
        seen.append(not both.broken)
        return Batch(None)

    monkeypatch.setattr(run_stages, "fetch_in_parts", lambda batch, *_: [batch])
    monkeypatch.setattr(run_stages, "parse", parse_together)
    part = Batch(None, pending_runs=[pending("https://logs.test/log", log=bytes(SMALL_PART_BYTES + more_bytes))])
    arguments = (part, FetchPolicy(), open_store(str(tmp_path)), NOW)
    threads = [threading.Thread(target=take_logs, args=arguments) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [at_once] * 2


def test_signed_addresses_are_fetched_first_and_never_deferred(server: LogServer, slow: Slow, tmp_path: Path) -> None:
    urls = [f"{server.url}/drip/{number}" for number in range(4)]
    signed = [f"{server.url}/{path}?sig=s3cr3t" for path in ("plain", "drip/4", "drip/5", "drip/6", "drip/7")]
    runs = [pending(url, number=number) for number, url in enumerate(urls)]
    runs += [
        pending(url.replace("s3cr3t", "REDACTED"), number=number, address=url) for number, url in enumerate(signed, 4)
    ]
    runs.append(pending("https://other.test/log?sig=REDACTED", number=9, address="https://other.test/log?sig=s3cr3t"))
    for each in runs[4:]:
        each.message = Message(0, finished_event(each.mention.replace(log_url=each.address))[0])
    policy = allow(server, threads=1, total_s=30, batch_s=75)
    settled = take_logs(Batch(None, pending_runs=runs), policy, open_store(str(tmp_path)), NOW).settled
    outcomes = {outcome.origin.offset: outcome for outcome in settled}
    assert "/plain?sig=s3cr3t" in server.asked
    assert {(outcomes[number].kind, outcomes[number].reason) for number in range(5, 9)} == {
        ("dead_letter", "log_timeout")
    }
    assert {(outcomes[number].kind, outcomes[number].reason) for number in range(4)} == {("deferred", "batch_full")}
    assert (outcomes[9].kind, outcomes[9].reason) == ("dead_letter", "address_not_allowed")
    late = outcomes[8]
    assert late.detail.startswith("the batch's time limit was reached; its address holds a secret")
    assert late.first_seen_us == NOW
    assert late.payload is not None
    assert slow.asked == [f"/drip/{number}?sig=s3cr3t" for number in (4, 5, 6)]
    assert not any("s3cr3t" in json.dumps(outcome.to_json()) for outcome in settled)
    kept = (message_of(outcomes[number].payload or {}, 0).value or b"" for number in range(5, 10))
    assert not any(b"s3cr3t" in message for message in kept)


def test_what_a_refused_log_took_is_let_go_at_once(tmp_path: Path) -> None:
    header = b'"Host:","h",,,,"User:","u"\n"Cmdline:","dstat -T",,,,"Date:","26 Nov 2026 00:00:00 UTC"\n"epoch","a"\n'
    (tmp_path / "words").write_bytes(header + b'"epoch","b"\n' + b"1795000000.0,x\n" * 100_000)
    (tmp_path / "bomb").write_bytes(gzip.compress(bytes(9 * MIB)))
    policy = FetchPolicy(file_roots=(str(tmp_path),), max_bytes=8 * MIB, max_batch_bytes=8 * MIB, delays_s=())
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for name in ("words", "bomb"):
            arrow, python = pa.total_allocated_bytes(), tracemalloc.get_traced_memory()[0]
            for part in fetch_in_parts(Batch(None, pending_runs=[pending(f"{tmp_path}/{name}")]), policy, NOW):
                settled = parse(part).settled
                del part
            assert len(settled) == 1
            assert pa.total_allocated_bytes() == arrow
            assert tracemalloc.get_traced_memory()[0] - python < MIB
    finally:
        tracemalloc.stop()
        gc.enable()


def wait_s(server: LogServer, status: int, headers: dict[str, str | In], attempts: int = 1) -> tuple[str, float]:
    """The reason, and the time to the next try, s."""
    server.answers = {"/x": (status, b"{}", {name: str(value) for name, value in headers.items()})}
    (outcome,) = run(allow(server), f"{server.url}/x", attempts=attempts)[1]
    assert outcome.kind == "deferred"
    return outcome.reason, ((outcome.not_before_us or 0) - NOW) / 1e6


@dataclass(frozen=True)
class In:
    """A header's value: a time so many seconds from when the server answers."""

    seconds: float
    as_date: bool = False

    def __str__(self) -> str:
        at_s = time.time() + self.seconds
        return formatdate(at_s, usegmt=True) if self.as_date else str(int(at_s))


@pytest.mark.parametrize(
    ("status", "headers", "attempts", "least", "most"),
    [
        (429, {"Retry-After": "90"}, 1, 90, 90),
        (403, {"Retry-After": "90"}, 1, 90, 90),
        (403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": In(50_000)}, 1, 3600, 3600),
        (403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": In(3000)}, 1, 30, 3000),
        (429, {"RateLimit-Remaining": "0", "RateLimit-Reset": In(3000)}, 1, 30, 3000),
        (429, {"Retry-After": In(3000, as_date=True)}, 1, 30, 3000),
        (429, {"Retry-After": "999999"}, 1, 3600, 3600),
        (429, {"Retry-After": "0"}, 1, 10, 10),  # the policy's own delay is longer
        (429, {"Retry-After": "90"}, 4, 1800, 1800),
        (403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": In(-50)}, 1, 10, 10),
    ],
)
def test_a_host_chooses_the_wait_within_bounds(
    server: LogServer, status: int, headers: dict[str, str | In], attempts: int, least: float, most: float
) -> None:
    reason, wait = wait_s(server, status, headers, attempts)
    assert reason == "log_unavailable"
    assert least <= wait <= most


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-RateLimit-Remaining": "17", "X-RateLimit-Reset": In(500)},
        {"X-RateLimit-Remaining": "0"},
        {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "soon"},
        {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "9" * 500},
        {"Retry-After": "soon"},
        {"Retry-After": "-5"},
        {"Retry-After": "1e400"},
        {"Retry-After": "Thu, 99 Nov 99999 00:00:00 GMT"},
    ],
)
def test_what_asks_for_no_wait(server: LogServer, headers: dict[str, str | In]) -> None:
    assert wait_s(server, 403, headers) == ("log_forbidden", 10.0)
    assert wait_s(server, 429, headers) == ("log_unavailable", 10.0)


def test_other_runs_do_not_ask_in_that_batch(server: LogServer) -> None:
    with serving() as other:
        server.answers = {f"/{number}": (429, b"", {"Retry-After": "90"}) for number in range(40)}
        urls = [f"{server.url}/{number}" for number in range(40)] + [f"{other.url}/plain/{n}" for n in range(5)]
        given = [pending(url, number=number) for number, url in enumerate(urls)]
        fetcher = Fetcher(allow(server, other, threads=4))
        taken = fetcher.fetch(Batch(None, [], given), NOW)
        fetcher.close()
    assert [each.log for each in taken.pending_runs] == [LOG] * 5
    assert {(each.kind, each.reason, each.not_before_us) for each in taken.settled} == {
        ("deferred", "log_unavailable", NOW + 90_000_000)
    }
    assert {each.detail for each in taken.settled} == {
        "answered 429, asks to wait for 90 s", "its host answered a request for another log by asking to wait",
    }  # fmt: skip
    assert sum(server.asked.values()) <= 4


def test_a_run_whose_host_asks_to_wait_is_no_dead_letter_for_a_day(server: LogServer) -> None:
    server.answers = {"/limited": (429, b"", {"Retry-After": "90"})}
    urls = [f"{server.url}/{path}" for path in ("limited", "later")]
    kinds = []
    for hours in (23, 25):
        first_seen_us = NOW - hours * 3_600_000_000
        given = [pending(url, 6, number, first_seen_us=first_seen_us) for number, url in enumerate(urls)]
        settled = Fetcher(allow(server, threads=1)).fetch(Batch(None, [], given), NOW).settled
        kinds.append([outcome.kind for outcome in settled])
    assert kinds == [["deferred"] * 2, ["dead_letter"] * 2]


def test_an_error_of_the_consumer_is_not_one_of_the_server(server: LogServer) -> None:
    def consume(_: Address, chunks: Iterable[bytes]) -> None:
        raise ValueError(len(b"".join(chunks)))

    with closing(Fetcher(allow(server))) as fetcher, pytest.raises(ValueError, match=str(len(LOG))):
        fetcher.consume([parse_address(f"{server.url}/plain")], len(LOG), consume)
    assert server.asked == {"/plain": 1}

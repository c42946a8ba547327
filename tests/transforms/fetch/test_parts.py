"""Batches are fetched in parts: each log once in one of them, never more bytes at once than allowed, nothing kept."""

from __future__ import annotations

import gc
import gzip
import tracemalloc
from pathlib import Path

import pyarrow as pa

from ciml.events.records import Batch
from ciml.limits import PART_BYTES
from ciml.storage import open_store
from ciml.transforms.fetch.fetch import Fetcher, fetch_in_parts
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.transforms.ingest.run_stages import take_logs
from ciml.transforms.parse.logs import parse
from tests.transforms.fetch.fetching import MIB, NOW, allow, pending
from tests.transforms.fetch.log_server import LOG, LogServer


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


def test_signed_addresses_are_fetched_first_and_never_deferred(server: LogServer, tmp_path: Path) -> None:
    urls = [f"{server.url}/drip/{number}" for number in range(4)]
    signed = [f"{server.url}/{path}?sig=s3cr3t" for path in ("plain", "drip/4", "drip/5", "drip/6", "drip/7")]
    runs = [pending(url, number=number) for number, url in enumerate(urls)]
    runs += [
        pending(url.replace("s3cr3t", "REDACTED"), number=number, address=url) for number, url in enumerate(signed, 4)
    ]
    runs.append(pending("https://other.test/log?sig=REDACTED", number=9, address="https://other.test/log?sig=s3cr3t"))
    policy = allow(server, threads=1, total_s=0.3, batch_s=0.5)
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
    assert not any("/drip/7" in path for path in server.asked)


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


def test_the_last_log_always_fits(server: LogServer) -> None:
    fetcher = Fetcher(allow(server, max_bytes=len(LOG), max_batch_bytes=len(LOG)))
    batch = Batch(None, pending_runs=[pending(f"{server.url}/plain/{n}", number=n) for n in range(16)])
    for _ in range(20):
        assert len(fetcher.fetch(batch, NOW).pending_runs) == 1
    fetcher.close()

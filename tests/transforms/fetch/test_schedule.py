"""The schedule of downloads: a thread that fails ends it for the other threads; no thread is idle without need."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ciml.errors import EngineError
from ciml.http.addresses import parse_address
from ciml.transforms.fetch.artifacts import job_facts
from ciml.transforms.fetch.schedule import Budget, Download, Schedule
from ciml.transforms.ingest.run_stages import read_logs
from tests.transforms.fetch.fetching import FACTS, Slow, allow, pending
from tests.transforms.fetch.log_server import LogServer


def test_the_last_host_gets_all_threads() -> None:
    urls = ["https://a.test/1", "https://b.test/1", "https://b.test/2", "https://b.test/3"]
    downloads = [Download(parse_address(url), job_facts(FACTS), is_signed=False) for url in urls]
    schedule = Schedule(downloads, threads=3, batch_s=20.0, budget=Budget(1, 1))
    all_of_b = threading.Barrier(3, timeout=10.0)

    def work() -> None:
        for download in schedule:
            if download is not downloads[0]:
                all_of_b.wait()

    with ThreadPoolExecutor(3) as pool:
        threads = [pool.submit(work) for _ in range(3)]
    assert [thread.exception() for thread in threads] == [None] * 3


def test_a_failed_thread_ends_the_schedule() -> None:
    downloads = [Download(parse_address(f"https://a.test/{n}"), job_facts(FACTS), is_signed=False) for n in range(2)]
    schedule = Schedule(downloads, threads=2, batch_s=20.0, budget=Budget(1, 1))

    def work() -> None:
        for _ in schedule:
            raise EngineError("the store does not answer")

    with pytest.raises(EngineError):
        work()
    assert list(schedule) == []


def test_a_backfill_reads_in_later_rounds_what_it_had_no_time_for(server: LogServer, slow: Slow) -> None:
    urls = [f"{server.url}/{path}/{number}" for number, path in enumerate(["drip"] * 2 + ["plain"] * 4)]
    policy = allow(server, threads=1, total_s=20, batch_s=30)
    pauses: list[float] = []
    parts = list(read_logs([pending(url, number=n) for n, url in enumerate(urls)], policy, sleep=pauses.append))
    outcomes = sorted((outcome.origin.offset, outcome.reason) for part in parts for outcome in part.settled)
    assert outcomes == [(0, "log_timeout"), (1, "log_timeout"), *((n, "not_telemetry") for n in range(2, 6))]
    assert slow.asked == ["/drip/0", "/drip/1"] * 3
    assert pauses == [0.5, 2.0]

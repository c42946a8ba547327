"""The schedule of downloads: a thread that fails ends it for the other threads; no thread is idle without need."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ciml.errors import EngineError
from ciml.http.addresses import parse_address
from ciml.transforms.fetch.artifacts import job_facts
from ciml.transforms.fetch.schedule import Budget, Download, Schedule
from tests.transforms.fetch.fetching import FACTS


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

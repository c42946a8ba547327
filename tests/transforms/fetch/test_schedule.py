"""The schedule of downloads: a thread that fails ends it for the other threads."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from ciml.errors import EngineError
from ciml.http.addresses import parse_address
from ciml.transforms.fetch.artifacts import job_facts
from ciml.transforms.fetch.schedule import Budget, Download, Schedule
from tests.transforms.fetch.fetching import FACTS


def test_a_failed_thread_ends_the_schedule() -> None:
    """The other thread would wait for the failed one's host until the end of the batch."""
    urls = ["https://a.test/1", "https://a.test/2", "https://b.test/1"]
    downloads = [Download(parse_address(url), job_facts(FACTS), is_signed=False) for url in urls]
    schedule = Schedule(downloads, threads=2, batch_s=20.0, budget=Budget(1, 1))
    both_started = threading.Barrier(2, timeout=10.0)

    def work() -> None:
        for download in schedule:
            both_started.wait()
            if download is downloads[0]:
                raise EngineError("the store does not answer")

    started_s = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        threads = [pool.submit(work) for _ in range(2)]
    errors = [thread.exception() for thread in threads]
    assert time.monotonic() - started_s < 10.0
    assert sorted(type(error) for error in errors if error is not None) == [EngineError]

from __future__ import annotations

import gzip
import http.client
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from ciml import engines

pytestmark = pytest.mark.engines


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    folder = tmp_path_factory.mktemp("served")
    root = folder / "logs"
    (root / "job").mkdir(parents=True)
    (root / "job" / "log.txt.gz").write_bytes(gzip.compress(b"1,2,3\n" * 1000))
    (folder / "secret").write_text("x")
    settings = engines.Settings(logs_root=str(root), tied=True)
    with engines.start(["logs"], home=folder / "home", settings=settings) as running:
        yield root, running.logs


def connect(url: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(url).netloc, timeout=5)


def test_a_log_comes_as_it_is_on_a_kept_connection(served: tuple[Path, str]):
    root, url = served
    connection = connect(url)
    body = (root / "job" / "log.txt.gz").read_bytes()
    sockets = set()
    for _ in range(3):
        connection.request("GET", "/job/log.txt.gz")
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, body)
        assert answer.headers["Content-Type"] == "application/gzip"
        assert answer.headers["Content-Encoding"] is None
        sockets.add(id(connection.sock))
    assert len(sockets) == 1


@pytest.mark.parametrize("path", ["/", "/job/", "/none", "/../secret", "/%2e%2e/secret", "/job/../../secret"])
def test_nothing_else_is_served(served: tuple[Path, str], path: str):
    connection = connect(served[1])
    connection.request("GET", path)
    answer = connection.getresponse()
    assert answer.status == 404
    assert b"secret" not in answer.read().replace(path.encode(), b"")


def test_many_clients_at_once(served: tuple[Path, str]):
    def fetch(results: list[int]) -> None:
        connection = connect(served[1])
        for _ in range(20):
            connection.request("GET", "/job/log.txt.gz")
            answer = connection.getresponse()
            answer.read()
            results.append(answer.status)

    results: list[int] = []
    threads = [threading.Thread(target=fetch, args=(results,)) for _ in range(16)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert results == [200] * 320


def test_answers_do_not_wait_for_acknowledgements(served: tuple[Path, str]):
    """Head and body in two segments would cost 40 ms a request; this is a bound on that, not a speed test."""
    connection = connect(served[1])
    began = time.monotonic()
    for _ in range(50):
        connection.request("GET", "/job/log.txt.gz")
        connection.getresponse().read()
    assert time.monotonic() - began < 50 * 0.040


def test_the_log_does_not_grow_with_requests(served: tuple[Path, str]):
    log = engines.read(served[0].parent / "home")["logs"].log
    assert log is not None
    connection = connect(served[1])
    before = os.path.getsize(log)
    for _ in range(10):
        connection.request("GET", "/job/log.txt.gz")
        connection.getresponse().read()
    assert os.path.getsize(log) == before

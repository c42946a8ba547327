from __future__ import annotations

import gzip
import http.client
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

from ciml import engines

pytestmark = pytest.mark.engines
BODY = gzip.compress(b"1,2,3\n" * 1000, mtime=0)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[engines.EngineState]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "logs" / "job").mkdir(parents=True)
    (folder / "logs" / "job" / "log.txt.gz").write_bytes(BODY)
    (folder / "secret").write_text("x")
    settings = engines.Settings(logs_root=str(folder / "logs"), tied=True)
    with engines.start(["logs"], home=folder / "home", settings=settings) as running:
        yield running.states["logs"]


def connect(logs: engines.EngineState) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(logs.address).netloc, timeout=5)


def get(connection: http.client.HTTPConnection, path: str = "/job/log.txt.gz") -> tuple[int, bytes]:
    connection.request("GET", path)
    answer = connection.getresponse()
    if answer.status == 200:
        assert (answer.headers["Content-Type"], answer.headers["Content-Encoding"]) == ("application/gzip", None)
    return answer.status, answer.read()


def test_many_clients_get_logs_as_they_are_on_kept_connections(logs: engines.EngineState):
    assert logs.log is not None
    logged = os.path.getsize(logs.log)

    def fetch(_: int) -> int:
        connection = connect(logs)
        sockets = set()
        for _ in range(20):
            assert get(connection) == (200, BODY)
            sockets.add(connection.sock)
        return len(sockets)

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(fetch, range(16))) == {1}
    assert os.path.getsize(logs.log) == logged  # requests are not logged


@pytest.mark.parametrize("path", ["/", "/job/", "/none", "/../secret", "/%2e%2e/secret", "/job/../../secret"])
def test_nothing_else_is_served(logs: engines.EngineState, path: str):
    status, body = get(connect(logs), path)
    assert status == 404
    assert b"secret" not in body.replace(path.encode(), b"")


def test_an_answer_is_sent_in_one_segment(logs: engines.EngineState):
    """In two, each answer would wait 40 ms for the acknowledgement of its head."""
    address = urlsplit(logs.address)
    with socket.create_connection((address.hostname, address.port), timeout=5) as client:
        client.sendall(b"GET /job/log.txt.gz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(1 << 16).endswith(BODY)

"""Logs from S3 that come slowly, in part or without end: each ends within the limits of the policy, with its reason."""

from __future__ import annotations

import gzip
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import boto3
import pytest

from ciml.http.addresses import parse_address
from ciml.transforms.fetch.files import S3Logs
from ciml.transforms.fetch.policy import FetchPolicy, LogUnavailableError
from tests.faults.s3_shim import Shim, Weather
from tests.transforms.fetch.fetching import MIB, only, run
from tests.transforms.fetch.log_server import LOG

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: binary/octet-stream\r\nContent-Length: %d\r\n\r\n"


class Endpoint:
    """An S3 endpoint that answers every request in one way, by the last part of its path; counts what it sent."""

    def __init__(self) -> None:
        self.sent = 0
        self.asked: list[str] = []
        self.over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self.over.set()
        self._listener.close()

    def _serve(self) -> None:
        while not self.over.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            asked = b""
            while b"\r\n\r\n" not in asked:
                if not (piece := connection.recv(4096)):
                    return
                asked += piece
            name = asked.split(b" ", 2)[1].split(b"?")[0].rsplit(b"/", 1)[1].decode()
            self.asked.append(name)
            try:
                getattr(self, name)(connection)
            except OSError:
                return

    def drip(self, connection: socket.socket) -> None:
        connection.sendall(HEAD % 1000)
        while not self.over.wait(0.05):
            connection.sendall(b"x")

    def driphead(self, connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        while not self.over.wait(0.05):
            connection.sendall(b"X-A: b\r\n")

    def stall(self, connection: socket.socket) -> None:
        connection.sendall(HEAD % 1000 + b"x")
        self.over.wait(5)

    def silent(self, connection: socket.socket) -> None:
        self.over.wait(5)

    def announced(self, connection: socket.socket) -> None:
        connection.sendall(HEAD % (1 << 40))
        while not self.over.is_set():
            self.sent += connection.send(bytes(1 << 16))

    def cut(self, connection: socket.socket) -> None:
        connection.sendall(HEAD % 1000 + b"x" * 500)

    def once(self, connection: socket.socket) -> None:
        data = gzip.compress(LOG)
        connection.sendall(HEAD % len(data) + data[: -4 if self.asked.count("once") == 1 else None])


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    running = Endpoint()
    for name, value in {
        "AWS_ENDPOINT_URL_S3": running.url, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    yield running
    running.close()


@pytest.mark.parametrize("name", ["drip", "driphead", "stall", "silent"])
def test_a_slow_object_ends_in_time(endpoint: Endpoint, name: str) -> None:
    policy = FetchPolicy(s3_prefixes=("s3://logs",), connect_s=0.5, read_s=0.5, total_s=0.8)
    started = time.monotonic()
    logs, settled = run(policy, f"s3://logs/{name}")
    took = time.monotonic() - started
    assert (logs, only(settled)) == ([], ("deferred", "log_timeout"))
    assert took < 4  # a drip alone would take 50 s; making a client takes a part of a second


def test_a_large_object_is_refused_before_it_is_read(endpoint: Endpoint) -> None:
    policy = FetchPolicy(s3_prefixes=("s3://logs",), max_wire_bytes=MIB)
    assert only(run(policy, "s3://logs/announced")[1]) == ("dead_letter", "log_too_large")
    assert endpoint.sent < 8 * MIB  # what the sockets hold


def test_a_cut_object_is_tried_once_more(endpoint: Endpoint) -> None:
    policy = FetchPolicy(s3_prefixes=("s3://logs",))
    assert only(run(policy, "s3://logs/cut")[1]) == ("deferred", "log_cut")
    assert endpoint.asked == ["cut", "cut"]
    assert run(policy, "s3://logs/once") == ([LOG], [])


def test_credentials_that_are_given_later_are_found(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {name: os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    for name in keys:
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/none")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    logs = S3Logs(FetchPolicy(s3_prefixes=("s3://logs",)))
    for _ in range(2):
        with pytest.raises(LogUnavailableError, match=r"log_unavailable: .*credentials"):
            logs.fetch(parse_address("s3://logs/once"))
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LogUnavailableError, match="log_unavailable"):
        logs.fetch(parse_address("s3://logs/once"))  # it makes a new client
    assert logs.fetch(parse_address("s3://logs/once")) == LOG
    logs.close()


def test_a_response_that_arrives_too_late_is_closed(endpoint: Endpoint) -> None:
    class Body:
        def __init__(self) -> None:
            self.closed = threading.Event()

        def close(self) -> None:
            self.closed.set()

    class Client:
        def get_object(self, **_: str) -> dict[str, Body]:
            arrival.wait(10)
            return {"Body": body}

    arrival = threading.Event()
    body = Body()
    logs = S3Logs(FetchPolicy(s3_prefixes=("s3://logs",), total_s=0.05))
    logs._client = Client()
    with pytest.raises(LogUnavailableError, match="log_timeout"):
        logs.fetch(parse_address("s3://logs/a"))
    assert not body.closed.is_set()
    arrival.set()
    assert body.closed.wait(10)


@pytest.mark.engines
def test_through_bad_weather_each_log_comes_or_has_a_reason_that_passes(
    s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = s3.bucket()
    client = boto3.client("s3")
    for number in range(40):
        client.put_object(Bucket=bucket.removeprefix("s3://"), Key=f"{number}", Body=gzip.compress(LOG * number))
    shim = Shim(s3.endpoint, 1, Weather(0.3))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", shim.url)
    try:
        policy = FetchPolicy(s3_prefixes=(bucket,), total_s=2.0)
        logs, settled = run(policy, *(f"{bucket}/{number}" for number in range(40)))
    finally:
        shim.close()
    came = set(range(40)) - {each.origin.offset for each in settled}
    assert logs == [LOG * number for number in sorted(came)]
    assert {each.reason for each in settled} <= {"log_timeout", "log_unavailable", "log_cut"}
    assert len(came) > 20
    assert sum(shim.met.values()) > 5

"""Logs from S3 that come slowly, in part or without end: each ends within the limits of the policy, with its reason."""

from __future__ import annotations

import gzip
import os
import threading

import pytest

from ciml.http.addresses import parse_address
from ciml.transforms.fetch.files import S3Logs
from ciml.transforms.fetch.policy import FetchPolicy, LogUnavailableError
from tests.transforms.fetch.fetching import MIB, only, run
from tests.transforms.fetch.log_server import CUT, LOG, LogServer


@pytest.fixture
def endpoint(server: LogServer, monkeypatch: pytest.MonkeyPatch) -> LogServer:
    """An S3 endpoint that answers each request by its bucket."""
    for name, value in {
        "AWS_ENDPOINT_URL_S3": server.url, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    return server


@pytest.mark.parametrize("bucket", ["drip", "dripheader", "stall"])
def test_a_slow_object_ends_in_time(endpoint: LogServer, bucket: str) -> None:
    policy = FetchPolicy(s3_prefixes=(f"s3://{bucket}",), connect_s=0.2, read_s=0.2, total_s=0.3)
    logs, settled = run(policy, f"s3://{bucket}/log")
    assert (logs, only(settled)) == ([], ("deferred", "log_timeout"))


def test_a_large_object_is_refused_before_it_is_read(endpoint: LogServer) -> None:
    endpoint.answers = {"/logs/announced": (200, b"", {"Content-Length": str(1 << 40)})}
    policy = FetchPolicy(s3_prefixes=("s3://logs",), max_wire_bytes=MIB)
    assert only(run(policy, "s3://logs/announced")[1]) == ("dead_letter", "log_too_large")


def test_a_cut_object_is_tried_once_more(endpoint: LogServer) -> None:
    endpoint.answers = {"/logs/cut": CUT, "/logs/once": [CUT, (200, gzip.compress(LOG), {})]}
    policy = FetchPolicy(s3_prefixes=("s3://logs",))
    assert only(run(policy, "s3://logs/cut")[1]) == ("deferred", "log_cut")
    assert list(endpoint.asked.values()) == [2]
    assert run(policy, "s3://logs/once") == ([LOG], [])


def test_credentials_that_are_given_later_are_found(endpoint: LogServer, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {name: os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    for name in keys:
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/none")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    logs = S3Logs(FetchPolicy(s3_prefixes=("s3://logs",)))
    for _ in range(2):
        with pytest.raises(LogUnavailableError, match=r"log_unavailable: .*credentials"):
            logs.fetch(parse_address("s3://plain/log"))
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LogUnavailableError, match="log_unavailable"):
        logs.fetch(parse_address("s3://plain/log"))  # it makes a new client
    assert logs.fetch(parse_address("s3://plain/log")) == LOG
    logs.close()


def test_a_response_that_arrives_too_late_is_closed(endpoint: LogServer) -> None:
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

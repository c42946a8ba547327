"""Folders over HTTP, in files and in S3, and slow or cut objects of S3: each ends within the limits of one log."""

from __future__ import annotations

import gzip
import itertools
import os
import threading
from pathlib import Path

import pytest

from ciml.errors import LogUnavailableError
from ciml.http.addresses import parse_address
from ciml.limits import MAX_LOG_REQUESTS
from ciml.transforms.fetch.files import S3Logs
from ciml.transforms.fetch.policy import LOG_PATHS, FetchPolicy
from tests.transforms.fetch.fetching import MIB, allow, only, run
from tests.transforms.fetch.log_server import CUT, LOG, LogServer, bomb


@pytest.mark.parametrize("path", LOG_PATHS)
def test_each_usual_path_is_found(server: LogServer, path: str) -> None:
    server.answers = {f"/a%20b/{path}": (200, gzip.compress(LOG), {})}
    assert run(allow(server), f"{server.url}/a b/") == ([LOG], [])
    assert list(server.asked) == [f"/a%20b/{each}" for each in LOG_PATHS[: LOG_PATHS.index(path) + 1]]


def test_a_folder_without_a_log(server: LogServer) -> None:
    _, (outcome,) = run(allow(server), f"{server.url}/none/")
    assert (outcome.kind, outcome.reason) == ("deferred", "log_not_found")
    assert outcome.detail == f"at none of {len(LOG_PATHS)} paths below the folder"
    assert sum(server.asked.values()) == len(LOG_PATHS)


def test_the_paths_are_configured(server: LogServer) -> None:
    server.answers = {"/x/b%20c/d%3F": (200, LOG, {}), f"/x/{LOG_PATHS[0]}": (200, b"other", {})}
    assert run(allow(server, log_paths=("a", "b c/d?")), f"{server.url}/x/") == ([LOG], [])
    assert list(server.asked) == ["/x/a", "/x/b%20c/d%3F"]


def test_what_is_forbidden_may_be_absent(server: LogServer) -> None:
    """As object stores say who may not list."""
    server.answers = {f"/x/{LOG_PATHS[0]}": (403, b"", {}), f"/x/{LOG_PATHS[1]}": (200, LOG, {})}
    assert run(allow(server), f"{server.url}/x/") == ([LOG], [])
    del server.answers[f"/x/{LOG_PATHS[1]}"]
    _, (outcome,) = run(allow(server), f"{server.url}/x/")
    assert (outcome.reason, "403" in outcome.detail) == ("log_forbidden", True)


@pytest.mark.parametrize(("status", "requests"), [(500, 3), (429, 2)])
def test_what_is_no_absence_ends_the_search(server: LogServer, status: int, requests: int) -> None:
    server.answers = {f"/x/{LOG_PATHS[1]}": (status, b"", {}), f"/x/{LOG_PATHS[2]}": (200, LOG, {})}
    assert only(run(allow(server), f"{server.url}/x/")[1]) == ("deferred", "log_unavailable")
    assert sum(server.asked.values()) == requests


def test_a_bad_log_ends_the_search(server: LogServer) -> None:
    server.answers = {f"/x/{LOG_PATHS[0]}": (200, bomb(8 * MIB), {}), f"/x/{LOG_PATHS[1]}": (200, LOG, {})}
    assert only(run(allow(server, max_bytes=MIB), f"{server.url}/x/")[1]) == ("dead_letter", "log_too_large")


def test_a_folder_has_the_time_of_one_log(server: LogServer) -> None:
    url = f"{server.url}/x/"
    paths = tuple(f"{number}" for number in range(10))
    server.slow_s = 0.1
    assert only(run(allow(server, log_paths=paths, total_s=0.3), url)[1]) == ("deferred", "log_timeout")
    assert len(server.asked) <= 4


def test_a_folder_has_a_number_of_requests(server: LogServer) -> None:
    """Each path is redirected four times before it is absent."""
    paths = tuple(f"p{number}" for number in range(16))
    for path in paths:
        hops = [f"/x/{path}", *(f"/hop/{path}/{number}" for number in range(4))]
        for here, there in itertools.pairwise(hops):
            server.redirect(here, there)
    assert only(run(allow(server, log_paths=paths), f"{server.url}/x/")[1]) == ("dead_letter", "too_many_redirects")
    assert sum(server.asked.values()) == MAX_LOG_REQUESTS


def test_an_address_with_a_query_is_no_folder(server: LogServer) -> None:
    server.answers = {"/q/?list=/": (200, LOG, {})}
    assert run(allow(server), f"{server.url}/q/?list=/") == ([LOG], [])


def test_folders_of_files(tmp_path: Path) -> None:
    policy = FetchPolicy(file_roots=(str(tmp_path / "root"),))
    for number, path in enumerate(("dstat-csv_log.txt.gz", "controller/logs/dstat-csv_log.txt", "dool.csv")):
        file = tmp_path / "root" / str(number) / path
        file.parent.mkdir(parents=True)
        file.write_bytes(gzip.compress(LOG) if path.endswith("gz") else LOG)
    (tmp_path / "root" / "empty").mkdir()
    (tmp_path / "dool.csv").write_bytes(LOG)
    root = tmp_path / "root"
    assert run(policy, f"{root}/0/", f"file://{root}/1/", f"{root}/2/") == ([LOG] * 3, [])
    urls = [f"{root}/empty/", f"{root}/none/", f"{tmp_path}/", f"{root}/../", "/etc/", "/"]
    logs, settled = run(policy, *urls)
    assert logs == []
    assert [(each.kind, each.reason) for each in settled] == [("deferred", "log_not_found")] * 2 + [
        ("dead_letter", "address_not_allowed")
    ] * 4


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


def test_an_object_of_several_chunks_is_read_to_its_end(endpoint: LogServer) -> None:
    large = LOG + b"# a comment" * (MIB // 11)
    endpoint.answers = {"/logs/large": (200, large, {})}
    assert run(FetchPolicy(s3_prefixes=("s3://logs",)), "s3://logs/large") == ([large], [])


@pytest.mark.parametrize(
    ("code", "reason", "detail"),
    [("NoSuchKey", "log_not_found", "no such object"), ("AccessDenied", "log_unavailable", "answered AccessDenied")],
)
def test_an_error_of_s3_has_the_reason_of_its_code(endpoint: LogServer, code: str, reason: str, detail: str) -> None:
    endpoint.answers = {"/logs/log": (404, f"<Error><Code>{code}</Code></Error>".encode(), {})}
    _, (outcome,) = run(FetchPolicy(s3_prefixes=("s3://logs",)), "s3://logs/log")
    assert (outcome.reason, outcome.detail) == (reason, detail)


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

"""A folder is searched at the usual paths below it: over HTTP, in files and in S3, within the limits of one log."""

from __future__ import annotations

import gzip
import itertools
import time
from pathlib import Path
from typing import Any

import pytest

from ciml.errors import CimlError
from ciml.limits import MAX_LOG_REQUESTS
from ciml.transforms.fetch.policy import LOG_PATHS, FetchPolicy
from tests.transforms.fetch.fetching import MIB, allow, only, run
from tests.transforms.fetch.log_server import LOG, LogServer, bomb, serving


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


@pytest.mark.parametrize(
    ("status", "expected", "requests"),
    [(500, ("deferred", "log_unavailable"), 4), (429, ("deferred", "log_unavailable"), 2)],
)
def test_what_is_no_absence_ends_the_search(
    server: LogServer, status: int, expected: tuple[str, str], requests: int
) -> None:
    server.answers = {f"/x/{LOG_PATHS[1]}": (status, b"", {}), f"/x/{LOG_PATHS[2]}": (200, LOG, {})}
    assert only(run(allow(server), f"{server.url}/x/")[1]) == expected
    assert sum(server.asked.values()) == requests - (status == 500)


def test_a_bad_log_ends_the_search(server: LogServer) -> None:
    server.answers = {f"/x/{LOG_PATHS[0]}": (200, bomb(8 * MIB), {}), f"/x/{LOG_PATHS[1]}": (200, LOG, {})}
    assert only(run(allow(server, max_bytes=MIB), f"{server.url}/x/")[1]) == ("dead_letter", "log_too_large")


def test_a_folder_has_the_time_of_one_log(server: LogServer) -> None:
    url = f"{server.url}/x/"
    paths = tuple(f"{number}" for number in range(10))
    server.slow_s = 0.2
    started = time.monotonic()
    assert only(run(allow(server, log_paths=paths, total_s=0.7), url)[1]) == ("deferred", "log_timeout")
    assert time.monotonic() - started < 1.5


def test_a_folder_has_a_number_of_requests(server: LogServer) -> None:
    """Each path is redirected four times before it is absent."""
    paths = tuple(f"p{number}" for number in range(16))
    for path in paths:
        hops = [f"/x/{path}", *(f"/hop/{path}/{number}" for number in range(4))]
        for here, there in itertools.pairwise(hops):
            server.answers[here] = (302, b"", {"Location": there})
    assert only(run(allow(server, log_paths=paths), f"{server.url}/x/")[1]) == ("dead_letter", "too_many_redirects")
    assert sum(server.asked.values()) == MAX_LOG_REQUESTS


def test_a_host_of_folders_has_its_share_and_is_left_when_slow(server: LogServer) -> None:
    with serving() as slow:
        slow.slow_s = 5.0
        urls = [f"{slow.url}/{number}/" for number in range(40)] + [f"{server.url}/gz/{n}" for n in range(40)]
        started = time.monotonic()
        logs, settled = run(allow(server, slow, read_s=0.5, total_s=0.5), *urls)
        took = time.monotonic() - started
        assert sum(slow.asked.values()) <= 16
    assert (logs, {each.reason for each in settled}, took < 2) == ([LOG] * 40, {"log_timeout"}, True)


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


@pytest.mark.engines
def test_folders_in_s3(s3: Any) -> None:
    import boto3

    bucket = s3.bucket()
    client = boto3.client("s3")
    for key, body in {
        "zuul/1/logs/dstat-csv.log": LOG,
        "zuul/2/dool.csv": gzip.compress(LOG),
        "b/dool.csv": LOG,
    }.items():
        client.put_object(Bucket=bucket.removeprefix("s3://"), Key=key, Body=body)
    policy = FetchPolicy(s3_prefixes=(f"{bucket}/zuul",))
    assert run(policy, f"{bucket}/zuul/1/", f"{bucket}/zuul/2/") == ([LOG] * 2, [])
    assert only(run(policy, f"{bucket}/zuul/3/")[1]) == ("deferred", "log_not_found")
    assert only(run(policy, f"{bucket}/b/")[1]) == ("dead_letter", "address_not_allowed")


@pytest.mark.parametrize("path", ["", "/a", "a/", "a//b", "../a", "a/../b", "./a", "a\nb", "a" * 201])
def test_paths_that_lead_elsewhere_are_no_paths(path: str) -> None:
    with pytest.raises(CimlError, match=r"^fetch policy: log_paths: '.* must be a relative path"):
        FetchPolicy.from_json({"log_paths": [path]})


def test_the_number_of_paths_is_limited() -> None:
    for paths in ((), tuple(map(str, range(17)))):
        with pytest.raises(CimlError, match=r"log_paths: expected array of length (>= 1|<= 16)"):
            FetchPolicy.from_json({"log_paths": paths})

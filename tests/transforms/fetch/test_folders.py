"""A folder is searched at the usual paths below it: over HTTP, in files and in S3, within the limits of one log."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path

import pytest

from ciml.limits import MAX_LOG_REQUESTS
from ciml.transforms.fetch.policy import LOG_PATHS, FetchPolicy
from tests.transforms.fetch.fetching import MIB, allow, only, run
from tests.transforms.fetch.log_server import LOG, LogServer, bomb


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

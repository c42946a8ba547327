"""A host that asks to wait is asked again after that time, which has a bound, and by no other run of the batch."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from ciml.events.records import Batch
from ciml.transforms.fetch.fetch import Fetcher
from tests.transforms.fetch.fetching import NOW, allow, pending, run
from tests.transforms.fetch.log_server import LOG, LogServer, serving


def wait_s(server: LogServer, status: int, headers: dict[str, str], attempts: int = 1) -> tuple[str, float]:
    """The reason, and the time to the next try, s."""
    server.answers = {"/x": (status, b"{}", headers)}
    (outcome,) = run(allow(server), f"{server.url}/x", attempts=attempts)[1]
    assert outcome.kind == "deferred"
    return outcome.reason, ((outcome.not_before_us or 0) - NOW) / 1e6


def in_s(seconds: float) -> str:
    return str(int(time.time() + seconds))


@pytest.mark.parametrize(
    ("status", "headers", "attempts", "least", "most"),
    [
        (429, {"Retry-After": "90"}, 1, 90, 90),
        (403, {"Retry-After": "90"}, 1, 90, 90),
        (403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": in_s(50_000)}, 1, 3600, 3600),
        (403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": in_s(3000)}, 1, 30, 3000),
        (429, {"RateLimit-Remaining": "0", "RateLimit-Reset": in_s(3000)}, 1, 30, 3000),
        (429, {"Retry-After": formatdate(time.time() + 3000, usegmt=True)}, 1, 30, 3000),
        (429, {"Retry-After": "999999"}, 1, 3600, 3600),
        (429, {"Retry-After": "0"}, 1, 10, 10),  # the policy's own delay is longer
        (429, {"Retry-After": "90"}, 4, 1800, 1800),
        (403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": in_s(-50)}, 1, 10, 10),
    ],
)
def test_a_host_chooses_the_wait_within_bounds(
    server: LogServer, status: int, headers: dict[str, str], attempts: int, least: float, most: float
) -> None:
    reason, wait = wait_s(server, status, headers, attempts)
    assert reason == "log_unavailable"
    assert least <= wait <= most


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-RateLimit-Remaining": "17", "X-RateLimit-Reset": in_s(500)},
        {"X-RateLimit-Remaining": "0"},
        {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "soon"},
        {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "9" * 500},
        {"Retry-After": "soon"},
        {"Retry-After": "-5"},
        {"Retry-After": "1e400"},
        {"Retry-After": "Thu, 99 Nov 99999 00:00:00 GMT"},
    ],
)
def test_what_asks_for_no_wait(server: LogServer, headers: dict[str, str]) -> None:
    assert wait_s(server, 403, headers) == ("log_forbidden", 10.0)
    assert wait_s(server, 429, headers) == ("log_unavailable", 10.0)


def test_other_runs_do_not_ask_in_that_batch(server: LogServer) -> None:
    with serving() as other:
        server.answers = {f"/{number}": (429, b"", {"Retry-After": "90"}) for number in range(40)}
        urls = [f"{server.url}/{number}" for number in range(40)] + [f"{other.url}/plain/{n}" for n in range(5)]
        given = [pending(url, number=number) for number, url in enumerate(urls)]
        fetcher = Fetcher(allow(server, other, threads=4))
        taken = fetcher.fetch(Batch(None, [], given), NOW)
        fetcher.close()
    assert [each.log for each in taken.pending_runs] == [LOG] * 5
    assert {(each.kind, each.reason, each.not_before_us) for each in taken.settled} == {
        ("deferred", "log_unavailable", NOW + 90_000_000)
    }
    assert {each.detail for each in taken.settled} == {
        "answered 429, asks to wait for 90 s", "its host asked to wait, for another log",
    }  # fmt: skip
    assert sum(server.asked.values()) <= 4

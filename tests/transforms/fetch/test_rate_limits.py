"""A host that asks to wait is asked again after that time, which has a bound, and by no other run of the batch."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from ciml.events.records import Batch
from ciml.transforms.fetch.fetch import Fetcher
from tests.transforms.fetch.fetching import NOW, allow, pending, run
from tests.transforms.fetch.log_server import LOG, LogServer, serving


def wait_s(server: LogServer, status: int, /, attempts: int = 1, **headers: str) -> tuple[str, float]:
    """The reason, and the time to the next try, s."""
    server.answers = {"/x": (status, b"{}", headers)}
    (outcome,) = run(allow(server), f"{server.url}/x", attempts=attempts)[1]
    assert outcome.kind == "deferred"
    return outcome.reason, ((outcome.not_before_us or 0) - NOW) / 1e6


def in_s(seconds: float) -> str:
    return str(int(time.time() + seconds))


def test_a_host_says_when_to_come_back(server: LogServer) -> None:
    assert wait_s(server, 429, Retry_After="90") == ("log_unavailable", 90.0)
    assert wait_s(server, 403, Retry_After="90") == ("log_unavailable", 90.0)
    reason, wait = wait_s(server, 403, X_RateLimit_Remaining="0", X_RateLimit_Reset=in_s(500))
    assert (reason, 480 < wait <= 500) == ("log_unavailable", True)
    reason, wait = wait_s(server, 429, RateLimit_Remaining="0", RateLimit_Reset=in_s(500))
    assert (reason, 480 < wait <= 500) == ("log_unavailable", True)
    reason, wait = wait_s(server, 429, Retry_After=formatdate(time.time() + 500, usegmt=True))
    assert (reason, 480 < wait <= 500) == ("log_unavailable", True)


def test_the_wait_has_bounds(server: LogServer) -> None:
    assert wait_s(server, 429, Retry_After="999999") == ("log_unavailable", 3600.0)
    assert wait_s(server, 429, Retry_After="0") == ("log_unavailable", 10.0)  # the policy's own delay is longer
    assert wait_s(server, 429, attempts=4, Retry_After="90") == ("log_unavailable", 1800.0)
    assert wait_s(server, 403, X_RateLimit_Remaining="0", X_RateLimit_Reset=in_s(-50)) == ("log_unavailable", 10.0)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X_RateLimit_Remaining": "17", "X_RateLimit_Reset": in_s(500)},
        {"X_RateLimit_Remaining": "0"},
        {"X_RateLimit_Remaining": "0", "X_RateLimit_Reset": "soon"},
        {"X_RateLimit_Remaining": "0", "X_RateLimit_Reset": "9" * 500},
        {"Retry_After": "soon"},
        {"Retry_After": "-5"},
        {"Retry_After": "1e400"},
        {"Retry_After": "Thu, 99 Nov 99999 00:00:00 GMT"},
    ],
)
def test_what_asks_for_no_wait(server: LogServer, headers: dict[str, str]) -> None:
    assert wait_s(server, 403, 1, **headers) == ("log_forbidden", 10.0)
    assert wait_s(server, 429, 1, **headers) == ("log_unavailable", 10.0)


def test_other_runs_do_not_ask_in_that_batch(server: LogServer) -> None:
    with serving() as other:
        server.answers = {f"/{number}": (429, b"", {"Retry_After": "90"}) for number in range(40)}
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

"""The limits of outgoing requests: of time and number, together for all that one fetch asks for."""

from __future__ import annotations

import socket

import httpcore
import pytest

from ciml.errors import RejectedInput
from ciml.http.addresses import HostRule, host_rule
from ciml.http.outgoing import FetchLimits, Pinned, retry_after_s
from ciml.limits import MAX_LOG_REQUESTS, MAX_RETRY_AFTER_S


def test_a_block_within_another_has_the_limits_of_the_outer_one() -> None:
    limits = FetchLimits()
    with limits.within(50):
        deadline_s = limits.deadline_s
        limits.count_request()
        for _ in range(2):
            with limits.within(5000):
                assert limits.deadline_s == deadline_s
            assert limits.deadline_s == deadline_s
        for _ in range(MAX_LOG_REQUESTS - 1):
            limits.count_request()
        with limits.within(5000), pytest.raises(RejectedInput, match=f"more than {MAX_LOG_REQUESTS} requests"):
            limits.count_request()
    assert limits.remaining(7) == 7
    with limits.within(50):
        limits.count_request()
        assert limits.deadline_s > deadline_s


def connected(host: str, *rules: HostRule, addresses: tuple[str, ...] = ("127.0.0.1",)) -> list[str]:
    """Connect to a host on a port of loopback; return the hosts that were resolved."""
    resolved: list[str] = []

    def resolve(name: str, port: int) -> list[str]:
        resolved.append(name)
        return list(addresses)

    limits = FetchLimits()
    with limits.within(5):
        Pinned(rules, resolve, limits).connect_tcp(host, rules[0].port).close()
    return resolved


def test_only_an_allowed_host_is_resolved_and_connected_to() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        inner, public = host_rule(f"logs.test:{port}", private=True), host_rule(f"other.test:{port}")
        assert connected("logs.test", inner, public) == ["logs.test"]
        with pytest.raises(RejectedInput, match=rf"evil\.test:{port} is not an allowed host"):
            connected("evil.test", inner, public)
        with pytest.raises(RejectedInput, match=r"it resolves to 127\.0\.0\.1"):  # the other host may be private
            connected("other.test", inner, public)
        with pytest.raises(RejectedInput, match=r"it resolves to 169\.254\.169\.254"):
            connected("logs.test", inner, addresses=("127.0.0.1", "169.254.169.254"))


def test_the_next_address_is_tried_after_one_that_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[str, bool]] = []
    connect = httpcore.SyncBackend.connect_tcp

    def silent(self: httpcore.SyncBackend, host: str, port: int, timeout: float, *more: object) -> object:
        tried.append((host, timeout < 2))
        if host == "127.0.0.2":
            raise httpcore.ConnectTimeout("silent")
        return connect(self, host, port, timeout, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", silent)
    with socket.create_server(("127.0.0.1", 0)) as server:
        rule = host_rule(f"logs.test:{server.getsockname()[1]}", private=True)
        connected("logs.test", rule, addresses=("127.0.0.2", "127.0.0.2", "127.0.0.1"))
    assert tried == [("127.0.0.2", True), ("127.0.0.2", False), ("127.0.0.1", False)]


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ([], 0.0),
        ([(b"Retry-After", b"0")], 1.0),
        ([(b"retry-after", b"7")], 7.0),
        ([(b"retry-after", b"999999999")], MAX_RETRY_AFTER_S),
        ([(b"retry-after", b"Thu, 01 Jan 1970 00:00:00 GMT")], 1.0),
        ([(b"x-ratelimit-remaining", b"0"), (b"x-ratelimit-reset", b"5")], 1.0),
        ([(b"x-ratelimit-remaining", b"3"), (b"x-ratelimit-reset", b"99999999999")], 0.0),
        ([(b"retry-after", b"soon")], 0.0),
    ],
)
def test_a_response_asks_for_a_bounded_wait(headers: list[tuple[bytes, bytes]], wait_s: float) -> None:
    assert retry_after_s(httpcore.Response(429, headers=headers)) == wait_s

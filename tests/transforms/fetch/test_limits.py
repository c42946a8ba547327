"""A log, a policy or a secret at a limit is accepted; one beyond it is rejected."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from ciml import limits
from ciml.errors import CimlError
from ciml.transforms.fetch.policy import Credential, FetchPolicy
from tests.transforms.fetch.fetching import allow, run
from tests.transforms.fetch.log_server import LOG, LogServer


@pytest.fixture
def try_size(server: LogServer, tmp_path: Path) -> Callable[[str, int], str]:
    """Return the reason why an input of a size is rejected; "" if it is accepted."""
    file = tmp_path / "file"

    def fetched(policy: FetchPolicy, address: str) -> str:
        _, settled = run(policy, address)
        return "".join(outcome.reason for outcome in settled)

    def from_file(data: bytes) -> str:
        file.write_bytes(data)
        return fetched(FetchPolicy(file_roots=(str(tmp_path),), max_wire_bytes=1000, max_bytes=2000), str(file))

    def answered(size: int) -> str:
        server.answers = {"/log": (200, bytes(size), {})}
        return fetched(allow(server, max_wire_bytes=1000), f"{server.url}/log")

    def redirected(count: int) -> str:
        for number in range(1, count + 1):
            server.redirect(f"/{number}", f"/{number - 1}")
        server.answers["/0"] = (200, LOG, {})
        return fetched(allow(server), f"{server.url}/{count}")

    def failure(make: Callable[[], object]) -> str:
        try:
            make()
        except CimlError:
            return "error"
        return ""

    def secret(size: int) -> str:
        file.write_bytes(b"x" * size)
        return failure(Credential("h.example.org", token_file=str(file)).read)

    names = [f"n{number}" for number in range(99)]
    tries: dict[str, Callable[[int], str]] = {
        "file": lambda size: from_file(bytes(size)),
        "unpacked file": lambda size: from_file(gzip.compress(bytes(size))),
        "response": answered,
        "redirects": redirected,
        "secret": secret,
        "paths": lambda count: failure(lambda: FetchPolicy.from_json({"log_paths": names[:count]})),
        "names": lambda count: failure(lambda: FetchPolicy.from_json({"artifact_names": names[:count]})),
    }
    return lambda limited, size: tries[limited](size)


@pytest.mark.parametrize(
    ("limited", "most", "reason"),
    [
        ("file", 1000, "log_too_large"),
        ("unpacked file", 2000, "log_too_large"),
        ("response", 1000, "log_too_large"),
        ("redirects", limits.MAX_REDIRECTS, "too_many_redirects"),
        ("secret", limits.MAX_SECRET_BYTES, "error"),
        ("paths", limits.MAX_LOG_PATHS, "error"),
        ("names", limits.MAX_ARTIFACT_NAMES, "error"),
    ],
)
def test_what_is_at_a_limit_is_accepted_and_one_beyond_it_is_not(
    try_size: Callable[[str, int], str], limited: str, most: int, reason: str
) -> None:
    assert (try_size(limited, most), try_size(limited, most + 1)) == ("", reason)

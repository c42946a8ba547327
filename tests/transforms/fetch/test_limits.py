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
from tests.transforms.fetch.log_server import LogServer


@pytest.fixture
def try_size(server: LogServer, tmp_path: Path) -> Callable[[str, int], str]:
    """Return the reason why an input of a size is rejected; "" if it is accepted."""
    file = tmp_path / "file"
    policy = allow(server, file_roots=(str(tmp_path),), max_wire_bytes=1000, max_bytes=20_000)

    def try_size(limited: str, size: int) -> str:
        address = str(file)
        match limited:
            case "file":
                file.write_bytes(bytes(size))
            case "unpacked file":
                file.write_bytes(gzip.compress(bytes(size)))
            case "response":
                server.answers = {"/log": (200, bytes(size), {})}
                address = f"{server.url}/log"
            case "redirects":
                for number in range(1, size + 1):
                    server.redirect(f"/{number}", f"/{number - 1}")
                server.answers["/0"] = (200, b"log", {})
                address = f"{server.url}/{size}"
        _, settled = run(policy, address)
        return "".join(outcome.reason for outcome in settled)

    return try_size


@pytest.mark.parametrize(
    ("limited", "most", "reason"),
    [
        ("file", 1000, "log_too_large"),
        ("unpacked file", 20_000, "log_too_large"),
        ("response", 1000, "log_too_large"),
        ("redirects", limits.MAX_REDIRECTS, "too_many_redirects"),
    ],
)
def test_what_is_at_a_limit_is_accepted_and_one_beyond_it_is_not(
    try_size: Callable[[str, int], str], limited: str, most: int, reason: str
) -> None:
    assert (try_size(limited, most), try_size(limited, most + 1)) == ("", reason)


def test_a_policy_and_a_secret_have_as_much_as_the_limit(tmp_path: Path) -> None:
    names = [f"n{number}" for number in range(99)]
    for key, most in (("log_paths", limits.MAX_LOG_PATHS), ("artifact_names", limits.MAX_ARTIFACT_NAMES)):
        FetchPolicy.from_json({key: names[:most]})
        with pytest.raises(CimlError, match=key):
            FetchPolicy.from_json({key: names[: most + 1]})
    secret = Credential("h.example.org", token_file=str(tmp_path / "secret"))
    (tmp_path / "secret").write_bytes(b"x" * limits.MAX_SECRET_BYTES)
    assert secret.read()
    (tmp_path / "secret").write_bytes(b"x" * (limits.MAX_SECRET_BYTES + 1))
    with pytest.raises(CimlError):
        secret.read()

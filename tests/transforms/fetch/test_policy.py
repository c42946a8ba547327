"""Policies of fetch: files, mistakes that name the key in one line, secrets, and limits to the byte."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from ciml import limits
from ciml.errors import CimlError
from ciml.transforms.fetch.credentials import Credential
from ciml.transforms.fetch.policy import FetchPolicy
from tests.transforms.fetch.fetching import allow, run
from tests.transforms.fetch.log_server import LogServer


def test_policy_files(tmp_path: Path) -> None:
    path = tmp_path / "fetch.toml"
    path.write_text('hosts = ["logs.example.org"]\nmax_bytes = 1000\ndelays_s = [1, 2.5]\n')
    policy = FetchPolicy.load(path, threads=3)
    assert policy == FetchPolicy(hosts=("logs.example.org",), max_bytes=1000, delays_s=(1, 2.5), threads=3)
    assert policy.allowing(hosts=("http://127.0.0.1:1",)).hosts == ("logs.example.org", "http://127.0.0.1:1")
    assert FetchPolicy.of(None) == FetchPolicy()
    path.write_text('[logs]\nkeep = "90d"\n')
    assert (FetchPolicy().logs.keep_s, FetchPolicy.load(path).logs.keep_s) == (30 * 86_400, 90 * 86_400)


PATH = "must be a relative path"
NAME = "may hold {id}, {job} and {attempt}"
ONE_OF = "name one of token_file, token_env"
ONE_HOST = "must be one host over https, without a wildcard"
BOTH = "user and password_file belong together"
MISTAKES = [
    ("host = ['h']", "host: unknown key"),
    ("hosts = ['http://h/path']", "allowed host 'http://h/path'"),
    ("s3_prefixes = ['logs/']", "not s3://bucket/prefix"),
    ("threads = 0", "threads: expected int >= 1"),
    ("max_batch_bytes = 5", "max_batch_bytes: must be at least max_bytes"),
    ("delays_s = [-1]", "delays_s.0: expected float >= 0"),
    ("hosts = [", "Invalid value"),
    ("[logs]\nkeep = 'forever'", "logs: invalid time 'forever'; give a number with ms, s, min, h or d, such as 10s"),
    ("[logs]\nwithout = '*'", "logs.without: unknown key"),
    ("log_paths = []", "log_paths: expected array of length >= 1"),
    (f"log_paths = {list('abcdefghijklmnopq')}", "log_paths: expected array of length <= 16"),
    *((f"log_paths = [{path!r}]", PATH) for path in ("", "/a", "a/", "a//b", "../a", "a/../b", "./a", "a" * 201)),
    ('log_paths = ["a\\nb"]', PATH),
    *((f"artifact_names = ['{name}']", NAME) for name in ("ciml-{x}", "{", "a}", "{id", "{}", "{id}}")),
    ("[[credentials]]\nhost = 'h'", ONE_OF),
    ("[[credentials]]\nhost = 'h'\ntoken_file = 'a'\ntoken_env = 'b'", ONE_OF),
    ("[[credentials]]\nhost = 'h'\ntoken = 'ghp_secret'", "credentials.0.token: unknown key"),
    ("[[credentials]]\ntoken_env = 'b'", "credentials.0.host: is missing"),
    ("[[credentials]]\nhost = '*.h.org'\ntoken_env = 'b'", ONE_HOST),
    ("[[credentials]]\nhost = 'http://h'\ntoken_env = 'b'", ONE_HOST),
    ("[[credentials]]\nhost = 'h/a'\ntoken_env = 'b'", "allowed host 'h/a'"),
    ("[[credentials]]\nhost = 'h'\ntoken_env = 'b'\nheader = 'a b'", "is not a header for credentials"),
    ("[[credentials]]\nhost = 'h'\ntoken_env = 'b'\nheader = 'Host'", "is not a header for credentials"),
    ("[[credentials]]\nhost = 'h'\ntoken_env = 'b'\nprefix = \"a\\nb\"", "prefix: must be printable ASCII"),
    ("[[credentials]]\nhost = 'h'\nuser = 'u'\ntoken_env = 'b'", BOTH),
    ("[[credentials]]\nhost = 'h'\npassword_file = 'p'", BOTH),
    ("[[credentials]]\nhost = 'h'\nuser = 'a:b'\npassword_file = 'p'", "user: must be printable, without a colon"),
    ("[[credentials]]\nhost = 'h'\nuser = 'a'\npassword_file = 'p'\nprefix = 'x'", "neither header nor prefix"),
    (
        "[[credentials]]\nhost = 'h'\ntoken_env = 'b'\n[[credentials]]\nhost = 'H:443'\ntoken_env = 'c'",
        "two are of the host",
    ),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_mistakes_in_policy_files_are_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "fetch.toml"
    path.write_text(text)
    with pytest.raises(CimlError) as caught:
        FetchPolicy.load(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "ghp_secret" not in str(caught.value)


@pytest.mark.parametrize("token", ["", "\n", "a b", "a\nb", "a\r\nX-Evil: 1", "é", "a\0", "x" * 20_000])
def test_what_is_no_token_is_reported_without_it(tmp_path: Path, token: str) -> None:
    (tmp_path / "token").write_text(token)
    credential = Credential("h.example.org", token_file=str(tmp_path / "token"))
    with pytest.raises(CimlError) as caught:
        FetchPolicy(credentials=(credential,)).check()
    assert str(tmp_path / "token") in str(caught.value)
    assert "Evil" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_a_missing_secret_is_reported_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_TOKEN", raising=False)
    with pytest.raises(CimlError, match=r"the credential of h.example.org: the variable NO_TOKEN is not set"):
        FetchPolicy(credentials=(Credential("h.example.org", token_env="NO_TOKEN"),)).check()


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


def test_a_policy_and_a_secret_have_as_much_as_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"n{number}" for number in range(99)]
    for key, most in (("log_paths", limits.MAX_LOG_PATHS), ("artifact_names", limits.MAX_ARTIFACT_NAMES)):
        FetchPolicy.from_json({key: names[:most]})
        with pytest.raises(CimlError, match=key):
            FetchPolicy.from_json({key: names[: most + 1]})
    path = tmp_path / "secret"
    for secret in (Credential("h.org", token_file=str(path)), Credential("h.org", token_env="LONG_TOKEN")):
        path.write_bytes(b"x" * limits.MAX_SECRET_BYTES)
        monkeypatch.setenv("LONG_TOKEN", "x" * limits.MAX_SECRET_BYTES)
        assert secret.read()
        path.write_bytes(b"x" * (limits.MAX_SECRET_BYTES + 1))
        monkeypatch.setenv("LONG_TOKEN", "x" * (limits.MAX_SECRET_BYTES + 1))
        with pytest.raises(CimlError, match=r"^the credential of h.org: .* has more than 16384 bytes$"):
            secret.read()

"""Credentials go to their own host over TLS and nowhere else, are read for each request, and are shown nowhere."""

from __future__ import annotations

import base64
import json
import pickle
from pathlib import Path

import pytest

from ciml.http.addresses import parse_address
from ciml.transforms.fetch.credentials import Credential, credential_of
from ciml.transforms.fetch.fetch import Fetcher
from ciml.transforms.fetch.policy import FetchPolicy
from tests.transforms.fetch.github import API, BLOBS, TOKEN, Systems, job
from tests.transforms.fetch.log_server import LOG, LogServer


def sent(server: LogServer, name: str = "Authorization") -> list[str | None]:
    return [headers.get(name) for headers in server.headers]


def test_it_stays_within_the_host_on_redirects_and_is_not_sent_after_another(both: Systems) -> None:
    away = f"https://{BLOBS}:{both.blobs.server_port}"
    both.api.answers = {
        "/moved": (301, b"", {"Location": "/plain"}),
        "/away": (302, b"", {"Location": f"{away}/plain"}),
        "/round": (302, b"", {"Location": f"{away}/back"}),
    }
    both.blobs.answers = {"/back": (302, b"", {"Location": f"{both.url}/plain/secret"})}
    assert both.fetch((f"{both.url}/moved", job())) == ([LOG], [])
    assert sent(both.api) == [f"Bearer {TOKEN}"] * 2
    both.api.headers.clear()
    assert both.fetch((f"{both.url}/away", job())) == ([LOG], [])
    assert both.fetch((f"{both.url}/round", job())) == ([LOG], [])  # the other host chose what is asked
    assert sent(both.blobs) == [None, None]
    assert sent(both.api) == [f"Bearer {TOKEN}", f"Bearer {TOKEN}", None]
    both.api.headers.clear()
    assert both.fetch((f"{away}/back", job())) == ([LOG], [])
    assert sent(both.api) == [None]


def test_the_host_is_compared_as_a_whole() -> None:
    credentials = (Credential("api.example.org", token_env="A"), Credential("b.example.org:8443", token_env="B"))
    for url, name in {
        "https://api.example.org/x": "A",
        "https://API.example.org.:443/x": "A",
        "https://b.example.org:8443/x": "B",
        "http://api.example.org:443/x": "",
        "http://api.example.org/x": "",
        "https://api.example.org:8443/x": "",
        "https://x.api.example.org/x": "",
        "https://example.org/x": "",
        "https://b.example.org/x": "",
        "s3://api.example.org/x": "",
    }.items():
        found = credential_of(credentials, parse_address(url))
        assert (found.token_env if found else "") == name, url


def test_a_rotated_token_is_read_again(both: Systems, tmp_path: Path) -> None:
    fetcher = Fetcher(both.policy, lambda *_: ["127.0.0.1"])
    address = parse_address(f"{both.url}/plain")
    assert fetcher.read(address) == LOG
    (tmp_path / "token").write_text("n3w")
    assert fetcher.read(address) == LOG
    assert sent(both.api) == [f"Bearer {TOKEN}", "Bearer n3w"]
    (tmp_path / "token").unlink()
    with pytest.raises(Exception, match=r"log_unavailable: the credential of .* cannot be read: .*: No such file"):
        fetcher.read(address)
    assert len(both.api.headers) == 2  # nothing is asked without it
    (tmp_path / "token").write_text("b4ck")
    assert fetcher.read(address) == LOG
    fetcher.close()


def test_other_headers_users_and_variables(both: Systems, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = f"{API}:{both.api.server_port}"
    monkeypatch.setenv("LOG_TOKEN", TOKEN)
    (tmp_path / "password").write_text("pässword \n")
    basic = base64.b64encode("logs:pässword ".encode()).decode()
    for credential, name, value in (
        ({"token_env": "LOG_TOKEN"}, "Authorization", f"Bearer {TOKEN}"),
        ({"token_env": "LOG_TOKEN", "prefix": "token "}, "Authorization", f"token {TOKEN}"),
        ({"token_env": "LOG_TOKEN", "header": "PRIVATE-TOKEN"}, "PRIVATE-TOKEN", TOKEN),
        ({"user": "logs", "password_file": str(tmp_path / "password")}, "Authorization", f"Basic {basic}"),
    ):
        both.api.headers.clear()
        path = tmp_path / "fetch.toml"
        lines = [f"{key} = {json.dumps(word)}" for key, word in {"host": host, **credential}.items()]
        path.write_text("\n".join(["[[credentials]]", *lines]))
        policy = FetchPolicy.load(path, private_hosts=both.policy.private_hosts, ca_file=both.policy.ca_file)
        assert both.fetch((f"{both.url}/plain", job()), policy=policy) == ([LOG], [])
        assert sent(both.api, name) == [value]


def test_a_policy_holds_names_and_no_secrets(both: Systems) -> None:
    fetcher = Fetcher(both.policy, lambda *_: ["127.0.0.1"])
    assert fetcher.read(parse_address(f"{both.url}/plain")) == LOG
    fetcher.close()
    packed = pickle.dumps(both.policy)
    assert TOKEN.encode() not in packed
    assert TOKEN not in repr(both.policy)
    assert pickle.loads(packed) == both.policy
    assert hash(pickle.loads(packed)) == hash(both.policy)

"""A hostile review system costs at most an error with a reason: no other exception, no memory, no time, no secret."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from ciml.errors import CimlError, EngineError
from ciml.integrations import http
from ciml.integrations.gerrit.review import GerritSystem
from ciml.integrations.github.review import GitHubSystem
from ciml.integrations.gitlab.review import GitLabSystem
from ciml.integrations.http import UNAUTHORIZED, Refused, Unsettled
from ciml.integrations.review import ChangeRef, Posted, ReviewClient
from ciml.integrations.systems import System
from ciml.limits import MIB
from tests.tier import part
from tests.transforms.fetch.certificates import make_certificate
from tests.verdicts.feedback.reviewing import (
    MARKER,
    SHA,
    gerrit_client,
    github_client,
    gitlab_client,
    message,
    opened,
    rejected,
    secret_file,
)
from tests.verdicts.feedback.stub import Answer, Asked, Fault, ReviewServer, answers, in_turn, says, serving

OPEN: dict[str, Callable[..., ReviewClient]] = {
    "github": github_client, "gerrit": gerrit_client, "gitlab": gitlab_client,
}  # fmt: skip
CHANGE = ChangeRef("group/widget", "7", "1", SHA)
SECRET = "a-secret-that-is-in-no-error"
CALLS: dict[str, Callable[[ReviewClient], Any]] = {
    "head": lambda client: client.head(CHANGE),
    "head_of_commit": lambda client: client.head(ChangeRef("group/widget", "", "", SHA, "group/widget", "fix")),
    "find": lambda client: client.find(CHANGE, MARKER),
    "post": lambda client: client.post(CHANGE, message()),
    "edit": lambda client: client.edit(Posted(CHANGE, "1"), message()),
    "reactions": lambda client: client.reactions(Posted(CHANGE, "1")),
}


class Canned(ReviewServer):
    """Answers every request with the same."""

    def __init__(self, body: Any = None, status: int = 200, headers: dict[str, str] | None = None) -> None:
        super().__init__()
        self.canned = Answer(status, body, headers or {})

    def answer(self, asked: Asked) -> Answer:
        return self.canned


BODIES: dict[str, bytes] = {
    "nothing": b"",
    "a page": b"<html><title>Log in</title></html>",
    "null": b"null",
    "an empty object": b"{}",
    "a list of nulls": b"[null,null]",
    "a cut object": b'{"id": 1, "body": "x',
    "no UTF-8": b'{"id": 1, "body": "\xff\xfe"}',
    "half a character": rb'{"id": 1, "created_at": "", "body": "\ud800", "title": "\ud800", "message": "\udc00"}',
    "a large number": b'{"id": ' + b"9" * 100_000 + b"}",
    "a large exponent": b'{"id": 1e999999999}',
    "nested lists": b"[" * 200_000,
    "nested objects": b'{"x":' * 200_000,
    "nested in a known key": b'{"id": 1, "user": ' + b'{"user":' * 200_000,
    "wrong types": b'{"id": "1", "iid": {}, "number": [], "body": 7, "state": null, "title": {}, "user": "x"}',
    "a list of wrong types": b'[{"id": "1", "body": [], "user": {"id": "x"}, "message": 5, "author": []}]',
    "a text for a list": b'{"labels": "abc", "hashtags": "abc", "revisions": []}',
    "a million objects": b"[" + b"{}," * 1_000_000 + b"{}]",
}


@pytest.mark.parametrize(
    ("body", "kind"), [(body, kind) for number, body in enumerate(BODIES) for kind in part(list(OPEN), number, 3)]
)
def test_an_answer_of_any_content_is_an_error_with_a_reason(kind: str, body: str, tmp_path: Path) -> None:
    with serving(Canned(BODIES[body])) as server:
        client = OPEN[kind](server.url, tmp_path, SECRET)
        for name, call in CALLS.items():
            found = None
            text = "no error"
            try:
                found = call(client)
            except CimlError as error:
                text = str(error)
            assert 7 < len(text) < 1000, name
            assert SECRET not in text
            assert found is None or type(found).__module__ == "ciml.integrations.review", name
            assert repr(found).encode()
        client.close()


@pytest.mark.parametrize("kind", OPEN)
def test_an_answer_that_is_too_large_or_encoded_takes_no_memory(kind: str, tmp_path: Path) -> None:
    large = (b'{"message": [' + b"[]," * MIB + b"[]]}", b"[" + b"[]," * MIB + b"[]]")
    faults = [(answers(422, body), Refused, "answers 422") for body in large]
    gzip = answers(200, b"x", {"Content-Encoding": "gzip"})
    faults += [(gzip, EngineError, "content encoding 'gzip', which was not asked for")]
    with serving(Canned([])) as server:
        client = OPEN[kind](server.url, tmp_path, SECRET)
        tracemalloc.start()
        try:
            for fault, error, text in faults:
                server.plan = in_turn(fault, writes=False)
                with pytest.raises(error, match=text):
                    client.head(CHANGE)
            assert tracemalloc.get_traced_memory()[1] < 24 * MIB
        finally:
            tracemalloc.stop()


@contextmanager
def speaking(say: Callable[[socket.socket], object]) -> Iterator[str]:
    """A server that reads a request's first bytes, and then does what it likes."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                self.request.recv(1 << 16)
                say(self.request)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def endless(first: bytes, again: bytes, times: int = 20_000) -> Callable[[socket.socket], object]:
    def say(connection: socket.socket) -> None:
        connection.sendall(first)
        for _ in range(times):
            connection.sendall(again)

    return say


def drip(connection: socket.socket) -> None:
    """Send a byte every 20 ms, each within the time of a step."""
    for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b" " * 1000:
        connection.sendall(bytes([byte]))
        time.sleep(0.02)


OK = b"HTTP/1.1 200 OK\r\n"
SPOKEN: dict[str, Callable[[socket.socket], object]] = {
    "endless headers": endless(OK, b"X-More: " + b"x" * 1000 + b"\r\n"),
    "an endless header": endless(OK + b"X-More: ", b"x" * 1000),
    "an endless status": endless(b"HTTP/1.1 200 ", b"x" * 1000),
    "endless tiny chunks": endless(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n" * 500),
    "endless interim answers": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    "a gigabyte": endless(OK + b"Connection: close\r\n\r\n[", b" " * (1 << 16), 1 << 14),
    "a slow one": drip,
    "another protocol": endless(b"SSH-2.0-OpenSSH_9.2\r\n\r\n", b"", 0),
    "a line that is no header": endless(OK + b"\x00: \x01\r\n\r\n", b"", 0),
    "a length that is none": endless(OK + b"Content-Length: -1\r\n\r\n", b"", 0),
    "two lengths": endless(OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nx", b"", 0),
    "a huge length": endless(OK + b"Content-Length: 99999999999\r\n\r\n", b"", 0),
    "nothing": lambda connection: None,
}


@pytest.mark.parametrize("spoken", SPOKEN)
def test_an_answer_of_any_form_is_an_error_within_the_time_of_a_call(
    spoken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http.Rest, "call_s", 30.0 if spoken == "a gigabyte" else 1.0)
    with speaking(SPOKEN[spoken]) as url:
        client = gitlab_client(url, tmp_path, SECRET)
        tracemalloc.start()
        try:
            with pytest.raises(EngineError, match=r"\(MAX_ANSWER_BYTES\)" if spoken == "a gigabyte" else None):
                client.head(CHANGE)
            with pytest.raises(Unsettled):
                client.post(CHANGE, message())
            assert tracemalloc.get_traced_memory()[1] < 24 * MIB
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("kind", OPEN)
def test_no_redirect_is_followed_and_no_secret_goes_elsewhere(kind: str, tmp_path: Path) -> None:
    with serving(Canned({})) as other, serving(Canned({})) as server:
        client = OPEN[kind](server.url, tmp_path, SECRET)
        for status in (301, 302, 303, 307, 308):
            for place in (f"{other.url}/x", "//127.0.0.1/x", "/api/v4/user", "file:///etc/passwd"):
                server.canned = Answer(status, {}, {"Location": place})
                for call in (CALLS["head"], CALLS["find"], CALLS["post"], CALLS["reactions"]):
                    with rejected("moved", f"answers {status}, a redirect, which is not followed"):
                        call(client)
        assert other.asked == []


@pytest.mark.parametrize("kind", ["github", "gitlab"])  # Gerrit has no pages
def test_a_next_page_is_asked_at_the_same_address(kind: str, tmp_path: Path) -> None:
    with serving(Canned([])) as other, serving(Canned({"id": 1})) as server:
        link = {"Link": f'<{other.url}/steal>; rel="next"'}
        server.plan = lambda asked: None if asked.parts[-1] == "user" else answers(200, [], link)
        with pytest.raises(Refused, match="has more than 50 pages"):
            OPEN[kind](server.url, tmp_path, SECRET).find(CHANGE, MARKER)
        assert [one.query["page"] for one in server.asked if "page" in one.query] == [*map(str, range(1, 51))]
        assert other.asked == []


@pytest.mark.parametrize("kind", OPEN)
def test_no_environment_and_no_cookie_leads_elsewhere(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(Canned({})) as proxy, serving(Canned({}, headers={"Set-Cookie": "a=b; Path=/"})) as server:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        client = OPEN[kind](server.url, tmp_path, SECRET)
        for _ in range(2):
            with pytest.raises(EngineError):
                client.head(CHANGE)
        assert (proxy.asked, len(server.asked)) == ([], 2)
        assert "cookie" not in server.asked[1].headers


def test_an_address_of_a_message_is_one_of_the_system(tmp_path: Path) -> None:
    with serving(Canned()) as server:
        client, own = github_client(server.url, tmp_path, SECRET), f"{server.url}/pull/7"
        for url in (own, "https://evil.example.org/x", "javascript:alert(1)", "x" * 9000, ""):
            server.canned = Answer(200, {"id": 1, "created_at": "", "body": "b", "html_url": url})
            assert client.post(CHANGE, message()).url == (url if url == own else "")


@pytest.mark.parametrize(("kind", "who"), [("github", "the token"), ("gerrit", "user ci"), ("gitlab", "the token")])
def test_a_server_that_repeats_what_it_was_sent_shows_no_secret(kind: str, who: str, tmp_path: Path) -> None:
    sent: list[str] = []

    def repeat(asked: Asked) -> Fault:
        sent.append(asked.headers.get("authorization", asked.headers.get("private-token", "")).split()[-1])
        return says(status, f"who are you, {sent[-1]} or {SECRET} or {SECRET[::-1]}?")

    with serving(Canned({})) as server:
        client = OPEN[kind](server.url, tmp_path, SECRET)
        server.plan = repeat
        for status in (400, 401, 403, 404, 409, 422, 500, 503):
            for call in (CALLS["find"], CALLS["post"]):
                with pytest.raises(CimlError) as caught:
                    call(client)
                assert not [each for each in (sent.pop(), SECRET, "who are you") if each in str(caught.value)]
            if status == 401:
                assert isinstance(caught.value, Refused)
                assert caught.value.reason == UNAUTHORIZED
                assert f"rejects the credentials: check {who}" in str(caught.value)
        server.plan = lambda _: says(422, "the body is blank")
        with pytest.raises(Refused, match="answers 422: the body is blank"):
            client.find(CHANGE, MARKER)
        said = "\x1b[31mred\x1b[0m\n\r\x00\u202e" + "long " * 100_000
        for body in ({"message": said}, {"error": said}, said.encode(), {"message": {"deep": [said]}}):
            server.plan = in_turn(answers(422, body), writes=False)
            with pytest.raises(Refused) as refused:
                client.find(CHANGE, MARKER)
            assert str(refused.value).isprintable()
            assert len(str(refused.value)) < 400


def test_tls_is_verified_by_the_given_certificates(tmp_path: Path) -> None:
    import ssl

    path = make_certificate(tmp_path, "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    server = Canned({"iid": 7, "state": "opened", "title": "t"})
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with serving(server):
        url = f"https://localhost:{server.server_port}"
        with pytest.raises(EngineError, match=r"cannot be reached: .*certificate verify failed") as caught:
            gitlab_client(url, tmp_path, SECRET).post(CHANGE, message())
        assert type(caught.value) is EngineError  # nothing was sent
        trusting = opened(GitLabSystem, tmp_path, SECRET, server=url, ca_file=Path(path).name)
        assert trusting.head(CHANGE).state == "open"
        with pytest.raises(EngineError, match="cannot be reached"):  # the certificate is of another name
            opened(GitLabSystem, tmp_path, SECRET, server=url.replace("localhost", "127.0.0.1"), ca_file=path).head(
                CHANGE
            )
    assert len(server.asked) == 1


BASE = {"name": "reviews", "sources": "ci", "secret_file": "secret"}
WRONG: list[tuple[type[System], dict[str, Any], str]] = [
    (GitHubSystem, {"api": "http://api.example.org"}, "api: 'http://api.example.org' would get the secret unencrypted"),
    (GitHubSystem, {"api": "https://user@api.example.org"}, "api: .* is not an address such as https://api.github.com"),
    (GitHubSystem, {"api": "api.example.org"}, "api: 'api.example.org' is not an address"),
    (GitHubSystem, {"report": "check"}, "report: only an App may write check runs"),
    (GitHubSystem, {"report": "mail"}, "report: 'mail' is unknown; choose from , check, comment"),
    (GitHubSystem, {"app": -1}, "app: -1 is not the id of an App"),
    (GitHubSystem, {"check": ""}, "check: '' is not a valid name"),
    (GitHubSystem, {"tokens": "x"}, "tokens: unknown key"),
    (GerritSystem, {"url": "https://r.example.org?x=1", "user": "ci"}, "url: .* is not an address"),
    (GerritSystem, {"url": "https://r.example.org", "user": "a:b"}, "user: 'a:b' is not a valid account name"),
    (GerritSystem, {"url": "https://r.example.org"}, "user: is missing"),
    (GerritSystem, {"url": "http://10.0.0.1", "user": "ci"}, "url: .* unencrypted; want https://"),
    (GitLabSystem, {"server": "ftp://gitlab.example.org"}, "server: .* is not an address"),
]


@pytest.mark.parametrize(("system", "keys", "problem"), WRONG)
def test_a_wrong_key_is_named(system: type[System], keys: dict[str, Any], problem: str) -> None:
    with pytest.raises(CimlError, match=rf"^feedback.toml, system reviews: {problem}"):
        system.from_json(BASE | keys, "feedback.toml, system reviews")


SECRETS: list[tuple[dict[str, Any], str, str]] = [
    ({"secret_file": []}, "x", "secret_file: name one file, or one variable in secret_env, with a token"),
    ({"secret_file": ["secret", "secret"]}, "x", "secret_file: name one file"),
    ({"secret_file": "nowhere"}, "x", "secret_file .*nowhere: No such file"),
    ({}, "", "secret_file .*secret is empty"),
    ({}, f"{SECRET} and more", "secret_file .*secret: is not a token: it may contain only printable ASCII"),
    ({}, f"{SECRET}\nX-Header: y", "is not a token"),
    ({"app": 7}, SECRET, "secret_file .*secret: is no RSA private key in PEM"),
    ({"secret_file": [], "secret_env": "CIML_NO_SUCH"}, "x", "the environment variable CIML_NO_SUCH is not set"),
]


@pytest.mark.parametrize(("keys", "content", "problem"), SECRETS)
def test_a_wrong_secret_is_named_and_not_shown(
    keys: dict[str, Any], content: str, problem: str, tmp_path: Path
) -> None:
    secret_file(tmp_path, content)
    system = GitHubSystem.from_json(BASE | keys, "feedback.toml")
    with pytest.raises(CimlError, match=problem) as caught:
        system.client("feedback.toml, system reviews", tmp_path)
    assert SECRET not in str(caught.value)

"""Answers of S3 that moto never gives: lost, cut, refused, in pages. boto3 is the real one."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from ciml.errors import EngineError
from ciml.storage import S3Store, s3
from ciml.storage.s3 import impatient


class Server(http.server.ThreadingHTTPServer):
    """Plays S3. Each request meets the next fault of ``script``: a status, ``lost`` (done, no answer), or ``cut``."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[int | str] = []
        self.objects: dict[str, tuple[bytes, str]] = {}
        self.credentials: list[tuple[str, str | None]] = []  # of each request: key and token


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"  # else each PUT waits a second for "100 Continue"

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if "aws-chunked" in self.headers.get("content-encoding", ""):
            size, _, rest = body.partition(b"\r\n")
            body = rest[: int(size.partition(b";")[0], 16)]
        if (fault := self._fault()) in ("", "lost"):
            if self.headers.get("if-none-match") and self.path in self.server.objects:
                fault = 412
            else:
                self.server.objects[self.path] = (body, self.headers.get("x-amz-meta-ciml-write", ""))
        self._answer(fault)

    def do_HEAD(self) -> None:
        self._answer(self._fault() or (200 if self.path in self.server.objects else 404))

    def do_GET(self) -> None:
        fault = self._fault()
        query = parse_qs(urlsplit(self.path).query)
        if "list-type" not in query:
            return self._answer(fault, self.server.objects.get(self.path, (b"", ""))[0])
        keys = sorted(self.server.objects)
        page = keys[int(query.get("continuation-token", ["0"])[0]) :][:2]
        more = keys.index(page[-1]) + 1
        entries = "".join(f"<Contents><Key>{key.removeprefix('/bucket/')}</Key></Contents>" for key in page)
        token = f"<NextContinuationToken>{more}</NextContinuationToken>" if more < len(keys) else ""
        is_truncated = str(bool(token)).lower()
        text = f"<ListBucketResult><IsTruncated>{is_truncated}</IsTruncated>{token}{entries}</ListBucketResult>"
        return self._answer(fault, text.encode())

    def _fault(self) -> int | str:
        key = self.headers["authorization"].split("/")[0].rpartition("=")[2]
        self.server.credentials.append((key, self.headers.get("x-amz-security-token")))
        return self.server.script.pop(0) if self.server.script else ""

    def _answer(self, fault: int | str, body: bytes = b"") -> None:
        if fault == "lost":
            self.close_connection = True
            return
        codes = {403: "InvalidAccessKeyId", 409: "ConditionalRequestConflict", 412: "PreconditionFailed"}
        if isinstance(fault, int) and fault > 200 and self.command != "HEAD":
            body = f"<Error><Code>{codes.get(fault, 'SlowDown')}</Code></Error>".encode()
        self.send_response(fault if isinstance(fault, int) else 200)
        self.send_header("content-length", str(len(body)))
        if self.path in self.server.objects:
            self.send_header("x-amz-meta-ciml-write", self.server.objects[self.path][1])
        self.send_header("connection", "close")  # also closes it here; unannounced, a client may send into a dead one
        self.end_headers()
        self.wfile.write(body[: 3 if fault == "cut" else None])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        write_credentials(tmp_path, "first")
        monkeypatch.setattr(s3, "_RENEWAL_PAUSE_S", 0.0)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between boto3's attempts
        yield server
        server.shutdown()


def write_credentials(folder: Path, key: str) -> None:
    (folder / "credentials").write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = secret\n")


@pytest.mark.parametrize(
    ("script", "exists", "created"),
    [
        ([], False, True),
        ([], True, False),
        (["lost"], False, True),  # boto3 sends it again, and finds our own object
        (["lost"], True, False),
        ([503, "lost"], False, True),
        ([409], False, True),
        ([409, "lost"], False, True),
        ([409], True, False),
    ],
)
def test_a_create_knows_its_own_object(server: Server, script: list[int | str], exists: bool, created: bool) -> None:
    if exists:
        server.objects["/bucket/a"] = (b"other", "of another writer")
    server.script = script
    assert S3Store("s3://bucket").create("a", b"mine") is created
    assert server.objects["/bucket/a"][0] == (b"mine" if created else b"other")


def test_a_create_that_conflicts_each_time_is_an_error(server: Server) -> None:
    server.script = [409] * 5
    with pytest.raises(EngineError, match="put_object of a keeps conflicting with another writer; try again"):
        S3Store("s3://bucket").create("a", b"mine")
    assert (len(server.credentials), server.objects) == (5, {})


@pytest.mark.parametrize("method", ["replace", "read"])
def test_another_operation_that_conflicts_is_an_error_of_the_store(server: Server, method: str) -> None:
    server.script = [409] * 9
    arguments = ("a", b"mine") if method == "replace" else ("a",)
    with pytest.raises(EngineError, match="conflicts with another operation; try again"):
        getattr(S3Store("s3://bucket"), method)(*arguments)


def test_a_body_that_is_cut_is_read_again(server: Server) -> None:
    server.objects["/bucket/a"] = (b"content", "")
    server.script = ["cut", "cut"]
    assert S3Store("s3://bucket").read("a") == b"content"
    server.script = ["cut"] * 5
    with pytest.raises(EngineError, match="reading a failed"):
        S3Store("s3://bucket").read("a")


def test_a_listing_has_all_pages(server: Server) -> None:
    server.objects = {f"/bucket/{number}": (b"", "") for number in range(5)}
    assert S3Store("s3://bucket").list() == list("01234")


def test_credentials_that_are_refused_are_read_again(server: Server, tmp_path: Path) -> None:
    store = S3Store("s3://bucket")
    store.create("a", b"")
    write_credentials(tmp_path, "second")
    store.create("b", b"")
    server.script = [403]
    with pytest.raises(EngineError, match="put_object answered InvalidAccessKeyId"):
        store.create("c", b"")
    store.create("c", b"")
    assert [key for key, _ in server.credentials] == ["first", "first", "first", "second"]


def test_credentials_of_the_environment_are_those_of_the_next_request(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = S3Store("s3://bucket")
    for variables in ({"ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s"}, {"SESSION_TOKEN": "t"}, {"SESSION_TOKEN": "u"}):
        for name, value in variables.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        store.create("a", b"")
    assert server.credentials == [("k", None), ("k", "t"), ("k", "u")]


def test_a_store_of_an_impatient_context_and_its_children_give_up_soon(server: Server) -> None:
    with impatient():
        store = S3Store("s3://bucket")
    for impatient_store in (store, store.child("a")):
        server.credentials.clear()
        server.script = [503] * 9
        with pytest.raises(EngineError, match="SlowDown"):
            impatient_store.read("a")
        assert len(server.credentials) == 2

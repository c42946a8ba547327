"""A server on loopback that misbehaves where a test's plan says so; its answers are those of a subclass.

`github_stub` and `gitlab_stub` know what these systems do; `ForwardingServer` asks a real one.
"""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, TypeVar
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit


@dataclass(frozen=True)
class Asked:
    """A request: its path is percent-encoded and without the query, its body is JSON, None for none."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any

    @property
    def parts(self) -> tuple[str, ...]:
        """The segments of the path, decoded."""
        return tuple(unquote(part) for part in self.path.strip("/").split("/"))

    @property
    def writes(self) -> bool:
        return self.method != "GET"


@dataclass(frozen=True)
class Answer:
    """An answer; ``body`` is encoded as JSON, bytes are sent as they are."""

    status: int
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """What goes wrong with a request, before it takes effect or ``after``.

    ``answer`` sends ``answer`` instead; ``hang`` sends nothing until the server ends; ``reset`` closes without an
    answer; ``cut`` closes in the middle of the answer.
    """

    kind: Literal["answer", "hang", "reset", "cut"]
    after: bool = False
    answer: Answer | None = None


HANG, ACCEPTED_THEN_HANG = Fault("hang"), Fault("hang", after=True)
RESET, ACCEPTED_THEN_RESET = Fault("reset"), Fault("reset", after=True)
CUT = Fault("cut", after=True)


def answers(status: int, body: Any = None, headers: Mapping[str, str] | None = None, *, after: bool = False) -> Fault:
    """Answer with a status and a body, before or after the request took effect."""
    return Fault("answer", after, Answer(status, body, headers or {}))


def says(status: int, message: str = "", headers: Mapping[str, str] | None = None, *, after: bool = False) -> Fault:
    """Answer with a status, such as 502, and a message."""
    return answers(status, {"message": message or f"status {status}"}, headers, after=after)


Plan = Callable[[Asked], Fault | None]


def in_turn(*faults: Fault | None, writes: bool = True) -> Plan:
    """A plan for the next requests that write, or the next of all; later ones have no fault."""
    left = list(faults)
    return lambda asked: left.pop(0) if left and (asked.writes or not writes) else None


class ReviewServer(ThreadingHTTPServer):
    """The server.

    Attributes:
      plan: the fault of each request, None for none; a test may replace it at any time.
      asked: all requests, in order; `effects`: those that changed something.
      violations: what no client of such a system may do; a test asserts that there is none.
      lock: held while a request takes effect.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.plan: Plan = lambda _: None
        self.asked: list[Asked] = []
        self.effects: list[Asked] = []
        self.violations: list[str] = []
        self.lock = threading.RLock()
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, asked: Asked) -> Answer:
        """Let a request take effect, and return its answer. Called with the lock."""
        raise NotImplementedError

    def take(self, asked: Asked) -> tuple[Answer | None, Fault | None]:
        """Record a request, and let it take effect unless its fault comes before that."""
        with self.lock:
            self.asked.append(asked)
            fault = self.plan(asked)
            return (None if fault is not None and not fault.after else self.answer(asked)), fault

    def page(self, asked: Asked, items: list[Any], size: int) -> Answer:
        """Return the requested page of a list; ``size`` is that of a page by default."""
        size, number = min(int(asked.query.get("per_page", size)), 100), int(asked.query.get("page", 1))
        more = len(items) > size * number
        link = f'<{self.url}/elsewhere?page=1>; rel="first"' + f', <{self.url}/x?page=9>; rel="next"' * more
        return Answer(200, items[size * (number - 1) : size * number], {"Link": link})

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no error of the server."""


class ForwardingServer(ReviewServer):
    """Forwards each request to a real server, which cannot be made to misbehave; ``effects`` are those it accepted."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self._target = target

    def answer(self, asked: Asked) -> Answer:
        query = f"?{urlencode(asked.query)}" if asked.query else ""
        headers = {name: asked.headers[name] for name in ("authorization", "content-type") if name in asked.headers}
        data = None if asked.body is None else json.dumps(asked.body).encode()
        sent = urllib.request.Request(f"{self._target}{asked.path}{query}", data, headers, method=asked.method)
        try:
            with urllib.request.urlopen(sent, timeout=60) as response:
                if asked.writes:
                    self.effects.append(asked)
                return Answer(response.status, response.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.read())


Server = TypeVar("Server", bound=ReviewServer)


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Serve until the end of the block."""
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: ReviewServer

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        content = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        answer, fault = self.server.take(
            Asked(self.command, url.path, query, headers, json.loads(content) if content else None)
        )
        self.close_connection = fault is not None and fault.kind != "answer"
        if fault is not None and fault.kind == "hang":
            self.server.released.wait(600.0)
        elif fault is None or fault.kind != "reset":
            shown = fault.answer if fault is not None and fault.answer else answer or Answer(200, {})
            self._send(shown, cut=fault is not None and fault.kind == "cut")

    do_POST = do_PATCH = do_PUT = do_DELETE = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass

    def _send(self, answer: Answer, *, cut: bool) -> None:
        content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        for name, value in {"Content-Type": "application/json; charset=utf-8", **answer.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(1 << 16 if cut else len(content)))
        self.end_headers()
        self.wfile.write(content)

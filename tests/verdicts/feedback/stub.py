"""A review system on loopback that keeps its state, and misbehaves where a test's plan says so.

`github_stub` and `gitlab_stub` know what the systems do; this module is the server and its faults.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

_SERVED_S = 0.02
#: Of an oversized answer: more than any client should read.
_HUGE = 1 << 30


@dataclass(frozen=True)
class Asked:
    """A request.

    Attributes:
      path: percent-encoded, without the query.
      body: its JSON, None for none.
      at_s: when it came, by `time.monotonic`.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any
    at_s: float = field(default_factory=time.monotonic)

    @property
    def parts(self) -> tuple[str, ...]:
        """The segments of the path, decoded."""
        return tuple(unquote(part) for part in self.path.strip("/").split("/"))

    @property
    def writes(self) -> bool:
        """Whether it may change something."""
        return self.method != "GET"


@dataclass(frozen=True)
class Answer:
    """An answer; ``body`` is encoded as JSON, bytes are sent as they are."""

    status: int
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """What goes wrong with a request.

    Attributes:
      kind: ``answer`` sends ``answer`` instead; ``hang`` sends nothing until the server or the client ends;
        ``reset`` closes without an answer; ``cut`` closes in the middle of the answer; ``drip`` sends the answer byte
        by byte; ``huge`` sends a gigabyte.
      after: the request took effect before it goes wrong.
      answer: for ``answer``.
      pause_s: between two bytes of ``drip``, seconds.
    """

    kind: Literal["answer", "hang", "reset", "cut", "drip", "huge"]
    after: bool = False
    answer: Answer | None = None
    pause_s: float = 0.02


HANG, ACCEPTED_THEN_HANG = Fault("hang"), Fault("hang", after=True)
RESET, ACCEPTED_THEN_RESET = Fault("reset"), Fault("reset", after=True)
CUT, HUGE = Fault("cut", after=True), Fault("huge", after=True)


def says(status: int, message: str = "", headers: Mapping[str, str] | None = None, *, after: bool = False) -> Fault:
    """A fault that answers with a status, such as 502, before or after the request took effect."""
    return Fault("answer", after, Answer(status, {"message": message or f"status {status}"}, headers or {}))


Plan = Callable[[Asked], Fault | None]


def in_turn(*faults: Fault | None, writes: bool = True) -> Plan:
    """A plan for the next requests that write, or the next of all; later ones have no fault."""
    left, lock = list(faults), threading.Lock()

    def next_one(asked: Asked) -> Fault | None:
        with lock:
            return left.pop(0) if left and (asked.writes or not writes) else None

    return next_one


class ReviewServer(ThreadingHTTPServer):
    """The server.

    Attributes:
      plan: the fault of each request, None for none; a test may replace it at any time.
      asked: all requests, in order.
      effects: requests that changed something, in order.
      violations: what no client of such a system may do; a test asserts that there is none.
      lock: held while a request takes effect.
    """

    daemon_threads = True
    allow_reuse_address = True
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
        """Its address."""
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

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no error of the server."""


Server = TypeVar("Server", bound=ReviewServer)


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Serve until the end of the block."""
    thread = threading.Thread(target=server.serve_forever, args=(_SERVED_S,), daemon=True)
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
        body = json.loads(content) if content else None
        asked = Asked(self.command, url.path, dict(parse_qsl(url.query, keep_blank_values=True)), headers, body)
        try:
            answer, fault = self.server.take(asked)
            if fault is None and answer is not None:
                self._send(answer)
            elif fault is not None:
                self._misbehave(fault, answer)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_POST = do_PATCH = do_PUT = do_DELETE = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass

    def _send(self, answer: Answer, length: int | None = None) -> None:
        content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        for name, value in {"Content-Type": "application/json; charset=utf-8", **answer.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)

    def _misbehave(self, fault: Fault, answer: Answer | None) -> None:
        self.close_connection = fault.kind != "answer"
        if fault.kind == "answer" and fault.answer is not None:
            self._send(fault.answer)
        elif fault.kind == "hang":
            self.server.released.wait(600.0)
        elif fault.kind == "cut":
            self._send(answer or Answer(200, {}), length=1 << 16)
        elif fault.kind == "drip":
            self._drip(json.dumps(answer.body if answer else {}).encode(), fault.pause_s)
        elif fault.kind == "huge":
            self._flood()

    def _drip(self, content: bytes, pause_s: float) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\n\r\n".encode()
        for each in head + content:
            self.wfile.write(bytes((each,)))
            if self.server.released.wait(pause_s):
                return

    def _flood(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n[")
        piece, until = b" " * (1 << 16), time.monotonic() + 60.0
        for _ in range(_HUGE >> 16):
            if self.server.released.is_set() or time.monotonic() > until:
                return
            self.wfile.write(piece)

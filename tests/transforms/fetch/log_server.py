"""A real HTTP server on a free port whose paths behave as badly as log servers do, for the tests of fetch."""

from __future__ import annotations

import gzip
import ssl
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ciml.limits import MIB

LOG = b'"Dstat 0.7.3 CSV output"\n' + b"".join(b"%d,%d,0.1\n" % (i, i * 7 % 100) for i in range(500))

#: Status, body and headers. A Content-Length of its own ends the connection.
Answer = tuple[int, bytes, dict[str, str]]
CUT: Answer = (200, LOG[:100], {"Content-Length": str(len(LOG))})
MISSING: Answer = (404, b"no such log", {})
#: The answer, and the bytes that are sent in its place, by the first part of a path.
ANSWERS: dict[str, Answer] = {
    "plain": (200, LOG, {}),
    "gz": (200, gzip.compress(LOG), {}),
    "cutgzip": (200, gzip.compress(LOG)[:-100], {}),
    "cut": CUT,
    "cutmissing": (404, b"x", {"Content-Length": "100"}),
}
RAW = {
    "hangup": b"",
    "noise": b"\x00\x01 no HTTP at all\r\n\r\n",
    "oddlength": b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 6000 + b"\r\n\r\n",
}


def bomb(size: int) -> bytes:
    """``size`` zeros in gzip: a compressed MiB, again and again, since compression takes most of a second."""
    piece, check = bytes(MIB), 0
    for _ in range(size // MIB):
        check = zlib.crc32(piece, check)
    packer = zlib.compressobj(9, wbits=-15)
    packed = packer.compress(piece) + packer.flush(zlib.Z_FULL_FLUSH)
    last = b"\x03\x00" + struct.pack("<II", check, size // MIB * MIB)
    return b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff" + packed * (size // MIB) + last


class Handler(BaseHTTPRequestHandler):
    """Answers as ``server.answers`` says for the path, else by its first part; ``server.asked`` counts each path."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: LogServer

    def do_GET(self) -> None:
        with self.server.lock:
            count = self.server.asked[self.path] = self.server.asked.get(self.path, 0) + 1
            self.server.peers.add(self.client_address)
            self.server.headers.append(dict(self.headers))
        name = self.path.strip("/").split("/")[0].partition("?")[0]
        try:
            if self.server.slow_s and self.server.released.wait(self.server.slow_s):
                return
            answer = self.server.answers.get(self.path) or self.server.answers.get(self.path.partition("?")[0])
            if isinstance(answer, list):
                answer = answer[min(count, len(answer)) - 1]
            if name in RAW and answer is None:
                self.wfile.write(RAW[name])
                self.close_connection = True
            elif answer is None and hasattr(self, f"get_{name}"):
                getattr(self, f"get_{name}")()
            else:
                self.answer(*(answer or ANSWERS.get(name, MISSING)))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection |= "Content-Length" in headers

    def get_status(self) -> None:
        self.answer(int(self.path.split("/")[2]), b"", {})

    def begin_chunks(self) -> None:
        """Begin an answer of unknown length."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def get_endless(self) -> None:
        self.begin_chunks()
        while True:
            self.wfile.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")

    def get_drip(self) -> None:
        self.drip(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")

    def get_dripheader(self) -> None:
        self.drip(b"HTTP/1.1 200 OK\r\nX-")

    def drip(self, start: bytes) -> None:
        self.wfile.write(start)
        for _byte in range(1000):
            self.wfile.write(b"H")
            time.sleep(0.05)

    def get_stall(self) -> None:
        self.server.released.wait(20)
        self.close_connection = True


class LogServer(ThreadingHTTPServer):
    """What the handler shares. ``host`` is where it listens; ``url`` is its root.

    ``answers`` has for a path its answer, or those to its first requests, of which the last one stays.
    """

    request_queue_size = 128
    daemon_threads = True
    block_on_close = False

    def __init__(
        self, host: str = "127.0.0.1", certificate: str = "", *, port: int = 0, handler: type[Handler] = Handler
    ) -> None:
        super().__init__((host, port), handler)
        self.host = host
        self.scheme = "https" if certificate else "http"
        self.lock = threading.Lock()
        self.asked: dict[str, int] = {}
        self.peers: set[object] = set()
        self.headers: list[dict[str, str]] = []
        self.slow_s = 0.0  # before each answer
        self.answers: dict[str, Answer | Sequence[Answer]] = {}
        self.released = threading.Event()
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}:{self.server_port}"

    def redirect(self, path: str, target: str) -> None:
        self.answers[path] = (302, b"moved", {"Location": target})

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that hang up are what the tests are about


@contextmanager
def serving(make: Callable[[], LogServer] = LogServer) -> Iterator[LogServer]:
    """A server that answers until the block ends."""
    server = make()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join(5)

"""A real HTTP server on a free port whose paths behave as badly as log servers do, for the tests of fetch."""

from __future__ import annotations

import gzip
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LOG = b'"Dstat 0.7.3 CSV output"\n' + b"".join(b"%d,%d,0.1\n" % (i, i * 7 % 100) for i in range(500))


def bomb(size: int) -> bytes:
    """``size`` zeros in gzip, made without holding them."""
    packer = zlib.compressobj(9, wbits=31)
    piece = bytes(1 << 20)
    return b"".join(packer.compress(piece) for _ in range(size >> 20)) + packer.flush()


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
            if self.path in self.server.once and count == 1:
                self.answer(self.server.once[self.path], length=1 << 20)
                self.close_connection = True
            elif self.path in self.server.answers:
                status, body, headers = self.server.answers[self.path]
                self.answer(body, status, None, **headers)
            else:
                getattr(self, f"get_{name}", self.get_missing)(count)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, body: bytes, status: int = 200, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def get_plain(self, _: int) -> None:
        self.answer(LOG)

    def get_gz(self, _: int) -> None:
        self.answer(gzip.compress(LOG))

    def get_encoded(self, _: int) -> None:
        self.answer(gzip.compress(LOG), Content_Encoding="gzip")

    def get_twice(self, _: int) -> None:
        self.answer(gzip.compress(gzip.compress(LOG)), Content_Encoding="gzip")

    def get_thrice(self, _: int) -> None:
        self.answer(gzip.compress(gzip.compress(gzip.compress(LOG))), Content_Encoding="gzip, gzip")

    def get_brotli(self, _: int) -> None:
        self.answer(b"\x0b\x02\x80", Content_Encoding="br")

    def get_members(self, _: int) -> None:
        self.answer(gzip.compress(LOG) + gzip.compress(LOG) + bytes(100))

    def get_cutgzip(self, _: int) -> None:
        self.answer(gzip.compress(LOG)[:-100])

    def get_badgzip(self, _: int) -> None:
        packed = bytearray(gzip.compress(LOG))
        packed[-6] ^= 1
        self.answer(bytes(packed))

    def get_tail(self, _: int) -> None:
        self.answer(gzip.compress(LOG) + b"no gzip")

    def get_bomb(self, _: int) -> None:
        self.answer(self.server.bomb)

    def get_nestedbomb(self, _: int) -> None:
        self.answer(gzip.compress(self.server.bomb), Content_Encoding="gzip")

    def get_empties(self, _: int) -> None:
        self.answer(gzip.compress(gzip.compress(b"") * 200_000))

    def get_empty(self, _: int) -> None:
        self.answer(b"")

    def get_announced(self, _: int) -> None:
        self.answer(b"", length=1 << 40)

    def get_endless(self, _: int) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while True:
            self.wfile.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")

    def get_drip(self, _: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        for _byte in range(1000):
            self.wfile.write(b"x")
            self.wfile.flush()
            time.sleep(0.05)

    def get_dripheader(self, _: int) -> None:
        for _byte in range(1000):
            self.wfile.write(b"H" if _byte else b"HTTP/1.1 200 OK\r\nX-")
            self.wfile.flush()
            time.sleep(0.05)

    def get_stall(self, _: int) -> None:
        self.server.released.wait(20)
        self.close_connection = True

    def get_missing(self, _: int) -> None:
        self.answer(b"no such log", 404)

    def get_later(self, count: int) -> None:
        self.answer(LOG, 200) if count > 2 else self.answer(b"", 404)

    def get_once500(self, count: int) -> None:
        self.answer(LOG, 200) if count > 1 else self.answer(b"", 500)

    def get_status(self, _: int) -> None:
        self.answer(b"", int(self.path.split("/")[2]))

    def get_cut(self, _: int) -> None:
        self.answer(LOG[:100], length=len(LOG))
        self.close_connection = True

    def get_oncecut(self, count: int) -> None:
        self.get_cut(count) if count == 1 else self.answer(LOG)

    def get_hangup(self, _: int) -> None:
        self.close_connection = True
        self.connection.close()

    def get_noise(self, _: int) -> None:
        self.wfile.write(b"\x00\x01 no HTTP at all\r\n\r\n")
        self.close_connection = True

    def get_oddlength(self, _: int) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 6000 + b"\r\n\r\n")
        self.close_connection = True

    def get_to(self, _: int) -> None:
        """``/to/<n>/<index>``: redirects to ``server.targets[index]``."""
        _, _, index = self.path.strip("/").split("/")
        self.answer(b"moved", 302, Location=self.server.targets[int(index)])

    def get_round(self, _: int) -> None:
        self.answer(b"", 301, Location="/round")

    def get_nowhere(self, _: int) -> None:
        self.answer(b"", 302)


class LogServer(ThreadingHTTPServer):
    """What the handler shares. ``host`` is where it listens; ``url`` is its root."""

    request_queue_size = 128
    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str = "127.0.0.1", certificate: str = "") -> None:
        super().__init__((host, 0), Handler)
        self.host = host
        self.scheme = "https" if certificate else "http"
        self.lock = threading.Lock()
        self.asked: dict[str, int] = {}
        self.peers: set[object] = set()
        self.headers: list[dict[str, str]] = []
        self.targets: list[str] = []
        self.slow_s = 0.0  # before each answer
        self.once: dict[str, bytes] = {}  # the first answer of a path, which is cut there
        self.answers: dict[str, tuple[int, bytes, dict[str, str]]] = {}
        self.released = threading.Event()
        self.bomb = b""
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}:{self.server_port}"

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

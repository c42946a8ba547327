"""A log server that misbehaves: ``python -m tests.faults.bad_logs FOLDER PORT``.

``/BEHAVIOUR/NAME`` serves the file NAME of the folder in some bad way; a number after a dot counts, as in
``/missing.3/NAME``: not there for the first three times.
"""

from __future__ import annotations

import gzip
import os
import socket
import struct
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_PIECE = 1 << 20


def bomb(size: int) -> bytes:
    """``size`` zeros in gzip, made without holding them."""
    packer = zlib.compressobj(9, wbits=31)
    piece = bytes(_PIECE)
    return b"".join(packer.compress(piece) for _ in range(size // _PIECE)) + packer.flush()


class Server(ThreadingHTTPServer):
    """What its requests share."""

    daemon_threads = True
    request_queue_size = 256
    allow_reuse_address = True

    def __init__(self, folder: Path, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.folder = folder
        self.asked: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.bombs: dict[str, bytes] = {}
        for kind in ("bomb", "nested", "nested nested"):
            self.bomb(kind, 1 << 30)

    def bomb(self, kind: str, size: int) -> bytes:
        with self.lock:
            if kind not in self.bombs:
                data = self._plain(size)
                for _ in range(kind.count("nested")):
                    data = gzip.compress(data)
                self.bombs[kind] = data
            return self.bombs[kind]

    @staticmethod
    def _plain(size: int) -> bytes:
        """Made once for all servers: it takes seconds."""
        file = Path(tempfile.gettempdir(), f"ciml-faults-bomb-{size >> 20}.gz")
        if not file.exists():
            part = file.with_suffix(f".{os.getpid()}")
            part.write_bytes(bomb(size))
            os.replace(part, file)
        return file.read_bytes()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are what this is about."""


class Handler(BaseHTTPRequestHandler):
    """One method a behaviour."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.asked[self.path] += 1
            self.count = self.server.asked[self.path]
        behaviour, _, self.name = self.path.partition("?")[0].strip("/").partition("/")
        word, _, number = behaviour.partition(".")
        self.number = int(number or 0)
        try:
            getattr(self, f"do_{word}")()
        except OSError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def answer(
        self, body: bytes = b"", status: int = 200, length: int | None = None, *, encoding: str = "", location: str = ""
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        if encoding:
            self.send_header("Content-Encoding", encoding)
        if location:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(body)

    @property
    def body(self) -> bytes:
        return (self.server.folder / self.name).read_bytes()

    # --- row 15

    def do_plain(self) -> None:
        self.answer(self.body)

    def do_missing(self) -> None:
        """404, the first times or always."""
        self.answer(b"no such log", 404) if not self.number or self.count <= self.number else self.do_plain()

    def do_forbidden(self) -> None:
        self.answer(b"", 403) if not self.number or self.count <= self.number else self.do_plain()

    def do_broken(self) -> None:
        """500, the first times or always."""
        self.answer(b"oops", 500) if not self.number or self.count <= self.number else self.do_plain()

    def do_busy(self) -> None:
        self.answer(b"later", 503) if not self.number or self.count <= self.number else self.do_plain()

    def do_stall(self) -> None:
        """Takes the request and says nothing, the first times or always."""
        if not self.number or self.count <= self.number:
            time.sleep(30)
            self.close_connection = True
        else:
            self.do_plain()

    def do_reset(self) -> None:
        """Resets the connection in the middle of the body, the first times or always."""
        if self.number and self.count > self.number:
            self.do_plain()
            return
        body = self.body
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2])
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def do_cut(self) -> None:
        """Ends before the announced length, the first times or always."""
        if self.number and self.count > self.number:
            self.do_plain()
            return
        body = self.body
        self.answer(body[: len(body) // 2], length=len(body))
        self.close_connection = True

    def do_hangup(self) -> None:
        if self.number and self.count > self.number:
            self.do_plain()
            return
        self.close_connection = True

    # --- row 16

    def do_bomb(self) -> None:
        self.answer(self.server.bomb("bomb", self.number << 20))

    def do_nested(self) -> None:
        self.answer(self.server.bomb("nested", self.number << 20), encoding="gzip")

    def do_deep(self) -> None:
        self.answer(self.server.bomb("nested nested", self.number << 20), encoding="gzip")

    def do_around(self) -> None:
        """``/around.N/…``: N redirects, and then what comes after."""
        target = f"/around.{self.number - 1}/{self.name}" if self.number > 1 else f"/{self.name}"
        self.answer(b"", 302, location=target)

    def do_circle(self) -> None:
        self.answer(b"", 301, location=self.path)

    def do_away(self) -> None:
        self.answer(b"", 302, location="http://169.254.169.254/latest/meta-data")

    def do_endless(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while True:
            self.wfile.write(b"10000\r\n" + b"1,2,3,4,5,6,7,8\n" * 4096 + b"\r\n")

    def do_zeros(self) -> None:
        """Endless, and compressed: little comes over the wire, much comes out."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        packer = zlib.compressobj(9, wbits=31)
        while True:
            piece = packer.compress(bytes(_PIECE)) + packer.flush(zlib.Z_SYNC_FLUSH)
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")

    def do_drip(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        for _ in range(2000):
            self.wfile.write(b"1")
            self.wfile.flush()
            time.sleep(0.05)

    def do_driphead(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-")
        for _ in range(2000):
            self.wfile.write(b"a")
            self.wfile.flush()
            time.sleep(0.05)

    def do_widehead(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for _ in range(20_000):
            self.wfile.write(b"X-A: " + b"a" * 1000 + b"\r\n")

    def do_announced(self) -> None:
        self.answer(b"", length=1 << 40)

    def do_members(self) -> None:
        self.answer(gzip.compress(b"") * 100_000)

    def do_noise(self) -> None:
        self.wfile.write(b"\x00\x01\x02 no HTTP at all\r\n\r\n" * 100)
        self.close_connection = True

    def do_long(self) -> None:
        """One line of 40 MB."""
        self.answer(gzip.compress(b'"Dstat 0.7.4 CSV output"\n' + b"7" * (40 << 20)))

    def do_wide(self) -> None:
        """A million columns."""
        names = b",".join(b'"c%d"' % number for number in range(300_000))
        self.answer(gzip.compress(b'"Cmdline:","dstat"\n"group"' + b"," * 299_999 + b"\n" + names + b"\n1,2\n"))


if __name__ == "__main__":
    with Server(Path(sys.argv[1]), int(sys.argv[2])) as server:
        server.serve_forever()

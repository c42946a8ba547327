"""A log server that misbehaves: ``python -m tests.faults.bad_logs FOLDER PORT``.

``/BEHAVIOUR/NAME`` serves the file NAME of the folder in some bad way; a number after a dot counts, as in
``/missing.3/NAME``: missing for the first three times; without a number, always.
"""

from __future__ import annotations

import gzip
import socket
import struct
import sys
import threading
import time
import zlib
from collections import Counter
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_PIECE = 1 << 20
_STATUS = {"missing": 404, "forbidden": 403, "broken": 500, "busy": 503}


@cache
def bomb(layers: int) -> bytes:
    """Return a GiB of zeros, in many members, in so many layers of gzip."""
    return gzip.compress(bomb(layers - 1)) if layers > 1 else gzip.compress(bytes(_PIECE)) * 1024


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

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that hang up: they have reason to."""


class Handler(BaseHTTPRequestHandler):
    """Dispatches to a method or a status for each behaviour."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        behaviour, _, self.name = self.path.partition("?")[0].strip("/").partition("/")
        word, _, number = behaviour.partition(".")
        self.number = int(number or 0)
        with self.server.lock:
            self.server.asked[self.path] += 1
            good = bool(self.number) and self.server.asked[self.path] > self.number
        try:
            if word in ("stall", "reset", "cut", "hangup", *_STATUS):
                self._fail(word, good)
            else:
                getattr(self, f"do_{word}")()
        except OSError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def answer(self, body: bytes = b"", status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def pieces(self) -> None:
        """Begin an answer of unknown length."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    # --- row 15

    def _fail(self, word: str, good: bool) -> None:
        body = (self.server.folder / self.name).read_bytes()
        if good:
            self.answer(body)
            return
        if word in _STATUS:
            self.answer(b"oops", _STATUS[word])
            return
        if word == "stall":
            time.sleep(30)
        elif word != "hangup":  # in the middle of the body
            self.answer(body[: len(body) // 2], Content_Length=str(len(body)))
        if word == "reset":
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        self.close_connection = True

    def do_plain(self) -> None:
        self.answer((self.server.folder / self.name).read_bytes())

    # --- row 16

    def do_bomb(self) -> None:
        self.answer(bomb(1))

    def do_nested(self) -> None:
        self.answer(bomb(2), Content_Encoding="gzip")

    def do_deep(self) -> None:
        self.answer(bomb(3), Content_Encoding="gzip")

    def do_around(self) -> None:
        """``/around.N/…``: N redirects, and then what comes after."""
        self.answer(
            status=302, Location=f"/around.{self.number - 1}/{self.name}" if self.number > 1 else f"/{self.name}"
        )

    def do_circle(self) -> None:
        self.answer(status=301, Location=self.path)

    def do_away(self) -> None:
        self.answer(status=302, Location="http://169.254.169.254/latest/meta-data")

    def do_endless(self) -> None:
        self.pieces()
        while True:
            self.wfile.write(b"10000\r\n" + b"1,2,3,4,5,6,7,8\n" * 4096 + b"\r\n")

    def do_zeros(self) -> None:
        """Endless, and compressed: little is sent, and it decompresses to much."""
        self.pieces()
        packer = zlib.compressobj(9, wbits=31)
        while True:
            piece = packer.compress(bytes(_PIECE)) + packer.flush(zlib.Z_SYNC_FLUSH)
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")

    def do_drip(self) -> None:
        self.answer(Content_Length="100000")
        self._drip()

    def do_driphead(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-")
        self._drip()

    def _drip(self) -> None:
        for _ in range(2000):
            self.wfile.write(b"1")
            self.wfile.flush()
            time.sleep(0.05)

    def do_widehead(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for _ in range(20_000):
            self.wfile.write(b"X-A: " + b"a" * 1000 + b"\r\n")

    def do_announced(self) -> None:
        self.answer(Content_Length=str(1 << 40))

    def do_members(self) -> None:
        self.answer(gzip.compress(b"") * 100_000)

    def do_noise(self) -> None:
        self.wfile.write(b"\x00\x01\x02 no HTTP at all\r\n\r\n" * 100)
        self.close_connection = True

    def do_long(self) -> None:
        """One line of 40 MB."""
        self.answer(gzip.compress(b'"Dstat 0.7.4 CSV output"\n' + b"7" * (40 << 20)))

    def do_wide(self) -> None:
        """300,000 columns."""
        names = b",".join(b'"c%d"' % number for number in range(300_000))
        self.answer(gzip.compress(b'"Cmdline:","dstat"\n"group"' + b"," * 299_999 + b"\n" + names + b"\n1,2\n"))


if __name__ == "__main__":
    with Server(Path(sys.argv[1]), int(sys.argv[2])) as server:
        server.serve_forever()

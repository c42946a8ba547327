"""A log server that misbehaves: ``python -m tests.faults.bad_logs FOLDER PORT``.

``/BEHAVIOUR/NAME`` serves the file NAME of the folder in some bad way, as `tests.transforms.fetch.log_server` does or
as follows; a number after a dot counts, as in ``/missing.3/NAME``: missing for the first three times; without a number,
always.
"""

from __future__ import annotations

import gzip
import socket
import struct
import sys
import time
import zlib
from functools import cache
from pathlib import Path

from ciml.limits import MIB
from tests.transforms.fetch import log_server
from tests.transforms.fetch.log_server import RAW

_STATUS = {"missing": 404, "forbidden": 403, "broken": 500, "busy": 503}


@cache
def bomb(layers: int) -> bytes:
    """Return a GiB of zeros, in many members, in so many layers of gzip."""
    return gzip.compress(bomb(layers - 1)) if layers > 1 else gzip.compress(bytes(MIB)) * 1024


class Server(log_server.LogServer):
    """What its requests share."""

    request_queue_size = 256

    def __init__(self, folder: Path, port: int) -> None:
        super().__init__(port=port, handler=Handler)
        self.folder = folder


class Handler(log_server.Handler):
    """Dispatches to a method or a status for each behaviour."""

    server: Server

    def do_GET(self) -> None:
        behaviour, _, self.name = self.path.partition("?")[0].strip("/").partition("/")
        word, _, number = behaviour.partition(".")
        self.number = int(number or 0)
        with self.server.lock:
            count = self.server.asked[self.path] = self.server.asked.get(self.path, 0) + 1
        try:
            if word in ("stall", "reset", "cut", "hangup", *_STATUS):
                self._fail(word, good=bool(self.number) and count > self.number)
            elif word in RAW:
                self.wfile.write(RAW[word])
                self.close_connection = True
            else:
                getattr(self, f"get_{word}")()
        except OSError:
            self.close_connection = True

    # --- row 15

    def _fail(self, word: str, *, good: bool) -> None:
        body = (self.server.folder / self.name).read_bytes()
        if good:
            self.answer(200, body, {})
            return
        if word in _STATUS:
            self.answer(_STATUS[word], b"oops", {})
            return
        if word == "stall":
            time.sleep(30)
        elif word != "hangup":  # in the middle of the body
            self.answer(200, body[: len(body) // 2], {"Content-Length": str(len(body))})
        if word == "reset":
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        self.close_connection = True

    def get_plain(self) -> None:
        self.answer(200, (self.server.folder / self.name).read_bytes(), {})

    # --- row 16

    def get_bomb(self) -> None:
        self.answer(200, bomb(1), {})

    def get_nested(self) -> None:
        self.answer(200, bomb(2), {"Content-Encoding": "gzip"})

    def get_deep(self) -> None:
        self.answer(200, bomb(3), {"Content-Encoding": "gzip"})

    def get_around(self) -> None:
        """``/around.N/…``: N redirects, and then what comes after."""
        self.answer(
            302, b"", {"Location": f"/around.{self.number - 1}/{self.name}" if self.number > 1 else f"/{self.name}"}
        )

    def get_circle(self) -> None:
        self.answer(301, b"", {"Location": self.path})

    def get_away(self) -> None:
        self.answer(302, b"", {"Location": "http://169.254.169.254/latest/meta-data"})

    def get_zeros(self) -> None:
        """Endless, and compressed: little is sent, and it decompresses to much."""
        self.begin_chunks()
        packer = zlib.compressobj(9, wbits=31)
        while True:
            piece = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_SYNC_FLUSH)
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")

    def get_widehead(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for _ in range(20_000):
            self.wfile.write(b"X-A: " + b"a" * 1000 + b"\r\n")

    def get_announced(self) -> None:
        self.answer(200, b"", {"Content-Length": str(1 << 40)})

    def get_members(self) -> None:
        self.answer(200, gzip.compress(b"") * 100_000, {})

    def get_long(self) -> None:
        """One line of 40 MB."""
        self.answer(200, gzip.compress(b'"Dstat 0.7.4 CSV output"\n' + b"7" * (40 << 20)), {})

    def get_wide(self) -> None:
        """300,000 columns."""
        names = b",".join(b'"c%d"' % number for number in range(300_000))
        text = b'"Cmdline:","dstat"\n"group"' + b"," * 299_999 + b"\n" + names + b"\n1,2\n"
        self.answer(200, gzip.compress(text), {})


if __name__ == "__main__":
    with Server(Path(sys.argv[1]), int(sys.argv[2])) as server:
        server.serve_forever()

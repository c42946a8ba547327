"""A small threaded HTTP server for one folder: ``python -m ciml.engines.log_server FOLDER PORT``."""

from __future__ import annotations

import sys
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keep-alive: a fetcher requests thousands of small files
    # Send head and body in one segment; else each answer waits for the acknowledgement of its head.
    wbufsize = 1 << 16
    disable_nagle_algorithm = True
    timeout = 60
    server_version = "ciml-logs"

    def list_directory(self, path: object) -> BytesIO | None:
        self.send_error(HTTPStatus.NOT_FOUND, "No such log")
        return None

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Do not log requests, so that the log stays small."""


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True


def main(folder: str, port: int) -> None:
    """Serve until a signal ends it."""
    with _Server(("127.0.0.1", port), partial(_Handler, directory=folder)) as server:
        server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

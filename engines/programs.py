"""Small programs that engines run as processes of their own: ``python -m ciml.engines.programs NAME ARGUMENT...``.

``logs FOLDER PORT`` serves a folder over HTTP. ``mock-broker FILE`` runs librdkafka's mock broker, and writes its
address to FILE atomically. ``stop-with-parent PID STARTED HOME NAME...`` stops engines of a home when another process
has ended: a test or a demo, which may be killed.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

from ciml.engines import processes, state
from ciml.engines.state import ProcessId


class _LogHandler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keep-alive: a fetcher requests thousands of small files
    # Send head and body in one segment. Otherwise each answer waits for the acknowledgement of its head.
    wbufsize = 1 << 16
    disable_nagle_algorithm = True
    timeout = 60  # of an idle connection, s
    server_version = "ciml-logs"

    def list_directory(self, path: object) -> BytesIO | None:
        self.send_error(HTTPStatus.NOT_FOUND, "No such log")
        return None

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Do not log requests, so that the log stays small."""


class _LogServer(ThreadingHTTPServer):
    request_queue_size = 128  # beyond the default of 5, a burst of connections waits for retransmissions
    daemon_threads = True


def serve_logs(folder: str, port: str) -> None:
    """Serve a folder until a signal ends this process."""
    with _LogServer(("127.0.0.1", int(port)), partial(_LogHandler, directory=folder)) as server:
        server.serve_forever()


def run_mock_broker(address_file: str) -> None:
    """Run the mock broker until a signal ends this process; write its address to ``address_file``."""
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    from confluent_kafka import Producer

    # The brokers run in this client's threads; the client is otherwise unused.
    holder = Producer({"test.mock.num.brokers": 1, "log_level": 3})
    brokers = holder.list_topics(timeout=10).brokers.values()
    staged = f"{address_file}.new"
    with open(staged, "w") as out:
        out.write(",".join(f"{broker.host}:{broker.port}" for broker in brokers))
    os.replace(staged, address_file)
    signal.sigwait(signals)


def stop_with_parent(pid: str, started: str, home: str, *names: str) -> None:
    """Wait for a process to end, then stop the named engines in ``home``."""
    from ciml.engines import launcher

    processes.wait_for_end(ProcessId(int(pid), float(started)))
    if state.state_file(Path(home)).exists():
        launcher.stop(names, home)


_PROGRAMS: dict[str, Callable[..., None]] = {
    "logs": serve_logs,
    "mock-broker": run_mock_broker,
    "stop-with-parent": stop_with_parent,
}

if __name__ == "__main__":
    _PROGRAMS[sys.argv[1]](*sys.argv[2:])

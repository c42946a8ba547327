"""Starts Python workers for Flink: ``python -m cli.engines.worker_pool PORT SOCKET``.

Beam's own ``worker_pool_main`` listens on all interfaces, where whoever asks has a process started; takes the first
``python`` in PATH; gives workers a pipe that nobody reads; and leaves them behind when it, or the TaskManager that they
work for, is killed. Several pools share one port: the system deals connections out among them.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc

_TICK_S = 0.5
_GRACE_S = 5.0
_LONELY_S = 10.0  # a worker whose job cannot be reached for so long is ended


class Pool(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
    """The workers of this process. `serve` starts and ends them in its own thread.

    A worker asks the kernel to be killed with its parent, and for the kernel that is the *thread* which started it.
    """

    def __init__(self) -> None:
        self._asked: queue.Queue[tuple[str, str, str]] = queue.Queue()
        self._workers: dict[str, _Worker] = {}

    def StartWorker(self, request: Any, context: Any) -> Any:  # noqa: N802 (gRPC's name)
        self._asked.put(("start", request.worker_id, request.control_endpoint.url))
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(self, request: Any, context: Any) -> Any:  # noqa: N802 (gRPC's name)
        self._asked.put(("stop", request.worker_id, ""))
        return beam_fn_api_pb2.StopWorkerResponse()

    def serve(self) -> None:
        """Does what is asked, and looks after the workers, for ever."""
        while True:
            with contextlib.suppress(queue.Empty):
                what, worker_id, control = self._asked.get(timeout=_TICK_S)
                if what == "start":
                    self._workers[worker_id] = _Worker(worker_id, control)
                elif worker_id in self._workers:
                    self._workers[worker_id].end()
            self._workers = {name: one for name, one in self._workers.items() if one.look()}


class _Worker:
    def __init__(self, worker_id: str, control: str) -> None:
        self._name, self._control = worker_id, control
        command = [sys.executable, "-m", "cli.engines.worker", str(os.getpid()), control, worker_id]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        self._reached = time.monotonic()
        self._end_at: float | None = None
        _say(f"worker {worker_id}: started, pid {self._process.pid}")

    def end(self) -> None:
        self._process.terminate()
        self._end_at = time.monotonic() + _GRACE_S

    def look(self) -> bool:
        """Whether it still runs; ends it when its time is over or its job has gone."""
        code = self._process.poll()
        if code is not None:
            _say(f"worker {self._name}: ended ({code})")
            return False
        now = time.monotonic()
        if self._end_at is not None:
            if now > self._end_at:
                self._process.kill()
        elif _listens(self._control):
            self._reached = now
        elif now - self._reached > _LONELY_S:
            _say(f"worker {self._name}: nobody is at {self._control} any more")
            self.end()
        return True


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=1):
            return True
    except OSError:
        return False


def _answer_health(name: str) -> None:
    """Says ok to whoever connects to an abstract socket: the keeper, which cannot choose among pools on one port."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(f"\0{name}")
    server.listen()

    def run() -> None:
        while True:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(b"ok")

    threading.Thread(target=run, name="health", daemon=True).start()


def _say(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {text}", flush=True)


def main(port: int, name: str) -> None:
    """Serves until it is killed."""
    options = [("grpc.so_reuseport", 1), ("grpc.http2.max_pings_without_data", 0), ("grpc.http2.max_ping_strikes", 0)]
    server = grpc.server(ThreadPoolExecutor(max_workers=4), options=options)
    pool = Pool()
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    _answer_health(name)
    pool.serve()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])

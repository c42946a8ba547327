"""Starts Python workers for Flink: ``python -m ciml.engines.flink.worker_pool PORT SOCKET``.

A worker is ``python -m ciml.engines.flink.worker_pool PARENT``. It imports a job's modules and waits for a line on
standard input: the control address and its own id.

Beam's own ``worker_pool_main`` listens on all interfaces, where any client can start a process; runs the first
``python`` in PATH; connects workers to a pipe without a reader; and leaves workers behind when it, or their
TaskManager, is killed. This pool is small (it does not import Beam) and keeps one worker with all imports ready.

Several pools share one port; the kernel distributes the connections.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from ciml.tensorflow import declare_own_process

_TICK_S = 0.25
_GRACE_S = 5.0
_UNREACHABLE_S = 10.0  # after which a worker whose job does not answer is stopped
_CHECK_S = 2.0
_SPARE_AFTER_S = 5.0  # delay of a new spare, until the last worker has started
_PR_SET_PDEATHSIG = 1
#: A worker imports them in advance; at a job's start they would take seconds.
_MODULES = (
    "apache_beam.runners.worker.sdk_worker",
    "ciml.pipelines.ingest.pipeline",
    "ciml.pipelines.predict",
)
_SERVICE = "org.apache.beam.model.fn_execution.v1.BeamFnExternalWorkerPool"


def _message(name: str, **fields: tuple[int, str]) -> Any:
    """Return a message class with the used fields of a Beam message."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{name}.proto", package="pool", syntax="proto3")
    message = file.message_type.add(name=name)
    kinds = descriptor_pb2.FieldDescriptorProto
    for field, (number, kind) in fields.items():
        added = message.field.add(name=field, number=number, label=kinds.LABEL_OPTIONAL)
        added.type = kinds.TYPE_STRING if kind == "string" else kinds.TYPE_BYTES
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"pool.{name}"))


_Request = _message("Request", worker_id=(1, "string"), control_endpoint=(2, "bytes"))
_Endpoint = _message("Endpoint", url=(1, "string"))


class _Call(NamedTuple):
    """A call of Beam's worker pool service: ``start`` or ``stop``."""

    method: str
    worker_id: str
    control: str = ""


class Pool:
    """The workers of this process. `serve` starts and ends them in its own thread.

    The kernel kills a worker with the *thread* that started it (PDEATHSIG).
    """

    def __init__(self) -> None:
        self._calls: queue.Queue[_Call] = queue.Queue()
        self._workers: dict[str, _Worker] = {}
        self._spare: subprocess.Popen[bytes] | None = None
        self._spare_at_s = 0.0

    def handler(self) -> grpc.GenericRpcHandler:
        """Return Beam's worker pool service for gRPC."""

        def start(data: bytes, context: Any) -> bytes:
            request = _Request.FromString(data)
            control = _Endpoint.FromString(request.control_endpoint).url
            self._calls.put(_Call("start", request.worker_id, control))
            return b""

        def stop(data: bytes, context: Any) -> bytes:
            self._calls.put(_Call("stop", _Request.FromString(data).worker_id))
            return b""

        methods = {"StartWorker": start, "StopWorker": stop}
        handlers = {name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()}
        return grpc.method_handlers_generic_handler(_SERVICE, handlers)

    def serve(self) -> None:
        """Process requests and watch the workers until this process is killed."""
        while True:
            with contextlib.suppress(queue.Empty):
                call = self._calls.get(timeout=_TICK_S)
                if call.method == "start":
                    worker = _Worker(self._take_process(), call.control, call.worker_id)
                    self._workers[f"{call.worker_id} of {call.control}"] = worker
                else:
                    self._end(call.worker_id)
            self._workers = {name: worker for name, worker in self._workers.items() if worker.check()}
            if self._spare is not None and self._spare.poll() is not None:
                self._spare = None
                self._spare_at_s = time.monotonic() + _SPARE_AFTER_S
            if self._spare is None and time.monotonic() > self._spare_at_s:
                self._spare = _spawn()

    def _take_process(self) -> subprocess.Popen[bytes]:
        spare = self._spare
        self._spare = None
        self._spare_at_s = time.monotonic() + _SPARE_AFTER_S
        return spare if spare is not None and spare.poll() is None else _spawn()

    def _end(self, worker_id: str) -> None:
        # Ids count within a job and a TaskManager, so two jobs can have equal ids. A worker whose job closed its stream
        # ends by itself, or is stopped when its control address is unreachable.
        workers = [worker for worker in self._workers.values() if worker.id == worker_id]
        if len(workers) == 1:
            workers[0].end()


class _Worker:
    """A worker of a job: its process, and the control address at which it reaches the job."""

    def __init__(self, process: subprocess.Popen[bytes], control: str, worker_id: str) -> None:
        self.id = worker_id
        self._process = process
        self._control = control
        self._reached_s = self._checked_s = time.monotonic()
        self._kill_at_s: float | None = None
        with contextlib.suppress(OSError):  # it just died; Flink requests another
            assert process.stdin is not None
            process.stdin.write(f"{control} {worker_id}\n".encode())
            process.stdin.flush()
        _log(f"worker {worker_id} of {control}: pid {process.pid}")

    def end(self) -> None:
        if self._kill_at_s is None:
            self._process.terminate()
            self._kill_at_s = time.monotonic() + _GRACE_S

    def check(self) -> bool:
        """Return whether the worker runs; stop it after its grace, or if its job is unreachable."""
        code = self._process.poll()
        if code is not None:
            _log(f"worker {self.id} of {self._control}: ended ({code})")
            return False
        now = time.monotonic()
        if self._kill_at_s is not None:
            if now > self._kill_at_s:
                self._process.kill()
        elif now - self._checked_s > _CHECK_S:
            self._checked_s = now
            if _listens(self._control):
                self._reached_s = now
            elif now - self._reached_s > _UNREACHABLE_S:
                _log(f"worker {self.id}: control address {self._control} is unreachable")
                self.end()
        return True


def _spawn() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ciml.engines.flink.worker_pool", str(os.getpid())]
    return subprocess.Popen(command, stdin=subprocess.PIPE)


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=1):
            return True
    except (OSError, ValueError):
        return False


def _answer_health(name: str) -> None:
    """Answer "ok" on an abstract socket: the watchdog cannot choose among pools that share a port."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(f"\0{name}")
    server.listen()

    def run() -> None:
        while True:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(b"ok")

    threading.Thread(target=run, name="health", daemon=True).start()


def _log(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {text}", flush=True)


def work(parent: int) -> None:
    """Work for one job until it closes its stream, or the pool ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before the signal was set
        return
    declare_own_process()
    for name in _MODULES:
        with contextlib.suppress(ImportError):  # an extra is not installed; its users report that
            importlib.import_module(name)
    control, _, worker_id = sys.stdin.readline().strip().partition(" ")
    if not worker_id:
        return
    from apache_beam.runners.worker.sdk_worker import SdkHarness

    SdkHarness(control, worker_id=worker_id, state_cache_size=0, data_buffer_time_limit_ms=-1).run()


def serve(port: int, name: str) -> None:
    """Run a pool until it is killed."""
    options = [("grpc.so_reuseport", 1), ("grpc.http2.max_pings_without_data", 0), ("grpc.http2.max_ping_strikes", 0)]
    server = grpc.server(ThreadPoolExecutor(max_workers=4), options=options)
    pool = Pool()
    server.add_generic_rpc_handlers((pool.handler(),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    _answer_health(name)
    pool.serve()


if __name__ == "__main__":
    number, *names = sys.argv[1:]
    if names:
        serve(int(number), *names)
    else:
        work(int(number))
